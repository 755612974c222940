"""The checkpoints of one run, over all its ranks: what to go on from, when to write, when to leave."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdadmm import checkpoint
from pdadmm.checkpoint import Checkpoint, DamagedError, State
from pdadmm.errors import DivergenceError, InputError, Interrupted
from pdadmm.parallel.guard import Guard
from pdadmm.parallel.launch import together
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import whole

__all__ = ["Saver"]

log = logging.getLogger("pdadmm")

# What may differ between a run and the one that goes on with it: every iteration stays the same, to rounding.
FREE = ("threads", "max_seconds", "on_divergence", "grid", "device", "device_memory")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Saver:
    """Writes the checkpoints of a run into ``folder``, one every ``every`` iterations, and finds the last.

    Every method but ``asked`` and ``beat`` is collective. ``resume`` goes on from the newest whole checkpoint,
    or starts where there is none yet. Raises InputError on all ranks for a folder that cannot be written or holds
    another run, and for checkpoints that are all damaged; they call the folder by the ``argument`` that gave it.

    ``saved``: the Checkpoint to go on from, or None. ``asked``: the signal that this rank was sent, 0 without.
    """

    def __init__(
        self, folder: str | os.PathLike, every: int, resume: bool, transport: Transport, argument: str = "checkpoint"
    ) -> None:
        self.folder, self.every, self.resume, self.transport = Path(folder), every, resume, transport
        self.argument = argument
        self.saved: Checkpoint | None = None
        self.asked = self.agreed = self.written = 0

    def open(self, settings: Any, data: Callable[[], dict[str, Any]]) -> None:
        """Make the folder ready and read the last checkpoint; ``settings`` and ``data`` say what run this is."""
        together(self.transport, self._check_arguments)
        token = self.transport.bcast(f"writable-{secrets.token_hex(8)}")
        together(self.transport, lambda: self._make_folder(token) if self.transport.rank == 0 else None)
        together(self.transport, lambda: self._look_for(token))
        self.about = together(self.transport, lambda: {"run": self._run(settings), "data": data()})
        together(self.transport, lambda: self._tidy(token) if self.transport.rank == 0 else None)
        paths = self.transport.bcast(checkpoint.found(self.folder) if self.transport.rank == 0 else None)
        if paths and not self.resume:
            remedy = "resume (--resume) goes on with that run; another folder starts a new one"
            raise InputError(self.argument, str(self.folder), "a folder without checkpoints", remedy)
        if self.resume:
            self._choose(paths)

    def _check_arguments(self) -> None:
        try:
            self.every = whole(1).accept(self.every)
        except (ValueError, TypeError, OverflowError):
            raise InputError("checkpoint_every", self.every, whole(1).allowed) from None

    def _make_folder(self, token: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / token).write_bytes(b"x")
        except OSError as error:
            allowed = "a folder that can be written"
            raise InputError(self.argument, str(self.folder), allowed, error.strerror or "") from None

    def _look_for(self, token: str) -> None:
        if not (self.folder / token).exists():
            raise InputError(self.argument, str(self.folder), "a folder that all ranks see", "use a shared file system")

    def _tidy(self, token: str) -> None:
        (self.folder / token).unlink(missing_ok=True)
        checkpoint.discard(self.folder)

    def _run(self, settings: Any) -> dict[str, Any]:
        """Return solver and settings as JSON gives them back, and the number of ranks where the run depends on it."""
        values = {"solver": type(settings).__name__, **settings.get_params()}
        if getattr(settings, "bound_to_ranks", False):
            values["ranks"] = self.transport.size
        return json.loads(json.dumps(values, default=dataclasses.asdict))

    # Going on

    def _choose(self, paths: list[Path]) -> None:
        """Open the newest checkpoint whose files are all whole."""
        damage = []
        for path in paths:
            problem = self._damage(path)
            if problem is None:
                self._compare()
                self.written = self.saved.body["iteration"]
                if self.transport.rank == 0:
                    log.info("going on from iteration %d of %s", self.written, self.folder)
                return
            damage.append(f"{path.name}: {problem}")
            if self.transport.rank == 0:
                log.warning("a checkpoint is damaged and left alone: %s", damage[-1])
        self.saved = None
        if damage:
            raise InputError(self.argument, str(self.folder), "a folder with a whole checkpoint", "; ".join(damage))
        if self.transport.rank == 0:
            log.info("no checkpoint in %s yet: starting from the beginning", self.folder)

    def _damage(self, path: Path) -> str | None:
        """Open a checkpoint on all ranks, which share the reading; return the first problem found."""
        problem = None
        try:
            self.saved = Checkpoint.open(path)
            for layer in range(self.transport.rank, self.saved.layers, self.transport.size):
                self.saved.check(layer)
        except DamagedError as error:
            problem = str(error)
        return next((part for part in self.transport.allgather(problem) if part is not None), None)

    def _compare(self) -> None:
        """Raise InputError where the checkpoint is of another run, naming what differs."""
        differences = []
        for kind in ("run", "data"):
            then, now = self.saved.body[kind], self.about[kind]
            names = [name for name in {**then, **now} if name not in FREE and then.get(name) != now.get(name)]
            differences += [f"{name} was {then.get(name)} and is {now.get(name)}" for name in names]
        if differences:
            allowed = "a folder of the same settings and data"
            raise InputError(self.argument, str(self.folder), allowed, "; ".join(differences))

    # Writing

    def step(
        self, iteration: int, last: bool, layers: Callable[[], dict[int, State]], run: Callable[[], dict[str, Any]]
    ) -> None:
        """After an iteration: write a checkpoint where one is due, then leave where a signal asked for it.

        ``layers`` gives the state of the layers that this rank writes, ``run`` (collective) what all ranks share.
        Raises Interrupted, a KeyboardInterrupt, after SIGINT, SystemExit(143) after SIGTERM.
        """
        if last or self.agreed or iteration % self.every == 0:
            self._write(iteration, layers(), run())
        if self.agreed:
            self._leave(iteration)

    def _write(self, iteration: int, layers: dict[int, State], run: dict[str, Any]) -> None:
        self.transport.trace.mark("checkpoint")
        partial = checkpoint.partial_folder(self.folder, iteration)
        problem = self._tried(lambda: partial.mkdir(exist_ok=True) if self.transport.rank == 0 else None)
        digests: dict[int, str] = {}

        def write_own() -> None:
            for layer, state in layers.items():
                digests[layer] = checkpoint.write_part(self.folder, iteration, layer, state)

        problem = problem or self._tried(write_own)
        parts = self.transport.allgather(digests)
        together_digests = {layer: digest for part in parts for layer, digest in part.items()}
        body = self.about | {"progress": run}

        def commit() -> None:
            if self.transport.rank == 0:
                checkpoint.commit(self.folder, iteration, body, together_digests)

        problem = problem or self._tried(commit)
        if problem is None:
            self.written = iteration
        elif self.transport.rank == 0:
            checkpoint.discard(self.folder)  # what little room is left is needed
            last = f"the one of iteration {self.written} stays" if self.written else "there is none yet"
            log.warning("the checkpoint of iteration %d could not be written (%s); %s", iteration, problem, last)

    def _tried(self, work: Callable[[], None]) -> str | None:
        """Do ``work`` on every rank; return what the system said on the first rank where it failed."""
        problem = None
        try:
            work()
        except OSError as error:
            problem = error.strerror or str(error)
        return next((part for part in self.transport.allgather(problem) if part is not None), None)

    # Signals

    def agree(self, asked: list[int]) -> None:
        """Take what the ranks were asked, gathered from all of them: any signal stops them all."""
        self.agreed = max(asked)

    def _leave(self, iteration: int) -> None:
        name = signal.Signals(self.agreed).name
        kept = f"the checkpoint of iteration {self.written} in {self.folder}" if self.written else "no checkpoint"
        sentence = f"stopped by {name} after iteration {iteration}, with {kept}"
        sentence += "; resume (--resume) goes on from there" if self.written else " written"
        if self.transport.rank == 0:
            log.warning("%s", sentence)
        if self.agreed == signal.SIGINT:
            raise Interrupted(sentence)
        raise SystemExit(128 + self.agreed)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While training: note signals instead of dying of them, and have a guard report a rank that dies.

        A second signal has its usual effect at once.
        """
        before: dict[int, Any] = {}

        def note(number: int, frame: Any) -> None:
            self.asked = number
            for one, handler in before.items():
                signal.signal(one, handler)

        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            # None: a handler that is not Python's, and cannot be put back
            before.update({number: signal.signal(number, note) or signal.SIG_DFL for number in SIGNALS})
        try:
            with Guard(self.folder, self.transport) as self.guard:
                yield
        except DivergenceError as error:
            if not self.written:
                raise
            kept = f"the checkpoint of iteration {self.written} in {self.folder} is the last good state"
            raise DivergenceError(f"{error}; {kept}") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def beat(self, iteration: int, holds: str) -> None:
        """Say which iteration this rank is in and what it ``holds``, for the guard's report."""
        self.guard.beat(iteration, holds)
