"""Data parallelism: which nodes a rank holds, and what all ranks together know about the network's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdadmm.admm.problem import Problem, scores, tally
from pdadmm.parallel.placement import run_of
from pdadmm.parallel.transport import Transport

__all__ = ["Shard", "deal", "run_of", "scores", "tally"]


@dataclass
class Shard:
    """One rank's rows: a run of the training nodes, and a run of the validation and test nodes, maybe empty.

    ``rows`` and ``others`` are their numbers in the Problem; X, X_others their features, y the labels of ``rows``.
    """

    problem: Problem
    rows: range
    others: range
    X: Tensor
    X_others: Tensor

    @property
    def y(self) -> Tensor:
        return self.problem.y[self.rows.start : self.rows.stop]

    def on(self, device: torch.device) -> Shard:
        """Return this shard with its arrays on ``device``; X then leaves the problem, if it is not there already."""
        if device.type == "cpu":
            return self
        X, X_others = self.X.to(device), self.X_others.to(device)
        self.problem.X = None
        return Shard(self.problem.on(device), self.rows, self.others, X, X_others)

    def tally(self, forward: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return this rank's hits in each part, its sum of validation losses, and how many rows are not finite."""
        logits = torch.cat([forward(self.X), forward(self.X_others)])
        here = self.X.device
        numbers = torch.cat([torch.arange(run.start, run.stop, device=here) for run in (self.rows, self.others)])
        members = {
            part: (numbers >= run.start) & (numbers < run.stop) for part, run in self.problem.parts.items()
        }
        return tally(logits, self.problem.y[numbers], members, self.problem.logit_shift)

    def scores(self, tallies: list[dict[str, float]]) -> dict[str, float]:
        """Return the accuracies and the mean validation loss from all ranks' tallies."""
        return scores(tallies, {part: run.stop - run.start for part, run in self.problem.parts.items()})


def deal(problem: Problem, dtype: torch.dtype, transport: Transport) -> Shard:
    """Send each rank its rows of X, which rank 0 alone has (message kind "migration"); collective."""
    V, N = problem.nodes, len(problem.y)

    def runs(rank: int) -> tuple[range, range]:
        others = run_of(N - V, rank, transport.size)
        return run_of(V, rank, transport.size), range(V + others.start, V + others.stop)

    if transport.rank == 0:
        for peer in range(1, transport.size):
            for run in runs(peer):
                transport.send(problem.X[run.start : run.stop], peer, "migration")
        own = [problem.X[run.start : run.stop] for run in runs(0)]
    else:
        own = [
            transport.receive(torch.empty(len(run), problem.inputs, dtype=dtype), 0, "migration")
            for run in runs(transport.rank)
        ]
    return Shard(problem, *runs(transport.rank), *own)
