"""What a finished run was to need, from its settings alone: a function for each kind of solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.admm.streamed import largest_state
from pdadmm.baselines.gcn import FullGraph
from pdadmm.data import Graph
from pdadmm.models.gnn import ARCHITECTURES
from pdadmm.parallel.placement import run_of
from pdadmm.parallel.rank_grid import choose_grid
from pdadmm.planner import backprop, disk, gist, sampled
from pdadmm.planner.forecast import Setting, forecast_gnn, forecast_grid
from pdadmm.planner.gnn import GNNJob, epoch_bytes, epoch_memory
from pdadmm.planner.job import Job
from pdadmm.planner.memory import peak
from pdadmm.planner.request import ITEMSIZES
from pdadmm.planner.traffic import iteration_bytes

__all__ = [
    "Told", "admm_run", "backprop_run", "full_graph_run", "gist_run", "gnn_of_run", "job_of_run", "sampled_run",
    "streamed_run",
]  # fmt: skip

EXACT_HALOS = ("exact", "pipelined", "mix")


@dataclass(frozen=True)
class Told:
    """What an iteration is to need: ``sent`` by all ranks, ``memory`` of the rank that needs most above what it had,
    ``seconds``, ``disk``: bytes read and written. None for what there is no model of, and for seconds that the machine
    was not calibrated for; ``timed``: there is a model of them.
    """

    sent: int
    memory: float | None = None
    seconds: float | None = None
    disk: int | None = None
    timed: bool = False


# pdADMM-G


def job_of_run(settings: Any, graph: Graph | Any) -> Job:
    """Return the shapes of a run of pdADMM-G at full depth."""
    stages = len(settings.stages)
    accelerated = settings.acceleration == "all-stages" or (settings.acceleration == "first-stage" and stages == 1)
    return Job(
        *_rows(graph), _widths(settings, graph), ITEMSIZES[settings.dtype],
        settings.quantizer, settings.first_layer, settings.form, accelerated,
    )  # fmt: skip


def _rows(graph: Graph | Any) -> tuple[int, int]:
    """Return the training nodes and all labelled nodes."""
    parts = graph.splits or {}
    return len(parts["train"]), sum(len(rows) for rows in parts.values())


def _widths(settings: Any, graph: Graph | Any) -> tuple[int, ...]:
    """Return [n_0, .., n_L] of a GA-MLP, or of a GNN, whose features are not augmented."""
    blocks = settings.hops + 1 if getattr(settings, "weighting", None) == "powers" else 1
    return blocks * graph.num_features, *[settings.hidden] * (settings.layers - 1), graph.num_classes or 0


def admm_run(settings: Any, graph: Graph, summary: dict[str, Any], setting: Setting | None) -> Told:
    """Return what a run of pdADMM-G in memory needs; on a GPU, or with other products than the state's, bytes alone."""
    job, ranks = job_of_run(settings, graph), summary["ranks"]
    cost = job.first.cost(job.nodes, job.widths[0], job.widths[1])
    grid = choose_grid(settings.grid, ranks, job.nodes, job.widths, cost)
    sent = iteration_bytes(job, grid)
    if settings.products != "full" or summary["device"] != "cpu":
        return Told(sent)
    seconds = None if setting is None else forecast_grid(job, grid, setting).seconds
    return Told(sent, peak(job, grid)[0], seconds, timed=True)


def streamed_run(settings: Any, graph: Graph | Any, limit: int, setting: Setting | None) -> Told:
    """Return what a run of pdADMM-G from disk needs under a ``limit`` of memory."""
    job = disk.from_disk(job_of_run(settings, graph))
    largest, _ = largest_state(settings, job.nodes, job.widths[0], job.widths[-1])
    block = disk.block_nodes(job, limit, largest, settings.products)
    moved = disk.disk_bytes(job, block)
    if settings.products != "full":
        return Told(0, disk=moved)
    seconds = None if setting is None else disk.pass_seconds(job, block, setting.machine)
    return Told(0, disk.pass_memory(job, block, isinstance(graph, Graph)), seconds, moved, timed=True)


# Backpropagation


def backprop_run(settings: Any, graph: Graph, summary: dict[str, Any], setting: Setting | None) -> Told:
    """Return what a run by backpropagation on a GA-MLP needs; on a GPU bytes alone."""
    (V, N), ranks = _rows(graph), summary["ranks"]
    job = backprop.BackpropJob(
        V, N, _widths(settings, graph), min(settings.batch_size or V, V), backprop.optimiser_of(settings),
        settings.dropout > 0, settings.loss == "squared_error", ITEMSIZES[settings.dtype],
    )  # fmt: skip
    if summary["device"] != "cpu":
        return Told(backprop.pass_bytes(job, ranks))
    seconds = None
    if setting is not None:
        seconds = backprop.pass_seconds(job, ranks, setting.machine, setting.link, setting.per_host)
    return Told(backprop.pass_bytes(job, ranks), backprop.pass_memory(job, ranks), seconds, timed=True)


# GNNs


def gnn_of_run(settings: Any, graph: Graph, halo_rows: int) -> GNNJob:
    """Return the shapes of a run of a GCN."""
    nonzeros = len(graph.indices) + graph.num_nodes
    return GNNJob(graph.num_nodes, nonzeros, _widths(settings, graph), halo_rows, ITEMSIZES[settings.dtype])


def full_graph_run(settings: FullGraph, graph: Graph, summary: dict[str, Any], setting: Setting | None) -> Told | None:
    """Return what a run on the whole graph needs; the halo counts as measured: it is the partition's."""
    if summary["halo"] not in EXACT_HALOS or settings.architecture != "gcn":
        return None
    job, mixed, ranks = gnn_of_run(settings, graph, summary["halo_rows"]), summary["halo"] == "mix", summary["ranks"]
    seconds = None if setting is None else forecast_gnn(job, setting, mixed).seconds
    return Told(epoch_bytes(job, ranks, mixed), epoch_memory(job, ranks, mixed), seconds, timed=True)


def _filled(settings: Any, graph: Graph) -> float:
    """Return how many features of a node are kept: those that are not 0 where few are."""
    from pdadmm.augment.scaling import SCALINGS
    from pdadmm.sampling.network import DENSE

    X = graph.features
    found = (X.count_nonzero() if sp.issparse(X) else np.count_nonzero(X)) / max(1, graph.num_nodes)
    dense = SCALINGS[settings.scaling].centre or found >= DENSE * graph.num_features
    return float(graph.num_features if dense else found)


def _sampled_job(settings: Any, graph: Graph, steps: int, pieces: list[sampled.Piece], batches: int = 1):
    diagonal = settings.architecture == "gcn"
    return sampled.SampledJob(
        graph.num_nodes, len(graph.indices) + diagonal * graph.num_nodes, _widths(settings, graph),
        ARCHITECTURES[settings.architecture].copies, steps, pieces, _filled(settings, graph), batches,
        settings.dropout > 0, ITEMSIZES[settings.dtype],
    )  # fmt: skip


def _clustered(settings: Any, graph: Graph, clusters: int, batches: int) -> tuple[int, list[sampled.Piece]]:
    """Return the steps of an epoch over the clusters that have nodes, and a batch."""
    joined, diagonal = min(settings.clusters_per_batch, clusters), settings.architecture == "gcn"
    pieces = sampled.cluster_pieces(graph.num_nodes, len(graph.indices), clusters, joined, settings.layers, diagonal)
    return -(-clusters // (joined * batches)), pieces


def sampled_run(settings: Any, graph: Graph, summary: dict[str, Any], setting: Setting | None) -> Told:
    """Return what a run on samples needs; how many clusters have nodes counts as measured: it is the partition's."""
    assert graph.splits is not None  # it was trained on
    train, ranks, diagonal = graph.splits["train"], summary["ranks"], settings.architecture == "gcn"
    own = len(run_of(settings.batches, 0, ranks))  # of a step's batches
    size = min(settings.batch_size or len(train), len(train))
    if settings.sampler == "cluster":
        steps, pieces = _clustered(settings, graph, summary["clusters"], settings.batches)
    elif settings.sampler == "walk":
        steps = math.ceil(math.ceil(len(train) / size) / settings.batches)
        pieces = sampled.walk_pieces(graph.adjacency, train, settings.walk_length, size, settings.layers, diagonal)
    else:
        steps, own = -(-len(train) // size), 1
        share = len(run_of(size, 0, ranks))
        pieces = sampled.neighbour_pieces(graph.adjacency, train, settings.fanouts, share, diagonal)
    job = _sampled_job(settings, graph, steps, pieces, own)
    return Told(sampled.epoch_bytes(job, ranks), sampled.epoch_memory(job))  # drawing has no model of its time


def gist_run(settings: Any, graph: Graph, summary: dict[str, Any], setting: Setting | None) -> Told:
    """Return what a run of GIST needs, bytes on average over the draws of groups and over an epoch's rounds."""
    ranks = summary["ranks"]
    steps, pieces = _clustered(settings, graph, summary["clusters"], 1)
    parts = settings.parts or min(ranks, settings.hidden)
    job = gist.GISTJob(_sampled_job(settings, graph, steps, pieces), settings.architecture, parts, settings.local_steps)
    return Told(gist.gist_bytes(job, ranks), gist.gist_memory(job, ranks))
