"""The driver of GIST: rounds of local steps on narrow networks, between which the blocks are dealt anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdadmm.baselines.driver import Driver
from pdadmm.baselines.shards import scores, tally
from pdadmm.checkpoint import Checkpoint, State
from pdadmm.gist.adam import adam_step_
from pdadmm.gist.groups import deal_groups
from pdadmm.gist.homes import Homes
from pdadmm.gist.slices import infer_in_slices, layer_of
from pdadmm.models.gnn import Aggregation
from pdadmm.parallel.transport import Transport
from pdadmm.recording import Best, Breakdown, Stage
from pdadmm.sampling.batch import Batch, Sampler
from pdadmm.sampling.network import Dropout, Features, batch_logits
from pdadmm.sampling.solver import batch_loss, whole_graph
from pdadmm.saver import Saver

__all__ = ["GISTSolver"]

COUNTS = ("steps", "rounds", "left", "predicted")  # what the ranks know alike


class GISTSolver(Driver):
    """Trains a wide GNN by GIST (docs/sampling.md): ``parts`` narrow networks, each ``local_steps`` steps a round.

    All workers see the same batches. The wide network lives in homes (``pdadmm.gist.homes.Homes``). After ``run``:
    ``history``, ``stages``, and in ``homes`` and ``best`` the weights of the best iteration.
    """

    def __init__(
        self,
        problem: Any,
        features: Features,
        sampler: Sampler,
        settings: Any,
        transport: Transport,
        eval_every: int = 1,
        watch: Callable[[dict[str, Any]], None] = lambda row: None,
        saver: Saver | None = None,
    ) -> None:
        super().__init__(settings, transport, eval_every, watch, saver)
        self.problem, self.features, self.sampler = problem, features, sampler
        self.whole, self.members = whole_graph(Aggregation(problem.S), settings.layers, problem.parts)
        widths = [problem.inputs, *[settings.hidden] * (settings.layers - 1), problem.classes]
        self.homes = Homes(settings.architecture, widths, settings.parts, self.dtype, transport)
        self.steps, self.rounds, self.left, self.predicted, self.times = 0, 0, 0, 0, Breakdown()
        features.times = self.times
        self.blocks: dict[int, list[Tensor]] = {}
        self.biases: dict[int, Tensor] = {}

    def run(self) -> GISTSolver:
        """Train to the end; collective over the ranks."""
        if self.saved is not None:
            stage = self._go_on(self.saved)
        else:
            self.clock.start()
            self.homes.start(self.settings.seed)
            self.clock.stop()
            stage = Stage(0, self.settings.layers, self._evaluate())
        self._run_stage(stage)
        return self

    # Rounds

    def _pass(self, iteration: int) -> float:
        losses, counts = dict.fromkeys(self.homes.own, 0.0), 0.0
        for step in range(self.sampler.steps):
            if not self.left:
                self._begin_round()
            with self.times("sampling"):
                batches = self.sampler.draw(iteration, step, 0, 1)
            for batch in batches:
                counts += batch.count
                if not batch.count:
                    continue  # clusters without training nodes move nothing, not even Adam's moments
                self.steps += 1
                batch.count_times(self.times)
                for worker in self.homes.own:
                    losses[worker] += self._step(worker, batch)
            self.left -= 1
            if not self.left:
                self._end_round()
        every = [loss for part in self.transport.allgather(list(losses.values())) for loss in part]
        return sum(every) / (counts * len(every))

    def _begin_round(self) -> None:
        self.rounds, self.left = self.rounds + 1, self.settings.local_steps
        self.groups = deal_groups(self.settings.seed, self.rounds, self.homes.widths, self.homes.parts)
        with self.times("waiting"):
            self.transport.barrier()
        with self.times("communication"):
            self.blocks = self.homes.scatter(self.groups)
        self.predicted += self.homes.scatter_bytes(self.groups)
        self.biases = {worker: self.homes.output.clone() for worker in self.homes.own}

    def _end_round(self) -> None:
        with self.times("waiting"):
            self.transport.barrier()
        with self.times("communication"):
            self.homes.gather(self.groups, self.blocks)
            self.homes.output = self.homes.mean_output(self.biases)
        self.blocks = {}
        self.predicted += self.homes.scatter_bytes(self.groups) + self.homes.output_bytes()

    def _step(self, worker: int, batch: Batch) -> float:
        """Take one Adam step of a worker's narrow network on a batch; return its sum of losses."""
        s, blocks, bias = self.settings, self.blocks[worker], self.biases[worker]
        leaves = [block[0].detach().requires_grad_() for block in (*blocks, bias)]
        last = len(blocks) - 1
        weights = [
            layer_of(matrix, leaf, leaves[-1] if k == last else None)
            for k, (matrix, leaf) in enumerate(zip(self.homes.matrices, leaves))
        ]
        # workers drop out apart: a key of their own for every layer
        dropout = Dropout(s.seed, self.steps, s.dropout, worker * s.layers) if s.dropout else None
        logits = batch_logits(s.architecture, batch, self.features, weights, s.activation, dropout)
        loss = batch_loss(logits, self.problem.y, batch)
        gradients = torch.autograd.grad(loss / batch.count, leaves)
        for block, gradient in zip((*blocks, bias), gradients):
            adam_step_(block, gradient, s.learning_rate, s.weight_decay, self.steps)
        return float(loss.detach())

    # Checkpoints: a part for each home, so that any number of ranks may go on with them

    def _holds(self) -> str:
        return f"narrow networks {self.homes.own.start + 1} to {self.homes.own.stop} of {self.homes.parts}"

    def _parts(self, best: Best) -> dict[int, State]:
        return {home: self._part(home, best) for home in self.homes.own}

    def _part(self, home: int, best: Best) -> State:
        state: State = {"output": self.homes.output}
        state |= {f"state.{k}": planes for k, planes in enumerate(self.homes.state[home])}
        if self.left:  # in the midst of a round
            state |= {f"block.{k}": block for k, block in enumerate(self.blocks[home])} | {"bias": self.biases[home]}
        if best.weights:
            weights, output = best.weights
            state |= {"best.output": output} | {f"best.{k}": values for k, values in enumerate(weights[home])}
        return state

    def _progress(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"counts": counts, "kinds": self.times.state(self.transport)}

    def _go_on(self, saved: Checkpoint) -> Stage:
        """Bring homes and workers to where a checkpoint was written, on any number of ranks."""
        (stage, _), matrices = self._restore([]), range(len(self.homes.matrices))
        vars(self).update(saved.progress["counts"])
        self.times.restore(saved.progress["kinds"])
        parts = {home: saved.layer(home) for home in self.homes.own}
        some = parts[self.homes.own.start] if parts else saved.layer(0)
        self.homes.output = some["output"]
        self.homes.state = {home: [part[f"state.{k}"] for k in matrices] for home, part in parts.items()}
        if self.left:
            self.groups = deal_groups(self.settings.seed, self.rounds, self.homes.widths, self.homes.parts)
            self.blocks = {home: [part[f"block.{k}"] for k in matrices] for home, part in parts.items()}
            self.biases = {home: part["bias"] for home, part in parts.items()}
        if "best.output" in some:
            weights = {home: [part[f"best.{k}"] for k in matrices] for home, part in parts.items()}
            stage.best.weights = weights, some["best.output"]
        return stage

    # Evaluation: between rounds, or in the midst of one, which goes on as if nothing had been

    def _evaluate(self) -> dict[str, float]:
        output = self.homes.output
        if self.left:
            self.homes.gather(self.groups, self.blocks, "evaluation")
            output = self.homes.mean_output(self.biases, "evaluation")
        self.now = {home: [block[0] for block in state] for home, state in self.homes.state.items()}, output[0]
        s, p = self.settings, self.problem
        logits = infer_in_slices(self.homes, *self.now, self.whole.operators[0], self.features, s.activation)
        nodes = torch.from_numpy(self.whole.nodes)
        found = tally(logits[nodes], p.y[nodes], self.members)
        self._check(not found["bad"])
        return scores([found], {part: len(own) for part, own in p.parts.items()})

    def _snapshot(self) -> tuple[dict[int, list[Tensor]], Tensor]:
        weights, output = self.now
        return {home: [values.clone() for values in own] for home, own in weights.items()}, output.clone()

    def _go_back(self, snapshot: tuple[dict[int, list[Tensor]], Tensor]) -> None:
        self.best = snapshot

    def pass_bytes(self) -> int:
        return round(self.homes.round_bytes() * self.sampler.steps / self.settings.local_steps)

    @property
    def depth(self) -> int:
        return self.settings.layers

    def summary(self) -> dict[str, Any]:
        """Return what a finished run reports about itself."""
        told = {"rounds": self.rounds, "bytes_predicted": self.predicted}
        return super().summary() | self.times.summary(self.clock.seconds, self.transport) | told
