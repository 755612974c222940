"""Random search of a solver's hyper-parameters by validation accuracy; the test nodes are never seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.data import Graph
from pdadmm.data.splits import generator
from pdadmm.errors import DivergenceError, InputError
from pdadmm.parameters import parameters
from pdadmm.solvers import solver_class

__all__ = [
    "SPACES",
    "Batch",
    "Choice",
    "Growth",
    "LogUniform",
    "Setting",
    "best_trial",
    "trial_parameters",
    "tune",
    "without_test",
]


@dataclass(frozen=True)
class Setting:
    """What a space may depend on: the number of layers, and V, the number of training nodes."""

    layers: int
    nodes: int


@dataclass(frozen=True)
class Choice:
    """One of a few values, each as likely as the others."""

    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator, setting: Setting) -> Any:
        return self.values[int(random.integers(len(self.values)))]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class LogUniform:
    """A number from ``low`` to ``high`` whose logarithm is uniform, to three digits, so that it can be typed."""

    low: float
    high: float

    def draw(self, random: np.random.Generator, setting: Setting) -> float:
        number = float(f"{np.exp(random.uniform(np.log(self.low), np.log(self.high))):.3g}")
        return min(max(number, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log-uniform"


@dataclass(frozen=True)
class Growth:
    """No stages given, or those of pdADMM-G (default_stages), each as likely as the other."""

    def draw(self, random: np.random.Generator, setting: Setting) -> tuple[int, ...] | None:
        from pdadmm.admm.settings import default_stages  # torch comes with it

        return (None, default_stages(setting.layers))[int(random.integers(2))]

    def __str__(self) -> str:
        return "one of None, 2 and half of L and L"


@dataclass(frozen=True)
class Batch:
    """All training nodes at once (None), or one of the ``sizes`` below their number, each as likely."""

    sizes: tuple[int, ...]

    def draw(self, random: np.random.Generator, setting: Setting) -> int | None:
        values = (None, *(size for size in self.sizes if size < setting.nodes))
        return values[int(random.integers(len(values)))]

    def __str__(self) -> str:
        return "one of None, " + ", ".join(map(str, self.sizes)) + "; only those below V"


Space = Mapping[str, Choice | LogUniform | Growth | Batch]

_ADMM: Space = {
    "nu": LogUniform(0.1, 1.0),
    "kappa_first": LogUniform(0.02, 1.0),
    "kappa_identity": LogUniform(0.003, 0.1),
    "prox_z": Choice((0.0, 0.1, 1.0)),
    "prior_weight": Choice((0.0, 0.25, 0.5, 0.75)),
    "iterations": Choice((12, 24, 48)),
    "initial": Choice(("random", "labels")),
    "first_layer": Choice(("auto", "cg")),
}


def _backprop(learning_rate: LogUniform, **more: Choice) -> Space:
    return {
        "learning_rate": learning_rate,
        "weight_decay": LogUniform(1e-6, 1e-2),
        "dropout": Choice((0.0, 0.2, 0.5)),
        "prior_weight": Choice((0.0, 0.5, 1.0, 2.0)),
        "initial": Choice(("he", "orthogonal", "identity")),
        "stages": Growth(),
        "iterations": Choice((100, 200, 400)),
        "batch_size": Batch((512, 2048)),
        **more,
    }


_GNN: Space = {
    "learning_rate": LogUniform(1e-3, 0.1),
    "weight_decay": LogUniform(1e-6, 1e-2),
    "dropout": Choice((0.0, 0.2, 0.5, 0.8)),
    "iterations": Choice((100, 200, 400)),
}

# Solver -> what is searched; a parameter that is missing here keeps its default.
SPACES: dict[str, Space] = {
    "pdadmm-g": _ADMM,
    "pdadmm-g-q": _ADMM,
    "gd": _backprop(LogUniform(1e-3, 0.5), momentum=Choice((0.0, 0.9))),
    "adadelta": _backprop(LogUniform(0.1, 10.0)),
    "adagrad": _backprop(LogUniform(3e-3, 0.3)),
    "adam": _backprop(LogUniform(3e-4, 3e-2)),
    "gcn": _GNN,
    "mixgcn": _GNN,
    "sage": _GNN,
    "gist": _GNN,
}


def trial_parameters(solver: str, trial: int, seed: int, fixed: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Return what trial ``trial`` tries: the defaults in trial 0, else a draw by (seed, trial, parameter) alone.

    Hence trial k is the same whatever the number of trials, and fixing one parameter leaves the other draws as
    they are. What is ``fixed`` is not in the result.

    >>> trial_parameters("pdadmm-g", 0, 0, {"nu": 0.5}, Setting(10, 140))["iterations"]
    24
    """
    space = {name: spread for name, spread in SPACES[solver].items() if name not in fixed}
    if trial == 0:
        defaults = {field.name: field.default for field in parameters(solver_class(solver))}
        return {name: defaults[name] for name in space}
    return {name: spread.draw(generator(seed, f"trial {trial} {name}"), setting) for name, spread in space.items()}


def tune(
    solver: str,
    graph: Graph,
    budget: int,
    fixed: Mapping[str, Any],
    seed: int = 0,
    watch: Callable[[dict[str, Any]], None] = lambda trial: None,
    others: Sequence[tuple[Graph, int]] = (),
) -> list[dict[str, Any]]:
    """Try ``budget`` settings of a solver on a graph and return one dict a trial: parameters, val_accuracy, seconds.

    ``fixed`` parameters are those of every trial. The test nodes are taken out of the graph first. Each trial is also
    fitted on the ``others``, graphs such as other splits of the same one, each with a seed of its weights: its accuracy
    and loss are the means, and ``val_accuracies`` has each. A trial that diverges on any of them counts, with
    ``failed`` its message and no accuracy. ``seconds`` is the wall time of ``fit``, of all together.
    Collective over the ranks of mpirun. Raises InputError without validation nodes or for a bad fixed value.

    >>> from pdadmm import digits
    >>> trials = tune("pdadmm-g", digits(), 2, {"layers": 2, "hidden": 16, "iterations": 3})
    >>> [trial["trial"] for trial in trials], best_trial(trials)["val_accuracy"] > 0.8
    ([0, 1], True)
    """
    if not isinstance(graph, Graph):
        raise InputError("graph", type(graph).__name__, "a Graph", "arrays have no validation nodes")
    if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 1:
        raise InputError("budget", budget, "a whole number of at least 1")
    graphs = [graph, *(other for other, _ in others)]
    if any(one.splits is None or not len(one.splits["val"]) for one in graphs):
        raise InputError("split", "without validation nodes", "one with validation nodes, as they choose")
    assert graph.splits is not None
    blind = [without_test(one) for one in graphs]
    seeds: list[dict[str, int]] = [{}, *({"seed": other} for _, other in others)]
    estimator = solver_class(solver)
    setting = Setting(estimator(**fixed).checked().layers, len(graph.splits["train"]))
    trials = []
    for number in range(budget):
        chosen = trial_parameters(solver, number, seed, fixed, setting)
        tried = [_try(estimator(**{**fixed, **chosen, **own}), one) for one, own in zip(blind, seeds)]
        trials.append({"trial": number, "parameters": chosen, **_together(tried)})
        watch(trials[-1])
    return trials


def without_test(graph: Graph) -> Graph:
    """Return the graph, which has splits, without test nodes."""
    assert graph.splits is not None
    return graph.with_splits({**graph.splits, "test": np.empty(0, dtype=np.int64)})


def _try(estimator: Any, graph: Graph) -> dict[str, Any]:
    """Fit once; the accuracy is the full-depth network's at its best, the loss that of the same row."""
    began = time.perf_counter()
    found: dict[str, Any] = {"val_accuracy": None, "val_loss": None}
    try:
        estimator.fit(graph)
    except DivergenceError as error:
        found["failed"] = str(error)
    else:
        best = found["val_accuracy"] = estimator.summary_["val_accuracy"]
        depth = estimator.summary_["layers"]
        rows = [r for r in estimator.history_ if r["layers"] == depth and r.get("val_accuracy") == best]
        losses = [row["val_loss"] for row in rows if np.isfinite(row.get("val_loss", np.inf))]
        found["val_loss"] = min(losses, default=None)
    return found | {"seconds": time.perf_counter() - began}


def _together(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a trial found on all its graphs: means, seconds in all; the first failure fails it."""
    if len(tried) == 1:
        return tried[0]
    seconds = sum(one["seconds"] for one in tried)
    for one in tried:
        if "failed" in one:
            return one | {"seconds": seconds}
    accuracies, losses = ([one[name] for one in tried] for name in ("val_accuracy", "val_loss"))
    loss = None if None in losses else float(np.mean(losses))
    found = {"val_accuracy": float(np.mean(accuracies)), "val_loss": loss, "val_accuracies": accuracies}
    return found | {"seconds": seconds}


def best_trial(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the trial of best validation accuracy, ties by validation loss, then the earlier; None if all failed.

    >>> best_trial([{"val_accuracy": 0.7, "val_loss": 1.0}, {"val_accuracy": 0.7, "val_loss": 0.9}])["val_loss"]
    0.9
    """

    def rank(trial: dict[str, Any]) -> tuple[float, float]:
        loss = trial.get("val_loss")
        return trial["val_accuracy"], -loss if loss is not None else -np.inf

    alive = [trial for trial in trials if trial["val_accuracy"] is not None]
    return max(alive, key=rank) if alive else None
