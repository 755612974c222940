"""The driver of training by backpropagation: stages, passes, evaluation, stopping, the best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.admm.activations import get_activation
from pdadmm.admm.growth import grow
from pdadmm.admm.problem import Problem
from pdadmm.baselines.driver import Driver, by_layer, optimiser_states
from pdadmm.baselines.dropout import draw_mask
from pdadmm.baselines.initial import ORDER, generator, start_weights
from pdadmm.baselines.settings import BackpropSettings
from pdadmm.baselines.shards import deal
from pdadmm.checkpoint import Checkpoint, State
from pdadmm.parallel.device import choose_device
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.transport import LocalTransport, Transport
from pdadmm.recording import Stage
from pdadmm.saver import Saver

__all__ = ["BackpropSolver"]


class BackpropSolver(Driver):
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
        device = choose_device(settings.device, transport, kernels=False)
        super().__init__(settings, transport, eval_every, watch, saver, device)
        self.problem, self.make_optimizer = problem, optimizer
        self.slope = get_activation(settings.activation).negative_slope
        self.shard = deal(problem, self.dtype, transport).on(device)
        self.target = self.shard.y
        if settings.loss == "squared_error":
            self.target = F.one_hot(self.target, problem.classes).to(self.dtype)

    def run(self) -> BackpropSolver:
        """Train through all stages; collective over the ranks."""
        stage, saved = None, self.saved
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
            yield (batch[(batch >= own.start) & (batch < own.stop)] - own.start).to(self.device), len(batch)

    def _masks(self, iteration: int) -> list[Tensor] | None:
        """Draw the dropout of one pass: a mask (own rows, n_l) behind each hidden layer."""
        s = self.settings
        if not s.dropout:
            return None
        hidden = range(len(self.weights) // 2 - 1)
        masks = (draw_mask(s.seed, iteration, layer, self.shard.rows, s.hidden, s.dropout) for layer in hidden)
        return [mask.to(self.device) for mask in masks]

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
        return self._apply(gradients, loss.detach())

    def _forward(self, h: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        """Return the logits of augmented features h (rows, n_0), with dropout where there are masks."""
        *hidden, (W, b) = self.layers()
        for number, (W_l, b_l) in enumerate(hidden):
            h = F.linear(h, W_l, b_l)
            if self.slope == 0.0:
                h = F.relu_(h)
            elif self.slope < 0.0:  # in place its gradient would need the input's sign, which is lost
                h = F.leaky_relu(h, self.slope)
            elif self.slope != 1.0:
                h = F.leaky_relu_(h, self.slope)
            if masks is not None:
                h = h * masks[number].to(h.dtype).div_(1.0 - self.settings.dropout)
        return F.linear(h, W, b)

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

    def _start(self, depth: int) -> None:
        s = self.settings
        self._adopt(start_weights(s.initial, s.seed, self.widths(depth), self.slope, self.dtype))

    def _adopt(self, layers: Sequence[tuple[Tensor, Tensor]], inserted: Sequence[int] = ()) -> None:
        """Train these (W, b) from here on, with a fresh optimiser."""
        self.weights = [
            array.detach().to(self.device).clone(memory_format=torch.contiguous_format).requires_grad_()
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
            *placements, self.widths(depth), self._shift(), self.dtype, LocalTransport(), self.device,
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
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.weights = [*head[:-2], torch.eye(self.settings.hidden, **like), torch.zeros(1, **like)]
        with torch.no_grad():
            h = torch.cat([self._forward(self.shard.X), self._forward(self.shard.X_others)])
        self.weights = head
        lowest = torch.cat([h, torch.zeros_like(h[:1])]).amin(0) if len(h) else h.new_zeros(h.shape[1])
        parts = self.transport.allgather(lowest.cpu().numpy())
        # twice the depth of the lowest value leaves room for nodes not seen here
        return -2.0 * torch.stack([torch.from_numpy(part) for part in parts]).amin(0).to(self.device)

    def _snapshot(self) -> tuple[list[Tensor], list[dict[str, Any]] | None]:
        """Return copies of the weights, and of the optimiser's state where a stage follows that needs it."""
        state = self._state() if len(self.weights) < 2 * self.settings.layers else None
        return super()._snapshot(), state

    def _go_back(self, snapshot: tuple[list[Tensor], list[dict[str, Any]] | None]) -> None:
        weights, state = snapshot
        super()._go_back(weights)
        if state is not None:
            self._set_state(dict(enumerate(state)))

    # Checkpoints

    def _holds(self) -> str:
        rows = self.shard.rows
        return f"training nodes {rows.start + 1} to {rows.stop} of {self.problem.nodes}"

    def _best_by_layer(self, snapshot: tuple[list[Tensor], list[dict[str, Any]] | None]) -> list[State]:
        return by_layer(*snapshot)

    def _go_on(self, saved: Checkpoint) -> Stage:
        """Bring weights and optimiser to where a checkpoint was written, on any number of ranks."""
        states = [saved.layer(layer) for layer in range(saved.layers)]
        self._adopt([(state["W"], state["b"]) for state in states])
        self._set_state(dict(enumerate(optimiser_states(states))))
        self.clock.stop()
        stage, best = self._restore(states)
        if best[0]:
            optimiser = optimiser_states(best) if stage.depth < self.settings.layers else None
            stage.best.weights = [state[name] for state in best for name in "Wb"], optimiser
        return stage

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself, and where it trained."""
        return super().summary() | {"device": self.device.type}

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracies of the network, without dropout, on every rank."""
        self.transport.trace.mark("evaluate")
        with torch.no_grad():
            own = self.shard.tally(self._forward)
        tallies = self.transport.allgather(own, "evaluation")
        self._check(not any(tally["bad"] for tally in tallies))
        return self.shard.scores(tallies)
