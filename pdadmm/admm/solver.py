"""The driver of pdADMM-G: stages, iterations, evaluation, stopping, the best weights."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

from pdadmm.admm.builder import AnyNetwork, NetworkBuilder
from pdadmm.admm.divergence import describe_divergence
from pdadmm.admm.growth import Weights
from pdadmm.admm.host_storage import storage_beside
from pdadmm.admm.layer import Terms
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.objective import combine, over_shards
from pdadmm.admm.precision import full_float32
from pdadmm.admm.problem import Problem, scores
from pdadmm.admm.products import make_products
from pdadmm.admm.schedule import RHO_SCHEDULES
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.streamed import beside, check_form
from pdadmm.checkpoint import Checkpoint, State, prefixed, under
from pdadmm.errors import DivergenceError
from pdadmm.history import History
from pdadmm.parallel.device import CPU, choose_device, join_device, messages_of, moved, synchronize
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

log = logging.getLogger("pdadmm")


class ADMMSolver:
    """Trains a GA-MLP by pdADMM-G on a Problem (Wang et al. 2022, Algorithm 1, grown stage by stage).

    ``settings`` are checked settings, ``transport`` joins the ranks, ``watch`` is called with every row of
    the history, ``first`` may be the first layer of an earlier run on the same problem: its factor is reused;
    ``saver`` writes checkpoints, and may have one to go on from; with a ``storage`` X and the state lie on disk,
    with a limit on device memory in main memory.
    The ranks are the grid that the settings ask for; ``builder`` makes the network of each stage there, on ``device``.
    After ``run``: ``history``, ``stages`` (one summary each), and this rank's ``best_weights()``.
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
        if settings.device_memory is not None:
            assert storage is None
            assert transport.size == 1
            storage = storage_beside(self.device, problem, settings)
        self.counts = {name: run.stop - run.start for name, run in problem.parts.items()}
        products = make_products(settings.products, self.device)
        if products.terms and not products.native and transport.rank == 0:
            where, kind = "this processor" if self.device.type == "cpu" else "this device", products.kind
            log.info("products %s: without %s in %s they take longer than full", settings.products, kind, where)
        self.builder = NetworkBuilder(problem, settings, transport, self.device, products, storage, first)
        self.penalties = self.builder.penalties
        assert settings.stages is not None  # checked
        self.depths = settings.stages
        self.schedule = RHO_SCHEDULES[settings.rho_schedule]()
        self.history, self.stages, self.clock = History(), list[dict[str, Any]](), Clock(wait)
        self.saver, self.storage = saver, storage

    def run(self) -> ADMMSolver:
        """Train through all stages; collective over the ranks."""
        with full_float32():  # but for what ``products`` says
            self._run_stages()
        return self

    def _run_stages(self) -> None:
        saved = None if self.saver is None else self.saver.saved
        for number in range(0 if saved is None else saved.progress["stage"]["number"], len(self.depths)):
            self.clock.start()
            # nobody else holds the network: its arrays are given back before the next stage
            self._run_stage(*self._begin_stage(number, saved))
            saved = None

    def _begin_stage(self, number: int, saved: Checkpoint | None) -> tuple[Stage, AnyNetwork]:
        """Build the network of a stage, from a checkpoint where one is given."""
        depth = self.depths[number]
        if saved is not None:
            return self._go_on(saved, depth)
        network = self.builder.begin(number, depth)
        self.clock.stop()
        return Stage(number, depth, self._evaluate(network), best=Best(weights=network.snapshot())), network

    def _run_stage(self, stage: Stage, network: AnyNetwork) -> None:
        """Iterate one stage to its end and leave its best weights with the builder."""
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
        self.builder.end(network, stage.best.weights)
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
                joined[layer.index] = self.builder.shard.joined(moved(state | own, CPU))
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
        state, shard = saved.progress, self.builder.shard
        check_form(saved, self.storage)

        def read(layer: int) -> State:
            whole = saved.layer(layer)
            return moved(shard.part(whole), self.device) if self.storage is None else beside(whole, self.device)

        network, own = self.builder.resume(state["stage"]["number"], depth, read)
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
        terms = over_shards([part[0] for part in parts], self.builder.grid.shards)
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
        self.builder.go_back(network, stage.best.weights)
        self.penalties.rho *= 10.0
        network = self.builder.build(stage.number)
        self.clock.stop()
        if self.transport.rank == 0:
            log.warning("%s: going on from the best weights so far with rho = %g", error, self.penalties.rho)
        return network

    def _evaluate(self, network: AnyNetwork) -> dict[str, float]:
        """Return the accuracies of the composed network, a true forward pass, on every rank."""
        self.transport.trace.mark("evaluate")
        own = network.tally(self.builder.problem)
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
        summary |= {"device": self.device.type, "messages": messages_of(self.builder.column)}
        return summary | {"grid": str(self.builder.grid), "first_layer": self.builder.first_form.name}

    def best_weights(self) -> Weights:
        """Return the best W and b of this rank's layers in main memory, of each group's first shard; collective."""
        return self.builder.best_weights()

    def close(self) -> None:
        """Give back what joins the rows and columns of the grid; collective."""
        self.builder.close()
