"""Runs that are cut off, and all that two runs with the same result share."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import HealthCheck, settings

from pdadmm import PDADMMG, csbm

__all__ = ["GRAPH", "MANY", "SMALL", "CutOff", "cut_off", "cut_off_after", "cut_off_twice", "names", "outcome"]

GRAPH = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
SMALL = {"layers": 3, "hidden": 5, "hops": 1, "iterations": 4}  # stages of 2 and 3 layers: 8 iterations
MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class CutOff(Exception):
    """What ends a run here without any warning."""


def cut_off_after(iteration: int):
    """A watcher that ends the run in the iteration that follows."""

    def watch(row) -> None:
        if row["iteration"] > iteration:
            raise CutOff

    return watch


def outcome(trained) -> tuple:
    """All that two runs with the same result share."""
    seconds = ("seconds", "bytes", "peak_rss")
    rows = [{k: v for k, v in row.items() if not k.startswith(seconds)} for row in trained.history_]
    weights = {name: value.numpy().tobytes() for name, value in trained.model_.state_dict().items()}
    return weights, rows, trained.stages_


def cut_off(solver, folder: Path, at: int, every: int) -> None:
    """Fit with checkpoints every ``every`` iterations, and die after iteration ``at``."""
    with contextlib.suppress(CutOff):
        solver.fit(GRAPH, checkpoint=folder, checkpoint_every=every, watch=cut_off_after(at))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "ranks")


def cut_off_twice(folder: Path) -> tuple:
    """Cut a run off that left checkpoints of iterations 2 and 4; return the folder and the whole result of the run."""
    cut_off(PDADMMG(**SMALL), folder, 5, 2)
    assert names(folder) == ["iteration-000002", "iteration-000004"]
    return folder, outcome(PDADMMG(**SMALL).fit(GRAPH))
