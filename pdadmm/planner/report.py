"""What ``pdadmm train`` says of its own run: predicted beside measured."""

from __future__ import annotations

from typing import Any

from pdadmm.admm.settings import ADMMSettings
from pdadmm.baselines.gcn import FullGraph
from pdadmm.console import human_bytes, human_seconds
from pdadmm.data import Graph
from pdadmm.parallel.rank_grid import RankGrid, choose_grid
from pdadmm.planner.forecast import Forecast, Setting, forecast_gnn, forecast_grid
from pdadmm.planner.gnn import GNNJob, epoch_bytes, epoch_memory
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine, known_machine, machine_folder
from pdadmm.planner.memory import peak
from pdadmm.planner.request import ITEMSIZES
from pdadmm.planner.simulate import Link
from pdadmm.planner.traffic import iteration_bytes

__all__ = ["predict_run", "sentence"]

EXACT_HALOS = ("exact", "pipelined", "mix")


def predict_run(
    settings: Any, graph: Graph | Any, summary: dict[str, Any], base: int
) -> dict[str, float | None] | None:
    """Return what a finished run was to need, from its settings alone; None for a solver without a model.

    ``settings`` are checked ones, ``base`` is the memory before the run. Seconds are None without a calibration of this
    machine. A GNN's halo counts as measured: it is the partition's.
    """
    machine, ranks = known_machine(machine_folder()), summary["ranks"]
    setting = None if machine is None else _setting(machine, ranks)
    if isinstance(settings, ADMMSettings):
        if settings.products != "full" or summary["device"] != "cpu":  # the model knows neither
            return None
        job, told = job_of_run(settings, graph), None
        grid = _grid(settings, job, ranks)
        memory, sent = peak(job, grid)[0], iteration_bytes(job, grid)
        told = None if setting is None else forecast_grid(job, grid, setting)
    elif isinstance(settings, FullGraph) and summary["halo"] in EXACT_HALOS and settings.architecture == "gcn":
        gnn, mixed = gnn_of_run(settings, graph, summary["halo_rows"]), summary["halo"] == "mix"
        memory, sent = epoch_memory(gnn, ranks, mixed), epoch_bytes(gnn, ranks, mixed)
        told = None if setting is None else forecast_gnn(gnn, setting, mixed)
    else:
        return None
    return {"seconds_per_iteration": _seconds(told), "bytes_per_iteration": sent, "peak_rss_bytes": base + memory}


def _setting(machine: Machine, ranks: int) -> Setting:
    return Setting(machine, ranks, ranks, Link(machine.latency, machine.bandwidth))


def _seconds(told: Forecast | None) -> float | None:
    return None if told is None else told.seconds


def job_of_run(settings: Any, graph: Graph) -> Job:
    """Return the shapes of a run of pdADMM-G at full depth."""
    parts = graph.splits or {}
    blocks = settings.hops + 1 if settings.weighting == "powers" else 1
    hidden = [settings.hidden] * (settings.layers - 1)
    stages = len(settings.stages)
    accelerated = settings.acceleration == "all-stages" or (settings.acceleration == "first-stage" and stages == 1)
    return Job(
        len(parts["train"]), sum(len(rows) for rows in parts.values()),
        (blocks * graph.num_features, *hidden, graph.num_classes or 0), ITEMSIZES[settings.dtype],
        settings.quantizer, settings.first_layer, settings.form, accelerated,
    )  # fmt: skip


def _grid(settings: Any, job: Job, ranks: int) -> RankGrid:
    cost = job.first.cost(job.nodes, job.widths[0], job.widths[1])
    return choose_grid(settings.grid, ranks, job.nodes, job.widths, cost)


def gnn_of_run(settings: Any, graph: Graph, halo_rows: int) -> GNNJob:
    """Return the shapes of a run of a GCN."""
    widths = (graph.num_features, *[settings.hidden] * (settings.layers - 1), graph.num_classes or 0)
    nonzeros = len(graph.indices) + graph.num_nodes
    return GNNJob(graph.num_nodes, nonzeros, widths, halo_rows, ITEMSIZES[settings.dtype])


def sentence(summary: dict[str, Any], sent: float) -> str | None:
    """Return predicted beside measured in a line; ``sent`` are the bytes of the last iteration."""
    told = summary["predicted"]
    if told is None:
        return None
    parts = [
        f"bytes {human_bytes(told['bytes_per_iteration'])} / {human_bytes(sent)}",
        f"memory {human_bytes(told['peak_rss_bytes'])} / {human_bytes(summary['peak_rss_bytes'])}",
    ]
    if told["seconds_per_iteration"] is not None:
        seconds = human_seconds(told["seconds_per_iteration"]), human_seconds(summary["seconds_per_iteration"])
        parts.insert(0, "seconds {} / {}".format(*seconds))
    return "predicted / measured, an iteration: " + ", ".join(parts)
