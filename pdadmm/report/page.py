"""The report's page: its parts in order, in one file of HTML that loads nothing."""

from __future__ import annotations

import itertools
from html import escape
from importlib.resources import files
from typing import Any

from pdadmm import __version__
from pdadmm.files import is_number
from pdadmm.history import History
from pdadmm.report import tables
from pdadmm.report.charts import Curve, chart
from pdadmm.report.folder import RunFolder
from pdadmm.report.timeline import timeline

__all__ = ["page"]

RESIDUALS = {"residual_link": "p, q", "residual_linear": "z, p W + b", "residual_activation": "q, f(z)"}
ACCURACIES = {"train_accuracy": 2, "val_accuracy": 0, "test_accuracy": 1}
WORDS = {"train_accuracy": "training", "val_accuracy": "validation", "test_accuracy": "test"}
# The page may run no script and load nothing, whatever stands in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: RunFolder) -> str:
    """Return the page of a run: figures, curves, stages, confusion, bytes, timeline, prediction, configuration.

    Every word out of the folder is escaped; a part whose source is missing says how to get it.
    """
    summary = run.summary
    title = f"{_word(summary, 'solver')} on {_word(summary, 'dataset')}"
    no_trace = (
        '<p class="missing">The folder has no trace.json: <code>pdadmm train --run DIR --trace</code> records it.</p>'
    )
    parts = {
        "Curves": _curves(run.history),
        "Accuracy by depth": tables.stages(summary.get("stages")),
        "Confusion matrix of the test nodes": tables.confusion(summary.get("confusion")),
        "Messages": tables.bytes_table(summary),
        "Timeline of the ranks": no_trace if run.ranks is None else timeline(run.ranks),
        "Predicted and measured": tables.predicted(summary, run.history),
        "Configuration": tables.settings(run.config),
    }
    body = "".join(f"<section><h2>{name}</h2>\n{text}</section>\n" for name, text in parts.items())
    style = files("pdadmm.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><title>{escape(run.name)}: {escape(title)}</title>\n'
        f"<style>\n{style}</style></head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n<p>{escape(_about(run))}</p>\n{tables.key_figures(summary)}</header>\n"
        f"{body}<footer><p class=missing>Written by pdadmm {escape(__version__)}.</p></footer>\n</body></html>\n"
    )


def _word(summary: dict[str, Any], name: str) -> str:
    return str(summary.get(name, "unknown"))


def _about(run: RunFolder) -> str:
    """Say in a sentence what was trained."""
    layers, hidden, nodes, train = tables.numbers(run.summary, "layers", "hidden", "nodes", "train_nodes")
    network = f"{tables.count(layers)} layers of {tables.count(hidden)}"
    data = f"{tables.count(nodes)} nodes, {tables.count(train)} of them for training"
    seed, split = _word(run.summary, "seed"), _word(run.summary, "split")
    return f"{network}; {data} ({split} split); seed {seed}; folder {run.name}."


def _curves(history: History) -> str:
    """Return charts of objective, residuals, where a solver has them, and accuracy, over the iterations."""
    rows = [row for row in history if is_number(row.get("iteration"))]
    marks = [
        (later["iteration"], f"{later.get('layers')}")
        for earlier, later in itertools.pairwise(rows)
        if earlier.get("stage") != later.get("stage")
    ]
    if marks:
        marks.insert(0, (rows[0]["iteration"], f"{rows[0].get('layers')} layers"))
    residuals = [Curve(word, _points(rows, key), number) for number, (key, word) in enumerate(RESIDUALS.items())]
    accuracies = [Curve(WORDS[key], _points(rows, key), number) for key, number in ACCURACIES.items()]
    scores = sorted(y for one in accuracies for _, y in one.points)
    lowest = scores[len(scores) // 10] - 0.02 if scores else None
    charts = [chart("Objective", [Curve("objective", _points(rows, "objective"))], "iteration", True, marks)]
    if any(one.points for one in residuals):
        charts.append(chart("Squared residuals, summed over layers", residuals, "iteration", True, marks))
    charts.append(chart("Accuracy", accuracies, "iteration", False, marks, lowest))
    return f"<div class=charts>{''.join(charts)}</div>\n"


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["iteration"], row[key]) for row in rows if is_number(row.get(key))]
