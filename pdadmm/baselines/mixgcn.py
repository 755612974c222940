"""Mixed parallelism: S h by slices of features with the whole graph on every rank, the dense product by nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.augment.product import spmm
from pdadmm.baselines.mixers import ADJOINTS, EVALUATION, FEATURES, Mixer
from pdadmm.baselines.shards import run_of
from pdadmm.models.gnn import Aggregation
from pdadmm.parallel.transport import Message, Transport
from pdadmm.recording import Breakdown

__all__ = ["MixMixer", "SliceExchange"]


def _shifted(outer: range, number: int, parts: int) -> slice:
    """Return piece ``number`` of ``parts`` of a run."""
    run = run_of(len(outer), number, parts)
    return slice(outer.start + run.start, outer.start + run.stop)


class SliceExchange:
    """Two all-to-alls around a sparse product, in chunks of rows: node blocks -> feature slices -> node blocks.

    Rank i holds a run of the V nodes, (V / P, width), between products and all nodes' slice (V, width / P) in them.
    Every rank's block is cut in ``chunks`` runs; chunk k of all blocks travels together.
    """

    def __init__(
        self, transport: Transport, nodes: int, width: int, chunks: int, dtype: torch.dtype, tag: int, kind: str,
        times: Breakdown,
    ) -> None:  # fmt: skip
        P, me = transport.size, transport.rank
        self.me, self.chunks, self.times = me, chunks, times
        blocks = [run_of(nodes, rank, P) for rank in range(P)]
        self.columns = [_shifted(range(width), rank, P) for rank in range(P)]
        own = self.columns[me].stop - self.columns[me].start
        self.slice = torch.empty(nodes, own, dtype=dtype)
        self.first_own = blocks[me].start
        self.pieces = [[_shifted(block, k, chunks) for block in blocks] for k in range(chunks)]
        # rows of the product for chunk k: those of all blocks, block after block
        self.orders = [np.concatenate([np.arange(piece.start, piece.stop) for piece in row]) for row in self.pieces]
        self.products = [torch.empty(len(order), own, dtype=dtype) for order in self.orders]
        self.out, self.into, self.there, self.back = [], [], [], []
        for k, row in enumerate(self.pieces):
            rows = row[me].stop - row[me].start
            sides = [column.stop - column.start for column in self.columns]
            self.out.append([torch.empty(rows, side, dtype=dtype) for side in sides])
            self.into.append([torch.empty(rows, side, dtype=dtype) for side in sides])
            there, back, start = [], [], 0
            for peer, piece in enumerate(row):
                stop = start + piece.stop - piece.start
                if peer != me:
                    there += self._both(
                        transport, self.out[k][peer], self.slice[piece], peer, tag + 2 * k, kind
                    )
                    back += self._both(
                        transport, self.products[k][start:stop], self.into[k][peer], peer, tag + 2 * k + 1, kind
                    )
                else:
                    self.into[k][me] = self.products[k][start:stop]
                start = stop
            self.there.append(there)
            self.back.append(back)

    @staticmethod
    def _both(transport: Transport, out: Tensor, into: Tensor, peer: int, tag: int, kind: str) -> list[Message]:
        messages = [transport.receiver(into, peer, tag, kind)] if into.numel() else []
        return messages + ([transport.sender(out, peer, tag, kind)] if out.numel() else [])

    def rows(self, k: int) -> slice:
        """Return where chunk k stands in this rank's block."""
        piece = self.pieces[k][self.me]
        return slice(piece.start - self.first_own, piece.stop - self.first_own)

    def send(self, k: int, rows: Tensor) -> None:
        """Send chunk k of this rank's block, (rows, width), slice by slice."""
        with self.times("communication"):
            for peer, columns in enumerate(self.columns):
                if peer == self.me:
                    self.slice[self.pieces[k][peer]] = rows[:, columns]
                else:
                    self.out[k][peer].copy_(rows[:, columns])
            self._start(self.there[k])

    def arrive(self) -> None:
        """Return once all chunks of all ranks are here."""
        self._wait([message for messages in self.there for message in messages])

    def multiply(self, k: int, rows: sp.csr_array) -> None:
        """Compute chunk k of the product from its ``rows`` of S, and send every rank its part."""
        with self.times("sparse"):
            spmm(rows, self.slice.numpy(), self.products[k].numpy())
        with self.times("communication"):
            self._start(self.back[k])

    def take(self, k: int, out: Tensor) -> None:
        """Put chunk k of this rank's block of the product into ``out`` (rows, width)."""
        self._wait(self.back[k])
        with self.times("communication"):
            for columns, part in zip(self.columns, self.into[k]):
                out[:, columns] = part

    @staticmethod
    def _start(messages: list[Message]) -> None:
        for message in messages:
            message.start()

    def _wait(self, messages: list[Message]) -> None:
        with self.times("waiting"):
            for message in messages:
                message.wait()

    def nbytes(self) -> int:
        """Return what this rank sends in one product, by formula: (V/P) (w - w/P) words there, (V - V/P) w/P back."""
        nodes, own = self.slice.shape
        block = sum(piece[self.me].stop - piece[self.me].start for piece in self.pieces)
        width = self.columns[-1].stop
        return (block * (width - own) + (nodes - block) * own) * self.slice.element_size()


class MixMixer(Mixer):
    """MixGCN (arXiv 2501.01951): exact, without halo; 4 all-to-alls of V w (P - 1) / P words a layer and epoch.

    With ``chunks`` K > 1 it is a pipeline: while chunk k is multiplied by S, chunk k - 1 travels, and then meets W.
    """

    def __init__(
        self, S: sp.csr_array, transport: Transport, widths: list[int], settings: Any, copies: int, times: Breakdown
    ) -> None:
        V = S.shape[0]
        own = run_of(V, transport.rank, transport.size)
        super().__init__(np.arange(own.start, own.stop), settings, copies, times)
        layers, K = range(1, len(widths) - 1), settings.chunks

        def exchange(l: int, way: int, kind: str, times: Breakdown) -> SliceExchange:
            tag = (3 * l + way) * 2 * K
            return SliceExchange(transport, V, widths[l], K, self.dtype, tag, kind, times)

        self.features = {l: exchange(l, FEATURES, "features", times) for l in layers}
        self.adjoints = {l: exchange(l, ADJOINTS, "adjoints", times) for l in layers}
        self.exact = {l: exchange(l, EVALUATION, "evaluation", Breakdown()) for l in layers}
        orders = self.features[1].orders if self.features else []
        back = Aggregation(S).transposed
        self.rows, self.rows_back = [S[order] for order in orders], [back[order] for order in orders]

    def layer(self, l: int, h: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        width = h.shape[1]
        mask = self.masks[l] = self._mask(l, self.own, width)
        h = h if mask is None else h * mask
        x = torch.empty(len(h), self.copies * width, dtype=h.dtype)
        if self.copies == 2:
            x[:, :width] = h
        z = torch.empty(len(h), len(b), dtype=h.dtype)
        for rows in self._pipeline(self.features[l], self.rows, x[:, -width:], lambda rows: h[rows]):
            torch.addmm(b, x[rows], W.T, out=z[rows])
        return z, x

    def layer_back(self, l: int, g: Tensor, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width, mask = W.shape[1] // self.copies, self.masks.pop(l)
        g_x, g_h = torch.empty_like(x), torch.empty(len(x), width, dtype=x.dtype)

        def dense(rows: slice) -> Tensor:
            return torch.mm(g[rows], W, out=g_x[rows])[:, -width:]

        for rows in self._pipeline(self.adjoints[l], self.rows_back, g_h, dense):
            if self.copies == 2:
                g_h[rows] += g_x[rows, :width]
        return g_h if mask is None else g_h.mul_(mask), g.T @ x, g.sum(0)

    def infer(self, l: int, h: Tensor) -> Tensor:
        mixed = torch.empty_like(h)
        for _ in self._pipeline(self.exact[l], self.rows, mixed, lambda rows: h[rows]):
            pass
        return mixed

    @staticmethod
    def _pipeline(exchange: SliceExchange, operators: list[sp.csr_array], out: Tensor, make: Any):
        """Send ``make(rows)`` chunk by chunk, multiply, and yield the rows of each chunk once it is in ``out``."""
        for k in range(exchange.chunks):
            exchange.send(k, make(exchange.rows(k)))
        exchange.arrive()
        for k in range(exchange.chunks):
            exchange.multiply(k, operators[k])
            if k:
                exchange.take(k - 1, out[exchange.rows(k - 1)])
                yield exchange.rows(k - 1)
        exchange.take(exchange.chunks - 1, out[exchange.rows(exchange.chunks - 1)])
        yield exchange.rows(exchange.chunks - 1)

    def pass_bytes(self) -> int:
        return 2 * sum(exchange.nbytes() for exchange in self.features.values())
