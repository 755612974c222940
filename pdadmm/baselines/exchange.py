"""Halo messages: rows of a rank's nodes to the ranks that read them, and the gradients of those rows back home."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.baselines.dropout import node_bits
from pdadmm.baselines.initial import ROUNDING
from pdadmm.baselines.partition import boundaries
from pdadmm.models.gnn import Aggregation
from pdadmm.parallel.transport import Transport
from pdadmm.quantize.rows import RowCodec
from pdadmm.recording import Breakdown

__all__ = ["Halo", "Link", "PlainWire", "QuantizedWire", "cut", "draw"]


@dataclass
class Halo:
    """One rank's view of a cut graph: own nodes, nodes it reads from others, and who needs which of its rows.

    ``own`` and ``halo`` are global node numbers; ``inner`` (own, own) and ``outer`` (own, halo) together are its rows
    of S. ``needed[peer]`` are positions in ``own``, ``read[peer]`` positions in ``halo``, in the same order at
    both ends.
    """

    own: np.ndarray
    halo: np.ndarray
    inner: Aggregation
    outer: Aggregation
    needed: dict[int, Tensor]
    read: dict[int, Tensor]


def cut(S: sp.csr_array, part: np.ndarray, rank: int, everything: bool = False) -> Halo:
    """Return what ``rank`` holds of S cut by ``part``; with ``everything`` its halo is all other nodes (CAGNET 1D)."""
    V = S.shape[0]
    ranks = int(part.max(initial=0)) + 1
    own = np.flatnonzero(part == rank)
    if everything:
        others = np.argsort(part, kind="stable")
        receiver = np.repeat(np.arange(ranks), V)
        node = np.tile(others, ranks)
        receiver, node = receiver[part[node] != receiver], node[part[node] != receiver]
        # a part without nodes has no rows to compute
        kept = np.bincount(part, minlength=ranks)[receiver] > 0
        receiver, node = receiver[kept], node[kept]
    else:
        receiver, node = boundaries(S, part)
    halo = node[receiver == rank]
    place = np.zeros(V, dtype=np.int64)
    place[own], place[halo] = np.arange(len(own)), np.arange(len(halo)) + len(own)
    rows = S[own]
    columns = place[rows.indices].astype(rows.indices.dtype)  # 32 bits, which the compiled product takes
    local = sp.csr_array((rows.data, columns, rows.indptr), shape=(len(own), len(own) + len(halo)))
    local.sort_indices()
    sent = part[node] == rank
    peers = np.unique(receiver[sent]).tolist()
    return Halo(
        own, halo, Aggregation(sp.csr_array(local[:, : len(own)])), Aggregation(sp.csr_array(local[:, len(own) :])),
        {peer: torch.from_numpy(place[node[sent & (receiver == peer)]]) for peer in peers},
        {peer: torch.from_numpy(np.flatnonzero(part[halo] == peer)) for peer in np.unique(part[halo]).tolist()},
    )  # fmt: skip


def draw(whole: Halo, share: float, key: tuple[int, ...]) -> Halo:
    """Return a random part of a halo: of every boundary of n nodes, s = max(1, round(share n)), none with share 0.

    Columns of S_outer are scaled by n / s, so that the mean of S_outer h is kept (BNS-GCN, Wan et al. 2022). The s
    nodes are those of least random number by (key, global node), so both ends draw the same.
    """

    def pick(nodes: np.ndarray) -> np.ndarray:
        s = min(len(nodes), max(1, round(share * len(nodes)))) if share else 0
        return np.sort(np.argsort(node_bits(key, nodes, 1, bits=32)[:, 0], kind="stable")[:s])

    needed, read, chosen, scale, count = {}, {}, [], [], 0
    for peer, rows in whole.needed.items():
        kept = pick(whole.own[rows.numpy()])
        if len(kept):
            needed[peer] = rows[torch.from_numpy(kept)]
    for peer, rows in whole.read.items():
        kept = rows.numpy()[pick(whole.halo[rows.numpy()])]
        if len(kept):
            read[peer] = torch.arange(count, count + len(kept))
            chosen.append(kept)
            scale.append(np.full(len(kept), len(rows) / len(kept)))
            count += len(kept)
    columns = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
    # rows of the transpose are its columns; each is kept whole
    back = sp.csr_array(whole.outer.transposed[columns])
    factor = np.repeat(np.concatenate(scale) if scale else np.empty(0), np.diff(back.indptr))
    back.data = back.data * factor.astype(back.dtype)
    outer = Aggregation(sp.csr_array(back.T))
    outer.transposed = back
    return Halo(whole.own, whole.halo[columns], whole.inner, outer, needed, read)


class PlainWire:
    """Rows as they are."""

    def buffer(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, width, dtype=dtype)

    def write(self, buffer: Tensor, array: Tensor, rows: Tensor, nodes: np.ndarray, key: tuple[int, ...]) -> None:
        torch.index_select(array, 0, rows, out=buffer)

    def read(self, buffer: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return buffer

    def nbytes(self, rows: int, width: int, dtype: torch.dtype) -> int:
        return rows * width * dtype.itemsize


class QuantizedWire:
    """Rows in ``bits`` bits a number, each with a scale of its own, rounded at random by (key, global node) alone."""

    def __init__(self, bits: int) -> None:
        self.codec = RowCodec(bits)

    def buffer(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.nbytes(rows, width, dtype), dtype=torch.uint8)

    def write(self, buffer: Tensor, array: Tensor, rows: Tensor, nodes: np.ndarray, key: tuple[int, ...]) -> None:
        noise = torch.from_numpy((node_bits(key, nodes, array.shape[1], bits=32) >> 8).astype(np.float32))
        self.codec.encode(array[rows], noise.mul_(2.0**-24).to(array.dtype), buffer)

    def read(self, buffer: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return self.codec.decode(buffer, rows, width, dtype)

    def nbytes(self, rows: int, width: int, dtype: torch.dtype) -> int:
        return self.codec.nbytes(rows, width, dtype)


class Link:
    """The messages of one layer in one direction, from buffers of fixed size that are used over and over.

    ``outgoing`` and ``incoming`` say which rows of a local array go to a peer, or come from it; their numbers stay as
    they are, the rows may change (boundary sampling). ``nodes`` are the global numbers of the outgoing array's rows.
    """

    def __init__(
        self, transport: Transport, outgoing: dict[int, Tensor], incoming: dict[int, Tensor], width: int,
        dtype: torch.dtype, wire: PlainWire | QuantizedWire, tag: int, kind: str, times: Breakdown,
    ) -> None:  # fmt: skip
        self.width, self.dtype, self.wire, self.times = width, dtype, wire, times
        self.outgoing, self.incoming = outgoing, incoming
        self.out = {peer: wire.buffer(len(rows), width, dtype) for peer, rows in outgoing.items()}
        self.into = {peer: wire.buffer(len(rows), width, dtype) for peer, rows in incoming.items()}
        self.messages = [transport.receiver(buffer, peer, tag, kind) for peer, buffer in self.into.items()]
        self.messages += [transport.sender(buffer, peer, tag, kind) for peer, buffer in self.out.items()]

    def start(self, array: Tensor, nodes: np.ndarray, key: tuple[int, ...]) -> None:
        """Send the outgoing rows of ``array``; ``key`` seeds rounding."""
        with self.times("communication"):
            for peer, rows in self.outgoing.items():
                self.wire.write(self.out[peer], array, rows, nodes[rows.numpy()], (key[0], ROUNDING, *key[1:]))
            for message in self.messages:
                message.start()

    def wait(self) -> None:
        """Return once all has arrived and all has left."""
        with self.times("waiting"):
            for message in self.messages:
                message.wait()

    def put(self, array: Tensor) -> Tensor:
        """Write what has arrived into its rows of ``array``."""
        with self.times("communication"):
            for peer, rows in self.incoming.items():
                array[rows] = self._read(peer, rows)
        return array

    def add(self, array: Tensor) -> Tensor:
        """Add what has arrived to its rows of ``array``, peer after peer."""
        with self.times("communication"):
            for peer, rows in self.incoming.items():
                array.index_add_(0, rows, self._read(peer, rows))
        return array

    def _read(self, peer: int, rows: Tensor) -> Tensor:
        return self.wire.read(self.into[peer], len(rows), self.width, self.dtype)

    def nbytes(self) -> int:
        """Return the bytes that this rank sends at each ``start``, by formula."""
        return sum(self.wire.nbytes(len(rows), self.width, self.dtype) for rows in self.outgoing.values())
