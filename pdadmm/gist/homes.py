"""Where the whole model lives between rounds: cut by hidden dimensions into homes, no more than a share on any rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pdadmm.baselines.initial import WEIGHTS, generator
from pdadmm.baselines.shards import run_of
from pdadmm.gist.groups import Groups, Matrix, columns_of, matrices
from pdadmm.parallel.transport import Transport

__all__ = ["Homes", "round_bytes"]

ROWS = 64  # hidden dimensions that share a draw of their start weights

Key = tuple[int, int, int]  # who sends, who receives (homes and workers are numbered alike), which matrix


class Homes:
    """The homes of this rank: home i of ``parts`` holds a run of every hidden layer's dimensions, with Adam's state.

    ``state[i][k]`` is (planes, own rows, columns) of matrix k; the planes are w, Adam's m and v, and for a matrix of
    which a part rests in each round the steps of each number. ``output`` (3, C) is the output's bias with m and v, the
    same on every rank. Ranks hold contiguous runs of homes; worker i works where home i is.
    """

    def __init__(
        self, architecture: str, widths: Sequence[int], parts: int, dtype: torch.dtype, transport: Transport
    ) -> None:
        self.architecture, self.widths, self.parts, self.dtype = architecture, list(widths), parts, dtype
        self.matrices, self.transport = matrices(architecture, widths), transport
        self.hosts = [run_of(parts, rank, transport.size) for rank in range(transport.size)]
        self.own = self.hosts[transport.rank]
        self.state: dict[int, list[Tensor]] = {}
        self.output = torch.zeros(3, widths[-1], dtype=dtype)

    def run(self, matrix: Matrix, home: int) -> range:
        """Return the run of rows of a matrix that a home holds."""
        return run_of(matrix.shape[0], home, self.parts)

    def start(self, seed: int) -> None:
        """Draw start weights in the scale of ``pdadmm.models.gnn.init_weights``; biases are 0.

        Draws are keyed by (seed, matrix, block of 64 rows), so the number of parts and of ranks plays no part.
        """
        for home in self.own:
            self.state[home] = [self._start(k, self.run(matrix, home), seed) for k, matrix in enumerate(self.matrices)]

    def _start(self, k: int, rows: range, seed: int) -> Tensor:
        matrix = self.matrices[k]
        state = torch.zeros(matrix.planes, len(rows), matrix.shape[1], dtype=self.dtype)
        bound = math.sqrt(6.0 / (self.widths[k] + self.widths[k + 1]))
        for block in range(rows.start // ROWS, -(-rows.stop // ROWS)):
            draw = torch.rand(ROWS, matrix.shape[1], generator=generator(seed, WEIGHTS, k, block), dtype=torch.float64)
            first, stop = max(rows.start, block * ROWS), min(rows.stop, (block + 1) * ROWS)
            own = draw[first - block * ROWS : stop - block * ROWS]
            state[0, first - rows.start : stop - rows.start] = (2.0 * own - 1.0) * bound
        if k < len(self.matrices) - 1:
            state[0, :, -1] = 0.0
        return state

    # Rounds: blocks go out to their workers and come back

    def scatter(self, groups: Groups) -> dict[int, list[Tensor]]:
        """Send every worker its blocks; return this rank's workers', (planes, rows, columns) each. Collective."""

        def shape(key: Key) -> tuple[int, ...]:
            home, worker, k = key
            return self._shape(self.matrices[k].planes, groups, home, worker, k)

        def block(key: Key) -> Tensor:
            home, worker, k = key
            local, columns = self._cut(groups, home, worker, k)
            rows = self.state[home][k][:, local]
            return rows if columns is None else rows[:, :, columns]

        came = self._travel(block, shape, "blocks")
        return {
            worker: [
                torch.cat([came[home, worker, k] for home in range(self.parts)], dim=1)
                for k in range(len(self.matrices))
            ]
            for worker in self.own
        }

    def gather(self, groups: Groups, blocks: dict[int, list[Tensor]], kind: str = "blocks") -> None:
        """Bring the workers' blocks, which do not overlap, home. Collective. As "evaluation" the weights come alone."""

        def planes(k: int) -> int:
            return 1 if kind == "evaluation" else self.matrices[k].planes

        def shape(key: Key) -> tuple[int, ...]:
            worker, home, k = key
            return self._shape(planes(k), groups, home, worker, k)

        def block(key: Key) -> Tensor:
            worker, home, k = key
            return blocks[worker][k][: planes(k), self._shared(groups, home, worker, k)]

        for (worker, home, k), came in self._travel(block, shape, kind).items():
            local, columns = self._cut(groups, home, worker, k)
            for plane, values in zip(self.state[home][k], came):
                if columns is None:
                    plane[local] = values
                else:
                    plane[local[:, None], columns] = values

    def _shared(self, groups: Groups, home: int, worker: int, k: int) -> slice:
        """Return which of a worker's rows of a matrix live in a home."""
        run = self.run(self.matrices[k], home)
        return slice(*np.searchsorted(groups[self.matrices[k].rows - 1][worker], [run.start, run.stop]).tolist())

    def _cut(self, groups: Groups, home: int, worker: int, k: int) -> tuple[Tensor, Tensor | None]:
        """Return which of its own rows of a matrix a home shares with a worker, and that one's columns (None: all)."""
        matrix = self.matrices[k]
        local = groups[matrix.rows - 1][worker][self._shared(groups, home, worker, k)] - self.run(matrix, home).start
        columns = columns_of(matrix, groups, worker)
        return torch.from_numpy(local), None if columns is None else torch.from_numpy(columns)

    def _shape(self, planes: int, groups: Groups, home: int, worker: int, k: int) -> tuple[int, int, int]:
        shared, columns = self._shared(groups, home, worker, k), columns_of(self.matrices[k], groups, worker)
        return planes, shared.stop - shared.start, self.matrices[k].shape[1] if columns is None else len(columns)

    def _travel(
        self, block: Callable[[Key], Tensor], shape: Callable[[Key], tuple[int, ...]], kind: str
    ) -> dict[Key, Tensor]:
        """Send ``block(key)`` for every (sender, receiver, matrix) of this rank; return what came. One all-to-all."""
        every = range(len(self.matrices))
        leaving = [[(s, r, k) for s in self.own for r in host for k in every] for host in self.hosts]
        coming = [[(s, r, k) for s in host for r in self.own for k in every] for host in self.hosts]
        send, receive = ([sum(math.prod(shape(key)) for key in keys) for keys in side] for side in (leaving, coming))
        outgoing, place = torch.empty(sum(send), dtype=self.dtype), 0
        for key in (key for keys in leaving for key in keys):
            values = block(key)
            outgoing[place : place + values.numel()].view(values.shape).copy_(values)
            place += values.numel()
        incoming = torch.empty(sum(receive), dtype=self.dtype)
        self.transport.alltoall(outgoing, send, incoming, receive, kind)
        keys = [key for keys in coming for key in keys]
        parts = incoming.split([math.prod(shape(key)) for key in keys])
        return {key: part.view(shape(key)) for key, part in zip(keys, parts)}

    def mean_output(self, biases: dict[int, Tensor], kind: str = "blocks") -> Tensor:
        """Return the mean of the workers' copies (3, C) of the output's bias, in the workers' order. Collective."""
        size, numbers = self.transport.size, self.output.numel()
        own = torch.cat([torch.empty(0, dtype=self.dtype), *(biases[worker].flatten() for worker in self.own)])
        every = torch.empty(self.parts * numbers, dtype=self.dtype)
        counts = [len(host) * numbers for host in self.hosts]
        self.transport.alltoall(own.repeat(size), [len(own)] * size, every, counts, kind)
        return every.view(self.parts, *self.output.shape).mean(0)

    # What it takes

    def scatter_bytes(self, groups: Groups) -> int:
        """Return what all ranks together send as a round's blocks go out, and again as they come back.

        A number stays where its home and its worker are on one rank.
        """
        host_of = {home: rank for rank, host in enumerate(self.hosts) for home in host}
        pairs = [(home, worker) for home in host_of for worker in host_of if host_of[home] != host_of[worker]]
        numbers = sum(
            math.prod(self._shape(matrix.planes, groups, home, worker, k))
            for home, worker in pairs
            for k, matrix in enumerate(self.matrices)
        )
        return numbers * self.dtype.itemsize

    def output_bytes(self) -> int:
        """Return what all ranks together send for ``mean_output``."""
        return self.parts * self.output.numel() * (self.transport.size - 1) * self.dtype.itemsize

    def round_bytes(self) -> float:
        """Return what all ranks together send in a round on average over the draws of groups."""
        return round_bytes(self.matrices, self.widths[-1], self.hosts, self.dtype.itemsize)


def round_bytes(matrices: Sequence[Matrix], classes: int, hosts: Sequence[range], itemsize: int) -> float:
    """Return what all ranks together send in a round on average over the draws of groups; ``hosts``: each one's homes.

    A worker's group has g of a matrix's d rows, of which a home with h rows has h g / d on average; a matrix that is
    cut there has the columns of the group in the layer before, and the bias. What has its home on the worker's rank
    stays; the output's bias and its moments go to all ranks.
    """
    m, numbers = sum(map(len, hosts)), 0.0
    for k, matrix in enumerate(matrices):
        d, columns = matrix.shape
        for host in hosts:
            elsewhere = sum(len(run_of(d, home, m)) for home in range(m) if home not in host)
            for worker in host:
                wide = columns
                if matrix.columns is not None:
                    wide = matrix.copies * _dealt(matrices[k - 1].shape[0], worker, m) + 1
                numbers += matrix.planes * elsewhere / d * _dealt(d, worker, m) * wide
    return (2 * numbers + m * 3 * classes * (len(hosts) - 1)) * itemsize


def _dealt(dimensions: int, worker: int, parts: int) -> int:
    """Return how many of a layer's dimensions ``pdadmm.gist.groups.deal_groups`` deals to a worker."""
    return dimensions // parts + (worker < dimensions % parts)
