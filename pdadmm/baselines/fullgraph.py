"""Full-graph training of a GNN whose nodes are spread over ranks: every epoch one step on all training nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.baselines.driver import Driver
from pdadmm.baselines.dropout import dropped, entry_mask
from pdadmm.baselines.gnn import GNNSettings, GraphProblem
from pdadmm.baselines.mixers import Mixer, convolve
from pdadmm.baselines.shards import scores, tally
from pdadmm.checkpoint import State
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, activate, init_weights
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Best, Breakdown
from pdadmm.saver import Saver

__all__ = ["FirstLayer", "FullGraphSolver"]

# Below this density of S X the first layer's product is sparse: measured on one thread, dropout included.
SPARSE_BELOW = 0.1


class FirstLayer:
    """Layer 0 on a rank's own nodes: x = S X, or [X, S X], was computed once, so its product needs no neighbour.

    ``x`` (own, copies n_0) is a tensor or a csr matrix. Dropout comes after the aggregation.
    """

    def __init__(self, x: Tensor | sp.csr_array, nodes: np.ndarray, settings: GNNSettings) -> None:
        self.x, self.nodes, self.settings = x, nodes, settings
        if not isinstance(x, Tensor):
            self.rows = np.repeat(nodes, np.diff(x.indptr))
            numbered = sp.csr_array((np.arange(x.nnz), x.indices, x.indptr), shape=x.shape)
            self.back = sp.csr_array(numbered.T)  # its values: where an entry of x^T stands in x

    def __call__(self, W: Tensor, b: Tensor, epoch: int | None = None) -> Tensor:
        """Return z_0 (own, n_1), with the dropout of ``epoch`` where one is given."""
        share, width = (0.0 if epoch is None else self.settings.dropout), self.x.shape[1]
        key = self.settings.seed, epoch or 0, 0
        if isinstance(self.x, Tensor):
            if not share:
                return F.linear(self.x, W, b)
            x, factor = dropped(self.x, key, self.nodes, share)
            return F.linear(x, W * factor, b)
        data = self.x.data
        if share:
            data = (data * entry_mask(key, self.rows, self.x.indices, width, share)).astype(data.dtype)
        S = Aggregation(sp.csr_array((data, self.x.indices, self.x.indptr), shape=self.x.shape))
        S.transposed = sp.csr_array(
            (data[self.back.data], self.back.indices, self.back.indptr), shape=self.back.shape
        )
        return S(W.T) + b


def deal_rows(x: np.ndarray | sp.csr_array | None, nodes: list[np.ndarray], transport: Transport, dtype: torch.dtype):
    """Send each rank its ``nodes``' rows of x, which rank 0 alone has (message kind "migration"); collective."""
    parts: list[Sequence[Tensor]] = []
    if x is not None:
        for numbers in nodes:
            rows = x[numbers]
            arrays = (rows.data, rows.indices, rows.indptr) if sp.issparse(x) else (rows,)
            parts.append(tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
    told = [[(tuple(array.shape), array.dtype) for array in part] for part in parts]
    told, width = transport.bcast((told, None if x is None else x.shape[1]))
    if transport.rank == 0:
        for peer in range(1, transport.size):
            for array in parts[peer]:
                transport.send(array, peer, "migration")
        own = parts[0]
    else:
        own = [
            transport.receive(torch.empty(shape, dtype=kind), 0, "migration")
            for shape, kind in told[transport.rank]
        ]
    if len(own) == 1:
        return own[0]
    return sp.csr_array(tuple(array.numpy() for array in own), shape=(len(nodes[transport.rank]), width))


class FullGraphSolver(Driver):
    """Trains a GNN by Adam on the mean cross-entropy of all training nodes (docs/gnn.md).

    ``mixer`` makes the layers behind the first on this rank's nodes, ``holders`` are the nodes of every rank. All ranks
    hold all weights; gradients are summed over the ranks before each step.
    """

    def __init__(
        self, problem: GraphProblem, settings: Any, transport: Transport, mixer: Mixer, holders: list[np.ndarray],
        times: Breakdown, eval_every: int = 1, watch: Callable[[dict[str, Any]], None] = lambda row: None,
        saver: Saver | None = None,
    ) -> None:  # fmt: skip
        super().__init__(settings, transport, eval_every, watch, saver)
        self.problem, self.mixer, self.times = problem, mixer, times
        own = holders[transport.rank]
        began = time.perf_counter()
        x = first_input(problem, settings.architecture) if transport.rank == 0 else None
        self.first = FirstLayer(deal_rows(x, holders, transport, self.dtype), own, settings)
        self.seconds_precompute = time.perf_counter() - began
        self.y = problem.y[torch.from_numpy(own)]
        self.members = {part: torch.from_numpy(np.isin(own, nodes)) for part, nodes in problem.parts.items()}
        self.train = torch.nonzero(self.members["train"]).flatten()
        self.counts = {part: len(nodes) for part, nodes in problem.parts.items()}

    def run(self) -> FullGraphSolver:
        """Train; collective over the ranks."""
        s = self.settings
        widths = [self.problem.inputs, *[s.hidden] * (s.layers - 1), self.problem.classes]
        stage = self._begin(lambda: init_weights(s.architecture, widths, s.seed, self.dtype))
        if self.saved is not None:
            self.times.restore(self.saved.progress["kinds"])
            if s.bound_to_ranks:
                self.mixer.restore(self.saved.layer(s.layers + self.transport.rank))
        self._run_stage(stage)
        self.mixer.finish()
        return self

    # Checkpoints

    def _holds(self) -> str:
        return f"{len(self.y)} of {self.problem.nodes} nodes"

    def _parts(self, best: Best) -> dict[int, State]:
        own = {}
        if self.settings.bound_to_ranks:
            own = {self.settings.layers + self.transport.rank: self.mixer.state()}
        return super()._parts(best) | own

    def _progress(self) -> dict[str, Any]:
        return {"kinds": self.times.state(self.transport)}

    def _pass(self, iteration: int) -> float:
        self.transport.trace.mark("dense")
        self.mixer.begin(iteration)
        (W, b), *behind = self.layers()
        z = self.first(W, b, iteration)
        for l, (W, b) in enumerate(behind, start=1):
            z = convolve(self.mixer, l, activate(self.settings.activation, z), W, b)
        loss = F.cross_entropy(z[self.train], self.y[self.train], reduction="sum") / self.counts["train"]
        return self._apply(torch.autograd.grad(loss, self.weights), loss.detach())

    def _summed(self, gradients: Any, loss: Tensor) -> Any:
        with self.times("communication"):
            return super()._summed(gradients, loss)

    def _evaluate(self) -> dict[str, float]:
        self.transport.trace.mark("evaluate")
        with torch.no_grad():
            (W, b), *behind = self.layers()
            z = self.first(W, b)
            for l, (W, b) in enumerate(behind, start=1):
                h = activate(self.settings.activation, z)
                mixed = self.mixer.infer(l, h)
                z = F.linear(mixed if self.mixer.copies == 1 else torch.cat([h, mixed], dim=1), W, b)
            own = tally(z, self.y, self.members)
        tallies = self.transport.allgather(own, "evaluation")
        self._check(not any(found["bad"] for found in tallies))
        return scores(tallies, self.counts)

    def pass_bytes(self) -> int:
        numbers = sum(weight.numel() for weight in self.weights) + 1
        own = self.mixer.pass_bytes() + ring_bytes(numbers * self.dtype.itemsize, self.transport.size)
        return sum(self.transport.allgather(own))

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself; a kind of work's seconds are the mean over the ranks."""
        told = self.times.summary(self.clock.seconds, self.transport)
        told["seconds_precompute"] = max(self.transport.allgather(self.seconds_precompute))
        return super().summary() | told


def first_input(problem: GraphProblem, architecture: str) -> np.ndarray | sp.csr_array:
    """Return S X, or [X, S X], (V, copies n_0): as csr where it is sparse."""
    X = problem.X
    assert X is not None  # on rank 0
    if np.count_nonzero(X) < SPARSE_BELOW * X.size:
        X = sp.csr_array(X)
        mixed = sp.csr_array(problem.S @ X)
        if ARCHITECTURES[architecture].copies == 2:
            mixed = sp.csr_array(sp.hstack([X, mixed], format="csr"))
        mixed.sort_indices()
        return mixed if mixed.nnz < SPARSE_BELOW * np.prod(mixed.shape) else mixed.toarray()
    mixed = Aggregation(problem.S)(torch.from_numpy(X)).numpy()
    return mixed if ARCHITECTURES[architecture].copies == 1 else np.concatenate([X, mixed], axis=1)
