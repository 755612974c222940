"""What every rank does at every moment of training, as a timeline that browsers draw."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["NO_TRACE", "Trace"]

LONGEST = 1_000_000  # spans of one rank: more fill memory, and no viewer shows them


class Trace:
    """Records one span after another on each rank; ``write`` puts those of all ranks into one file.

    ``mark`` ends the last span and begins the next, so the spans of a rank cover its training without a gap. After
    LONGEST spans a rank records no more. Times are seconds since ``start``, which all ranks call together, so that
    clocks of different hosts need not agree.

    >>> trace = Trace()
    >>> trace.mark("W, b", layer=2); trace.mark("z", layer=2); trace.stop()
    >>> [span[0] for span in trace.spans]
    ['W, b', 'z']
    """

    def __init__(self) -> None:
        self.wait: Callable[[], None] = lambda: None  # for a device: its work would show under later names
        self._clear()

    def _clear(self) -> None:
        self.spans: list[tuple[str, int | None, int, float, float]] = []
        self.name: str | None = None
        self.layer: int | None = None
        self.iteration = 0
        self.origin = self.since = time.perf_counter()

    def start(self, transport: Any) -> None:
        """Begin at time 0, on all ranks at once."""
        transport.barrier()
        self._clear()

    def mark(self, name: str, layer: int | None = None) -> None:
        """Begin a span: ``name`` says what this rank does from now on, ``layer`` (from 1) for which layer."""
        self.wait()
        now = time.perf_counter()
        if self.name is not None and len(self.spans) < LONGEST:
            self.spans.append((self.name, self.layer, self.iteration, self.since - self.origin, now - self.since))
        self.name, self.layer, self.since = name, layer, now

    def stop(self) -> None:
        """End the last span: what follows is no part of training."""
        if self.name is not None:
            self.mark("")
            self.name = None

    def collect(self, transport: Any) -> None:
        """Bring the spans of all ranks together in ``ranks``, on every rank."""
        self.stop()
        self.ranks = transport.allgather(self.spans)

    def seconds(self) -> list[dict[str, float]]:
        """Return the seconds under each name, a dict for each rank; after ``fit``."""
        totals: list[dict[str, float]] = []
        for spans in self.ranks:
            totals.append({})
            for name, _, _, _, length in spans:
                totals[-1][name] = totals[-1].get(name, 0.0) + length
        return totals

    def write(self, path: str | os.PathLike) -> None:
        """Write the spans of all ranks in Chrome's trace format (JSON, microseconds), a row a rank."""
        events: list[dict[str, Any]] = []
        for rank, spans in enumerate(self.ranks):
            about = {"ph": "M", "pid": rank, "tid": 0}
            events.append({**about, "name": "process_name", "args": {"name": f"rank {rank}"}})
            for name, layer, iteration, start, length in spans:
                arguments = {"iteration": iteration} | ({} if layer is None else {"layer": layer})
                event = {"ph": "X", "pid": rank, "tid": 0, "ts": round(1e6 * start, 1), "dur": round(1e6 * length, 1)}
                events.append({"name": name, **event, "args": arguments})
        lines = ",\n".join(json.dumps(event) for event in events)
        Path(path).write_text('{"displayTimeUnit": "ms", "traceEvents": [\n' + lines + "\n]}\n", encoding="utf-8")


class _NoTrace(Trace):
    """Records nothing, for next to no time."""

    def mark(self, name: str, layer: int | None = None) -> None:
        pass

    def stop(self) -> None:
        pass


NO_TRACE: Trace = _NoTrace()
