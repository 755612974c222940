"""All layers of a stage in one process, over nodes that stream through memory block by block."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.acceleration import ACCELERATIONS, next_step
from pdadmm.admm.block import BlockUpdates, Tally, Weights
from pdadmm.admm.label_start import CentredLabels, regress_labels
from pdadmm.admm.layer import UPDATED, HiddenLayer, Terms
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.problem import Problem, tally
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.shard import by_node
from pdadmm.admm.updates import update_W_b_gradient
from pdadmm.checkpoint import Checkpoint, State
from pdadmm.disk.storage import state_columns
from pdadmm.errors import InputError
from pdadmm.trace import Trace

__all__ = ["StreamedNetwork", "beside", "check_form", "largest_state"]


@dataclass
class Pace:
    """How far one boundary is extrapolated: t, the measure and beta_k of pdadmm.admm.acceleration.Momentum."""

    t: float = 1.0
    measure: float = math.inf
    beta: float = 0.0

    def step(self, measure: float) -> bool:
        """Find beta_k once all nodes were seen; whether it is ``next_step(t)``, and not 0 after a restart."""
        falls = measure < self.measure
        self.t = self.t if falls else 1.0
        self.measure = measure
        self.beta, self.t = next_step(self.t)
        return falls


class StreamedNetwork:
    """Stands for pdadmm.admm.network.Network where z and q of every node lie in a storage; all else follows.

    u = nu (q - f(z)) after every iteration, and p_l follows from z_l, q_{l-1} and u_{l-1} (its gradient form from the
    last p_l too, which is then kept). W and b of all layers follow from sums over the nodes. So one pass over the
    blocks does phase B of an iteration, and of the next one's phase A what the sums need:

        read z, q;  p, by W, b of before;  z and q, by the new W, b;  write z, q;  p by the new W, b:  p^T p, z^T p, ..

    and the next W, b are solved between two passes. The sums hold for the rho and the beta of each boundary that they
    were made with; where those come out otherwise, a pass that only reads makes them again.

    ``number`` is that of the stage.
    """

    def __init__(
        self, layers: Sequence[Any], storage: NodeStorage, number: int, problem: Problem, accelerate: bool, trace: Trace
    ) -> None:
        self.layers, self.storage, self.number, self.problem, self.trace = list(layers), storage, number, problem, trace
        self.penalties, self.activation = layers[0].penalties, layers[0].activation
        self.first, self.depth, self.accelerate = layers[0].solver, len(layers), accelerate
        self.uppers: list[HiddenLayer] = list(layers[1:])
        for layer in self.uppers:  # the mean of p is known once all nodes were seen
            layer.centre = layer.W.new_zeros(layer.W.shape[1])
        widths = [storage.inputs, len(self.first.b), *(len(layer.b) for layer in self.uppers)]
        stored = [layer.index for layer in self.uppers if not layer.exact]
        self.columns = state_columns(widths, stored, accelerate)
        self.paces = [Pace() for _ in layers]
        self.updates = BlockUpdates(self.layers, storage.block, accelerate, storage.device)
        self.sums: list[Any] = []  # Moments, one a layer
        self.made: tuple[float, ...] = ()  # what the sums were made with; () for none
        self.finite_p = [True] * self.depth
        self.begun = False

    def describe(self) -> str:
        """Say which layers this process holds."""
        return f"layers 1 to {self.depth} of {self.depth}" if self.depth > 1 else "layer 1 of 1"

    def begin_at_labels(self, labels: CentredLabels) -> None:
        """Fit W_L, b_L to the labels, in two passes over X: z_L follows with the rest of the state."""
        if not self.uppers:
            return
        last, nodes = self.uppers[-1], self.storage.nodes
        m, C = last.W.shape[1], len(last.b)
        centre, gram, cross = last.W.new_zeros(m), last.W.new_zeros(m, m), last.W.new_zeros(C, m)
        for _, p in self._top_inputs(nodes):
            centre += p.sum(0)
        centre /= nodes
        for block, p in self._top_inputs(nodes):
            about = p - centre
            gram += about.mT @ about
            cross += labels.of(self.storage.here(labels.y[block.start : block.stop])).mT @ about
        last.W, last.b = regress_labels(gram, cross, centre, labels.mean)

    # An iteration

    def iterate(self) -> None:
        """One iteration: W and b of all layers from the sums, then z and q of all nodes, with the next sums."""
        if not self.begun:
            self.storage.begin(self.number, self.columns)
            self.begun = True
        before, traffic = self._weights(), self.storage.traffic
        moved = traffic.read + traffic.written
        if self.made != self._premises():
            self._look(before)
        self.trace.mark("update W, b")
        self._update_W_b()
        self._advance(before, self._weights())
        self.storage.moved.append(traffic.read + traffic.written - moved)

    def _weights(self) -> list[Weights]:
        return [Weights(self.first.W, self.first.b, None), *map(Weights.of, self.uppers)]

    def _betas(self) -> list[float]:
        return [pace.beta for pace in self.paces]

    def _premises(self) -> tuple[float, ...]:
        return (self.penalties.rho, *self._betas())

    def _update_W_b(self) -> None:
        nu, mu = self.penalties.nu, self.penalties.mu
        sums = self.sums
        self.first.update(sums[0].zp, sums[0].z_sum)
        for layer, moments in zip(self.uppers, sums[1:]):
            self.finite_p[layer.index] = bool(torch.isfinite(moments.p_sum).all())
            if layer.exact:
                layer.solve_W_b(moments)
            else:
                layer.W, layer.b = update_W_b_gradient(moments, layer.W, layer.b, nu, mu, layer.kappa, layer.target)

    # Passes over the nodes

    def _blocks(self, write: bool) -> Iterator[tuple[range, Tensor, dict[str, Tensor]]]:
        """Yield nodes, X and state of every block; the time between is the storage's."""
        self.trace.mark(self.storage.waiting)
        for block in self.storage.sweep(write):
            self.trace.mark("update a block")
            yield block
            self.trace.mark(self.storage.waiting)

    def _look(self, weights: Sequence[Weights]) -> None:
        """Make the next sums from the state as it is; at a stage's start, find the unit of the ridges."""
        starts, tally = not self.storage.has_state, Tally(self.layers)
        for _, X, state in self._blocks(write=False):
            if starts:
                self.updates.start(X, state, weights, tally)
            self.updates.look(X, state, weights, self._betas(), tally)
        if starts:
            for layer in self.uppers:  # as HiddenLayer.start has it
                layer.unit = tally.squares[layer.index] / layer.W.shape[1] or 1.0
        self.sums, self.made = tally.sums, self._premises()

    def _advance(self, before: Sequence[Weights], now: Sequence[Weights]) -> None:
        """Bring all nodes through the iteration, and make the next sums."""
        starts, tally = not self.storage.has_state, Tally(self.layers)
        extrapolated = [self.accelerate and layer.loss is None for layer in self.layers]
        likely = [next_step(pace.t)[0] if moves else 0.0 for pace, moves in zip(self.paces, extrapolated)]
        for nodes, X, state in self._blocks(write=True):
            if starts:
                self.updates.start(X, state, before, tally)
            y = self.storage.here(self.problem.y[nodes.start : nodes.stop])
            self.updates.advance(X, y, state, before, now, (self._betas(), likely), tally)
        self.measured = tally.ahead
        self.sums, self.made = tally.sums, (self.penalties.rho, *likely)
        for number, (pace, moves) in enumerate(zip(self.paces, extrapolated)):
            if moves and not pace.step(tally.measures[number]):
                self.measured[number] = tally.plain[number]
        for terms, layer in zip(self.measured, self.layers):
            terms.ridge = layer.ridge()

    # What the driver asks

    def terms(self) -> list[Terms]:
        """Return what each layer adds to the objective and the residuals."""
        return self.measured

    def finish(self) -> None:
        """Nothing is under way between two iterations."""

    def message_bytes(self) -> int:
        """Return 0: no layer is far from its neighbour."""
        return 0

    def not_finite(self) -> list[tuple[int, int, str]]:
        """Return (place in the order of updates, layer, variable) where the layers are not finite."""
        found = {(layer.index, name) for layer in self.uppers for name in "Wb" if not _finite(getattr(layer, name))}
        found |= {(0, name) for name in "Wb" if not _finite(getattr(self.first, name))}
        found |= {(index, "p") for index, finite in enumerate(self.finite_p) if not finite}
        for _, _, state in self.storage.sweep(write=False):
            bad = [name for name, x in state.items() if name[0] in "zq" and not _finite(x)]
            found |= {(int(name[1:]), name[0]) for name in bad}
        return [(UPDATED.index(name), index, name) for index, name in found]

    def _top_inputs(self, nodes: int) -> Iterator[tuple[range, Tensor]]:
        """Pass the labelled nodes up to layer L, block by block."""
        for block, h in self.storage.X(nodes):
            for layer, (W, b) in zip(self.layers[:-1], self._affine()):
                h = layer.activation(torch.addmm(b, h, W.mT))
            yield block, h

    def _affine(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.first.W, self.first.b), *((layer.W, layer.b) for layer in self.uppers)]

    def tally(self, problem: Problem) -> dict[str, float]:
        """Return what the composed network scores on the labelled nodes, added up over the blocks."""
        (W, b), total = self._affine()[-1], dict[str, float]()
        for nodes, h in self._top_inputs(len(problem.y)):
            start, stop = nodes.start, nodes.stop
            own = {name: slice(max(rows.start, start) - start, max(min(rows.stop, stop) - start, 0))
                   for name, rows in problem.parts.items()}  # fmt: skip
            y = self.storage.here(problem.y[start:stop])
            found = tally(torch.addmm(b, h, W.mT), y, own, problem.logit_shift)
            total = {name: total.get(name, 0) + value for name, value in found.items()}
        return total

    def lowest_input(self, nodes: int) -> Tensor:
        """Return the lowest value of each column of layer L's input, over the labelled nodes."""
        return functools.reduce(torch.minimum, (h.amin(0) for _, h in self._top_inputs(nodes)))

    def snapshot(self) -> list[State]:
        """Return copies of the weights, a layer each."""
        return [layer.snapshot() for layer in self.layers]

    # Checkpoints

    def states(self) -> list[State]:
        """Return what a checkpoint needs of every layer beside the storage's record."""
        paces = [asdict(pace) for pace in self.paces]
        units = [{}, *({"unit": layer.unit, "centre": layer.centre} for layer in self.uppers)]
        kept = map(self.storage.kept, range(self.depth))
        return [layer.snapshot() | pace | unit | own for layer, pace, unit, own in zip(self.layers, paces, units, kept)]

    def go_on(self, states: dict[int, State], record: dict[str, Any], ended: bool) -> None:
        """Go on from the layers' states in a checkpoint and the storage's record, which an ended stage needs not."""
        for index, (layer, pace) in enumerate(zip(self.layers, self.paces)):
            state = states[index]
            pace.t, pace.measure, pace.beta = state["t"], state["measure"], state["beta"]
            if index == 0:
                self.first.restore(state)
            else:
                layer.W, layer.b, layer.unit, layer.centre = (state[name] for name in ("W", "b", "unit", "centre"))
        if not ended:
            self.storage.go_on(self.number, self.columns, record, [states[index] for index in range(self.depth)])
            self.begun = True


def largest_state(
    settings: ADMMSettings, nodes: int, inputs: int, classes: int
) -> tuple[dict[str, int], list[int]]:
    """Return the state's columns in the stage with the most of them, and the widths of the deepest network.

    ``settings`` are checked ones.
    """
    assert settings.stages is not None  # checked
    found = []
    for number, depth in enumerate(settings.stages):
        widths = [inputs, *[settings.hidden] * (depth - 1), classes]
        stored = [n for n in range(1, depth) if not settings.solves_exactly(max(widths[n : n + 2]), nodes)]
        found.append(state_columns(widths, stored, ACCELERATIONS[settings.acceleration](number)))
    return max(found, key=lambda columns: sum(columns.values())), widths


def beside(state: State, device: torch.device) -> State:
    """Return a layer's state with its weights on ``device`` and the rows of nodes where they are."""
    return {name: x if by_node(name, x) or not isinstance(x, Tensor) else x.to(device) for name, x in state.items()}


def check_form(saved: Checkpoint, storage: NodeStorage | None) -> None:
    """Raise InputError where a checkpoint is of a run that kept its state in another form than this one does."""
    limited, limits = "blocks" in saved.progress, storage is not None and storage.kind == "blocks"
    if limited != limits:
        value = f"{saved.path}, written with{'' if limited else 'out'} a limit on device memory"
        cure = "give device_memory, on a GPU" if limited else "leave device_memory out"
        raise InputError("checkpoint", value, "gone on with as it was begun", cure)


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
