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

__all__ = ["Homes"]

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
        """Send every worker its blocks, (planes, rows, columns) each; return those of this rank's workers. Collective."""

        def shape(key: Key) -> tuple[int, ...]:
            home, worker, k = key
            local, columns = self._cut(groups, home, worker, k)
            matrix = self.matrices[k]
            return matrix.planes, len(local), matrix.shape[1] if columns is None else len(columns)

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
            local, columns = self._cut(groups, home, worker, k)
            return planes(k), len(local), self.matrices[k].shape[1] if columns is None else len(columns)

        def block(key: Key) -> Tensor:
            worker, home, k = key
            first = sum(len(self._cut(groups, before, worker, k)[0]) for before in range(home))
            rows = slice(first, first + len(self._cut(groups, home, worker, k)[0]))
            return blocks[worker][k][: planes(k), rows]

        for (worker, home, k), came in self._travel(block, shape, kind).items():
            local, columns = self._cut(groups, home, worker, k)
            for plane, values in zip(self.state[home][k], came):
                if columns is None:
                    plane[local] = values
                else:
                    plane[local[:, None], columns] = values

    def _cut(self, groups: Groups, home: int, worker: int, k: int) -> tuple[Tensor, Tensor | None]:
        """Return which of its own rows of a matrix a home shares with a worker, and the worker's columns; None is all."""
        matrix = self.matrices[k]
        group, run = groups[matrix.rows - 1][worker], self.run(matrix, home)
        first, stop = np.searchsorted(group, [run.start, run.stop])
        columns = columns_of(matrix, groups, worker)
        return torch.from_numpy(group[first:stop] - run.start), None if columns is None else torch.from_numpy(columns)

    def _travel(
        self, block: Callable[[Key], Tensor], shape: Callable[[Key], tuple[int, ...]], kind: str
    ) -> dict[Key, Tensor]:
        """Send ``block(key)`` from every (sender, receiver, matrix) of this rank; return what came in. One all-to-all."""
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

    def predicted_bytes(self, groups: Groups) -> int:
        """Return what all ranks together send as a round's blocks go out, and again as they come back.

        A number stays where its home and its worker are on one rank.
        """
        host_of = {home: rank for rank, host in enumerate(self.hosts) for home in host}
        numbers = 0
        for worker in range(self.parts):
            for home in range(self.parts):
                if host_of[home] == host_of[worker]:
                    continue
                for k, matrix in enumerate(self.matrices):
                    local, columns = self._cut(groups, home, worker, k)
                    numbers += matrix.planes * len(local) * (matrix.shape[1] if columns is None else len(columns))
        return numbers * self.output.element_size()

    def average_output(self, biases: dict[int, Tensor]) -> None:
        """Set the output's bias, m and v to the mean of the workers' copies (3, C), in the workers' order. Collective."""
        own = torch.stack([biases[worker] for worker in self.own]) if len(self.own) else torch.empty(0, 3, 0)
        copies = [part for part in self.transport.allgather(own.numpy(), "blocks") if len(part)]
        self.output = torch.from_numpy(np.concatenate(copies)).mean(0)
