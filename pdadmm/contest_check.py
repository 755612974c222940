"""Whether a file is what ``pdadmm compare`` wrote: checked before it is drawn or gone on with."""

from __future__ import annotations

from typing import Any

from pdadmm.files import is_number

__all__ = ["check_summary"]

# Of every run that did not fail: what is a number, and what may be null.
NUMBERS = ("test_accuracy", "val_accuracy", "seconds_training", "iterations", "peak_bytes")
OPTIONAL = ("bytes",)
# Of its history: columns that are there, and complete.
COMPLETE = ("iteration", "layers", "seconds")


def check_summary(summary: Any) -> None:
    """Raise ValueError with a few words for the first part of a summary that ``pdadmm compare`` would not write."""
    _need(isinstance(summary, dict), "the whole of it")
    _need(isinstance(summary.get("contest"), dict), "contest")
    _need(_is_list_of(summary.get("commands"), str), "commands")
    _need(_are_numbers(summary.get("targets")), "targets")
    _need(_is_list_of(summary.get("rows"), dict), "rows")
    for number, row in enumerate(summary["rows"], start=1):
        _need(isinstance(row.get("solver"), str), f"row {number}: solver")
        _need(_is_depth(row.get("layers")), f"row {number}: layers")
        _need(isinstance(row.get("parameters"), dict), f"row {number}: parameters")
        _need(_is_list_of(row.get("runs"), dict) and len(row["runs"]) > 0, f"row {number}: runs")
        for place, run in enumerate(row["runs"], start=1):
            _check_run(run, f"row {number}, run {place}")


def _check_run(run: dict[str, Any], where: str) -> None:
    if "failed" in run:
        _need(isinstance(run["failed"], str), f"{where}: failed")
        return
    for name in (*NUMBERS, *OPTIONAL):
        value = run.get(name, "missing")
        _need(is_number(value) or (value is None and name in OPTIONAL), f"{where}: {name}")
    spent = run.get("spent", {})
    _need(isinstance(spent, dict) and all(map(is_number, spent.values())), f"{where}: spent")
    history = run.get("history", {})
    _need(isinstance(history, dict) and bool(history), f"{where}: history")
    lengths = set()
    for name, column in history.items():
        _need(isinstance(column, list), f"{where}: {name}")
        _need(all(value is None or is_number(value) for value in column), f"{where}: {name}")
        lengths.add(len(column))
    _need(len(lengths) == 1, f"{where}: history with columns of one length")
    for name in (*COMPLETE, "val_accuracy"):
        _need(name in history, f"{where}: {name}")
        _need(name not in COMPLETE or None not in history[name], f"{where}: {name}")
    _need(all(map(_is_depth, history["layers"])), f"{where}: layers")


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is missing, or not of its kind")


def _is_depth(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))
