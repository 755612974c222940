"""The layers of one growth stage that live on one rank, and one iteration of pdADMM-G over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdadmm.admm.label_start import CentredLabels
from pdadmm.admm.layer import UPDATED, HiddenLayer, Layer, Terms
from pdadmm.admm.link import Link
from pdadmm.admm.problem import Problem, tally
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.replay import Replay, repeatable
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.admm.stack import Stack, stacked
from pdadmm.checkpoint import State
from pdadmm.parallel.placement import owner_of
from pdadmm.parallel.transport import Transport

__all__ = ["Network"]


class Network:
    """The run of layers that ``placement`` gives this rank, joined to its neighbours by Links.

    Building it is collective: the forward pass that gives every layer its start goes through the ranks
    (message kind "init"). ``layers`` are this rank's, lowest first; rank 0 holds layer 1. ``nodes`` is V, or the
    number of nodes of the ``shard`` that ``transport`` passes up and down; ``quantizer`` and ``seed`` say how messages
    are coded, ``accelerate`` whether q, u and z are extrapolated, ``stacks`` whether equal layers are updated
    together, ``replays`` whether iterations may be repeated as CUDA graphs.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        placement: Sequence[range],
        nodes: int,
        transport: Transport,
        quantizer: Quantizer | None = None,
        seed: int = 0,
        accelerate: bool = False,
        shard: Shard = WHOLE,
        stacks: bool = False,
        replays: bool = False,
    ) -> None:
        self.layers, self.transport, self.shard = list(layers), transport, shard
        self.quantizer, self.seed, self.accelerate = quantizer, seed, accelerate
        self.uppers = [layer for layer in self.layers if isinstance(layer, HiddenLayer)]
        self.depth = max(run.stop for run in placement)
        self.lowers = [layer for layer in self.layers if layer.index + 1 < self.depth]
        self.stacks, self.rows = stacks, nodes if shard.alone else -(-shard.nodes // shard.group.size)
        self._units: list[Layer | Stack] | None = None
        self.active = bool(self.layers)
        self.replay: Replay | None = None
        self.remote: list[Link] = []  # those of which another rank has the other side
        self.scratch: dict[torch.Size, Tensor] = {}  # one array of a shape, for what lives within one update
        if not self.active:
            return
        first, last = self.layers[0].index, self.layers[-1].index
        self.rank_below = owner_of(placement, first - 1) if first > 0 else None
        self.rank_above = owner_of(placement, last + 1) if last + 1 < self.depth else None
        self._start(nodes)
        if replays and repeatable(self.layers, self.rows):
            self.replay = Replay(self)

    def _start(self, nodes: int) -> None:
        """Pass the training nodes' activations up and set every layer to a feasible point."""
        bottom, top = self.layers[0], self.layers[-1]
        if self.rank_below is not None:
            h = self._receive(nodes, self.rank_below, "init")
            bottom.below = self._link(h, bottom.index - 1, lower=False, upper=True)
        for layer, following in zip(self.layers, [*self.layers[1:], None]):
            a = layer.start()
            if layer.loss is None:
                h = layer.activation(a)
                layer.above = self._link(h, layer.index, lower=True, upper=following is not None)
            if following is not None:
                following.below = layer.above
        if self.rank_above is not None:
            self.transport.send(h, self.rank_above, "init")
            top.above.connect(self.transport, self.rank_above)
        if self.rank_below is not None:
            bottom.below.connect(self.transport, self.rank_below)
        self.remote = [link for link in self._links() if link.remote]

    def _link(self, h: Tensor, layer: int, lower: bool, upper: bool) -> Link:
        return Link(h, layer, lower, upper, self.quantizer, self.seed, self.accelerate, self.shard)

    def _receive(self, nodes: int, rank: int, kind: str) -> Tensor:
        W = self.uppers[0].W
        return self.transport.receive(W.new_empty(nodes, W.shape[1]), rank, kind)

    def begin_at_labels(self, labels: CentredLabels) -> None:
        """Fit W_L, b_L to the labels, on the ranks that hold layer L."""
        for layer in self.uppers:
            if layer.loss is not None:
                layer.begin_at_labels(labels)

    def describe(self) -> str:
        """Say which layers this rank holds, and which nodes where it has not all, counted from 1."""
        own, rows = [layer.index + 1 for layer in self.layers], self.shard.rows
        if not own:
            return "no layer"
        layers = f"layer {own[0]}" if len(own) == 1 else f"layers {own[0]} to {own[-1]}"
        nodes = "" if self.shard.alone else f", nodes {rows.start + 1} to {rows.stop} of {self.shard.nodes}"
        return f"{layers} of {self.depth}{nodes}"

    @property
    def units(self) -> list[Layer | Stack]:
        """What is updated at once: this rank's layers, those that may be stacked in one Stack; lowest first."""
        if self._units is None:  # once the layers have their start, or a checkpoint's state
            self._units = stacked(self.layers, self.rows) if self.stacks else [*self.layers]
        return self._units

    def iterate(self) -> None:
        """One iteration; a steady one is repeated as a graph where that was asked for."""
        if self.replay is None:
            self.update()
        else:
            self.replay.iterate()

    def update(self) -> None:
        """One iteration. Phase A: p (sent down at once), W, b, z. Phase B: q (sent up at once), u."""
        mark, units = self.transport.trace.mark, self.units
        uppers = [unit for unit in units if isinstance(unit, HiddenLayer | Stack)]
        lowers = [unit for unit in units if unit.aboves]
        for unit in lowers:
            for link in unit.aboves:
                link.post_p()
        for unit in reversed(uppers):  # the lowest last: its q comes from afar
            mark("prepare p", unit.index + 1)
            unit.prepare_p(self.scratch)
            mark("wait for q", unit.index + 1)
            for link in unit.belows:
                link.wait_q()
            mark("update p", unit.index + 1)
            unit.update_p()
            mark("send p", unit.index + 1)
            for link in unit.belows:
                link.send_p(unit.penalties.rho)
        for unit in units:
            mark("update W, b", unit.index + 1)
            unit.update_W_b(self.scratch)
            self.start_messages(wait=False)
            mark("update z", unit.index + 1)
            unit.update_z()
        self.start_messages()
        for unit in lowers:
            mark("wait for p", unit.index + 1)
            for link in unit.aboves:
                link.wait_p()
            mark("update q, u", unit.index + 1)
            unit.update_q()
        self.start_messages()

    def start_messages(self, wait: bool = True) -> None:
        """Start the messages that wait for this rank's device, before it waits for another rank.

        Without ``wait`` only those that may start now. Without a device every message has started already.
        """
        for link in self.remote:
            link.start_messages(wait)

    def finish(self) -> None:
        """Complete every message under way, so that both sides of each link agree; ``iterate`` may go on from here."""
        for link in self._links():
            link.finish()

    def _links(self) -> dict[Link, int]:
        """Return the links that this rank sees a side of, and the layer below each."""
        below = {layer.below: layer.index - 1 for layer in self.layers if layer.below is not None}
        return below | {layer.above: layer.index for layer in self.layers if layer.above is not None}

    def message_bytes(self) -> int:
        """Return the bytes of p and q messages of one iteration over this rank's upper boundaries."""
        channels = [c for layer in self.lowers for c in (layer.above.p_channel, layer.above.q_channel)]
        return sum(channel.payload_bytes for channel in channels)

    def terms(self) -> list[Terms]:
        """Return what each of this rank's layers adds to the objective and the residuals."""
        return [terms for unit in self.units for terms in unit.terms()]

    def not_finite(self) -> list[tuple[int, int, str]]:
        """Return (place in the order of updates, layer, variable) where this rank's layers are not finite."""
        found = ((layer.index, layer.first_not_finite()) for layer in self.layers)
        return [(UPDATED.index(name), index, name) for index, name in found if name is not None]

    def last_input(self, nodes: int) -> Tensor | None:
        """Pass the ``nodes`` labelled nodes up to layer L; its input on the rank that holds it, else None."""
        if not self.active:
            return None
        h = self._receive(nodes, self.rank_below, "evaluation") if self.rank_below is not None else None
        for layer in self.layers:
            if layer.loss is None:
                h = layer.activation(layer.forward(h))
        if self.rank_above is None:
            return h
        assert h is not None  # as there is a layer below the last
        self.transport.send(h, self.rank_above, "evaluation")
        return None

    def lowest_input(self, nodes: int) -> Tensor | None:
        """Return the lowest value of each column of layer L's input on the rank that holds it, else None."""
        h = self.last_input(nodes)
        return None if h is None else h.amin(0)

    def tally(self, problem: Problem) -> dict[str, float] | None:
        """Return what the composed network scores on the labelled nodes, on layer L's rank, else None."""
        logits = self.forward(len(problem.y))
        return None if logits is None else tally(logits, problem.y, problem.parts, problem.logit_shift)

    def forward(self, nodes: int) -> Tensor | None:
        """Pass the ``nodes`` labelled nodes through the composed network; logits on layer L's rank only."""
        h = self.last_input(nodes)
        if not self.active or self.rank_above is not None:
            return None
        return self.layers[-1].forward(h)

    def states(self) -> list[State]:
        """Return what a checkpoint needs of this rank's layers, once nothing is under way."""
        self.finish()
        return [layer.state() for layer in self.layers]

    def snapshot(self) -> list[State]:
        """Return copies of this rank's weights, a layer each."""
        return [layer.snapshot() for layer in self.layers]

    def restore(self, states: Callable[[int], State]) -> None:
        """Go on from the layers' states in a checkpoint; those beside this rank's layers are asked for, too."""
        own = {layer.index: states(layer.index) for layer in self.layers}
        for layer in self.layers:
            layer.restore(own[layer.index])
        self._units = None
        if self.replay is not None:
            self.replay.forget()
        for link, lower in self._links().items():
            link.restore(*(own.get(layer) or states(layer) for layer in (lower, lower + 1)))
