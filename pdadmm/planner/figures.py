"""The speedup of the schedule over layers and over ranks, simulated (Wang et al. 2022, Fig. 3 and 4)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.forecast import Setting
from pdadmm.planner.job import Job
from pdadmm.planner.simulate import simulate
from pdadmm.plot import COLOURS, FONT, GREY, load_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_speedup", "speedup_over_layers", "speedup_over_ranks"]

DEPTHS = (2, 4, 6, 8, 10, 12, 14, 16)


def _seconds(job: Job, groups: int, setting: Setting, iterations: int) -> float:
    grid = RankGrid(groups, 1)
    crowd = min(setting.per_host, groups)
    return simulate(job, grid, setting.machine, crowd, setting.link, iterations, setting.conditions).seconds


def _of_depth(job: Job, layers: int) -> Job:
    return dataclasses.replace(job, widths=(job.widths[0], *[job.widths[1]] * (layers - 1), job.widths[-1]))


def speedup_over_layers(job: Job, setting: Setting, iterations: int) -> dict[int, float]:
    """Return depth L -> seconds of one rank over those of L ranks, a layer each (Fig. 3)."""
    return {
        L: _seconds(_of_depth(job, L), 1, setting, iterations) / _seconds(_of_depth(job, L), L, setting, iterations)
        for L in DEPTHS
    }


def speedup_over_ranks(job: Job, setting: Setting, iterations: int) -> dict[int, float]:
    """Return ranks R -> seconds of one rank over those of R, layers shared out, up to one each (Fig. 4)."""
    alone = _seconds(job, 1, setting, iterations)
    counts = [R for R in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if job.layers > R] + [job.layers]
    return {R: alone / _seconds(job, R, setting, iterations) for R in counts}


def plot_speedup(job: Job, setting: Setting, iterations: int, path: str | os.PathLike) -> Figure:
    """Draw both speedups beside the ideal and save the picture to ``path``.

    Raises InputError where matplotlib is not installed or the file cannot be written.
    """
    matplotlib, figure_class = load_matplotlib()
    over_layers, over_ranks = (run(job, setting, iterations) for run in (speedup_over_layers, speedup_over_ranks))
    runs = {
        "speedup over layers, a rank each (simulated)": ("layers and ranks", over_layers),
        f"speedup of {job.layers} layers over ranks (simulated)": ("ranks", over_ranks),
    }
    with matplotlib.rc_context(FONT):
        figure = figure_class(figsize=(9.0, 3.8), layout="constrained")
        for panel, (title, (axis, found)) in zip(figure.subplots(1, 2), runs.items()):
            panel.plot(list(found), list(found), color=GREY, linewidth=1.0, linestyle=":", label="ideal")
            panel.plot(list(found), list(found.values()), "o-", color=COLOURS[0], linewidth=1.5, label="simulated")
            panel.set_title(title, loc="left")
            panel.set_xlabel(axis)
            panel.set_ylabel("speedup over one rank")
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            panel.set_axisbelow(True)
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.legend(frameon=False, loc="upper left")
        save_figure(figure, Path(path))
    return figure
