"""Sample-based training from disk: what is held in memory, batches out of it, exact evaluation layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pdadmm.augment import Augmenter
from pdadmm.data import Graph
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.features import ScaledFeatures, fit_scaler
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.errors import InputError
from pdadmm.models.gnn import ARCHITECTURES
from pdadmm.parallel.transport import Transport
from pdadmm.sampling.batch import Batch
from pdadmm.sampling.buffered import OperatorRows
from pdadmm.sampling.holdings import BufferHolding, Source, StreamHolding
from pdadmm.sampling.inference import DiskInference
from pdadmm.sampling.network import DENSE
from pdadmm.sampling.sizes import BufferPlan, Needs, plan_buffer, plan_stream
from pdadmm.sampling.solver import SampledSolver
from pdadmm.saver import Saver

__all__ = ["DiskProblem", "GraphStorage", "StreamedSolver"]


class DiskProblem:
    """What a GNN trains on from disk: ``graph``, a GraphFolder, or a Graph that goes to the scratch folder.

    ``y`` (V,), ``inputs``, ``classes``, ``nodes`` and ``parts`` are those of a GraphProblem.
    """

    def __init__(self, graph: Graph | GraphFolder, rows: np.ndarray, parts: dict[str, slice]) -> None:
        self.graph, self.nodes = graph, graph.num_nodes
        self.y, self.inputs, self.classes = torch.from_numpy(graph.labels), graph.num_features, graph.num_classes
        self.parts = {part: rows[own] for part, own in parts.items()}

    def on_disk(self, folder: Path) -> tuple[DiskGraph, bool]:
        """Return the graph on the disk, and whether it was made for this run: a Graph is written into ``folder``."""
        if isinstance(self.graph, GraphFolder):
            return self.graph.disk, False
        own = folder / "scratch-graph"
        shutil.rmtree(own, ignore_errors=True)  # of a run that was cut off
        write_graph(self.graph, own)
        return DiskGraph(own), True


class GraphStorage:
    """What a training from disk reads: the graph's folder, scaled features in ``folder``, and what is held of them.

    Making it checks the adjacency, learns the scaling (``augmenter``), writes the features and plans what to hold
    within ``memory`` bytes and ``settings.buffer_share``; with ``own`` the graph's folder goes with the rest. Raises
    InputError where memory or disk do not do.
    """

    def __init__(
        self, folder: Path, memory: int, graph: DiskGraph, settings: Any, problem: DiskProblem, own: bool = False
    ) -> None:
        self.folder, self.settings, self.problem = folder, settings, problem
        self.own = graph if own else None
        self.traffic = {name: Traffic() for name in ("setup", "training", "evaluation")}
        before = graph.traffic.read
        self.indptr = graph.indptr()
        graph.check_adjacency(self.indptr)
        self.rows = OperatorRows(self.indptr, settings.architecture, settings.dtype)
        with on_disk(folder):
            self.features = self._scaled(graph)
        self.traffic["setup"].add(read=graph.traffic.read - before)
        self.files = self._open(graph)
        try:
            plan = plan_buffer if settings.disk_neighbours == "buffer" else plan_stream
            self.needs = self._needs()
            self.plan = plan(self.needs, memory, settings.buffer_share or 1.0)
        except InputError:
            self._close()
            raise
        source = Source(self.files, self.rows, np.asarray(problem.parts["train"]), problem.inputs)
        self.held: BufferHolding | StreamHolding
        if isinstance(self.plan, BufferPlan):
            self.held = BufferHolding(source, self.plan, settings)
        else:
            self.held = StreamHolding(source, self.plan, settings)

    def _scaled(self, graph: DiskGraph) -> ScaledFeatures:
        """Write the features, scaled as the training nodes say."""
        s, dtype = self.settings, np.dtype(self.settings.dtype)
        hidden = 4 * graph.num_nodes * max(s.hidden, self.problem.classes) * dtype.itemsize  # at the most
        scaler = fit_scaler(graph, s.scaling, np.asarray(self.problem.parts["train"]), dtype)
        config = {"parameters": {"hops": 0, "scaling": s.scaling, "dtype": s.dtype}, "num_features": graph.num_features}
        learned = {"shift": np.asarray(scaler.shift), "scale": np.asarray(scaler.scale)}
        self.augmenter = Augmenter.from_state(config, learned)
        return ScaledFeatures(graph, scaler, dtype, self.folder, DENSE, self.traffic["setup"], hidden)

    def _open(self, graph: DiskGraph) -> dict[str, tuple[DiskArray, np.ndarray | None]]:
        """Open the files that the buffer reads, with where each node's rows of them begin."""
        traffic, starts = self.traffic["training"], self.features.indptr
        files: dict[str, tuple[DiskArray, np.ndarray | None]] = {
            "columns": (DiskArray(graph.indices.path, traffic), self.indptr),
            "features": (DiskArray(self.features.values.path, traffic), starts),
        }
        if self.features.columns is not None:
            files["feature columns"] = DiskArray(self.features.columns.path, traffic), starts
        for array in (self.features.values, self.features.columns):
            if array is not None:
                array.traffic = self.traffic["evaluation"]
        self.indices = DiskArray(graph.indices.path, self.traffic["evaluation"])
        return files

    def _needs(self) -> Needs:
        s, p = self.settings, self.problem
        widths = [p.inputs, *[s.hidden] * (s.layers - 1), p.classes]
        sizes = [(array.row_bytes, starts) for array, starts in self.files.values()]
        copies, number_bytes = ARCHITECTURES[s.architecture].copies, np.dtype(s.dtype).itemsize
        return Needs(p.nodes, len(p.parts["train"]), widths, copies, s.fanouts, s.batch_size, number_bytes, sizes)

    def inference(self) -> DiskInference:
        """Return what evaluates the network."""
        s = self.settings
        return DiskInference(
            self.folder, self.features, self.indices, self.rows, s.architecture, s.activation, self.plan.width,
            self.traffic["evaluation"],
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return the sizes and the traffic of this process."""
        kinds = self.traffic
        return self.held.summary() | {
            "graph_bytes": self.needs.total(),
            "bytes_read": sum(kind.read for kind in kinds.values()),
            "bytes_read_training": kinds["training"].read,
            "bytes_read_evaluation": kinds["evaluation"].read,
            "bytes_written": sum(kind.written for kind in kinds.values()),
        }

    def remove(self) -> None:
        """Give the memory back and remove what nobody needs once the training has ended."""
        self.held.close()
        self._close()

    def _close(self) -> None:
        for array, _ in self.files.values():
            array.close()
        self.indices.close()
        self.features.close()
        if self.own is not None:
            self.own.close()
            shutil.rmtree(self.own.folder, ignore_errors=True)


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Turn what the system says of the scratch folder into an InputError."""
    try:
        yield
    except OSError as error:
        value = f"{folder} ({error.strerror or error})"
        raise InputError("scratch", value, "on a disk that takes the data") from None


class StreamedSolver(SampledSolver):
    """Trains a GNN on batches of a graph on the disk (docs/sampling.md)."""

    def __init__(
        self,
        problem: Any,
        storage: GraphStorage,
        settings: Any,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        saver: Saver | None = None,
    ) -> None:
        sampler = storage.held.sampler()
        super().__init__(problem, storage.held.features(), sampler, settings, transport, eval_every, watch, saver)
        self.storage, self.inference = storage, storage.inference()
        sampler.times = self.times

    def _pass(self, iteration: int) -> float:
        self.sampler.begin(iteration)
        with on_disk(self.storage.folder):
            return super()._pass(iteration)

    def _drawn(self, iteration: int, step: int) -> Iterator[Batch]:
        yield from self.sampler.drawn(step)

    def _evaluate(self) -> dict[str, float]:
        with torch.no_grad(), on_disk(self.storage.folder):
            found, finite = self.inference.scores(self.layers(), self.problem.y, self.problem.parts)
        self._check(finite)
        return found

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself."""
        return super().summary() | self.storage.summary()
