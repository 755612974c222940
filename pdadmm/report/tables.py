"""The report's tables: key figures, stages, confusion, bytes, predicted beside measured, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pdadmm.console import human_bytes, human_seconds
from pdadmm.files import is_number
from pdadmm.history import History, bytes_of_iteration
from pdadmm.parallel.ledger import PAYLOAD_KINDS
from pdadmm.report.folder import numbers

__all__ = ["bytes_table", "confusion", "key_figures", "predicted", "settings", "stages", "table"]

NONE = "–"  # noqa: RUF001 (a dash where there is no figure)
MOST_CLASSES = 60  # of a confusion matrix that is drawn
MISTAKES = 8


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def seconds(value: float | None) -> str:
    return NONE if value is None else human_seconds(value)


def size(value: float | None) -> str:
    return NONE if value is None else human_bytes(value)


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table of HTML; cells are HTML already, the first of a row its heading."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>\n" for row in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class=scroll><table class="{kind}">{head_row}<tbody>\n{body}</tbody></table></div>\n'


def key_figures(summary: Mapping[str, Any]) -> str:
    """Return the figures that one asks for first."""
    test, val, trained, step = numbers(
        summary, "test_accuracy", "val_accuracy", "seconds_training", "seconds_per_iteration"
    )
    ranks, threads, peak, sent = numbers(summary, "ranks", "threads", "peak_rss_bytes", "bytes_sent")
    figures = {
        "test accuracy": percent(test),
        "validation accuracy": percent(val),
        "training": seconds(trained),
        "an iteration": seconds(step),
        "ranks × threads": f"{count(ranks)} × {count(threads)}",  # noqa: RUF001 (a times sign)
        "messages": size(sent),
        "peak memory of a rank": size(peak),
    }
    cells = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for name, value in figures.items())
    return f"<dl class=figures>{cells}</dl>\n"


def stages(found: Any) -> str:
    """Return the accuracy of each depth that the network grew through."""
    rows = []
    for stage in found if isinstance(found, list) else []:
        layers, iterations, best = numbers(stage, "layers", "iterations", "best_iteration")
        scores = numbers(stage, "start_test_accuracy", "train_accuracy", "val_accuracy", "test_accuracy")
        rows.append([count(layers), count(iterations), count(best), *map(percent, scores)])
    head = ["layers", "iterations", "best at", "test when grown", "training", "validation", "test"]
    return table(head, rows, "numbers") if rows else '<p class="missing">The summary has no stages.</p>'


def confusion(counts: Any) -> str:
    """Return the confusion matrix: rows true classes, columns predicted ones, shaded by the row's share."""
    if not _is_square(counts) or not sum(map(sum, counts)):
        return (
            '<p class="missing">The summary has no confusion matrix: <code>pdadmm train --run DIR</code> records it '
            "where the split has test nodes and one rank holds the whole model.</p>"
        )
    mistakes = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n), key=lambda m: -m[0]
    )[:MISTAKES]
    told = ", ".join(f"class {i} taken for class {j} ({n:,} nodes)" for n, i, j in mistakes)
    text = f"<p>Most frequent mistakes: {told}.</p>\n" if told else "<p>No mistakes.</p>\n"
    if len(counts) > MOST_CLASSES:
        return text + f"<p>The matrix of {len(counts)} classes is in summary.json.</p>\n"
    head = "".join(f"<th scope=col>{j}</th>" for j in range(len(counts)))
    rows = []
    for i, row in enumerate(counts):
        total = sum(row)
        cells = "".join(_cell(n, total, i == j) for j, n in enumerate(row))
        recall = percent(row[i] / total) if total else NONE
        rows.append(f"<tr><th scope=row>{i}</th>{cells}<td class=recall>{recall}</td></tr>\n")
    caption = "<caption>rows: true class; columns: class given; last: share given right</caption>"
    head = f"<thead><tr><td></td>{head}<th scope=col>right</th></tr></thead>"
    return (
        text
        + f"<div class=scroll><table class=confusion>{caption}{head}<tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def _cell(number: int, total: int, right: bool) -> str:
    if not number:
        return "<td></td>"
    share = number / total
    kind = ("right" if right else "wrong") + (" strong" if share > 0.5 else "")
    return f'<td class="{kind}" style="--share:{max(100 * share, 4):.0f}%">{number}</td>'


def _is_square(counts: Any) -> bool:
    if not isinstance(counts, list) or not counts:
        return False
    return all(
        isinstance(row, list) and len(row) == len(counts) and all(type(n) is int and 0 <= n < 2**53 for n in row)
        for row in counts
    )


def bytes_table(summary: Mapping[str, Any]) -> str:
    """Return bytes by kind of message, the algorithm's own first."""
    kinds = summary.get("bytes_by_kind")
    kinds = {kind: n for kind, n in kinds.items() if is_number(n) and n > 0} if isinstance(kinds, dict) else {}
    if not kinds:
        return (
            '<p class="missing">No messages: one process sends none. <code>mpirun -n 4 python -m pdadmm train</code> '
            "spreads a run over ranks.</p>"
        )
    most = max(kinds.values())
    order = sorted(kinds, key=lambda kind: (kind not in PAYLOAD_KINDS, -kinds[kind]))
    rows = []
    for kind in order:
        bar = f'<span class=bar style="width:{100 * kinds[kind] / most:.1f}%"></span>'
        group = "each iteration" if kind in PAYLOAD_KINDS else "start-up, evaluation, control"
        rows.append([escape(kind), size(kinds[kind]), f"<span class=room>{bar}</span>", group])
    return table(["kind", "bytes", "", "when"], rows, "bytes")


def predicted(summary: Mapping[str, Any], history: History) -> str:
    """Return what the planner predicted beside what was measured."""
    told = summary.get("predicted")
    if not isinstance(told, dict):
        return '<p class="missing">The summary has no prediction: the planner has no model of this solver.</p>'
    names = ["seconds_per_iteration", "bytes_per_iteration", "peak_rss_bytes"]
    if "disk_bytes_per_iteration" in told:
        names.append("disk_bytes_per_iteration")
    measured = dict(zip(names, numbers(summary, *names)))
    measured["bytes_per_iteration"] = _bytes_of_iteration(summary, history)
    words = {"seconds_per_iteration": "an iteration", "bytes_per_iteration": "messages of an iteration"}
    words["disk_bytes_per_iteration"] = "read and written in an iteration"
    rows = []
    for name, value in zip(names, numbers(told, *names)):
        show, found = seconds if name.startswith("seconds") else size, measured[name]
        ratio = f"{found / value:.2f}" if value and found is not None else NONE
        rows.append([words.get(name, "peak memory of a rank"), show(value), show(found), ratio])
    text = table(["", "predicted", "measured", "measured / predicted"], rows, "numbers")
    if told.get("seconds_per_iteration") is None:
        how = "are predicted once <code>pdadmm plan --calibrate</code> has measured this machine"
        if "seconds_per_iteration" not in told:
            how = "are not predicted: there is no model of them for such a run"
        text += f'<p class="missing">Seconds {how}.</p>\n'
    return text


def _bytes_of_iteration(summary: Mapping[str, Any], history: History) -> float | None:
    """Return the measured bytes of an iteration, None where the history does not tell them."""
    found = [numbers(row, "bytes")[0] for row in history]
    sent = [value for value in found if value is not None]
    return bytes_of_iteration(str(summary.get("solver")), sent) if sent and len(sent) == len(found) else None


def settings(config: Mapping[str, Any] | None) -> str:
    """Return the configuration, and in a table of its own the versions that ran."""
    if config is None:
        return '<p class="missing">The folder has no config.toml: <code>pdadmm train --run DIR</code> writes it.</p>'
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    text = '<div class="columns">' + table([], _pairs(plain), "pairs") + "</div>\n"
    for name, own in config.items():
        if isinstance(own, dict):
            text += f"<h3>{escape(str(name))}</h3>\n" + table([], _pairs(own), "pairs")
    return text


def _pairs(values: Mapping[str, Any]) -> list[list[str]]:
    return [[escape(str(key)), escape(_plain(value))] for key, value in values.items()]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
