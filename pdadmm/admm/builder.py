"""Builds the network of a stage: where its layers lie, what weights they start with, what they are made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import get_activation
from pdadmm.admm.first_layer import choose_first_layer
from pdadmm.admm.growth import Weights, grow, random_layer
from pdadmm.admm.label_start import RANDOM_SHARE, CentredLabels
from pdadmm.admm.layer import FirstLayer, HiddenLayer, Layer, Penalties
from pdadmm.admm.losses import get_loss
from pdadmm.admm.network import Network
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.problem import Problem
from pdadmm.admm.products import Products
from pdadmm.admm.replay import replays_on
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.shard import Shard, deal
from pdadmm.admm.stack import stacks_on
from pdadmm.admm.streamed import StreamedNetwork
from pdadmm.admm.streamed_first import StreamedFirst, label_products
from pdadmm.checkpoint import State
from pdadmm.parallel.placement import layer_costs, place_layers
from pdadmm.parallel.rank_grid import choose_grid, join_grid
from pdadmm.parallel.transport import Transport

__all__ = ["AnyNetwork", "NetworkBuilder"]

AnyNetwork = Network | StreamedNetwork


class NetworkBuilder:
    """Places the layers of each stage on the grid of ranks, gives them their start weights and joins them.

    ``problem`` has all nodes, on rank 0; it becomes that of this rank's shard, on ``device``. ``column`` joins the
    ranks of one shard, whose rank is the layer group; ``shard`` says which nodes are this rank's, and joins those of
    one group.
    ``first`` may be the first layer of an earlier run on the same problem, which has its factor already.
    What lasts from stage to stage: ``first`` (on the first group), ``weights`` (of this rank's layers above the first),
    ``placement`` and ``shift``, which growth needs behind an activation with f(f(z)) != f(z).
    """

    def __init__(
        self,
        problem: Problem,
        settings: ADMMSettings,
        transport: Transport,
        device: torch.device,
        products: Products,
        storage: NodeStorage | None = None,
        first: Any = None,
    ) -> None:
        self.settings, self.transport, self.device, self.storage = settings, transport, device, storage
        self.dtype, self.products = getattr(torch, settings.dtype), products
        self.nodes, self.inputs, self.classes = problem.nodes, problem.inputs, problem.classes
        first_layer = "gram" if storage is not None and settings.first_layer == "auto" else settings.first_layer
        self.first_form = choose_first_layer(first_layer, self.nodes, self.inputs)
        self.first_cost = self.first_form.cost(self.nodes, self.inputs, self.widths(settings.layers)[1])
        self.grid = choose_grid(
            settings.grid, transport.size, self.nodes, self.widths(settings.layers), self.first_cost
        )
        self.column, row = join_grid(transport, self.grid)
        self.shard = Shard(row, self.nodes)
        own = deal(problem, self.shard, self.column.rank == 0, self.dtype)
        self.problem = own.on(device, streamed=storage is not None)
        self.activation, self.loss = get_activation(settings.activation), get_loss(settings.loss)
        s = settings
        assert s.rho is not None  # checked
        self.penalties = Penalties(s.nu, s.rho, s.mu, s.kappa_identity, s.prox_W, s.prox_z)
        self.first, self.weights, self.shift = first, Weights(), None
        self.stacks, self.replays = stacks_on(device, transport), replays_on(device, transport)
        self.placement: list[range] = []  # no stage has begun

    def widths(self, depth: int) -> list[int]:
        """Return [n_0, n_1, .., n_L] of the network with ``depth`` layers."""
        return [self.inputs, *[self.settings.hidden] * (depth - 1), self.classes]

    def begin(self, number: int, depth: int) -> AnyNetwork:
        """Build stage ``number``, of ``depth`` layers: the first from start weights, later ones grown; collective."""
        widths, old, trace = self.widths(depth), self.placement, self.transport.trace
        if not old:
            trace.mark("first layer's factor")
            self._factor_first_layer()
            if self.column.rank == 0:
                self._start_first_layer(widths)
        self.placement = self._place(depth)
        trace.mark("begin stage")
        if old:
            self.weights = grow(
                self.weights, old, self.placement, widths, self.shift, self.dtype, self.column, self.device
            )
        else:
            own = self.placement[self.column.rank]
            self.weights = {layer: self._start_layer(layer, widths) for layer in own if layer > 0}
        network = self.build(number)
        if number == 0 and self.settings.initial == "labels":
            network.begin_at_labels(self._labels())
        return network

    def resume(self, number: int, depth: int, read: Callable[[int], State]) -> tuple[AnyNetwork, dict[int, State]]:
        """Build stage ``number`` with the weights that ``read`` finds; return these layers' states, too."""
        self.transport.trace.mark("first layer's factor")
        self._factor_first_layer()
        self.placement = self._place(depth)
        own = {layer: read(layer) for layer in self.placement[self.column.rank]}
        if 0 in own:
            self.first.restore(own[0])
        self.weights = {layer: (state["W"], state["b"]) for layer, state in own.items() if layer > 0}
        return self.build(number), own

    def build(self, number: int) -> AnyNetwork:
        """Join this rank's layers, with their present weights, to the network of stage ``number``; collective."""
        own, depth = self.placement[self.column.rank], max(run.stop for run in self.placement)
        layers = [self._layer(index, last=index + 1 == depth) for index in own]
        s, nodes = self.settings, self.problem.nodes
        accelerate = ACCELERATIONS[s.acceleration](number)
        if self.storage is not None:
            return StreamedNetwork(layers, self.storage, number, self.problem, accelerate, self.transport.trace)
        return Network(
            layers,
            self.placement,
            nodes,
            self.column,
            s.quantizer,
            s.seed,
            accelerate,
            self.shard,
            self.stacks,
            self.replays,
        )

    def go_back(self, network: AnyNetwork, snapshot: list[State]) -> None:
        """Set all weights to those of a snapshot of ``network``."""
        for layer, state in zip(network.layers, snapshot):
            if isinstance(layer, HiddenLayer):
                layer.W, layer.b = self.weights[layer.index] = state["W"].clone(), state["b"].clone()
            else:
                self.first.restore(state)

    def end(self, network: AnyNetwork, snapshot: list[State]) -> None:
        """Go back to a snapshot, and find the shift that growth needs behind this activation; collective."""
        self.go_back(network, snapshot)
        self.shift = None
        if not self.activation.idempotent and network.depth < self.settings.layers:
            lowest = network.lowest_input(len(self.problem.y))
            # twice the depth of the lowest value leaves room for nodes not seen here
            own = None if lowest is None else 2.0 * (-lowest).clamp_min(0.0).cpu()
            parts = [part for part in self.transport.allgather(own) if part is not None]
            self.shift = functools.reduce(torch.maximum, parts).to(self.device)

    def best_weights(self) -> Weights:
        """Return W and b of this rank's layers in main memory, of each group's first shard; collective."""
        weights = ({} if self.first is None else {0: self.first.weights()}) | self.weights
        return {layer: (W.cpu(), b.cpu()) for layer, (W, b) in weights.items()} if self.shard.leads else {}

    def close(self) -> None:
        """Give back what joins the rows and columns of the grid; collective."""
        for part in (self.column, self.shard.group):
            if part is not self.transport:
                part.close()

    # Layers and their start weights

    def _place(self, depth: int) -> list[range]:
        shards = self.grid.shards
        costs = layer_costs(-(-self.nodes // shards), self.widths(depth), self.first_cost / shards)
        return place_layers(costs, self.grid.groups)

    def _factor_first_layer(self) -> None:
        """Make the first layer on the first group, without weights."""
        s = self.settings
        if self.column.rank != 0 or self.first is not None:
            return
        if self.storage is not None:
            self.first = StreamedFirst(s.first_layer, self.storage, s.kappa_first, self.products)
        else:
            self.first = self.first_form(self.problem.X, self.nodes, s.kappa_first, self.shard, self.products)

    def _start_first_layer(self, widths: list[int]) -> None:
        """Draw W_1, or fit it to the labels."""
        s = self.settings
        # rows of p_1 have some length: entries of deviation 1 / length would make z_1 of order one
        length = math.sqrt(self.first.squared / self.nodes) or 1.0
        if s.initial == "random":
            self.first.set_weights(*self._random_layer(0, widths, s.first_scale / length))
            return
        W, b = self._random_layer(0, widths, RANDOM_SHARE * s.first_scale / length)
        labels = self._labels()
        codes = labels.codes(s.seed, widths[1], s.first_scale)
        if self.storage is None:
            self.first.begin_at_labels(W, b, labels.of(labels.y), codes)
        else:
            self.first.begin_at_labels(W, b, label_products(self.storage, labels, self.products), codes)

    def _start_layer(self, layer: int, widths: list[int]) -> tuple[Tensor, Tensor]:
        """Return the weights that a layer above the first starts with."""
        if self.settings.initial == "random":
            return self._random_layer(layer, widths, 1.0 / math.sqrt(widths[layer]))
        # the identity, as in growth; the last layer is fitted once its p is there
        W = torch.eye(widths[layer + 1], widths[layer], dtype=self.dtype, device=self.device)
        return W, W.new_zeros(len(W))

    def _random_layer(self, layer: int, widths: list[int], deviation: float) -> tuple[Tensor, Tensor]:
        W, b = random_layer(self.settings.seed, layer, widths[layer + 1], widths[layer], deviation, self.dtype)
        return W.to(self.device), b.to(self.device)

    def _labels(self) -> CentredLabels:
        """Return the centred labels of this shard's training nodes; collective over the shards."""
        y = self.problem.y[: self.problem.nodes]
        return CentredLabels(y, self.classes, self.dtype, self.shard, self.device)

    def _layer(self, index: int, last: bool) -> Layer:
        if index == 0:
            layer: Layer = FirstLayer(self.first, self.activation, self.penalties)
        else:
            W, b = self.weights[index]
            exact = self.settings.solves_exactly(max(W.shape), self.nodes)
            quantizer = self.settings.quantizer
            grid = quantizer.p_grid() if quantizer is not None and quantizer.constrained else None
            layer = HiddenLayer(
                index, W, b, self.activation, self.penalties, exact, not last, grid, self.shard, self.products
            )
        if last:
            layer.attach_loss(self.loss, self.problem.y[: self.problem.nodes])
        return layer
