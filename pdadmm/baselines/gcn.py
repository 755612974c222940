"""GCN and MixGCN: full-graph training of a GNN, alone or with the nodes spread over ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.baselines.exchange import PlainWire, QuantizedWire, cut
from pdadmm.baselines.fullgraph import FullGraphSolver
from pdadmm.baselines.gnn import GNNClassifier, GraphProblem
from pdadmm.baselines.mixers import HaloMixer, Mixer, PipelinedMixer, SampledMixer
from pdadmm.baselines.mixgcn import MixMixer
from pdadmm.baselines.partition import PARTITIONS, cheaper, halo_rows, partition
from pdadmm.baselines.shards import run_of
from pdadmm.estimator import Outcome
from pdadmm.models.gnn import ARCHITECTURES
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import below_one, closed_fraction, one_of, param, whole, whole_of
from pdadmm.quantize import BITS
from pdadmm.recording import Breakdown
from pdadmm.saver import Saver

__all__ = ["GCN", "HALOS", "FullGraph", "MixGCN"]

log = logging.getLogger("pdadmm")

HALOS = ("exact", "pipelined", "sampled", "quantized", "broadcast", "mix", "auto")


@dataclass(eq=False, repr=False)
class FullGraph(GNNClassifier):
    """Full-graph training; a subclass says how the ranks share the layers behind the first.

    In one process, or under ``mpirun -n R`` with the nodes spread over the ranks. The model kept is the epoch of best
    validation accuracy (the last one without validation nodes).
    """

    def _spread(
        self, problem: GraphProblem, transport: Transport, widths: list[int], times: Breakdown
    ) -> tuple[Mixer, list[np.ndarray], dict[str, Any]]:
        """Return the layers behind the first, every rank's nodes, and what the summary says of them."""
        raise NotImplementedError

    def _train(
        self,
        problem: GraphProblem,
        settings: FullGraph,
        transport: Transport,
        watch: Callable[[dict[str, Any]], None],
        saver: Saver | None = None,
    ) -> Outcome:
        widths = [problem.inputs, *[settings.hidden] * (settings.layers - 1), problem.classes]
        times, began = Breakdown(transport.trace), time.perf_counter()
        mixer, holders, told = settings._spread(problem, transport, widths, times)
        told["seconds_partition"] = max(transport.allgather(time.perf_counter() - began))
        every = settings.eval_every
        solver = FullGraphSolver(problem, settings, transport, mixer, holders, times, every, watch, saver).run()
        weights = {layer: (W.detach(), b.detach()) for layer, (W, b) in enumerate(solver.layers())}
        return Outcome(weights, solver.history, solver.stages, solver.summary() | told)

    def _mix(self, problem: GraphProblem, transport: Transport, widths: list[int], times: Breakdown):
        copies, V, P = ARCHITECTURES[self.architecture].copies, problem.nodes, transport.size
        holders = [np.arange(run.start, run.stop) for run in (run_of(V, rank, P) for rank in range(P))]
        return MixMixer(problem.S, transport, widths, self, copies, times), holders


@dataclass(eq=False, repr=False)
class GCN(FullGraph):
    """A GCN or GraphSAGE trained on the whole graph, its nodes cut into a part for each rank (docs/gnn.md).

    ``halo`` says what a rank knows of the neighbours of its nodes: "exact", equal to one process up to rounding;
    "pipelined", those of the epoch before (PipeGCN); "sampled", a random share of them (BNS-GCN); "quantized" (AdaQP);
    "broadcast", all nodes (CAGNET 1D); "mix", as MixGCN does; "auto", the cheaper of "exact" and "mix".

    >>> from pdadmm import GCN, csbm
    >>> graph = csbm(300, num_classes=3, num_features=8, seed=0)
    >>> GCN(hidden=16, iterations=60).fit(graph).score(graph) > 0.8
    True
    """

    halo: str = param("exact", one_of(HALOS), "what a rank knows of its nodes' neighbours on other ranks")
    partition: str = param("auto", one_of(("auto", *PARTITIONS)), "how nodes are cut into parts, one a rank")
    gamma: float = param(
        0.0, below_one, "smoothing of a pipelined halo: weight of what was known before", {"halo": ("pipelined",)}
    )
    boundary_share: float = param(
        0.1, closed_fraction, "share of each boundary that a sampled halo reads", {"halo": ("sampled",)}
    )
    bits: int = param(8, whole_of(BITS), "bits of each number of a quantized halo", {"halo": ("quantized",)})
    chunks: int = param(1, whole(1), "chunks of rows of a mixed layer's pipeline", {"halo": ("mix", "auto")})

    @property
    def bound_to_ranks(self) -> bool:
        return self.halo == "pipelined"  # an old halo is of the nodes next to a rank's own

    def _spread(self, problem, transport, widths, times):
        part = None
        if transport.rank == 0:
            part = partition(problem.S, transport.size, self.partition, self.seed)
        part = transport.bcast(part)
        volume, V, P = halo_rows(problem.S, part), problem.nodes, transport.size
        halo = self.halo
        if halo == "auto":
            halo = cheaper(volume, V, P)
            log.info("halo %s: Vol/V = %.3g, all-to-alls move 2 (P-1)/P = %.3g", halo, volume / V, 2 * (P - 1) / P)
        told = {"halo": halo, "halo_rows": volume}
        if halo == "mix":
            return *self._mix(problem, transport, widths, times), told
        whole = cut(problem.S, part, transport.rank, everything=halo == "broadcast")
        wire = QuantizedWire(self.bits) if halo == "quantized" else PlainWire()
        given = transport, widths, self, ARCHITECTURES[self.architecture].copies, times, wire
        if halo == "sampled":
            mixer = SampledMixer(whole, *given)
        else:
            mixer = (PipelinedMixer if halo == "pipelined" else HaloMixer)(whole, whole, *given)
        return mixer, [np.flatnonzero(part == rank) for rank in range(P)], told


@dataclass(eq=False, repr=False)
class MixGCN(FullGraph):
    """A GCN or GraphSAGE trained on the whole graph by mixed parallelism (MixGCN, arXiv 2501.01951; docs/gnn.md).

    Sparse products are shared by slices of features, dense ones by nodes; equal to one process up to rounding.

    >>> from pdadmm import MixGCN, csbm
    >>> graph = csbm(300, num_classes=3, num_features=8, seed=0)
    >>> MixGCN(hidden=16, iterations=60).fit(graph).score(graph) > 0.8
    True
    """

    chunks: int = param(1, whole(1), "chunks of rows of a layer's pipeline: products and messages by turns")

    def _spread(self, problem, transport, widths, times):
        volume = halo_rows(problem.S, np.repeat(np.arange(transport.size), [
            len(run_of(problem.nodes, rank, transport.size)) for rank in range(transport.size)
        ]))
        return *self._mix(problem, transport, widths, times), {"halo": "mix", "halo_rows": volume}
