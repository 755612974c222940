"""The driver of pdADMM-G: stages, iterations, evaluation, stopping, the best weights."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import get_activation
from pdadmm.admm.divergence import describe_divergence
from pdadmm.admm.first_layer import choose_first_layer
from pdadmm.admm.growth import Weights, grow, random_layer
from pdadmm.admm.host_storage import storage_beside
from pdadmm.admm.label_start import RANDOM_SHARE, centred_labels, class_codes
from pdadmm.admm.layer import FirstLayer, HiddenLayer, Layer, Penalties, Terms
from pdadmm.admm.losses import get_loss
from pdadmm.admm.network import Network
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.objective import combine, over_shards
from pdadmm.admm.problem import Problem, scores
from pdadmm.admm.products import make_products
from pdadmm.admm.schedule import RHO_SCHEDULES
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.shard import Shard, deal
from pdadmm.admm.streamed import StreamedNetwork, beside, check_form
from pdadmm.admm.streamed_first import StreamedFirst
from pdadmm.admm.updates import squared_norm
from pdadmm.checkpoint import Checkpoint, State, prefixed, under
from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.device import CPU, choose_device, join_device, messages_of, moved, synchronize
from pdadmm.parallel.placement import layer_costs, place_layers
from pdadmm.parallel.rank_grid import choose_grid, join_grid
from pdadmm.parallel.transport import Transport
from pdadmm.recording import (
    Best,
    Clock,
    Stage,
    restore_run,
    run_state,
    run_summary,
    stage_summary,
    time_or_patience_is_up,
)
from pdadmm.saver import Saver

__all__ = ["ADMMSolver"]

MOST_BACKOFFS = 10  # in a stage: rho may rise that many times tenfold

AnyNetwork = Network | StreamedNetwork
log = logging.getLogger("pdadmm")


class ADMMSolver:
    """Trains a GA-MLP by pdADMM-G on a Problem (Wang et al. 2022, Algorithm 1, grown stage by stage).

    ``settings`` are checked settings, ``transport`` joins the ranks, ``watch`` is called with every row of
    the history, ``first`` may be the first layer of an earlier run on the same problem: its factor is reused;
    ``saver`` writes checkpoints, and may have one to go on from; with a ``storage`` X and the state lie on disk,
    with a limit on device memory in main memory.
    The ranks are the grid that the settings ask for. ``column`` joins those of one shard, whose rank is the layer
    group; ``shard`` says which nodes are this rank's, and joins those of one group; ``problem`` is the shard's, and
    lies like all arrays on ``device``.
    After ``run``: ``history``, ``stages`` (one summary each), and this rank's best weights in
    ``first`` (the first group) and ``weights`` (layers above the first).
    """

    def __init__(
        self,
        problem: Problem,
        settings: ADMMSettings,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        first: Any = None,
        saver: Saver | None = None,
        storage: NodeStorage | None = None,
    ) -> None:
        self.device = choose_device("cpu" if storage is not None else settings.device, transport)
        wait = functools.partial(synchronize, self.device)
        if self.device.type != "cpu":
            transport = join_device(transport, self.device)
            transport.trace.wait = wait
        self.settings, self.transport = settings, transport
        self.eval_every, self.watch = eval_every, watch
        self.dtype = getattr(torch, settings.dtype)
        if settings.device_memory is not None:
            assert storage is None
            assert transport.size == 1
            storage = storage_beside(self.device, problem, settings)
        self.nodes, self.counts = problem.nodes, {name: run.stop - run.start for name, run in problem.parts.items()}
        widths = [problem.inputs, *[settings.hidden] * (settings.layers - 1), problem.classes]
        first_layer = "gram" if storage is not None and settings.first_layer == "auto" else settings.first_layer
        self.first_form = choose_first_layer(first_layer, self.nodes, problem.inputs)
        self.first_cost = self.first_form.cost(self.nodes, problem.inputs, widths[1])
        self.grid = choose_grid(settings.grid, transport.size, self.nodes, widths, self.first_cost)
        self.column, row = join_grid(transport, self.grid)
        self.shard = Shard(row, self.nodes)
        own = deal(problem, self.shard, self.column.rank == 0, self.dtype)
        self.problem = own.on(self.device, streamed=storage is not None)
        self.activation, self.loss = get_activation(settings.activation), get_loss(settings.loss)
        self.products = make_products(settings.products, self.device.type)
        if self.products.terms and not self.products.native and transport.rank == 0:
            where = "this processor" if self.device.type == "cpu" else "products on a device"
            log.info("products %s: without bf16 in %s they take longer than full", settings.products, where)
        s = settings
        assert s.rho is not None  # checked
        assert s.stages is not None
        self.depths = s.stages
        self.penalties = Penalties(s.nu, s.rho, s.mu, s.kappa_identity, s.prox_W, s.prox_z)
        self.schedule = RHO_SCHEDULES[settings.rho_schedule]()
        self.history, self.stages, self.clock = History(), list[dict[str, Any]](), Clock(wait)
        self.weights: Weights = {}
        self.first, self.saver, self.storage = first, saver, storage

    def run(self) -> ADMMSolver:
        """Train through all stages; collective over the ranks."""
        saved = None if self.saver is None else self.saver.saved
        self.placement: list[range] = []  # no stage has begun
        for number in range(0 if saved is None else saved.progress["stage"]["number"], len(self.depths)):
            self.clock.start()
            # nobody else holds the network: its arrays are given back before the next stage
            self._run_stage(*self._begin_stage(number, saved))
            saved = None
        return self

    def _begin_stage(self, number: int, saved: Checkpoint | None) -> tuple[Stage, AnyNetwork]:
        """Build the network of a stage, from a checkpoint where one is given."""
        if not self.placement:
            self.transport.trace.mark("first layer's factor")
        depth = self.depths[number]
        if saved is not None:
            return self._go_on(saved, depth)
        self.placement = self._enter_stage(depth, self.placement)
        self.transport.trace.mark("begin stage")
        network = self._build(number, depth, self.placement)
        if number == 0 and self.settings.initial == "labels":
            self._last_layer_at_labels(network)
        self.clock.stop()
        return Stage(number, depth, self._evaluate(network), best=Best(weights=network.snapshot())), network

    def _run_stage(self, stage: Stage, network: AnyNetwork) -> None:
        """Iterate one stage to its end and leave its best weights in ``first`` and ``weights``."""
        while not stage.ended:
            try:
                self._step(stage, network)
            except DivergenceError as error:
                network.finish()  # all ranks are here: no message may outlive its buffer
                network = self._back_off(stage, network, error)
            else:
                self._save(stage, network)
        self.clock.start()
        self.transport.trace.mark("end stage")
        network.finish()
        self._keep(network, stage.best.weights)
        self.clock.stop()
        message_bytes = sum(self.transport.allgather(network.message_bytes()))
        self.stages.append(stage_summary(stage.depth, stage.iterations, message_bytes, stage.start, stage.best.row))

    def _step(self, stage: Stage, network: AnyNetwork) -> None:
        """Do one iteration, with all that is measured of it; ``stage.ended`` where it is the last."""
        if self.saver is not None:
            self.saver.beat(len(self.history) + 1, network.describe())
        trace = self.transport.trace
        trace.iteration = len(self.history) + 1
        self.clock.start()
        network.iterate()
        self.clock.stop()
        trace.mark("measure")
        row = {"iteration": len(self.history) + 1, "stage": stage.number, "layers": stage.depth}
        row |= self._measure(network)
        stage.iterations += 1
        ends = stage.iterations == self.settings.iterations
        if ends or stage.iterations % self.eval_every == 0:
            self._judge(network, row, stage.best)
        stage.ended = ends or self._stops(stage.number, row, stage.best)
        if stage.ended and "train_accuracy" not in row:
            self._judge(network, row, stage.best)
        self.history.append(row)
        self.watch(row)

    def widths(self, depth: int) -> list[int]:
        """Return [n_0, n_1, .., n_L] of the network with ``depth`` layers."""
        return [self.problem.inputs, *[self.settings.hidden] * (depth - 1), self.problem.classes]

    # Checkpoints

    def _save(self, stage: Stage, network: AnyNetwork) -> None:
        """Let the saver write a checkpoint of what the next iteration starts from, if it is time."""
        if self.saver is None:
            return
        last = stage.ended and stage.number + 1 == len(self.depths)

        def layers() -> dict[int, State]:
            best = [prefixed("best", weights) for weights in stage.best.weights]
            joined: dict[int, State | None] = {}
            for layer, state, own in zip(network.layers, network.states(), best):
                joined[layer.index] = self.shard.joined(moved(state | own, CPU))
            return {layer: state for layer, state in joined.items() if state is not None}

        def run() -> dict[str, Any]:
            state = run_state(stage, self.history, self.stages, self.clock, self.transport)
            state |= {"rho": self.penalties.rho, "schedule": self.schedule.state()}
            return state | ({} if self.storage is None else {self.storage.kind: self.storage.record()})

        self.saver.step(len(self.history), last, layers, run)
        if self.storage is not None and self.saver.written != len(self.history):
            self.storage.not_saved()

    def _go_on(self, saved: Checkpoint, depth: int) -> tuple[Stage, AnyNetwork]:
        """Build the stage of a checkpoint and bring it to where that was written, on any grid of ranks."""
        state = saved.progress
        check_form(saved, self.storage)
        self._start_first_layer(self.widths(self.depths[0]))
        self.placement = self._place(depth)

        def read(layer: int) -> State:
            whole = saved.layer(layer)
            return moved(self.shard.part(whole), self.device) if self.storage is None else beside(whole, self.device)

        own = {layer: read(layer) for layer in self.placement[self.column.rank]}
        self.weights = {layer: (state["W"], state["b"]) for layer, state in own.items() if layer > 0}
        network = self._build(state["stage"]["number"], depth, self.placement)
        if self.storage is None:
            network.restore(lambda layer: own.get(layer) or read(layer))
        else:
            network.go_on(own, state[self.storage.kind], state["stage"]["ended"])
        self.clock.stop()
        stage, self.history, self.stages = restore_run(state, self.clock, self.transport)
        stage.best.weights = [under("best", own[layer.index]) for layer in network.layers]
        self.penalties.rho = state["rho"]
        self.schedule.restore(state["schedule"])
        return stage, network

    # Start and growth

    def _enter_stage(self, depth: int, old: list[range]) -> list[range]:
        """Place the layers of a stage on the ranks and give each rank its start weights."""
        widths = self.widths(depth)
        if not old:
            self._start_first_layer(widths)
        new = self._place(depth)
        if old:
            self.weights = grow(self.weights, old, new, widths, self.shift, self.dtype, self.column, self.device)
            return new
        for layer in new[self.column.rank]:
            if layer > 0:
                self.weights[layer] = self._start_layer(layer, widths)
        return new

    def _start_layer(self, layer: int, widths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights that a layer above the first starts with."""
        if self.settings.initial == "random":
            return self._random_layer(layer, widths, 1.0 / math.sqrt(widths[layer]))
        # the identity, as in growth; the last layer is fitted once its p is there
        W = torch.eye(widths[layer + 1], widths[layer], dtype=self.dtype, device=self.device)
        return W, W.new_zeros(len(W))

    def _last_layer_at_labels(self, network: AnyNetwork) -> None:
        """Fit W_L, b_L to the labels, on the ranks that hold the last layer."""
        for layer in network.layers:
            if isinstance(layer, HiddenLayer) and layer.loss is not None:
                layer.begin_at_labels(*self._labels())

    def _labels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the centred labels of this shard's training nodes, and their mean over all shards."""
        return centred_labels(self.problem.y[: self.problem.nodes], self.problem.classes, self.dtype, self.shard)

    def _random_layer(self, layer: int, widths: list[int], deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
        W, b = random_layer(self.settings.seed, layer, widths[layer + 1], widths[layer], deviation, self.dtype)
        return W.to(self.device), b.to(self.device)

    def _place(self, depth: int) -> list[range]:
        shards = self.grid.shards
        costs = layer_costs(-(-self.nodes // shards), self.widths(depth), self.first_cost / shards)
        return place_layers(costs, self.grid.groups)

    def _start_first_layer(self, widths: list[int]) -> None:
        """The first group factors the first layer and draws W_1."""
        s = self.settings
        if self.column.rank == 0:
            if self.storage is not None:
                self.first = StreamedFirst(s.first_layer, self.storage, s.kappa_first, self.products)
                squared = self.first.squared
            else:
                if self.first is None:
                    self.first = self.first_form(
                        self.problem.X, self.nodes, s.kappa_first, self.shard, self.products
                    )
                (squared,) = self.shard.sums(squared_norm(self.first.p))
            # rows of p_1 have some length: entries of deviation 1 / length would make z_1 of order one
            length = math.sqrt(squared / self.nodes) or 1.0
            if s.initial == "random":
                self.first.set_weights(*self._random_layer(0, widths, s.first_scale / length))
                return
            W, b = self._random_layer(0, widths, RANDOM_SHARE * s.first_scale / length)
            Y, _ = self._labels()
            self.first.begin_at_labels(W, b, Y, class_codes(s.seed, Y, widths[1], s.first_scale, self.shard))

    def _build(self, number: int, depth: int, placement: list[range]) -> AnyNetwork:
        layers = [self._layer(index, last=index + 1 == depth) for index in placement[self.column.rank]]
        s, nodes = self.settings, self.problem.nodes
        accelerate = ACCELERATIONS[s.acceleration](number)
        if self.storage is not None:
            return StreamedNetwork(layers, self.storage, number, self.problem, accelerate, self.transport.trace)
        return Network(layers, placement, nodes, self.column, s.quantizer, s.seed, accelerate, self.shard)

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

    def _keep(self, network: AnyNetwork, snapshot: list[Any]) -> None:
        """Go back to a snapshot, and find the shift that growth needs behind this activation."""
        self._go_back(network, snapshot)
        self.shift = None
        if not self.activation.idempotent and network.depth < self.settings.layers:
            lowest = network.lowest_input(len(self.problem.y))
            # twice the depth of the lowest value leaves room for nodes not seen here
            own = None if lowest is None else 2.0 * (-lowest).clamp_min(0.0).cpu()
            parts = [part for part in self.transport.allgather(own) if part is not None]
            self.shift = functools.reduce(torch.maximum, parts).to(self.device)

    def _go_back(self, network: AnyNetwork, snapshot: list[State]) -> None:
        for layer, state in zip(network.layers, snapshot):
            if isinstance(layer, HiddenLayer):
                layer.W, layer.b = self.weights[layer.index] = state["W"].clone(), state["b"].clone()
            else:
                self.first.restore(state)

    # Measuring: none of it counts as training, unless the schedule of rho asks for the objective

    def _measure(self, network: AnyNetwork) -> dict[str, Any]:
        """Return objective, residuals, seconds and bytes after an iteration, the same on every rank."""
        counted = self.schedule.needs_objective
        if counted:
            self.clock.start()
        asked = 0 if self.saver is None else self.saver.asked
        own = network.terms(), self.clock.seconds, self.transport.ledger.bytes_sent, asked
        parts = self.transport.allgather(own)
        if self.saver is not None:
            self.saver.agree([part[3] for part in parts])
        terms = over_shards([part[0] for part in parts], self.grid.shards)
        row = combine(terms, self.penalties)
        if not math.isfinite(row["lagrangian"]):
            raise DivergenceError(self._divergence(terms, network))
        self.penalties.rho = self.schedule.next(self.penalties.rho, row["objective"])
        if counted:
            self.clock.stop()
        return row | {"seconds": max(part[1] for part in parts), "bytes": sum(part[2] for part in parts)}

    def _divergence(self, terms: list[Terms], network: AnyNetwork) -> str:
        """Say where the numbers stopped being finite: the earliest update of this iteration; collective."""
        found = [place for part in self.transport.allgather(network.not_finite()) for place in part]
        return describe_divergence(len(self.history) + 1, found, terms, self.penalties)

    def _back_off(self, stage: Stage, network: AnyNetwork, error: DivergenceError) -> AnyNetwork:
        """Build the stage anew from its best weights so far, with ten times rho; or raise the error."""
        if self.settings.on_divergence != "backoff" or stage.backoffs == MOST_BACKOFFS:
            raise error
        stage.backoffs += 1
        self.clock.start()
        self._go_back(network, stage.best.weights)
        self.penalties.rho *= 10.0
        network = self._build(stage.number, stage.depth, self.placement)
        self.clock.stop()
        if self.transport.rank == 0:
            log.warning("%s: going on from the best weights so far with rho = %g", error, self.penalties.rho)
        return network

    def _evaluate(self, network: AnyNetwork) -> dict[str, float]:
        """Return the accuracies of the composed network, a true forward pass, on every rank."""
        self.transport.trace.mark("evaluate")
        own = network.tally(self.problem)
        tallies = self.transport.allgather(own, "evaluation")
        return scores([own for own in tallies if own is not None], self.counts)

    def _judge(self, network: AnyNetwork, row: dict[str, Any], best: Best) -> None:
        """Add the accuracies to ``row`` and keep the weights where they are the best so far."""
        row |= self._evaluate(network)
        if best.improved_by(row):
            best.row, best.weights = row, network.snapshot()

    def _stops(self, number: int, row: dict[str, Any], best: Best) -> bool:
        """Whether a stopping rule ends this stage after ``row``."""
        tol = self.settings.tol
        if tol and row["q_squared"] > 0 and row["residual_link"] <= (tol**2) * row["q_squared"]:
            return True
        return time_or_patience_is_up(self.settings, number, row, best)

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself; the accuracies are the full-depth network's."""
        summary = run_summary(self.settings, self.history, self.stages, self.clock, self.transport)
        summary |= {"device": self.device.type, "messages": messages_of(self.column)}
        return summary | {"grid": str(self.grid), "first_layer": self.first_form.name}

    def best_weights(self) -> Weights:
        """Return the best W and b of this rank's layers in main memory, of each group's first shard; collective."""
        weights = ({} if self.first is None else {0: self.first.weights()}) | self.weights
        return {layer: (W.cpu(), b.cpu()) for layer, (W, b) in weights.items()} if self.shard.leads else {}

    def close(self) -> None:
        """Give back what joins the rows and columns of the grid; collective."""
        for part in (self.column, self.shard.group):
            if part is not self.transport:
                part.close()
