"""A limit on what memory a process may take from here on."""

from __future__ import annotations

from typing import Any

from pdadmm.errors import InputError
from pdadmm.files import peak_rss_bytes, resident_bytes
from pdadmm.parameters import memory_size

__all__ = ["Limit", "limit_of"]


class Limit:
    """A limit of ``limit`` bytes on the resident set beyond what the process holds as this is made."""

    def __init__(self, limit: int) -> None:
        self.limit, self.start, self._peak = limit, resident_bytes(), peak_rss_bytes()

    def most(self) -> int:
        """Return the most that was taken since: exact where the peak is newer than this limit, a lower bound else."""
        peak = peak_rss_bytes()
        return max(resident_bytes(), peak if peak > self._peak else 0) - self.start


def limit_of(solver: Any, memory: Any, scratch: Any, others: dict[str, Any], ranks: int) -> Limit | None:
    """Return the limit that a training from disk keeps to, None for one in memory.

    ``others`` are arguments of ``fit`` that go with a training in memory alone, None where they were not given. Raises
    InputError for what cannot be.
    """
    if memory is None and scratch is None:
        return None
    if not solver.streams:
        name, value = ("scratch", str(scratch)) if memory is None else ("memory", memory)
        raise InputError(name, value, f"left out: {solver.__name__} trains in memory")
    if memory is None or scratch is None:
        raise InputError("memory, scratch", f"{memory}, {scratch}", "given both, or neither")
    for name, value in others.items():
        if value is not None:
            raise InputError(name, str(value), "left out with memory", "scratch holds a checkpoint of every iteration")
    if ranks > 1:
        raise InputError("memory", memory, "left out on several ranks", "start one process, or leave it out")
    try:
        return Limit(memory_size.accept(memory))
    except (ValueError, TypeError, KeyError, OverflowError):
        raise InputError("memory", memory, memory_size.allowed) from None
