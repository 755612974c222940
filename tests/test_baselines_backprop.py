"""Backpropagation: its gradient, what a run reports, and what ends it."""

from __future__ import annotations

import numpy as np
import pytest
from backprop_small import ACTIVATIONS, ESTIMATORS, by_hand, copies, made_problem, made_solver, small_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import GD, Adam, DivergenceError, Graph, InputError
from pdadmm.baselines.backprop import BackpropSolver
from pdadmm.baselines.dropout import draw_mask


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# The network and its gradient, by hand


class Gradients:
    """An optimiser that takes no step and keeps the gradients it was given."""

    def __init__(self, weights) -> None:
        self.weights, self.seen, self.state = weights, [], {}

    def step(self) -> None:
        self.seen.append([weight.grad.numpy().copy() for weight in self.weights])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(["cross_entropy", "squared_error"]), st.sampled_from([0.0, 0.4]), st.integers(0, 99),
)  # fmt: skip
def test_the_gradient_is_that_of_the_mean_loss(V, layers, classes, hidden, activation, loss, dropout, seed):
    problem = made_problem(V, 4, inputs=3, classes=classes, seed=seed)
    chosen = {"layers": layers, "hidden": hidden, "activation": activation, "loss": loss, "dropout": dropout}
    solver = made_solver(Adam, problem, seed=seed, **chosen)
    solver.optimizer = Gradients(solver.weights)
    objective = solver._pass(7)
    masks = None
    if dropout:
        masks = [draw_mask(seed, 7, layer, range(V), hidden, dropout).numpy() for layer in range(layers - 1)]
    value, gradients = by_hand(
        copies(solver), problem.X[:V].numpy(), problem.y[:V].numpy(), ACTIVATIONS[activation], loss, masks, dropout
    )
    assert objective == pytest.approx(value, rel=1e-12, abs=1e-12)
    (found,) = solver.optimizer.seen
    for ours, theirs in zip(found, gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


# What a run reports


def test_evaluation_is_not_training_time(graph, monkeypatch):
    ticks = []

    class Ticking:
        def __init__(self, wait):
            self.seconds = 0.0

        def start(self):
            ticks.append("start")

        def stop(self):
            ticks.append("stop")
            self.seconds += 1.0

    evaluate = BackpropSolver._evaluate
    monkeypatch.setattr("pdadmm.baselines.driver.Clock", Ticking)
    monkeypatch.setattr(BackpropSolver, "_evaluate", lambda self: ticks.append("evaluate") or evaluate(self))
    trained = Adam(layers=4, hidden=5, stages=(2, 4), iterations=3, hops=1).fit(graph)
    assert ticks[:6] == ["start", "stop", "evaluate", "start", "stop", "evaluate"]
    running = 0
    for tick in ticks:
        running += {"start": 1, "stop": -1}.get(tick, 0)
        assert running == 0 or tick != "evaluate"
    assert trained.summary_["seconds_training"] == 8.0  # two stages' starts and six iterations
    assert trained.history_.column("seconds") == [2.0, 3.0, 4.0, 6.0, 7.0, 8.0]


def test_patience_and_time_end_a_stage(graph):
    few = Adam(layers=3, hidden=8, iterations=200, patience=3, hops=1, learning_rate=0.05).fit(graph)
    assert few.summary_["iterations"] == few.stages_[0]["best_iteration"] + 3
    short = Adam(layers=3, hidden=8, stages=(2, 3), iterations=50, max_seconds=1e-9, hops=1).fit(graph)
    assert [stage["iterations"] for stage in short.stages_] == [1, 1]


def test_evaluations_are_where_they_were_asked_for(graph):
    history = GD(layers=2, hidden=5, iterations=7, eval_every=3, hops=1).fit(graph).history_
    assert [row["iteration"] for row in history if "val_accuracy" in row] == [3, 6, 7]


def test_the_objective_falls_and_the_best_iteration_is_kept(graph):
    for estimator in ESTIMATORS:
        trained = estimator(layers=2, hidden=16, iterations=40, hops=2).fit(graph)
        objective = trained.history_.column("objective")
        assert objective[-1] < 0.95 * objective[0]
        best = trained.history_[trained.stages_[0]["best_iteration"] - 1]
        assert best["val_accuracy"] == max(trained.history_.column("val_accuracy"))
        assert trained.score(graph) == pytest.approx(best["test_accuracy"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_divergence_is_one_sentence(graph, estimator):
    with pytest.raises(DivergenceError, match=r"iteration \d+: the loss of 4 layers .*lower learning_rate"):
        estimator(layers=4, hidden=8, learning_rate=1e20, iterations=30, hops=1).fit(graph)


def test_divergence_of_the_only_step_is_seen(graph):
    """The loss comes from before the step: the logits after it tell."""
    with pytest.raises(DivergenceError):
        GD(layers=4, hidden=8, learning_rate=1e20, iterations=1, hops=1).fit(graph)


def test_settings_that_cannot_be(graph):
    for bad in (
        {"dropout": 1.0}, {"dropout": -0.1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0},
        {"initial": "zero"}, {"stages": (1, 10)}, {"stages": (2, 9)}, {"loss": "hinge"},
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            Adam(**bad).fit(graph)
        assert caught.value.argument == next(iter(bad))
    with pytest.raises(InputError, match="momentum"):
        GD(momentum=1.0).fit(graph)
    assert not hasattr(Adam(), "momentum")
    assert Adam(layers=7).checked().stages == (7,)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["he", "orthogonal", "identity"]),
    st.sampled_from(ESTIMATORS),
)  # fmt: skip
def test_any_shape_trains(layers, hidden, batch_size, initial, estimator):
    random = np.random.default_rng(layers + hidden)
    X, y = random.normal(size=(23, 4)), random.integers(3, size=23)
    chosen = {"layers": layers, "hidden": hidden, "batch_size": batch_size, "initial": initial}
    trained = estimator(iterations=2, dropout=0.2, **chosen).fit(X, y)
    assert trained.predict_proba(X).shape == (23, 3)
    assert np.isfinite(trained.predict_proba(X)).all()
