"""The driver of training by backpropagation: stages, passes, evaluation, stopping, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.admm.activations import get_activation
from pdadmm.admm.growth import grow
from pdadmm.admm.problem import Problem
from pdadmm.baselines.dropout import draw_mask
from pdadmm.baselines.initial import ORDER, generator, start_weights
from pdadmm.baselines.settings import BackpropSettings
from pdadmm.baselines.shards import deal
from pdadmm.checkpoint import Checkpoint, State, prefixed, under
from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.transport import LocalTransport, Transport
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

__all__ = ["BackpropSolver"]


class BackpropSolver:
    """Trains a GA-MLP by gradients of the mean loss over the training nodes (docs/baselines.md).

    ``settings`` are checked settings, ``optimizer`` makes a torch optimiser of groups of weights, ``transport``
    joins the ranks, ``watch`` is called with every row of the history, ``saver`` writes checkpoints and may have one
    to go on from. Every rank holds all weights and a run of the nodes; gradients are summed over the ranks before
    each step. After ``run``: ``history``, ``stages`` and ``weights``, [W_1, b_1, .., W_L, b_L] of the best
    full-depth iteration.
    """

    def __init__(
        self,
        problem: Problem,
        settings: BackpropSettings,
        transport: Transport,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        saver: Saver | None = None,
    ) -> None:
        self.problem, self.settings, self.transport, self.saver = problem, settings, transport, saver
        self.make_optimizer, self.eval_every, self.watch = optimizer, eval_every, watch
        self.dtype = getattr(torch, settings.dtype)
        self.slope = get_activation(settings.activation).negative_slope
        self.shard = deal(problem, self.dtype, transport)
        self.target = self.shard.y
        if settings.loss == "squared_error":
            self.target = F.one_hot(self.target, problem.classes).to(self.dtype)
        self.history, self.stages, self.clock = History(), [], Clock()

    def run(self) -> BackpropSolver:
        """Train through all stages; collective over the ranks."""
        stage, saved = None, None if self.saver is None else self.saver.saved
        for number in range(0 if saved is None else saved.progress["stage"]["number"], len(self.settings.stages)):
            depth = self.settings.stages[number]
            self.clock.start()
            if saved is not None and stage is None:
                stage = self._go_on(saved)
            else:
                if number == 0:
                    self._start(depth)
                else:
                    self._grow(depth)
                self.clock.stop()
                stage = Stage(number, depth, self._evaluate())
            self._run_stage(stage)
        return self

    def _run_stage(self, stage: Stage) -> None:
        """Train one stage to its end and leave its best weights in ``weights``."""
        while not stage.ended:
            self._iterate(stage)
            self._save(stage)
        self._go_back(stage.best.weights)
        self.stages.append(
            stage_summary(stage.depth, stage.iterations, self.pass_bytes(), stage.start, stage.best.row)
        )

    def _iterate(self, stage: Stage) -> None:
        """Do one pass, with all that is measured of it; ``stage.ended`` where it is the last."""
        iteration = len(self.history) + 1
        if self.saver is not None:
            rows = self.shard.rows
            self.saver.beat(iteration, f"training nodes {rows.start + 1} to {rows.stop} of {self.problem.nodes}")
        self.transport.trace.iteration = iteration
        self.clock.start()
        objective = self._pass(iteration)
        self.clock.stop()
        self.transport.trace.mark("measure")
        row = {"iteration": iteration, "stage": stage.number, "layers": stage.depth, "objective": objective}
        self._check(math.isfinite(objective))
        row |= self._measure()
        stage.iterations += 1
        ends = stage.iterations == self.settings.iterations
        if ends or stage.iterations % self.eval_every == 0:
            self._judge(row, stage.best)
        stage.ended = ends or time_or_patience_is_up(self.settings, stage.number, row, stage.best)
        if stage.ended and "train_accuracy" not in row:
            self._judge(row, stage.best)
        self.history.append(row)
        self.watch(row)

    # One iteration

    def _pass(self, iteration: int) -> float:
        """Visit every training node once; return the mean loss that the steps saw."""
        masks = self._masks(iteration)
        total = 0.0
        for rows, size in self._batches(iteration):
            total += size * self._step(rows, size, masks)
        return total / self.problem.nodes

    def _batches(self, iteration: int) -> Iterator[tuple[Tensor | None, int]]:
        """Yield each batch: which of this rank's rows are in it (None is all), and its size over all ranks."""
        V, size = self.problem.nodes, self.settings.batch_size
        if size is None or size >= V:
            yield None, V
            return
        order = torch.randperm(V, generator=generator(self.settings.seed, ORDER, iteration))
        own = self.shard.rows
        for batch in order.split(size):
            yield batch[(batch >= own.start) & (batch < own.stop)] - own.start, len(batch)

    def _masks(self, iteration: int) -> list[Tensor] | None:
        """Draw the dropout of one pass: a mask (own rows, n_l) behind each hidden layer."""
        s = self.settings
        if not s.dropout:
            return None
        hidden = range(len(self.weights) // 2 - 1)
        return [draw_mask(s.seed, iteration, layer, self.shard.rows, s.hidden, s.dropout) for layer in hidden]

    def _step(self, rows: Tensor | None, size: int, masks: list[Tensor] | None) -> float:
        """Take one optimiser step on a batch of ``size`` nodes over all ranks; return its mean loss."""
        self.transport.trace.mark("gradients")
        X, target = self.shard.X, self.target
        if rows is not None:
            X, target = X[rows], target[rows]
            masks = None if masks is None else [mask[rows] for mask in masks]
        logits = self._forward(X, masks)
        if self.settings.loss == "squared_error":
            loss = F.mse_loss(logits, target, reduction="sum") / (2 * size)
        else:
            loss = F.cross_entropy(logits, target, reduction="sum") / size
        gradients = torch.autograd.grad(loss, self.weights)
        self.transport.trace.mark("sum gradients")
        gradients, value = self._summed(gradients, loss.detach())
        self.transport.trace.mark("optimiser")
        for weight, gradient in zip(self.weights, gradients):
            weight.grad = gradient.contiguous()  # fused steps take weight and gradient in memory order
        self.optimizer.step()
        return float(value)

    def _forward(self, h: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        """Return the logits of augmented features h (rows, n_0), with dropout where there are masks."""
        *hidden, (W, b) = self.layers()
        for number, (W_l, b_l) in enumerate(hidden):
            h = F.linear(h, W_l, b_l)
            if self.slope == 0.0:
                h = F.relu_(h)
            elif self.slope != 1.0:
                h = F.leaky_relu_(h, self.slope)
            if masks is not None:
                h = h * masks[number].to(h.dtype).div_(1.0 - self.settings.dropout)
        return F.linear(h, W, b)

    def _summed(self, gradients: Sequence[Tensor], loss: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return gradients and loss summed over the ranks: one message, the loss in its last place."""
        if self.transport.size == 1:
            return gradients, loss
        buffer = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)])
        self.transport.sum_(buffer, "gradients")
        *parts, value = buffer.split([*(gradient.numel() for gradient in gradients), 1])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients)], value

    def pass_bytes(self) -> int:
        """Return the bytes of gradients that all ranks together send in one iteration."""
        numbers = sum(weight.numel() for weight in self.weights) + 1
        message = numbers * torch.empty((), dtype=self.dtype).element_size()
        steps = -(-self.problem.nodes // (self.settings.batch_size or self.problem.nodes))
        return steps * self.transport.size * ring_bytes(message, self.transport.size)

    # Start, growth, and the way back to the best weights

    def widths(self, depth: int) -> list[int]:
        """Return [n_0, n_1, .., n_L] of the network with ``depth`` layers."""
        return [self.problem.inputs, *[self.settings.hidden] * (depth - 1), self.problem.classes]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return (W, b) of every layer."""
        return list(zip(self.weights[::2], self.weights[1::2]))

    def _start(self, depth: int) -> None:
        s = self.settings
        self._adopt(start_weights(s.initial, s.seed, self.widths(depth), self.slope, self.dtype))

    def _adopt(self, layers: Sequence[tuple[Tensor, Tensor]], inserted: Sequence[int] = ()) -> None:
        """Train these (W, b) from here on, with a fresh optimiser."""
        self.weights = [
            array.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            for layer in layers
            for array in layer
        ]
        stays = [weight for number, weight in enumerate(self.weights) if number // 2 not in inserted]
        new = [weight for layer in inserted for weight in self.weights[2 * layer : 2 * layer + 2]]
        # a group each: torch's fused momentum takes no mixture of weights with and without a state
        self.optimizer = self.make_optimizer([{"params": group} for group in (stays, new) if group])

    def _grow(self, depth: int) -> None:
        """Insert identity layers before the last: the same function (section 6 of docs/math.md).

        Layers that stay keep their optimiser state, those inserted start with none.
        """
        old = self.layers()
        state = self._state()
        placements = [range(len(old))], [range(depth)]
        moved = grow(
            {layer: (W.detach(), b.detach()) for layer, (W, b) in enumerate(old)},
            *placements, self.widths(depth), self._shift(), self.dtype, LocalTransport(),
        )  # fmt: skip
        self._adopt([old[0], *(moved[layer] for layer in range(1, depth))], range(len(old) - 1, depth - 1))
        stays = [*range(2 * len(old) - 2), 2 * depth - 2, 2 * depth - 1]
        self._set_state(dict(zip(stays, state)))

    def _shift(self) -> Tensor | None:
        """Return what lifts the last layer's input to where the activation is linear; None where f(f(z)) = f(z)."""
        if get_activation(self.settings.activation).idempotent:
            return None
        head = self.weights
        # the last layer as the identity: its input comes out
        self.weights = [*head[:-2], torch.eye(self.settings.hidden, dtype=self.dtype), torch.zeros(1, dtype=self.dtype)]
        with torch.no_grad():
            h = torch.cat([self._forward(self.shard.X), self._forward(self.shard.X_others)])
        self.weights = head
        lowest = torch.cat([h, torch.zeros_like(h[:1])]).amin(0) if len(h) else torch.zeros(h.shape[1], dtype=h.dtype)
        parts = self.transport.allgather(lowest.numpy())
        # twice the depth of the lowest value leaves room for nodes not seen here
        return -2.0 * torch.stack([torch.from_numpy(part) for part in parts]).amin(0)

    def _state(self) -> list[dict[str, Any]]:
        """Return copies of the optimiser's state, one dict a weight."""
        copy = [dict(self.optimizer.state[weight]) for weight in self.weights]
        return [{k: v.clone() if isinstance(v, Tensor) else v for k, v in own.items()} for own in copy]

    def _set_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Give the weights of these numbers their optimiser state."""
        for number, own in state.items():
            self.optimizer.state[self.weights[number]] = own

    def _snapshot(self) -> tuple[list[Tensor], list[dict[str, Any]] | None]:
        """Return copies of the weights, and of the optimiser's state where a stage follows that needs it."""
        state = self._state() if len(self.weights) < 2 * self.settings.layers else None
        return [weight.detach().clone() for weight in self.weights], state

    def _go_back(self, snapshot: tuple[list[Tensor], list[dict[str, Any]] | None]) -> None:
        weights, state = snapshot
        with torch.no_grad():
            for weight, best in zip(self.weights, weights):
                weight.copy_(best)
        if state is not None:
            self._set_state(dict(enumerate(state)))

    # Checkpoints

    def _save(self, stage: Stage) -> None:
        """Let the saver write a checkpoint, if it is time; all ranks hold the same, so rank 0 writes it."""
        if self.saver is None:
            return
        last = stage.ended and stage.number + 1 == len(self.settings.stages)

        def layers() -> dict[int, State]:
            if self.transport.rank > 0:
                return {}
            now = _by_layer([weight.detach() for weight in self.weights], self._state())
            best = _by_layer(*stage.best.weights) if stage.best.weights else [{} for _ in now]
            return {layer: own | prefixed("best", best[layer]) for layer, own in enumerate(now)}

        def run() -> dict[str, Any]:
            return run_state(stage, self.history, self.stages, self.clock, self.transport)

        self.saver.step(len(self.history), last, layers, run)

    def _go_on(self, saved: Checkpoint) -> Stage:
        """Bring weights and optimiser to where a checkpoint was written, on any number of ranks."""
        states = [saved.layer(layer) for layer in range(saved.layers)]
        self._adopt([(state["W"], state["b"]) for state in states])
        self._set_state(dict(enumerate(_optimiser_states(states))))
        self.clock.stop()
        stage, self.history, self.stages = restore_run(saved.progress, self.clock, self.transport)
        best = [under("best", state) for state in states]
        if best[0]:
            optimiser = _optimiser_states(best) if stage.depth < self.settings.layers else None
            stage.best.weights = [state[name] for state in best for name in "Wb"], optimiser
        return stage

    # Measuring: none of it counts as training

    def _measure(self) -> dict[str, Any]:
        """Return seconds and bytes after an iteration, the same on every rank."""
        asked = 0 if self.saver is None else self.saver.asked
        parts = self.transport.allgather((self.clock.seconds, self.transport.ledger.bytes_sent, asked))
        if self.saver is not None:
            self.saver.agree([part[2] for part in parts])
        return {"seconds": max(part[0] for part in parts), "bytes": sum(part[1] for part in parts)}

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracies of the network, without dropout, on every rank."""
        self.transport.trace.mark("evaluate")
        with torch.no_grad():
            own = self.shard.tally(self._forward)
        tallies = self.transport.allgather(own, "evaluation")
        self._check(not any(tally["bad"] for tally in tallies))
        return self.shard.scores(tallies)

    def _judge(self, row: dict[str, Any], best: Best) -> None:
        """Add the accuracies to ``row`` and keep the weights where they are the best so far."""
        row |= self._evaluate()
        if best.improved_by(row):
            best.row, best.weights = row, self._snapshot()

    def _check(self, finite: bool) -> None:
        """Raise DivergenceError, on every rank alike, where the loss or the logits are not finite."""
        if not finite:
            raise DivergenceError(
                f"iteration {len(self.history) + 1}: the loss of {len(self.weights) // 2} layers is not finite with "
                f"learning_rate = {self.settings.learning_rate:g}; lower learning_rate, or use dtype float64"
            )

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself; the accuracies are the full-depth network's."""
        return run_summary(self.settings, self.history, self.stages, self.clock, self.transport)


def _by_layer(weights: Sequence[Tensor], optimiser: Sequence[dict[str, Any]] | None) -> list[State]:
    """Return weights [W_1, b_1, ..] and the optimiser's state of each, sorted into one state a layer."""
    layers: list[State] = [{} for _ in weights[::2]]
    for number, weight in enumerate(weights):
        own, name = layers[number // 2], "Wb"[number % 2]
        own[name] = weight
        if optimiser is not None:
            own |= prefixed(name, optimiser[number])
    return layers


def _optimiser_states(layers: Sequence[State]) -> list[dict[str, Any]]:
    """Return the optimiser's state of each weight, in the order of ``weights``."""
    return [under(name, state) for state in layers for name in "Wb"]
