"""Layers of a GNN whose nodes are spread over ranks: aggregation with a halo that is exact, old, sampled or coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.baselines.dropout import node_mask
from pdadmm.baselines.exchange import Halo, Link, PlainWire, QuantizedWire, draw
from pdadmm.baselines.initial import BOUNDARY
from pdadmm.checkpoint import State, under
from pdadmm.models.gnn import product
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Breakdown

__all__ = ["HaloMixer", "Mixer", "PipelinedMixer", "SampledMixer", "convolve"]

FEATURES, ADJOINTS, EVALUATION = range(3)  # of a layer's messages: tags, and keys of rounding


class Mixer:
    """Computes layer l >= 1 on a rank's own nodes, z = x W^T + b, where x aggregates dropped-out h over the graph.

    ``own`` are the rank's global node numbers. A kind of parallelism fills in ``forward``, ``backward`` and ``infer``.
    """

    def __init__(self, own: np.ndarray, settings: Any, copies: int, times: Breakdown) -> None:
        self.own, self.settings, self.copies, self.times = own, settings, copies, times
        self.dtype, self.epoch = getattr(torch, settings.dtype), 0
        self.masks: dict[int, Any] = {}  # of forward, for backward

    def begin(self, epoch: int) -> None:
        """Take up the next epoch, counted from 1."""
        self.epoch = epoch

    def forward(self, l: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return h with dropout and its aggregate, (own, width) both."""
        raise NotImplementedError

    def backward(self, l: int, g_self: Tensor | None, g: Tensor) -> Tensor:
        """Return the gradient of h from those of ``forward``'s results."""
        raise NotImplementedError

    def infer(self, l: int, h: Tensor) -> Tensor:
        """Return the exact aggregate of h without dropout."""
        raise NotImplementedError

    def pass_bytes(self) -> int:
        """Return the bytes that this rank's messages of an epoch take, by formula."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait for what is still under way."""

    def state(self) -> State:
        """Return what the next epoch needs of this one, for a checkpoint; training may go on from here."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state, on the rank that it was of."""

    def layer(self, l: int, h: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and x."""
        dropped, mixed = self.forward(l, h)
        x = mixed if self.copies == 1 else torch.cat([dropped, mixed], dim=1)
        return F.linear(x, W, b), x

    def layer_back(self, l: int, g: Tensor, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of h, W and b from that of z."""
        g_x = g @ W
        width = g_x.shape[1] // self.copies
        g_self = g_x[:, :width] if self.copies == 2 else None
        return self.backward(l, g_self, g_x[:, -width:]), g.T @ x, g.sum(0)

    def _mask(self, l: int, nodes: np.ndarray, width: int) -> Tensor | None:
        return node_mask((self.settings.seed, self.epoch, l), nodes, width, self.settings.dropout, self.dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, W: Tensor, b: Tensor, mixer: Mixer, l: int) -> Tensor:
        z, x = mixer.layer(l, h, W, b)
        ctx.mixer, ctx.l = mixer, l
        ctx.save_for_backward(x, W)
        return z

    @staticmethod
    def backward(ctx, g: Tensor):
        return *ctx.mixer.layer_back(ctx.l, g.contiguous(), *ctx.saved_tensors), None, None


def convolve(mixer: Mixer, l: int, h: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return z_l of the rank's own nodes, differentiable in h, W and b; collective, its way back too."""
    return _Convolution.apply(h, W, b, mixer, l)


class HaloMixer(Mixer):
    """Halo exchange: before layer l each rank gets the rows of h it reads, after it their gradients go home.

        z_own = S_inner h_own + S_outer h_halo        dh_own = S_inner^T g + sum over peers of their (S_outer^T g)

    Exact with a PlainWire. The rows travel before dropout, which is keyed by global node and drawn at both ends;
    they travel while S_inner h is computed, and so back.
    """

    def __init__(
        self, halo: Halo, whole: Halo, transport: Transport, widths: list[int], settings: Any, copies: int,
        times: Breakdown, wire: PlainWire | QuantizedWire,
    ) -> None:  # fmt: skip
        """``halo`` is what training reads, ``whole`` what evaluation does; ``widths`` = [n_0, .., n_L]."""
        super().__init__(halo.own, settings, copies, times)
        self.halo, self.whole = halo, whole

        def link(l: int, way: int, out: dict, into: dict, wire: Any, kind: str, times: Breakdown) -> Link:
            return Link(transport, out, into, widths[l], self.dtype, wire, 3 * l + way, kind, times)

        layers = range(1, len(widths) - 1)
        self.features = {l: link(l, FEATURES, halo.needed, halo.read, wire, "features", times) for l in layers}
        self.adjoints = {l: link(l, ADJOINTS, halo.read, halo.needed, wire, "adjoints", times) for l in layers}
        plain, quiet = PlainWire(), Breakdown()  # evaluation is exact, and no training time
        self.exact = {
            l: link(l, EVALUATION, whole.needed, whole.read, plain, "evaluation", quiet) for l in layers
        }

    def forward(self, l: int, h: Tensor) -> tuple[Tensor, Tensor]:
        self._send_features(l, h)
        own, other = (self._mask(l, nodes, h.shape[1]) for nodes in (self.own, self.halo.halo))
        self.masks[l] = own, other
        h = h if own is None else h * own
        with self.times("sparse"):
            mixed = product(self.halo.inner.S, h)
        halo = self._features(l)
        halo = halo if other is None else halo * other
        with self.times("sparse"):
            mixed += product(self.halo.outer.S, halo)
        return h, mixed

    def backward(self, l: int, g_self: Tensor | None, g: Tensor) -> Tensor:
        own, other = self.masks.pop(l)
        with self.times("sparse"):
            g_halo = product(self.halo.outer.transposed, g)
        self._send_adjoints(l, g_halo if other is None else g_halo.mul_(other))
        with self.times("sparse"):
            g_h = product(self.halo.inner.transposed, g)
        if g_self is not None:
            g_h += g_self
        return self._add_adjoints(l, g_h if own is None else g_h.mul_(own))

    def infer(self, l: int, h: Tensor) -> Tensor:
        link = self.exact[l]
        link.start(h, self.own, self._key(l, EVALUATION))
        mixed = product(self.whole.inner.S, h)
        link.wait()
        return mixed.add_(product(self.whole.outer.S, link.put(self._rows(self.whole, h.shape[1]))))

    def pass_bytes(self) -> int:
        return sum(link.nbytes() for links in (self.features, self.adjoints) for link in links.values())

    # What PipelinedMixer does otherwise

    def _send_features(self, l: int, h: Tensor) -> None:
        self.features[l].start(h, self.own, self._key(l, FEATURES))

    def _features(self, l: int) -> Tensor:
        """Return the halo's rows of h, (halo, width)."""
        link = self.features[l]
        link.wait()
        return link.put(self._rows(self.halo, link.width))

    def _send_adjoints(self, l: int, g_halo: Tensor) -> None:
        self.adjoints[l].start(g_halo, self.halo.halo, self._key(l, ADJOINTS))

    def _add_adjoints(self, l: int, g_h: Tensor) -> Tensor:
        """Return g_h with what other ranks found for this rank's nodes."""
        link = self.adjoints[l]
        link.wait()
        return link.add(g_h)

    def _key(self, l: int, way: int) -> tuple[int, ...]:
        return self.settings.seed, self.epoch, l, way

    def _rows(self, halo: Halo, width: int) -> Tensor:
        return torch.empty(len(halo.halo), width, dtype=self.dtype)


class SampledMixer(HaloMixer):
    """Boundary sampling: each epoch reads a random share of every boundary (BNS-GCN, Wan et al., MLSys 2022)."""

    def __init__(self, whole: Halo, transport: Transport, widths: list[int], settings: Any, *more: Any) -> None:
        first = draw(whole, settings.boundary_share, (settings.seed, BOUNDARY, 0))
        super().__init__(first, whole, transport, widths, settings, *more)

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        with self.times("sampling"):
            s = self.settings
            self.halo = draw(self.whole, s.boundary_share, (s.seed, BOUNDARY, epoch))
            for link in self.features.values():
                link.outgoing = self.halo.needed
            for link in self.adjoints.values():
                link.incoming = self.halo.needed


class PipelinedMixer(HaloMixer):
    """Halo of the epoch before: what is sent at epoch t is waited for at t + 1 (PipeGCN, Wan et al., ICLR 2022).

    The first epoch waits for its own. ``gamma`` smooths what is used: a <- gamma a + (1 - gamma) received.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: dict[tuple[int, int], Tensor] = {}
        self.under_way: set[tuple[int, int]] = set()

    def _send_features(self, l: int, h: Tensor) -> None:
        self._renew(l, FEATURES, self.features[l], self._rows(self.halo, h.shape[1]))
        super()._send_features(l, h)
        self._first(l, FEATURES, self.features[l], self._rows(self.halo, h.shape[1]))

    def _features(self, l: int) -> Tensor:
        return self.held[l, FEATURES]

    def _send_adjoints(self, l: int, g_halo: Tensor) -> None:
        def zeros() -> Tensor:
            return torch.zeros(len(self.own), g_halo.shape[1], dtype=self.dtype)

        self._renew(l, ADJOINTS, self.adjoints[l], zeros())
        super()._send_adjoints(l, g_halo)
        self._first(l, ADJOINTS, self.adjoints[l], zeros())

    def _add_adjoints(self, l: int, g_h: Tensor) -> Tensor:
        return g_h.add_(self.held[l, ADJOINTS])

    def _renew(self, l: int, way: int, link: Link, array: Tensor) -> None:
        """Take in what was sent an epoch ago."""
        if (l, way) not in self.under_way:
            return
        link.wait()
        received = link.put(array) if way == FEATURES else link.add(array)
        self.held[l, way].lerp_(received, 1.0 - self.settings.gamma)

    def _first(self, l: int, way: int, link: Link, array: Tensor) -> None:
        """Wait for the very first message, as there is no older one."""
        if (l, way) not in self.held:
            link.wait()
            self.held[l, way] = link.put(array) if way == FEATURES else link.add(array)
        else:
            self.under_way.add((l, way))

    def finish(self) -> None:
        for l, way in sorted(self.under_way):
            self._links(way)[l].wait()
        self.under_way.clear()

    def state(self) -> State:
        """Return what is in use and, once it has arrived, what the next epoch will take in."""
        state: State = {"under_way": sorted(self.under_way)}
        state |= {f"held.{l}.{way}": array for (l, way), array in self.held.items()}
        for l, way in sorted(self.under_way):
            link = self._links(way)[l]
            link.wait()
            state |= {f"came.{l}.{way}.{peer}": buffer for peer, buffer in link.into.items()}
        return state

    def restore(self, state: State) -> None:
        self.under_way = {(l, way) for l, way in state["under_way"]}
        for name, array in under("held", state).items():
            l, way = map(int, name.split("."))
            self.held[l, way] = array
        for name, array in under("came", state).items():
            l, way, peer = map(int, name.split("."))
            self._links(way)[l].into[peer].copy_(array)

    def _links(self, way: int) -> dict[int, Link]:
        return self.features if way == FEATURES else self.adjoints
