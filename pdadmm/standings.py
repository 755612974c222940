"""What the runs of a contest amount to: means, deviations, times to a target, and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from pdadmm.recording import KINDS_OF_WORK

__all__ = ["default_targets", "figures", "seconds_to", "standings", "table", "table_of_work"]

TARGET_SHARES = (0.95, 0.99)
BACKPROP = ("gd", "adadelta", "adagrad", "adam")  # on the network of pdADMM-G


def seconds_to(history: dict[str, list[Any]], layers: int, target: float) -> float | None:
    """Return the seconds of training until a network of ``layers`` layers first reached a validation accuracy.

    Stages of growth before count as time, their accuracies do not. None where it was never reached.

    >>> seconds_to({"layers": [2, 4, 4], "seconds": [1.0, 2.0, 3.0], "val_accuracy": [0.9, 0.6, 0.8]}, 4, 0.7)
    3.0
    """
    for depth, accuracy, seconds in zip(history["layers"], history["val_accuracy"], history["seconds"]):
        if depth == layers and accuracy is not None and accuracy >= target:
            return seconds
    return None


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and standard deviation (n - 1) of what the runs that ended well have, None where too few did."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def _median_reached(seconds: Sequence[float | None]) -> float | None:
    """Return the median with "never" as the longest time; None where the median run never arrived."""
    middle = statistics.median([math.inf if value is None else value for value in seconds])
    return None if math.isinf(middle) else middle


def figures(row: dict[str, Any], targets: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one (solver, depth) from its runs; runs that failed count in ``failed`` and as "never"."""
    done = [run for run in row["runs"] if "failed" not in run]
    reached = []
    for target in targets:
        seconds = [
            None if "failed" in run else seconds_to(run["history"], row["layers"], target) for run in row["runs"]
        ]
        reached.append(
            {
                "target": target,
                "seconds": _median_reached(seconds),
                "reached": sum(value is not None for value in seconds),
                "values": seconds,
            }
        )
    sent = [run["bytes"] for run in done]
    return {
        "failed": len(row["runs"]) - len(done),
        "test_accuracy": _spread([run["test_accuracy"] for run in done]),
        "val_accuracy": _spread([run["val_accuracy"] for run in done]),
        "seconds_training": statistics.median([run["seconds_training"] for run in done]) if done else None,
        "seconds_to": reached,
        "iterations": statistics.median([run["iterations"] for run in done]) if done else None,
        "bytes": statistics.median(sent) if sent and None not in sent else None,
        "peak_bytes": max((run["peak_bytes"] for run in done), default=None),
    }


def default_targets(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return 0.95 and 0.99 of the best mean validation accuracy of backpropagation, of any solver without it."""
    means: dict[bool, list[float | None]] = {}
    for row in rows:
        means.setdefault(row["solver"] in BACKPROP, []).append(figures(row, ())["val_accuracy"]["mean"])
    best = max((mean for mean in means.get(True, means.get(False, [])) if mean is not None), default=None)
    return [] if best is None else [round(share * best, 4) for share in TARGET_SHARES]


def standings(rows: Sequence[dict[str, Any]], targets: Sequence[float] | None) -> list[float]:
    """Put ``figures`` into every row and return the targets: those given, or the default ones of these rows."""
    targets = default_targets(rows) if targets is None else list(targets)
    for row in rows:
        row["figures"] = figures(row, targets)
    return targets


def table(rows: Sequence[dict[str, Any]], targets: Sequence[float]) -> str:
    """Return the markdown table of rows with figures."""
    head = ["solver", "layers", "test accuracy", "validation", "training s"]
    head += [f"s to {target:.4g}" for target in targets]
    head += ["iterations", "MB sent", "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def table_of_work(rows: Sequence[dict[str, Any]]) -> str:
    """Return the markdown table of where the training seconds of GNNs go, "" where no run tells: medians."""
    lines = []
    for row in rows:
        told = [run["spent"] for run in row["runs"] if "spent" in run]
        if told:
            cells = [_number(statistics.median(spent.get(kind, 0.0) for spent in told)) for kind in KINDS_OF_WORK]
            lines.append(f"| {row['solver']} | {row['layers']} | " + " | ".join(cells) + " |")
    head = ["solver", "layers", *(f"{kind} s" for kind in KINDS_OF_WORK)]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]) if lines else ""


def _cells(row: dict[str, Any]) -> list[str]:
    own, runs = row["figures"], len(row["runs"])
    failed = f" ({own['failed']} of {runs} failed)" if own["failed"] else ""
    cells = [row["solver"], str(row["layers"])]
    cells += [_accuracy(own["test_accuracy"]) + failed, _accuracy(own["val_accuracy"])]
    cells.append(_number(own["seconds_training"]))
    cells += [f"{_number(part['seconds'])} ({part['reached']} of {runs})" for part in own["seconds_to"]]
    cells.append("-" if own["iterations"] is None else f"{own['iterations']:g}")
    return cells + [_number(own[name] and own[name] / 1e6) for name in ("bytes", "peak_bytes")]


def _accuracy(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "-"
    return f"{spread['mean']:.4f}" + ("" if spread["std"] is None else f" ± {spread['std']:.4f}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
