"""A run folder read back: nothing in it is trusted further than its kind."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pdadmm.errors import InputError, reason_of
from pdadmm.files import is_number, parse_json, regular_file
from pdadmm.history import History

__all__ = ["RunFolder", "Span", "numbers", "read_run"]


class Span(NamedTuple):
    """What a rank did from ``start`` for ``length`` seconds."""

    name: str
    layer: int | None
    iteration: int
    start: float
    length: float


@dataclass
class RunFolder:
    """What ``pdadmm train --run`` left: None, or nothing, for a part that is not there."""

    name: str
    summary: dict[str, Any]
    history: History
    config: dict[str, Any] | None
    ranks: list[list[Span]] | None


def read_run(path: str | os.PathLike) -> RunFolder:
    """Read a run folder; summary.json and history.jsonl must be there, config.toml and trace.json may be.

    Raises InputError for a folder that is none, or a file in it that is damaged.
    """
    folder = Path(path)
    if not (folder / "summary.json").is_file() or not (folder / "history.jsonl").is_file():
        remedy = "pdadmm train --run DIR writes them when it has ended"
        raise InputError("RUN_DIR", str(path), "a folder with summary.json and history.jsonl", remedy)
    return RunFolder(
        folder.resolve().name,
        _read(folder / "summary.json", parse_json),
        History.from_jsonl(folder / "history.jsonl"),
        _read(folder / "config.toml", tomllib.loads) if (folder / "config.toml").exists() else None,
        _read(folder / "trace.json", _spans) if (folder / "trace.json").exists() else None,
    )


def _read(path: Path, parse: Any) -> Any:
    try:
        return parse(regular_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("RUN_DIR", str(path), "a file that pdadmm train --run wrote", reason_of(error)) from None


def _spans(text: str) -> list[list[Span]]:
    """Return the spans of each rank, in order of time; ValueError for another file."""
    ranks: dict[int, list[Span]] = {}
    events = parse_json(text).get("traceEvents")
    for event in events if isinstance(events, list) else [None]:
        if not isinstance(event, dict) or type(event.get("pid")) is not int:
            raise ValueError("no list of events with the ranks they are of")
        spans = ranks.setdefault(event["pid"], [])
        if event.get("ph") != "X":
            continue
        about = event.get("args") if isinstance(event.get("args"), dict) else {}
        start, length = numbers(event, "ts", "dur")
        if start is None or length is None or start < 0 or length < 0:
            raise ValueError("an event without its time")
        layer, iteration = about.get("layer"), about.get("iteration")
        layer = layer if type(layer) is int else None
        iteration = iteration if type(iteration) is int else 0
        spans.append(Span(str(event.get("name")), layer, iteration, start / 1e6, length / 1e6))
    return [sorted(ranks[rank], key=lambda span: span.start) for rank in sorted(ranks)]


def numbers(row: Any, *names: str) -> list[float | None]:
    """Return entries of a dict that are numbers, None for those that are not.

    >>> numbers({"a": 1, "b": "x"}, "a", "b", "c")
    [1, None, None]
    """
    values = [row.get(name) if isinstance(row, dict) else None for name in names]
    return [value if is_number(value) else None for value in values]
