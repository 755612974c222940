"""Figures of what a run records; matplotlib is imported only when one is drawn (extra ``plot``)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdadmm.errors import InputError, reason_of
from pdadmm.files import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_convergence"]

# Horizontal axis -> its label and what its numbers are divided by.
AXES = {
    "iteration": ("iteration", 1.0),
    "seconds": ("seconds of training", 1.0),
    "bytes": ("messages in MB", 1e6),
}
# Told apart by the line, as the colour says which run it is.
RESIDUALS = {
    "residual_link": (r"$\sum|p_{l+1} - q_l|^2$", "-"),
    "residual_linear": (r"$\sum|z_l - p_l W_l^T - b_l|^2$", "--"),
    "residual_activation": (r"$\sum|q_l - f(z_l)|^2$", ":"),
}
ACCURACIES = {"val_accuracy": ("validation", "-"), "test_accuracy": ("test", "--")}
OBJECTIVE = {"objective": ("objective", "-")}

PICTURES = (".png", ".pdf", ".svg")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
GREY = "#666666"
FONT = {"font.size": 9.5, "axes.titlesize": 10.5, "axes.linewidth": 0.8, "axes.edgecolor": GREY}


def plot_convergence(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike | None = None,
    x: str = "iteration",
) -> Figure:
    """Return a figure of one or more runs: objective, squared residuals and accuracy, and save it to ``path``.

    ``histories`` maps a run's name to its History; ``x`` is "iteration", "seconds" (of training alone) or
    "bytes" (of the messages of all ranks). Grey lines mark where the networks grew. What a run has
    not recorded is left out; accuracies of the first iterations, far below the rest, may lie outside the
    picture. Raises InputError for runs that cannot be drawn, for a file that cannot be written, and where
    matplotlib is not installed.

    >>> figure = plot_convergence({"cora": solver.history_}, "cora.png")  # doctest: +SKIP
    """
    runs = checked(histories, x)
    matplotlib, figure_class = load_matplotlib()
    with matplotlib.rc_context(FONT):
        figure = figure_class(figsize=(12.0, 4.0), layout="constrained")
        panels = figure.subplots(1, 3)
        _draw(panels[0], runs, x, _objective(runs), OBJECTIVE, log=True)
        _draw(panels[1], runs, x, "squared residuals, summed over layers", RESIDUALS, log=True)
        _draw(panels[2], runs, x, "accuracy of the composed network", ACCURACIES)
        _mark_growth(panels, runs)
        if len(runs) > 1:
            _name_the_runs(figure, runs)
        if path is not None:
            save_figure(figure, Path(path))
    return figure


def _objective(runs: Mapping[str, Any]) -> str:
    """Return the title of the objective's panel: pdADMM-G's is a sum over nodes, other solvers' a mean."""
    by_admm = {any(row.get("residual_link") is not None for _, row in rows) for rows in runs.values()}
    return "objective" if len(by_admm) == 1 else "objective (sum in pdADMM-G, else mean)"


def checked(histories: Any, x: str) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Return each run as pairs (place on the horizontal axis, row); InputError for what cannot be drawn."""
    if x not in AXES:
        raise InputError("x", x, "one of " + ", ".join(AXES))
    if not isinstance(histories, Mapping) or not histories:
        value, remedy = f"a {type(histories).__name__}, {histories!r:.40}", 'give {"name": history}'
        raise InputError("histories", value, "a dict of run name -> History with at least one run", remedy)
    runs = {}
    for name, history in histories.items():
        _check_rows(name, history, x)
        rows = [(row[x] / AXES[x][1], row) for row in history if row.get(x) is not None]
        if not rows:
            raise InputError(f"histories[{name!r}]", f"{len(history)} rows", f"a History with rows that have {x}")
        runs[str(name)] = rows
    if x == "bytes" and all(place == 0 for rows in runs.values() for place, _ in rows):
        remedy = "plot a run under mpirun, or against iteration or seconds"
        raise InputError("x", x, "iteration or seconds, as no run sent a message", remedy)
    return runs


def _check_rows(name: Any, history: Any, x: str) -> None:
    """Raise InputError for what is no History, or holds something else than numbers in what is drawn."""
    if not isinstance(history, Sequence) or not all(isinstance(row, Mapping) for row in history):
        raise InputError(f"histories[{str(name)!r}]", f"{history!r:.40}", "a History, or another list of dicts")
    drawn = (x, *OBJECTIVE, *RESIDUALS, *ACCURACIES, "layers", "stage")
    for number, row in enumerate(history, start=1):
        for key in drawn:
            value = row.get(key)
            if value is not None and not is_number(value):
                argument = f"histories[{str(name)!r}] row {number} {key}"
                raise InputError(argument, f"{value!r:.40}", "a finite number, or left out")


def load_matplotlib() -> tuple[Any, type]:
    """Return matplotlib and its Figure; InputError where it is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = "pip install matplotlib, or pip install '.[plot]' in this project's folder"
        raise InputError("matplotlib", "missing", "installed for figures", remedy) from error
    return matplotlib, Figure


def _draw(panel: Axes, runs: Mapping[str, Any], x: str, title: str, quantities: Any, log: bool = False) -> None:
    """Draw one panel: a colour for each run, a line style for each of ``quantities`` key -> (label, style)."""
    shown, values = {}, []
    for colour, rows in zip(itertools.cycle(COLOURS), runs.values()):
        for key, (label, line) in quantities.items():
            points = [(place, row[key]) for place, row in rows if _drawable(row.get(key), log)]
            if points:
                panel.plot(*zip(*points), line, color=colour, linewidth=1.5)
                shown[label] = line
                values += [value for _, value in points]
    panel.set_title(title, loc="left")
    panel.set_xlabel(AXES[x][0])
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    if not shown:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", color=GREY)
    elif log:
        _scale_log(panel, values)
    else:
        _look_at_the_end(panel, values)
    if len(shown) > 1:
        for label, line in shown.items():
            panel.plot([], [], line, color="#333333", linewidth=1.3, label=label)
        panel.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5, loc="best")


def _drawable(value: Any, log: bool) -> bool:
    return value is not None and (value > 0 or not log)


def _scale_log(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis, with plain numbers where it spans few decades."""
    panel.set_yscale("log")
    if max(values) < 1000 * min(values):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())


def _look_at_the_end(panel: Axes, values: Sequence[float]) -> None:
    """Let the first tenth of the values, from chance upward, run out of the picture where the rest is close."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1]
    margin = max(0.15 * (high - low), 0.02)
    panel.set_ylim(max(0.0, low - margin), min(1.0, high + margin))


def _mark_growth(panels: Sequence[Axes], runs: Mapping[str, Any]) -> None:
    """Grey lines where a stage ends, its depth written in the first panel, if all runs grew at the same places."""
    marks = []
    for rows in runs.values():
        first = rows[0][0], rows[0][1].get("layers")
        grown = [
            (end, row.get("layers"))
            for (end, last), (_, row) in itertools.pairwise(rows)
            if last.get("stage") != row.get("stage")
        ]
        marks.append([first, *grown])
    if len(marks[0]) < 2 or any(mark != marks[0] for mark in marks):
        return
    for number, (place, layers) in enumerate(marks[0]):
        for panel in panels if number else ():
            panel.axvline(place, color="#c4c4c4", linewidth=0.8, zorder=0.5)
        panels[0].annotate(
            str(layers) if number else f"{layers} layers", (place, 1.0), (3, -1), ("data", "axes fraction"),
            "offset points", va="top", fontsize=8, color=GREY,
        )  # fmt: skip


def _name_the_runs(figure: Figure, runs: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=3, label=name) for colour, name in zip(itertools.cycle(COLOURS), runs)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(runs), 6), frameon=False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; InputError where it cannot be written."""
    check_picture("path", path)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError("path", str(path), "a file in a folder that exists", reason_of(error)) from None


def check_picture(argument: str, path: str | os.PathLike) -> None:
    """Raise InputError for a file whose ending is none of a picture."""
    if Path(path).suffix.lower() not in PICTURES:
        raise InputError(argument, os.fspath(path), f"a file that ends in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
