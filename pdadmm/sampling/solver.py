"""The driver of sample-based training: batches of a sampler, gradients summed over the ranks, exact evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.baselines.driver import Driver
from pdadmm.baselines.shards import scores, tally
from pdadmm.models.gnn import Aggregation, init_weights
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Breakdown
from pdadmm.sampling.batch import Batch
from pdadmm.sampling.network import Dropout, Features, batch_logits
from pdadmm.saver import Saver

__all__ = ["SampledSolver", "batch_loss", "whole_graph"]


def whole_graph(S: Aggregation, layers: int, parts: dict[str, np.ndarray]) -> tuple[Batch, dict[str, Tensor]]:
    """Return the batch of all nodes whose outputs are those of the parts, and masks of which outputs are in which."""
    nodes = np.concatenate(list(parts.values()))
    member = np.repeat(np.arange(len(parts)), [len(own) for own in parts.values()])
    members = {part: torch.from_numpy(member == number) for number, part in enumerate(parts)}
    return Batch([np.arange(S.S.shape[0])] * layers, [S] * layers, nodes, nodes, float(len(nodes))), members


def batch_loss(logits: Tensor, y: Tensor, batch: Batch) -> Tensor:
    """Return the sum of the losses of the batch's nodes, times their shares where it has any."""
    losses = F.cross_entropy(logits, y[torch.from_numpy(batch.nodes)], reduction="none")
    return losses.sum() if batch.shares is None else (losses * torch.from_numpy(batch.shares).to(losses.dtype)).sum()


class SampledSolver(Driver):
    """Trains a GNN on the batches of a sampler by Adam (docs/sampling.md).

    Every rank holds the graph and all weights; a step's batches are shared by the ranks, gradients are summed and
    divided by what the batches count. Evaluation is exact, on the whole graph, by rank 0. ``sampler`` is a Sampler,
    or has ``steps`` and what another ``_drawn`` asks it for. After ``run``: ``history``,
    ``stages`` and ``weights`` of the best iteration.
    """

    def __init__(
        self,
        problem: Any,
        features: Features,
        sampler: Any,
        settings: Any,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        saver: Saver | None = None,
    ) -> None:
        super().__init__(settings, transport, eval_every, watch, saver)
        self.problem, self.features, self.sampler = problem, features, sampler
        self.steps, self.times = 0, Breakdown()
        features.times = self.times

    def run(self) -> SampledSolver:
        """Train to the end; collective over the ranks."""
        s, p = self.settings, self.problem
        widths = [p.inputs, *[s.hidden] * (s.layers - 1), p.classes]
        stage = self._begin(lambda: init_weights(s.architecture, widths, s.seed, self.dtype))
        if self.saved is not None:
            self.steps = self.saved.progress["steps"]
            self.times.restore(self.saved.progress["kinds"])
        self._run_stage(stage)
        return self

    def _holds(self) -> str:
        return f"share {self.transport.rank + 1} of {self.transport.size} of the batches"

    def _progress(self) -> dict[str, Any]:
        return {"steps": self.steps, "kinds": self.times.state(self.transport)}

    def _pass(self, iteration: int) -> float:
        losses, counts = 0.0, 0.0
        for step in range(self.sampler.steps):
            loss, count = self._step(iteration, step)
            losses, counts = losses + loss, counts + count
        return losses / counts

    def _drawn(self, iteration: int, step: int) -> Iterator[Batch]:
        """Yield this rank's batches of a step."""
        with self.times("sampling"):
            batches = self.sampler.draw(iteration, step, self.transport.rank, self.transport.size)
        yield from batches

    def _step(self, iteration: int, step: int) -> tuple[float, float]:
        """Take one step on this rank's share of the batches; return all ranks' sum of losses and what they count."""
        self.steps += 1
        s = self.settings
        dropout = Dropout(s.seed, self.steps, s.dropout) if s.dropout else None
        sums = [torch.zeros_like(weight) for weight in self.weights]
        total, counted = torch.zeros((), dtype=self.dtype), 0.0
        for batch in self._drawn(iteration, step):
            batch.count_times(self.times)
            logits = batch_logits(s.architecture, batch, self.features, self.layers(), s.activation, dropout)
            loss = batch_loss(logits, self.problem.y, batch)
            for own, gradient in zip(sums, torch.autograd.grad(loss, self.weights)):
                own += gradient
            total, counted = total + loss.detach(), counted + batch.count
        count = torch.full((1,), counted, dtype=self.dtype)
        with self.times("waiting"):
            self.transport.barrier()
        with self.times("communication"):
            (*sums, count), value = self._summed([*sums, count], total)
        if float(count):  # clusters without training nodes move nothing, not even Adam's moments
            for weight, gradient in zip(self.weights, sums):
                weight.grad = gradient.div(count).contiguous()
            self.optimizer.step()
        return float(value), float(count)

    def pass_bytes(self) -> int:
        numbers = sum(weight.numel() for weight in self.weights) + 2  # the loss and the count go along
        size, item = self.transport.size, torch.empty((), dtype=self.dtype).element_size()
        return self.sampler.steps * size * ring_bytes(numbers * item, size)

    @cached_property
    def _whole(self) -> tuple[Batch, dict[str, Tensor]]:
        """The batch of all nodes, and which of its outputs are in which part."""
        return whole_graph(Aggregation(self.problem.S), self.settings.layers, self.problem.parts)

    def _evaluate(self) -> dict[str, float]:
        found = None
        if self.transport.rank == 0:
            whole, members = self._whole
            with torch.no_grad():
                s = self.settings
                logits = batch_logits(s.architecture, whole, self.features, self.layers(), s.activation)
            found = tally(logits, self.problem.y[torch.from_numpy(whole.nodes)], members)
        found = self.transport.bcast(found, kind="evaluation")
        self._check(not found["bad"])
        return scores([found], {part: len(own) for part, own in self.problem.parts.items()})

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself."""
        predicted = {"bytes_predicted": len(self.history) * self.pass_bytes()}
        return super().summary() | self.times.summary(self.clock.seconds, self.transport) | predicted
