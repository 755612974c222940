"""The driver of pdADMM-G: stages, iterations, evaluation, stopping, the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import get_activation
from pdadmm.admm.first_layer import choose_first_layer
from pdadmm.admm.growth import Weights, grow, random_layer
from pdadmm.admm.layer import FirstLayer, HiddenLayer, Layer, Penalties, Terms, squared_norm
from pdadmm.admm.losses import get_loss
from pdadmm.admm.network import Network
from pdadmm.admm.problem import Problem
from pdadmm.admm.schedule import RHO_SCHEDULES
from pdadmm.admm.settings import ADMMSettings
from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.placement import layer_costs, place_layers
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Best, Clock, run_summary, stage_summary, time_or_patience_is_up

__all__ = ["ADMMSolver"]

log = logging.getLogger("pdadmm")


class ADMMSolver:
    """Trains a GA-MLP by pdADMM-G on a Problem (Wang et al. 2022, Algorithm 1, grown stage by stage).

    ``settings`` are checked settings, ``transport`` joins the ranks, ``watch`` is called with every row of
    the history, ``first`` may be the first layer of an earlier run on the same problem: its factor is reused.
    After ``run``: ``history``, ``stages`` (one summary each), and this rank's best weights in
    ``first`` (rank 0) and ``weights`` (layers above the first).
    """

    def __init__(
        self,
        problem: Problem,
        settings: ADMMSettings,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        first: Any = None,
    ) -> None:
        self.problem, self.settings, self.transport = problem, settings, transport
        self.eval_every, self.watch = eval_every, watch
        self.dtype = getattr(torch, settings.dtype)
        self.activation, self.loss = get_activation(settings.activation), get_loss(settings.loss)
        s = settings
        self.penalties = Penalties(s.nu, s.rho, s.mu, s.kappa_identity, s.prox_W, s.prox_z)
        self.schedule = RHO_SCHEDULES[settings.rho_schedule]()
        self.history, self.stages, self.clock = History(), [], Clock()
        self.weights: Weights = {}
        self.first = first

    def run(self) -> ADMMSolver:
        """Train through all stages; collective over the ranks."""
        self.clock.start()
        placement = None
        self.transport.trace.mark("first layer's factor")
        for number, depth in enumerate(self.settings.stages):
            placement = self._enter_stage(depth, placement)
            self.transport.trace.mark("begin stage")
            self._run_stage(number, depth, placement)
        self.clock.stop()
        return self

    def _run_stage(self, number: int, depth: int, placement: list[range]) -> None:
        """Iterate one stage to its end and leave its best weights in ``first`` and ``weights``."""
        trace = self.transport.trace
        network = self._build(number, depth, placement)  # its arrays are given back before the next stage
        self.clock.stop()
        start = self._evaluate(network)
        best = Best()
        for iteration in range(1, self.settings.iterations + 1):
            self.clock.start()
            trace.iteration += 1
            network.iterate()
            self.clock.stop()
            trace.mark("measure")
            row = {"iteration": len(self.history) + 1, "stage": number, "layers": depth}
            try:
                row |= self._measure(network)
            except DivergenceError:
                network.finish()  # all ranks are here: no message may outlive its buffer
                raise
            ends = iteration == self.settings.iterations
            if ends or iteration % self.eval_every == 0:
                self._judge(network, row, best)
            ends = ends or self._stops(number, row, best)
            if ends and "train_accuracy" not in row:
                self._judge(network, row, best)
            self.history.append(row)
            self.watch(row)
            if ends:
                break
        self.clock.start()
        self.transport.trace.mark("end stage")
        network.finish()
        self._keep(network, best.weights)
        message_bytes = sum(self.transport.allgather(network.message_bytes()))
        self.stages.append(stage_summary(depth, iteration, message_bytes, start, best.row))

    def widths(self, depth: int) -> list[int]:
        """Return [n_0, n_1, .., n_L] of the network with ``depth`` layers."""
        return [self.problem.inputs, *[self.settings.hidden] * (depth - 1), self.problem.classes]

    # Start and growth

    def _enter_stage(self, depth: int, old: list[range] | None) -> list[range]:
        """Place the layers of a stage on the ranks and give each rank its start weights."""
        widths, s = self.widths(depth), self.settings
        if old is None:
            self._start_first_layer(widths)
        new = place_layers(layer_costs(self.problem.nodes, widths, self.first_cost), self.transport.size)
        if old is not None:
            self.weights = grow(self.weights, old, new, widths, self.shift, self.dtype, self.transport)
            return new
        for layer in new[self.transport.rank]:
            if layer > 0:
                shape, deviation = (widths[layer + 1], widths[layer]), 1.0 / math.sqrt(widths[layer])
                self.weights[layer] = random_layer(s.seed, layer, *shape, deviation, self.dtype)
        return new

    def _start_first_layer(self, widths: list[int]) -> None:
        """Choose the form of the first layer; rank 0 factors it and draws W_1."""
        s, nodes = self.settings, self.problem.nodes
        form = choose_first_layer(s.first_layer, nodes, widths[0])
        self.first_cost = form.cost(nodes, widths[0], widths[1])
        if self.transport.rank == 0:
            if self.first is None:
                self.first = form(self.problem.X, nodes, s.kappa_first)
            # rows of p_1 have some length: entries of deviation 1 / length would make z_1 of order one
            length = math.sqrt(squared_norm(self.first.p) / nodes) or 1.0
            weights = random_layer(s.seed, 0, widths[1], widths[0], s.first_scale / length, self.dtype)
            self.first.set_weights(*weights)

    def _build(self, number: int, depth: int, placement: list[range]) -> Network:
        layers = [self._layer(index, last=index + 1 == depth) for index in placement[self.transport.rank]]
        s = self.settings
        accelerate = ACCELERATIONS[s.acceleration](number)
        return Network(layers, placement, self.problem.nodes, self.transport, s.quantizer, s.seed, accelerate)

    def _layer(self, index: int, last: bool) -> Layer:
        if index == 0:
            layer: Layer = FirstLayer(self.first, self.activation, self.penalties)
        else:
            W, b = self.weights[index]
            form = self.settings.form
            # Cholesky work grows as n^3, the products as V n^2
            exact = form == "exact" or (form == "auto" and max(W.shape) <= 8 * self.problem.nodes)
            quantizer = self.settings.quantizer
            grid = quantizer.grid() if quantizer is not None and quantizer.constrained else None
            layer = HiddenLayer(index, W, b, self.activation, self.penalties, exact, not last, grid)
        if last:
            layer.attach_loss(self.loss, self.problem.y[: self.problem.nodes])
        return layer

    def _keep(self, network: Network, snapshot: list[Any]) -> None:
        """Go back to a snapshot, and find the shift that growth needs behind this activation."""
        for layer, state in zip(network.layers, snapshot):
            if layer.index == 0:
                self.first.restore(state)
            else:
                layer.W, layer.b = state
                self.weights[layer.index] = state
        self.shift = None
        if not self.activation.idempotent and network.depth < self.settings.layers:
            h = network.last_input(len(self.problem.y))
            # twice the depth of the lowest value leaves room for nodes not seen here
            own = None if h is None else 2.0 * (-h.amin(0)).clamp_min(0.0)
            self.shift = next(part for part in self.transport.allgather(own) if part is not None)

    # Measuring: none of it counts as training, unless the schedule of rho asks for the objective

    def _measure(self, network: Network) -> dict[str, Any]:
        """Return objective, residuals, seconds and bytes after an iteration, the same on every rank."""
        counted = self.schedule.needs_objective
        if counted:
            self.clock.start()
        own = network.terms(), self.clock.seconds, self.transport.ledger.bytes_sent
        parts = self.transport.allgather(own)
        terms = [terms for part in parts for terms in part[0]]
        row = combine(terms, self.penalties)
        if not math.isfinite(row["lagrangian"]):
            raise DivergenceError(self._divergence(terms))
        self.penalties.rho = self.schedule.next(self.penalties.rho, row["objective"])
        if counted:
            self.clock.stop()
        return row | {"seconds": max(part[1] for part in parts), "bytes": sum(part[2] for part in parts)}

    def _divergence(self, terms: list[Terms]) -> str:
        sums = [sum(vars(term).values()) for term in terms]
        bad = next((n for n, value in enumerate(sums, 1) if not math.isfinite(value)), len(terms))
        return (
            f"iteration {len(self.history) + 1}: layer {bad} of {len(terms)} is not finite with "
            f"nu = {self.penalties.nu:g}, rho = {self.penalties.rho:g}; raise rho, lower nu, or use dtype float64"
        )

    def _evaluate(self, network: Network) -> dict[str, float]:
        """Return the accuracies of the composed network, a true forward pass, on every rank."""
        self.transport.trace.mark("evaluate")
        logits = network.forward(len(self.problem.y))
        own = None if logits is None else self.problem.scores(logits)
        parts = self.transport.allgather(own, "evaluation")
        return next(part for part in parts if part is not None)

    def _judge(self, network: Network, row: dict[str, Any], best: Best) -> None:
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
        return summary | {"first_layer": self.transport.bcast(self.first.name if self.first else None)}


def combine(terms: list[Terms], penalties: Penalties) -> dict[str, float]:
    """Return objective, augmented Lagrangian and squared residuals from the layers' terms, in layer order."""

    def total(name: str) -> float:
        return sum(getattr(term, name) for term in terms)

    linear, activation, link = total("linear"), total("activation"), total("link")
    objective = total("risk") + 0.5 * penalties.nu * (linear + activation) + total("ridge")
    return {
        "objective": objective,
        "lagrangian": objective + total("dual") + 0.5 * penalties.rho * link,
        "risk": total("risk"),
        "residual_link": link,
        "residual_linear": linear,
        "residual_activation": activation,
        "q_squared": total("q_squared"),
        "rho": penalties.rho,
    }
