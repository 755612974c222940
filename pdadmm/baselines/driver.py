"""The loop of every solver by gradients: passes, evaluation, stopping, the best weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdadmm.checkpoint import Checkpoint, State, prefixed, under
from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.device import CPU, StagedTransport, moved, synchronize
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

__all__ = ["Driver", "by_layer", "optimiser_states"]


class Driver:
    """Runs a stage of passes and keeps the weights of its best iteration; a solver fills in the methods below.

    ``settings`` are checked settings with ``iterations``, ``stages``, ``patience``, ``max_seconds``, ``dtype`` and
    ``learning_rate``. A solver sets ``weights``, [W_1, b_1, .., W_L, b_L], equal on every rank, and ``optimizer``.
    ``saver`` writes checkpoints and may have one to go on from. On a ``device`` weights and gradients lie there, and
    sums over the ranks go through main memory.
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
        saver: Saver | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.device, wait = device, functools.partial(synchronize, device)
        if device.type != "cpu":
            transport = StagedTransport(transport)
            transport.trace.wait = wait
        self.settings, self.transport, self.eval_every, self.watch = settings, transport, eval_every, watch
        self.dtype = getattr(torch, settings.dtype)
        self.history, self.stages, self.clock = History(), list[dict[str, Any]](), Clock(wait)
        self.saver = saver

    def _pass(self, iteration: int) -> float:
        """Visit every training node once; return the mean loss that the steps saw."""
        raise NotImplementedError

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracies of the network, without dropout, on every rank."""
        raise NotImplementedError

    def pass_bytes(self) -> int:
        """Return the bytes that all ranks together send in one iteration, by formula."""
        raise NotImplementedError

    def _holds(self) -> str:
        """Say what this rank works on, for the report of its death."""
        raise NotImplementedError

    def _run_stage(self, stage: Stage) -> None:
        """Train one stage to its end and leave its best weights in ``weights``."""
        while not stage.ended:
            self._iterate(stage)
            if self.saver is not None:
                self._save(stage)
        self._go_back(stage.best.weights)
        self.stages.append(
            stage_summary(stage.depth, stage.iterations, self.pass_bytes(), stage.start, stage.best.row)
        )

    def _iterate(self, stage: Stage) -> None:
        """Do one pass, with all that is measured of it; ``stage.ended`` where it is the last."""
        if self.saver is not None:
            self.saver.beat(len(self.history) + 1, self._holds())
        iteration = self.transport.trace.iteration = len(self.history) + 1
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

    # Checkpoints: all ranks hold the same weights, so rank 0 writes them; a solver adds what else it goes on from

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint to go on from, if any."""
        return None if self.saver is None else self.saver.saved

    def _save(self, stage: Stage) -> None:
        """Let the saver write a checkpoint, if it is time."""
        last = stage.ended and stage.number + 1 == len(self.settings.stages)

        def run() -> dict[str, Any]:
            own = run_state(stage, self.history, self.stages, self.clock, self.transport)
            return own | self._progress()

        self.saver.step(len(self.history), last, lambda: self._parts(stage.best), run)

    def _parts(self, best: Best) -> dict[int, State]:
        """Return the states that this rank writes: here on rank 0, a layer each."""
        if self.transport.rank > 0:
            return {}
        now = by_layer([weight.detach() for weight in self.weights], self._state())
        kept = self._best_by_layer(best.weights) if best.weights else [{} for _ in now]
        return {layer: moved(own | prefixed("best", kept[layer]), CPU) for layer, own in enumerate(now)}

    def _best_by_layer(self, snapshot: Any) -> list[State]:
        return by_layer(snapshot)

    def _progress(self) -> dict[str, Any]:
        """Return what the ranks share beside what every run does; collective."""
        return {}

    def _state(self) -> list[dict[str, Any]]:
        """Return copies of the optimiser's state, one dict a weight."""
        copy = [dict(self.optimizer.state[weight]) for weight in self.weights]
        return [{k: v.clone() if isinstance(v, Tensor) else v for k, v in own.items()} for own in copy]

    def _set_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Give the weights of these numbers their optimiser state, where the optimiser would have it."""
        counts_there = self.optimizer.param_groups[0].get("fused")  # other forms count their steps in main memory
        for number, own in state.items():
            there = {k: v for k, v in own.items() if isinstance(v, Tensor) and (v.dim() or counts_there)}
            self.optimizer.state[self.weights[number]] = own | moved(there, self.device)

    def _restore(self, states: Sequence[State]) -> tuple[Stage, list[State]]:
        """Take up what every run shares; return the stage, and each layer's best weights, {} before there are any."""
        stage, self.history, self.stages = restore_run(self.saved.progress, self.clock, self.transport)
        return stage, [under("best", state) for state in states]

    def _begin(self, start: Callable[[], Sequence[tuple[Tensor, Tensor]]]) -> Stage:
        """Begin the one stage of a network that does not grow: at ``start``, (W, b) a layer, or at the checkpoint."""
        self.clock.start()
        saved, depth = self.saved, self.settings.layers
        states = [] if saved is None else [saved.layer(layer) for layer in range(depth)]
        layers = [(state["W"], state["b"]) for state in states] or start()
        self.weights = [array.contiguous().requires_grad_() for layer in layers for array in layer]
        self.optimizer = self.settings.optimizer(self.weights)
        self._set_state(dict(enumerate(optimiser_states(states))))
        self.clock.stop()
        if saved is None:
            return Stage(0, depth, self._evaluate())
        stage, best = self._restore(states)
        if best[0]:
            stage.best.weights = [state[name] for state in best for name in "Wb"]
        return stage

    # Measuring: none of it counts as training

    def _measure(self) -> dict[str, Any]:
        """Return seconds and bytes after an iteration, the same on every rank."""
        asked = 0 if self.saver is None else self.saver.asked
        parts = self.transport.allgather((self.clock.seconds, self.transport.ledger.bytes_sent, asked))
        if self.saver is not None:
            self.saver.agree([part[2] for part in parts])
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


def by_layer(weights: Sequence[Tensor], optimiser: Sequence[dict[str, Any]] | None = None) -> list[State]:
    """Return weights [W_1, b_1, ..] and the optimiser's state of each, sorted into one state a layer."""
    layers: list[State] = [{} for _ in weights[::2]]
    for number, weight in enumerate(weights):
        own, name = layers[number // 2], "Wb"[number % 2]
        own[name] = weight
        if optimiser is not None:
            own |= prefixed(name, optimiser[number])
    return layers


def optimiser_states(layers: Sequence[State]) -> list[dict[str, Any]]:
    """Return the optimiser's state of each weight, in the order of ``weights``."""
    return [under(name, state) for state in layers for name in "Wb"]
