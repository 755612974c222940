"""What ``fit`` is told of checkpoints and of training from disk, checked here for Python and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pdadmm.disk.limits import Limit
from pdadmm.errors import InputError
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import memory_size
from pdadmm.saver import Saver

__all__ = ["CHECKPOINT_EVERY", "Kept"]

CHECKPOINT_EVERY = 10  # iterations


@dataclass(frozen=True)
class Kept:
    """The arguments of ``fit`` about what outlives an iteration, as NodeClassifier.fit describes them."""

    checkpoint: str | os.PathLike | None = None
    checkpoint_every: int = CHECKPOINT_EVERY
    resume: bool = False
    memory: int | str | None = None
    scratch: str | os.PathLike | None = None

    def check(self, every: str = "checkpoint_every") -> None:
        """Raise InputError for arguments that lack the one they go with; ``every``: what the user calls that one."""
        if (self.memory is None) != (self.scratch is None):
            raise InputError("memory, scratch", f"{self.memory}, {self.scratch}", "given both, or neither")
        asked_every = self.checkpoint_every != CHECKPOINT_EVERY
        if self.memory is not None:
            remedy = "scratch holds a checkpoint of every iteration"
            if self.checkpoint is not None:
                raise InputError("checkpoint", str(self.checkpoint), "left out with memory", remedy)
            if asked_every:
                raise InputError(every, str(self.checkpoint_every), "left out with memory", remedy)
        elif self.checkpoint is None:
            remedy = "name the folder of the checkpoints"
            if self.resume:
                raise InputError("resume", self.resume, "used with checkpoint", remedy)
            if asked_every:
                raise InputError(every, self.checkpoint_every, "left out without checkpoint", remedy)

    def limit(self, solver: Any, ranks: int) -> Limit | None:
        """Return the limit that a training from disk keeps to, None for one in memory. Raises InputError."""
        if not solver.streams and (self.memory is not None or self.scratch is not None):
            name, value = ("scratch", str(self.scratch)) if self.memory is None else ("memory", self.memory)
            raise InputError(name, value, f"left out: {solver.__name__} trains in memory")
        self.check()
        if self.memory is None:
            return None
        if ranks > 1:
            raise InputError("memory", self.memory, "left out on several ranks", "start one process, or leave it out")
        try:
            return Limit(memory_size.accept(self.memory))
        except (ValueError, TypeError, KeyError, OverflowError):
            raise InputError("memory", self.memory, memory_size.allowed) from None

    def saver(
        self, settings: Any, limit: Limit | None, transport: Transport, described: Callable[[], dict[str, Any]]
    ) -> Saver | None:
        """Return what writes the checkpoints, opened, None without any; ``described`` tells the data. Collective."""
        about: dict[str, Any] = {}
        if limit is not None and self.scratch is not None:
            # every pass writes over the state of the checkpoint before the last
            saver, about = Saver(self.scratch, 1, self.resume, transport, "scratch"), {"memory": limit.limit}
        elif self.checkpoint is not None:
            saver = Saver(self.checkpoint, self.checkpoint_every, self.resume, transport)
        else:
            return None
        saver.open(settings, lambda: described() | about)
        return saver
