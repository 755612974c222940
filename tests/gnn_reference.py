"""Full-graph training on dense matrices with backpropagation by hand: the plain form of every halo, in one process.

``S_in`` holds the entries of S inside parts, ``S_out`` those between them; a halo is then a matrix (V, width) for each
part, of which S_out reads the rows it needs.
"""

from __future__ import annotations

import numpy as np
import torch

from pdadmm.augment import Augmenter
from pdadmm.baselines.dropout import node_bits, node_mask
from pdadmm.baselines.initial import BOUNDARY, ROUNDING
from pdadmm.models.gnn import init_weights, operator_of
from pdadmm.quantize.rows import RowCodec

__all__ = ["train"]


def quantized(array: torch.Tensor, bits: int, key: tuple[int, ...]) -> torch.Tensor:
    noise = (node_bits((key[0], ROUNDING, *key[1:]), np.arange(len(array)), array.shape[1], 32) >> 8) * 2.0**-24
    codec = RowCodec(bits)
    return codec.decode(codec.encode(array, torch.from_numpy(noise).to(array.dtype)), *array.shape, array.dtype)


def sampled(S_out: torch.Tensor, part: np.ndarray, share: float, seed: int, epoch: int) -> torch.Tensor:
    """S_out with the columns of each boundary drawn and scaled."""
    result = torch.zeros_like(S_out)
    for i in range(part.max() + 1):
        for j in range(part.max() + 1):
            rows = np.flatnonzero(part == i)
            boundary = np.flatnonzero((part == j) & (S_out[rows] != 0).any(0).numpy())
            s = min(len(boundary), max(1, round(share * len(boundary)))) if share else 0
            if not s:
                continue
            bits = node_bits((seed, BOUNDARY, epoch), boundary, 1, 32)[:, 0]
            drawn = boundary[np.argsort(bits, kind="stable")[:s]]
            result[np.ix_(rows, drawn)] = S_out[np.ix_(rows, drawn)] * (len(boundary) / s)
    return result


def train(graph, solver, part: np.ndarray, epochs: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The weights of a GCN estimator after ``epochs``, its nodes cut by ``part``."""
    s, V = solver, graph.num_nodes
    sage = s.architecture == "sage"
    S = torch.from_numpy(operator_of(graph, s.architecture, "float64").toarray())
    X = torch.from_numpy(Augmenter(hops=0, scaling=s.scaling, dtype="float64").fit_transform(
        graph, graph.splits["train"]))
    same = torch.from_numpy(part[:, None] == part[None, :])
    S_in, S_out = S * same, S * ~same
    x_first = torch.cat([X, S @ X], 1) if sage else S @ X
    widths = [X.shape[1], *[s.hidden] * (s.layers - 1), graph.num_classes]
    layers = init_weights(s.architecture, widths, s.seed, torch.float64)
    flat = [array.requires_grad_() for layer in layers for array in layer]
    optimizer = torch.optim.Adam(flat, s.learning_rate, weight_decay=s.weight_decay)
    rows_of = [np.flatnonzero(part == i) for i in range(part.max() + 1)]
    train_rows, y = graph.splits["train"], torch.from_numpy(graph.labels)
    old: dict = {}

    def mask(l, width, epoch):
        found = node_mask((s.seed, epoch, l), np.arange(V), width, s.dropout, torch.float64)
        return torch.ones(V, width, dtype=torch.float64) if found is None else found

    def travelled(array, l, way, i, epoch):
        """What arrives of an array."""
        if s.halo == "quantized":
            return quantized(array, s.bits, (s.seed, epoch, l, way))
        if s.halo != "pipelined":
            return array
        before = old.get((l, way, i))  # (what is known, what was sent an epoch ago)
        known = array if before is None else s.gamma * before[0] + (1 - s.gamma) * before[1]
        old[l, way, i] = known, array
        return known

    for epoch in range(1, epochs + 1):
        outer = sampled(S_out, part, s.boundary_share, s.seed, epoch) if s.halo == "sampled" else S_out
        with torch.no_grad():
            x = x_first * mask(0, x_first.shape[1], epoch)
            xs, zs = [x], [x @ flat[0].T + flat[1]]
            for l in range(1, s.layers):
                h, m = zs[-1].clamp_min(0), mask(l, s.hidden, epoch)
                mixed = S_in @ (h * m)
                for i, rows in enumerate(rows_of):
                    mixed[rows] += outer[rows] @ (m * travelled(h, l, 0, i, epoch))
                xs.append(torch.cat([h * m, mixed], 1) if sage else mixed)
                zs.append(xs[-1] @ flat[2 * l].T + flat[2 * l + 1])
            g = torch.zeros_like(zs[-1])
            one_hot = torch.nn.functional.one_hot(y[train_rows], graph.num_classes)
            g[train_rows] = (torch.softmax(zs[-1][train_rows], 1) - one_hot) / len(train_rows)
            for l in reversed(range(s.layers)):
                flat[2 * l].grad, flat[2 * l + 1].grad = g.T @ xs[l], g.sum(0)
                if l == 0:
                    break
                m, g_x = mask(l, s.hidden, epoch), g @ flat[2 * l]
                g_mixed = g_x[:, -s.hidden :]
                g_h = m * (S_in.T @ g_mixed + (g_x[:, : s.hidden] if sage else 0.0))
                for i, rows in enumerate(rows_of):
                    needed = ((S_out[rows] != 0).any(0)).to(torch.float64)[:, None]
                    home = travelled(m * (outer[rows].T @ g_mixed[rows]), l, 1, i, epoch)
                    g_h += needed * home
                g = g_h * (zs[l - 1] > 0)
        optimizer.step()
    return [(W.detach(), b.detach()) for W, b in zip(flat[::2], flat[1::2])]
