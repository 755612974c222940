"""The loop of every solver by gradients: passes, evaluation, stopping, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Best, Clock, run_summary, stage_summary, time_or_patience_is_up

__all__ = ["Driver"]


class Driver:
    """Runs a stage of passes and keeps the weights of its best iteration; a solver fills in the three methods below.

    ``settings`` are checked settings with ``iterations``, ``stages``, ``patience``, ``max_seconds``, ``dtype`` and
    ``learning_rate``. A solver sets ``weights``, [W_1, b_1, .., W_L, b_L], equal on every rank, and ``optimizer``.
    Left behind: ``history``, ``stages``, ``weights``.
    """

    weights: list[Tensor]
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        settings: Any,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.settings, self.transport, self.eval_every, self.watch = settings, transport, eval_every, watch
        self.dtype = getattr(torch, settings.dtype)
        self.history, self.stages, self.clock = History(), [], Clock()

    def _pass(self, iteration: int) -> float:
        """Visit every training node once; return the mean loss that the steps saw."""
        raise NotImplementedError

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracies of the network, without dropout, on every rank."""
        raise NotImplementedError

    def pass_bytes(self) -> int:
        """Return the bytes that all ranks together send in one iteration, by formula."""
        raise NotImplementedError

    def _run_stage(self, number: int, depth: int) -> None:
        """Train one stage to its end and leave its best weights in ``weights``."""
        start, best = self._evaluate(), Best()
        for iteration in range(1, self.settings.iterations + 1):
            self.clock.start()
            self.transport.trace.iteration += 1
            objective = self._pass(len(self.history) + 1)
            self.clock.stop()
            self.transport.trace.mark("measure")
            row = {"iteration": len(self.history) + 1, "stage": number, "layers": depth, "objective": objective}
            self._check(math.isfinite(objective))
            row |= self._measure()
            ends = iteration == self.settings.iterations
            if ends or iteration % self.eval_every == 0:
                self._judge(row, best)
            ends = ends or time_or_patience_is_up(self.settings, number, row, best)
            if ends and "train_accuracy" not in row:
                self._judge(row, best)
            self.history.append(row)
            self.watch(row)
            if ends:
                break
        self._go_back(best.weights)
        self.stages.append(stage_summary(depth, iteration, self.pass_bytes(), start, best.row))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return (W, b) of every layer."""
        return list(zip(self.weights[::2], self.weights[1::2]))

    def _apply(self, gradients: Sequence[Tensor], loss: Tensor) -> float:
        """Sum gradients and loss over the ranks and take an optimiser step; return the sum of the losses."""
        self.transport.trace.mark("sum gradients")
        gradients, value = self._summed(gradients, loss)
        self.transport.trace.mark("optimiser")
        for weight, gradient in zip(self.weights, gradients):
            weight.grad = gradient.contiguous()  # fused steps take weight and gradient in memory order
        self.optimizer.step()
        return float(value)

    def _summed(self, gradients: Sequence[Tensor], loss: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return gradients and loss summed over the ranks: one message, the loss in its last place."""
        if self.transport.size == 1:
            return gradients, loss
        buffer = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)])
        self.transport.sum_(buffer, "gradients")
        *parts, value = buffer.split([*(gradient.numel() for gradient in gradients), 1])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients)], value

    def _snapshot(self) -> Any:
        """Return copies of the weights, and of what else a stage may go back to."""
        return [weight.detach().clone() for weight in self.weights]

    def _go_back(self, snapshot: Any) -> None:
        """Take on what ``_snapshot`` returned."""
        with torch.no_grad():
            for weight, best in zip(self.weights, snapshot):
                weight.copy_(best)

    @property
    def depth(self) -> int:
        """The number of layers that the network has now."""
        return len(self.weights) // 2

    # Measuring: none of it counts as training

    def _measure(self) -> dict[str, Any]:
        """Return seconds and bytes after an iteration, the same on every rank."""
        parts = self.transport.allgather((self.clock.seconds, self.transport.ledger.bytes_sent))
        return {"seconds": max(part[0] for part in parts), "bytes": sum(part[1] for part in parts)}

    def _judge(self, row: dict[str, Any], best: Best) -> None:
        """Add the accuracies to ``row`` and keep the weights where they are the best so far."""
        row |= self._evaluate()
        if best.improved_by(row):
            best.row, best.weights = row, self._snapshot()

    def _check(self, finite: bool) -> None:
        """Raise DivergenceError, on every rank alike, where the loss or the logits are not finite."""
        if not finite:
            raise DivergenceError(
                f"iteration {len(self.history) + 1}: the loss of {self.depth} layers is not finite with "
                f"learning_rate = {self.settings.learning_rate:g}; lower learning_rate, or use dtype float64"
            )

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself; the accuracies are the full-depth network's."""
        return run_summary(self.settings, self.history, self.stages, self.clock, self.transport)
