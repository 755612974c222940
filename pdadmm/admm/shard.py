"""The block of nodes that a rank holds of its layers, and the sums over all blocks: W and b need no more."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.problem import Problem
from pdadmm.checkpoint import State
from pdadmm.parallel.placement import run_of
from pdadmm.parallel.transport import LocalTransport, Transport

__all__ = ["WHOLE", "Shard", "by_node", "deal"]

OF_ALL_NODES = ("W", "b", "centre", "direction")  # arrays of a layer's state without a row for each node


class Shard:
    """One of the contiguous runs into which the V training nodes are cut, as equal as can be.

    ``group`` joins the ranks that hold the same layers, a shard each; every method but ``cut`` is collective over
    them. With one shard all methods return what they are given, without a copy. ``rows`` are this shard's nodes;
    ``leads`` is true on the first shard, which counts what all of them know.
    """

    def __init__(self, group: Transport, nodes: int = 0) -> None:
        self.group, self.nodes = group, nodes
        self.rows = run_of(nodes, group.rank, group.size)
        self.leads = group.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this shard holds all nodes."""
        return self.group.size == 1

    def total(self, x: Tensor, kind: str = "moments") -> Tensor:
        """Put the sum over the shards into ``x`` and return it."""
        return self.group.sum_(x, kind)

    def totals(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the sums over the shards of several arrays of one type, in one message."""
        if self.alone:
            return parts
        flat = self.total(torch.cat([part.reshape(-1) for part in parts]))
        sizes = [part.numel() for part in parts]
        return tuple(run.view(part.shape) for run, part in zip(flat.split(sizes), parts, strict=True))

    def mean(self, x: Tensor, kind: str = "moments") -> Tensor:
        """Return the mean over all nodes of ``x``, a row for each node of this shard."""
        return x.mean(0) if self.alone else self.total(x.sum(0), kind).div_(self.nodes)

    def sums(self, *values: float) -> list[float]:
        """Return the sums over the shards of a few numbers, the same bits on every shard of every group.

        Each shard's numbers travel beside zeros and are added in the order of the shards: both sides of a
        boundary decide by such sums.
        """
        if self.alone:
            return list(values)
        told = torch.zeros(self.group.size, len(values), dtype=torch.float64)
        told[self.group.rank] = torch.tensor(values, dtype=torch.float64)
        return [sum(column) for column in zip(*self.total(told).tolist(), strict=True)]

    def whole(self, x: Tensor, kind: str = "moments") -> Tensor:
        """Return the rows of all shards together, on each of them; ``x`` has a row for each node of this one."""
        if self.alone:
            return x
        rows = x.new_zeros(self.nodes, *x.shape[1:])
        rows[self.rows.start : self.rows.stop] = x
        return self.total(rows, kind)

    def cut(self, x: Tensor) -> Tensor:
        """Return this shard's rows of ``x``, which has a row for each of the V nodes."""
        return x if self.alone else x[self.rows.start : self.rows.stop].clone()

    # Checkpoints hold layers, whatever the number of shards

    def joined(self, state: State) -> State | None:
        """Return a layer's state with the rows of all shards on the first of them, None on the others."""
        if self.alone:
            return state
        result = {}
        for name, value in state.items():
            if not by_node(name, value):
                result[name] = value
            elif self.leads:
                result[name] = whole = torch.empty(self.nodes, *value.shape[1:], dtype=value.dtype)
                whole[: len(value)] = value
                for peer in range(1, self.group.size):
                    rows = run_of(self.nodes, peer, self.group.size)
                    self.group.receive(whole[rows.start : rows.stop], peer, "migration")
            else:
                self.group.send(value.contiguous(), 0, "migration")
        return result if self.leads else None

    def part(self, state: State) -> State:
        """Return this shard's part of a layer's ``joined`` state."""
        return {name: self.cut(value) if by_node(name, value) else value for name, value in state.items()}


def by_node(name: str, value: object) -> bool:
    """Whether an entry of a layer's state is an array with a row for each node."""
    return isinstance(value, torch.Tensor) and name.rpartition(".")[2] not in OF_ALL_NODES


# The shard of a layer that is not cut.
WHOLE = Shard(LocalTransport())


def deal(problem: Problem, shard: Shard, holds_first: bool, dtype: torch.dtype) -> Problem:
    """Return this shard's part of ``problem``: its run of the training nodes, and one of the other labelled nodes.

    In the group that ``holds_first``, layer 1, the first shard has X whole and sends the others their rows (message
    kind "migration"); X then leaves ``problem``, so that no rank holds all rows. Collective over the group.
    """
    if shard.alone:
        return problem
    group, V, N = shard.group, problem.nodes, len(problem.y)

    def runs(rank: int) -> list[slice]:
        others = run_of(N - V, rank, group.size)
        own = run_of(V, rank, group.size)
        return [slice(own.start, own.stop), slice(V + others.start, V + others.stop)]

    own = runs(group.rank)
    X, problem.X = problem.X, None
    if X is not None:
        for peer in range(1, group.size):
            for run in runs(peer):
                group.send(X[run], peer, "migration")
        X = torch.cat([X[run] for run in own])
    elif holds_first:
        X = torch.empty(sum(run.stop - run.start for run in own), problem.inputs, dtype=dtype)
        training = len(shard.rows)
        for rows in (X[:training], X[training:]):
            group.receive(rows, 0, "migration")
    y = torch.cat([problem.y[run] for run in own])
    return Problem(X, y, problem.inputs, problem.classes, _parts(problem.parts, own), problem.logit_shift)


def _parts(parts: dict[str, slice], own: list[slice]) -> dict[str, slice]:
    """Return where the parts lie among a shard's rows, those of its two runs one after the other."""
    training, others = own
    size = training.stop - training.start

    def place(row: int) -> int:
        return size + min(max(row, others.start), others.stop) - others.start

    found = {name: slice(place(run.start), place(run.stop)) for name, run in parts.items() if name != "train"}
    return {"train": slice(0, size)} | found
