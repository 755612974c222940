"""GNNs trained on sampled pieces of the graph, in scikit-learn's manner."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pdadmm.baselines.gnn import GNNClassifier, GraphProblem
from pdadmm.baselines.partition import partition
from pdadmm.data import Graph
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.limits import Limit
from pdadmm.errors import InputError
from pdadmm.estimator import Outcome
from pdadmm.models.gnn import ARCHITECTURES
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import Check, fraction, one_of, optional, param, whole
from pdadmm.sampling.batch import Sampler
from pdadmm.sampling.clusters import ClusterSampler
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.network import Features
from pdadmm.sampling.solver import SampledSolver
from pdadmm.sampling.streamed import DiskProblem, GraphStorage, StreamedSolver
from pdadmm.sampling.walks import WalkSampler
from pdadmm.saver import Saver

__all__ = ["BatchClassifier", "BatchProblem", "SampledGNN", "cluster_sampler"]

FANOUT = 10


@dataclass
class BatchProblem(GraphProblem):
    """A GraphProblem whose features every rank holds, for any node may come into its batches; X is None."""

    graph: Graph
    features: Features


@dataclass(eq=False, repr=False)
class BatchClassifier(GNNClassifier):
    """A GNN trained on batches of the graph; a solver adds its own settings and ``_train``."""

    def _problem(self, settings, graph, y, transport: Transport) -> tuple[BatchProblem, None, float]:
        problem, shift, seconds = super()._problem(settings, graph, y, transport)
        began = time.perf_counter()
        X = problem.X  # of rank 0
        if X is None:
            X = self.augmenter_.fit_transform(graph, problem.parts["train"])
        found = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)} | {"X": None}
        own = BatchProblem(**found, graph=graph, features=Features(X))
        return own, shift, seconds + time.perf_counter() - began


def _accept_fanouts(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    fanouts = tuple(whole(1).accept(part) for part in parts)
    if not fanouts:
        raise ValueError
    return fanouts


fanout_list = Check(_accept_fanouts, "numbers of neighbours such as 10,25", "N,N,..")

SAMPLERS = ("neighbour", "cluster", "walk")
DISK_NEIGHBOURS = ("all", "buffer")


@dataclass(eq=False, repr=False)
class SampledGNN(BatchClassifier):
    """A GNN trained on samples: neighbours layer by layer, clusters, or random walks (docs/sampling.md).

    In one process, or under ``mpirun -n R`` with each step's batches shared by the ranks and their gradients summed.

    >>> from pdadmm import SampledGNN, digits
    >>> SampledGNN(iterations=20, batch_size=64).fit(digits()).score(digits()) > 0.8
    True
    """

    architecture: str = param("sage", one_of(tuple(ARCHITECTURES)), "kind of layer")
    sampler: str = param("neighbour", one_of(SAMPLERS), "what a batch is")
    fanouts: Sequence[int] | None = param(
        None, optional(fanout_list), "neighbour: neighbours drawn for a node in layers 1 to L (default: 10 in each)",
        {"sampler": ("neighbour",)},
    )  # fmt: skip
    batch_size: int | None = param(
        None, optional(whole(1)), "training nodes of a step, or roots of a walk's batch (default: all of them)",
        {"sampler": ("neighbour", "walk")},
    )  # fmt: skip
    clusters: int = param(20, whole(1), "cluster: parts that the graph is cut into", {"sampler": ("cluster",)})
    clusters_per_batch: int = param(5, whole(1), "cluster: parts joined in a batch", {"sampler": ("cluster",)})
    walk_length: int = param(4, whole(1), "walk: steps of a random walk", {"sampler": ("walk",)})
    batches: int = param(
        1, whole(1), "cluster and walk: batches of a step, dealt over the ranks", {"sampler": ("cluster", "walk")}
    )
    buffer_share: float | None = param(
        None, optional(fraction), "with memory: most of the features and edges to hold at a time (default: what fits)"
    )
    disk_neighbours: str | None = param(
        None, optional(one_of(DISK_NEIGHBOURS)),
        "with memory: neighbours are drawn among all, as without memory, or those in the buffer (default: all)",
    )  # fmt: skip

    streams = True

    def checked(self) -> Self:
        settings = super().checked()
        if settings.sampler != "neighbour":
            return settings
        if settings.fanouts is None:
            settings.fanouts = (FANOUT,) * settings.layers
        if len(settings.fanouts) != settings.layers:
            raise InputError("fanouts", settings.fanouts, f"{settings.layers} numbers, one for each layer")
        return settings

    def _problem(
        self, settings: SampledGNN, graph: Any, y: Any, transport: Transport, on_disk: bool = False
    ) -> tuple[Any, None, float]:
        if not on_disk:
            if isinstance(graph, GraphFolder):
                raise InputError("memory, scratch", None, "given with a GraphFolder", "or read it: disk.to_graph()")
            for name in ("buffer_share", "disk_neighbours"):
                if getattr(settings, name) is not None:
                    raise InputError(name, getattr(settings, name), "left out without memory")
            return super()._problem(settings, graph, y, transport)
        if settings.sampler != "neighbour":
            raise InputError("sampler", settings.sampler, "neighbour with memory", "others train in memory")
        if not isinstance(graph, GraphFolder):
            self._check_graph("X", graph)
        if y is not None:
            raise InputError("y", "given", "left out with a graph", "the graph holds its labels")
        return DiskProblem(graph, *self._labelled(settings, graph)), None, 0.0

    def _storage(self, problem: DiskProblem, settings: SampledGNN, folder: Path, limit: Limit) -> GraphStorage:
        """Return where features and adjacency lie while training from disk, and their buffer."""
        graph, own = problem.on_disk(folder)
        storage = GraphStorage(folder, limit.limit, graph, settings, problem, own)
        self.augmenter_ = storage.augmenter
        return storage

    def _train(
        self,
        problem: BatchProblem | DiskProblem,
        settings: SampledGNN,
        transport: Transport,
        watch: Callable[[dict], None],
        saver: Saver | None = None,
        storage: GraphStorage | None = None,
    ) -> Outcome:
        if storage is not None:
            streamed = StreamedSolver(problem, storage, settings, transport, settings.eval_every, watch, saver)
            try:
                streamed.run()
                return self._outcome(streamed, {})
            finally:
                storage.remove()
        assert isinstance(problem, BatchProblem)
        sampler, seconds = settings.make_sampler(problem, transport)
        solver = SampledSolver(
            problem, problem.features, sampler, settings, transport, settings.eval_every, watch, saver
        ).run()
        return self._outcome(solver, seconds)

    @staticmethod
    def _outcome(solver: SampledSolver, seconds: dict[str, float]) -> Outcome:
        weights = {layer: (W.detach(), b.detach()) for layer, (W, b) in enumerate(solver.layers())}
        return Outcome(weights, solver.history, solver.stages, solver.summary() | seconds)

    def make_sampler(self, problem: BatchProblem, transport: Transport) -> tuple[Sampler, dict[str, float]]:
        """Return the sampler that these checked settings name, and the seconds that its making took."""
        if self.sampler == "cluster":
            return cluster_sampler(problem, self, transport, self.batches)
        train, began = problem.parts["train"], time.perf_counter()
        sampler: Sampler
        if self.sampler == "neighbour":
            assert self.fanouts is not None  # checked
            sampler = NeighbourSampler(problem.S, train, self.fanouts, self.batch_size, self.seed)
        else:
            length, roots = self.walk_length, self.batch_size
            sampler = WalkSampler(problem.S, train, length, roots, self.layers, self.batches, self.seed)
        return sampler, made(transport, precompute=time.perf_counter() - began)


def cluster_sampler(
    problem: BatchProblem, settings: Any, transport: Transport, batches: int = 1
) -> tuple[ClusterSampler, dict[str, float]]:
    """Return the sampler of ``settings.clusters``, the same on every rank, and the seconds that its making took."""
    began, clusters = time.perf_counter(), None
    if transport.rank == 0:  # METIS may draw otherwise on another machine
        clusters = partition(problem.graph.adjacency, settings.clusters, seed=settings.seed)
    clusters, cut = transport.bcast(clusters), time.perf_counter()
    sampler = ClusterSampler(
        problem.graph, settings.architecture, settings.dtype, settings.layers, clusters,
        settings.clusters_per_batch, batches, settings.seed,
    )  # fmt: skip
    told = {"clusters": len(sampler.members)}  # those with nodes
    return sampler, told | made(transport, partition=cut - began, precompute=time.perf_counter() - cut)


def made(transport: Transport, partition: float = 0.0, precompute: float = 0.0) -> dict[str, float]:
    """Return the seconds of cutting the graph and of other work ahead of training, the slowest rank's."""
    parts = transport.allgather((partition, precompute))
    return dict(zip(("seconds_partition", "seconds_precompute"), map(max, zip(*parts))))
