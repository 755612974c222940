"""What every solver's driver counts and reports: seconds of training, the best iteration, stages, the summary."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pdadmm.history import History
from pdadmm.parallel.transport import Transport
from pdadmm.trace import NO_TRACE, Trace

__all__ = [
    "KINDS_OF_WORK",
    "Best",
    "Breakdown",
    "Clock",
    "Stage",
    "restore_run",
    "run_state",
    "run_summary",
    "stage_summary",
    "time_or_patience_is_up",
]


class Clock:
    """Counts the seconds of training alone: it runs only between ``start`` and ``stop``.

    ``wait`` returns once the work is done that a device was given.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds, self._since, self.wait = 0.0, 0.0, wait

    def start(self) -> None:
        self.wait()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.wait()
        self.seconds += time.perf_counter() - self._since


KINDS_OF_WORK = ("sparse", "dense", "communication", "waiting", "sampling")


class Breakdown(dict):
    """Seconds by kind of work: ``with breakdown("sparse"): ..`` adds to one entry; a trace sees the rest as "dense".

    >>> breakdown = Breakdown()
    >>> with breakdown("sparse"):
    ...     pass
    >>> list(breakdown)
    ['sparse']
    """

    def __init__(self, trace: Trace = NO_TRACE) -> None:
        self.trace = trace

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self.trace.mark(kind)
        began = time.perf_counter()
        yield
        self[kind] = self.get(kind, 0.0) + time.perf_counter() - began
        self.trace.mark("dense")

    def state(self, transport: Transport) -> dict[str, float]:
        """Return the means over the ranks, for a checkpoint; collective."""
        parts = transport.allgather(dict(self))
        return {kind: sum(part.get(kind, 0.0) for part in parts) / len(parts) for kind in KINDS_OF_WORK}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from the means of a checkpoint: on every rank alike, so they stay the means."""
        self.update(state)

    def summary(self, seconds: float, transport: Transport) -> dict[str, float]:
        """Return the training ``seconds`` by kind of work, means over the ranks; what is no other kind is dense."""
        kinds = [kind for kind in KINDS_OF_WORK if kind != "dense"]
        parts = transport.allgather((seconds, *(self.get(kind, 0.0) for kind in kinds)))
        total, *spent = (sum(column) / len(parts) for column in zip(*parts))
        told = {f"seconds_{kind}": own for kind, own in zip(kinds, spent)}
        return told | {"seconds_dense": max(0.0, total - sum(spent))}


@dataclass
class Best:
    """The best iteration of a stage by validation accuracy, ties by validation loss; the last without both."""

    row: dict[str, Any] = field(default_factory=dict)
    weights: Any = field(default_factory=list)  # a copy that the solver goes back to

    def improved_by(self, row: dict[str, Any]) -> bool:
        """Whether an evaluated iteration is better than the best so far."""
        if not self.row or "val_accuracy" not in row:
            return True
        key = row["val_accuracy"], -row["val_loss"]
        return key > (self.row["val_accuracy"], -self.row["val_loss"])


@dataclass
class Stage:
    """A stage under way: its number and depth, the scores as it began, the iterations done, the best so far."""

    number: int
    depth: int
    start: dict[str, float]
    iterations: int = 0
    ended: bool = False
    backoffs: int = 0
    best: Best = field(default_factory=Best)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, but for the best weights, which are the layers'."""
        return {**vars(self), "best": self.best.row.get("iteration")}

    @classmethod
    def of(cls, state: dict[str, Any], history: History) -> Stage:
        """Return the stage of a checkpoint, still without its best weights."""
        best = state["best"]
        return cls(**{**state, "best": Best() if best is None else Best(history[best - 1])})


def run_state(
    stage: Stage, history: History, stages: list[dict[str, Any]], clock: Clock, transport: Transport
) -> dict[str, Any]:
    """Return what a checkpoint needs of a run beside its layers, collectively: one record for all ranks."""
    parts = transport.allgather((clock.seconds, transport.ledger.state()))
    return {
        "stage": stage.state(),
        "history": history,
        "stages": stages,
        "seconds": max(seconds for seconds, _ in parts),
        "ledgers": [ledger for _, ledger in parts],
    }


def restore_run(
    state: dict[str, Any], clock: Clock, transport: Transport
) -> tuple[Stage, History, list[dict[str, Any]]]:
    """Return stage, history and stages of a checkpoint; clock and ledger go on from where they were."""
    clock.seconds = state["seconds"]
    if transport.rank == 0:  # the sums over the ranks go on, on however many there are
        for ledger in state["ledgers"]:
            transport.ledger.add(ledger)
    history = History(state["history"])
    return Stage.of(state["stage"], history), history, state["stages"]


def time_or_patience_is_up(settings: Any, number: int, row: dict[str, Any], best: Best) -> bool:
    """Whether ``max_seconds`` or ``patience`` ends stage ``number`` after ``row``."""
    # each stage gets its share of the time, so that the network reaches its full depth
    share = (number + 1) / len(settings.stages)
    if settings.max_seconds is not None and row["seconds"] >= settings.max_seconds * share:
        return True
    since = row["iteration"] - best.row.get("iteration", math.inf)
    return settings.patience is not None and since >= settings.patience


def stage_summary(
    depth: int, iterations: int, message_bytes: int, start: dict[str, float], row: dict[str, Any]
) -> dict[str, Any]:
    """Return what a stage reports: ``start`` are the scores as it began, ``row`` its best iteration."""
    summary = {
        "layers": depth,
        "iterations": iterations,
        "best_iteration": row["iteration"],
        "bytes_per_iteration": message_bytes,
    }
    for name in ("val_accuracy", "test_accuracy", "train_accuracy"):
        summary[name] = row.get(name)
        summary[f"start_{name}"] = start.get(name)
    return summary


def run_summary(
    settings: Any, history: History, stages: list[dict[str, Any]], clock: Clock, transport: Transport
) -> dict[str, Any]:
    """Return what a finished run reports about itself, collectively; accuracies are the full-depth network's."""
    last = stages[-1]
    own = [row["seconds"] for row in history if row["stage"] == len(stages) - 1]
    start = next((row["seconds"] for row in reversed(history) if row["layers"] < settings.layers), 0.0)
    steps = [later - earlier for earlier, later in zip([start, *own], own)]
    return {
        "layers": settings.layers,
        "hidden": settings.hidden,
        "seed": settings.seed,
        "dtype": settings.dtype,
        "iterations": len(history),
        "stages": stages,
        **{name: last[name] for name in ("test_accuracy", "val_accuracy", "train_accuracy")},
        "bytes_per_iteration": last["bytes_per_iteration"],
        "seconds_training": max(transport.allgather(clock.seconds)),
        "seconds_per_iteration": statistics.median(steps[1:] or steps),
    }
