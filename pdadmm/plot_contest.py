"""Figures of contests: accuracy over time, iterations or bytes, a colour for each solver."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdadmm.contest_check import check_summary
from pdadmm.errors import InputError
from pdadmm.plot import AXES, COLOURS, FONT, GREY, load_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_contest"]

QUANTITIES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
BYTES = "messages in MB"
Run = Mapping[str, Any]


def plot_contest(
    summaries: Mapping[str, Mapping[str, Any]], path: str | os.PathLike | None = None, x: str = "seconds"
) -> Figure:
    """Return a figure of what ``pdadmm compare`` wrote, a column for each contest and depth; save it to ``path``.

    ``summaries`` maps a name to a summary. Thin lines are all seeds; the bold line is the seed of median best
    validation accuracy, dotted while its network grows, and from the dot on of full depth. Grey lines are the
    targets. Test accuracy has panels where a contest judged it along the way. ``x`` is "seconds", "iteration" or
    "bytes", on a logarithmic axis. Raises InputError for contests that cannot be drawn, for a file that cannot be
    written, and where matplotlib is not installed.

    >>> figure = plot_contest({"cora": json.load(open("cora.json"))}, "cora.png")  # doctest: +SKIP
    """
    columns = _columns(summaries, x)
    solvers = list(dict.fromkeys(solver for _, rows, _ in columns for solver in rows))
    colours = dict(zip(solvers, itertools.cycle(COLOURS)))
    matplotlib, figure_class = load_matplotlib()
    runs = [run for _, rows, _ in columns for own in rows.values() for run in own]
    held = {"val_accuracy"}.union(*(run["history"] for run in runs))
    drawn = {key: label for key, label in QUANTITIES.items() if key in held}
    with matplotlib.rc_context(FONT):
        figure = figure_class(figsize=(max(6.4, 4.6 * len(columns)), 1.2 + 2.8 * len(drawn)), layout="constrained")
        panels = figure.subplots(len(drawn), len(columns), squeeze=False, sharex="col", sharey="row")
        for (title, rows, targets), column in zip(columns, panels.T):
            column[0].set_title(title, loc="left")
            for panel, key in zip(column, drawn):
                _draw(panel, rows, key, x, colours)
            _mark_targets(column[0], targets)
            column[-1].set_xlabel(BYTES if x == "bytes" else AXES[x][0])
        for row, (key, label) in zip(panels, drawn.items()):
            row[0].set_ylabel(label)
            _limit(row[0], [rows for _, rows, _ in columns], key)
        for (_, rows, _), column in zip(columns, panels.T):
            _scale(column, rows, x)
        _legend(figure, colours, any(map(_grew, runs)))
        if path is not None:
            save_figure(figure, Path(path))
    return figure


def _columns(summaries: Any, x: str) -> list[tuple[str, dict[str, list[Run]], Sequence[float]]]:
    """Return (title, solver -> runs that ended well and have ``x``, targets) for each contest and depth."""
    if x not in AXES:
        raise InputError("x", x, "one of " + ", ".join(AXES))
    if not isinstance(summaries, Mapping):
        raise InputError("summaries", f"{summaries!r:.40}", "a dict of name -> summary of a contest")
    columns = []
    for name, summary in summaries.items():
        _check(name, summary)
        for depth in sorted({row["layers"] for row in summary["rows"]}):
            runs = {
                row["solver"]: [run for run in row["runs"] if "failed" not in run and any(run["history"].get(x, ()))]
                for row in summary["rows"]
                if row["layers"] == depth
            }
            runs = {solver: own for solver, own in runs.items() if own}
            if runs:
                title = f"{name}, {depth} layer{'s' if depth > 1 else ''}"
                columns.append((title, runs, summary["targets"]))
    if not columns:
        raise InputError("summaries", ", ".join(summaries) or "none", f"contests with finished runs that have {x}")
    return columns


def _check(name: Any, summary: Any) -> None:
    """Raise InputError for what is no summary of a contest."""
    try:
        check_summary(summary)
    except ValueError as error:
        argument, allowed = f"summaries[{str(name)!r}]", "what pdadmm compare wrote"
        raise InputError(argument, f"{summary!r:.40}", allowed, str(error)) from None


def _median(runs: Sequence[Run]) -> Run:
    """Return the run whose best validation accuracy is the median (the lower of two)."""
    middle = statistics.median_low([run["val_accuracy"] for run in runs])
    return next(run for run in runs if run["val_accuracy"] == middle)


def _points(run: Run, key: str, x: str) -> list[tuple[float, float, int]]:
    """Return (place, accuracy, layers) wherever the run was evaluated."""
    history = run["history"]
    rows = zip(history[x], history.get(key, ()), history["layers"])
    return [(place / AXES[x][1], value, depth) for place, value, depth in rows if place and value is not None]


def _grew(run: Run) -> bool:
    return len(set(run["history"]["layers"])) > 1


def _draw(panel: Axes, rows: Mapping[str, list[Run]], key: str, x: str, colours: Mapping[str, str]) -> None:
    """Draw one panel: all seeds thin, the median one bold, growth dotted."""
    for solver, runs in rows.items():
        colour = colours[solver]
        for run in runs:
            panel.plot(*_xy(_points(run, key, x)), color=colour, linewidth=0.7, alpha=0.3)
        points = _points(_median(runs), key, x)
        depth = points[-1][2] if points else 0
        start = next((number for number, point in enumerate(points) if point[2] == depth), 0)
        panel.plot(*_xy(points[: start + 1]), ":", color=colour, linewidth=1.8)
        panel.plot(*_xy(points[start:]), "-", color=colour, linewidth=1.9)
        if start > 0:
            panel.plot(*_xy(points[start : start + 1]), "o", color=colour, markersize=4.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="both", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)


def _xy(points: Sequence[tuple[float, float, int]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _limit(panel: Axes, columns: Sequence[Mapping[str, list[Run]]], key: str) -> None:
    """Show where the runs end up: the slow rise from chance may lie outside the picture."""
    ends = [max((v for v in run["history"].get(key, ()) if v is not None), default=None)
            for rows in columns for runs in rows.values() for run in runs]  # fmt: skip
    best = [value for value in ends if value is not None]
    if best:
        low, high = min(best), max(best)
        margin = max(0.6 * (high - low), 0.06)
        panel.set_ylim(max(0.0, low - margin), min(1.0, high + 0.1 * margin))


def _scale(column: Sequence[Axes], rows: Mapping[str, list[Run]], x: str) -> None:
    """A logarithmic axis with plain numbers, from where the first curve enters a panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    runs = [run for own in rows.values() for run in own]
    seen = [
        place
        for panel, key in zip(column, QUANTITIES)
        for run in runs
        for place, value, _ in _points(run, key, x)
        if value >= panel.get_ylim()[0]
    ]
    if not seen:
        return
    low, high = 0.85 * min(seen), 1.15 * max(seen)
    axis = column[0].xaxis
    column[0].set_xscale("log")
    column[0].set_xlim(low, high)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _mark_targets(panel: Axes, targets: Sequence[float]) -> None:
    for target in targets:
        panel.axhline(target, color=GREY, linewidth=0.8, linestyle=(0, (5, 4)), zorder=0.9)
        panel.annotate(
            f"{target:.4g}", (1.0, target), (3, 0), ("axes fraction", "data"), "offset points",
            ha="left", va="center", fontsize=8, color=GREY, annotation_clip=True,
        )  # fmt: skip


def _legend(figure: Figure, colours: Mapping[str, str], grown: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5, label=solver) for solver, colour in colours.items()]
    if grown:
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.8, label="growing, up to the dot"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4), frameon=False)
