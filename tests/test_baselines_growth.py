"""Start weights, and networks that grow with their optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backprop_small import ACTIVATIONS, ESTIMATORS, copies, made_problem, made_solver, small_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import Adam, Graph
from pdadmm.baselines.initial import start_weights


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# Start weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_he_has_its_variance(activation):
    slope = ACTIVATIONS[activation]
    weights = start_weights("he", 3, [200, 150, 100, 50], slope, torch.float64)
    for W, b in weights:
        assert float(W.square().mean()) * W.shape[1] == pytest.approx(2 / (1 + slope**2), rel=0.05)
        assert abs(float(W.mean())) < 4 * float(W.std()) / math.sqrt(W.numel())
        assert not b.any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.sampled_from([0.0, 0.01, 1.0]))
def test_orthogonal_is_orthogonal(widths, slope):
    for (W, b), shape in zip(start_weights("orthogonal", 0, widths, slope, torch.float64), zip(widths[1:], widths)):
        assert W.shape == shape
        small = W @ W.mT if shape[0] <= shape[1] else W.mT @ W
        torch.testing.assert_close(small, torch.eye(len(small), dtype=torch.float64) * 2 / (1 + slope**2))
        assert not b.any()


def test_identity_starts_as_two_layers():
    weights = start_weights("identity", 0, [30, 7, 7, 7, 4], 0.0, torch.float64)
    assert [tuple(W.shape) for W, _ in weights] == [(7, 30), (7, 7), (7, 7), (4, 7)]
    for W, _ in weights[1:3]:
        assert torch.equal(W, torch.eye(7, dtype=torch.float64))
    assert float(weights[-1][0].abs().max()) <= 1 / math.sqrt(7)
    assert float(weights[0][0].square().mean()) * 30 == pytest.approx(2, rel=0.5)


@pytest.mark.parametrize("scheme", ["he", "orthogonal", "identity"])
def test_start_weights_depend_on_seed_and_layer_alone(scheme):
    def draw(seed, dtype=torch.float64, widths=(5, 6, 6, 6, 3)):
        return [W for W, _ in start_weights(scheme, seed, widths, 0.0, dtype)]

    assert all(torch.equal(one, other) for one, other in zip(draw(4), draw(4)))
    assert not torch.equal(draw(4)[0], draw(5)[0])
    assert torch.equal(draw(4)[0], draw(4, widths=(5, 6, 6, 3))[0])
    if scheme != "identity":
        assert not torch.equal(draw(4)[1], draw(4)[2])
    assert all(torch.equal(one.float(), other) for one, other in zip(draw(4), draw(4, torch.float32)))


# Growth


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_growth_keeps_function_and_optimiser_state(estimator, activation):
    problem = made_problem(V=30)
    solver = made_solver(estimator, problem, layers=7, stages=(2, 4, 7), activation=activation, hidden=6)
    iteration = 0
    for depth in (4, 7):
        for _ in range(3):
            iteration += 1
            solver._pass(iteration)
        with torch.no_grad():
            before = solver._forward(problem.X)
        state, old = solver._state(), solver.layers()
        assert any(isinstance(value, torch.Tensor) for value in state[0].values())
        solver._grow(depth)
        assert len(solver.layers()) == depth
        with torch.no_grad():
            torch.testing.assert_close(solver._forward(problem.X), before, rtol=1e-9, atol=1e-9)
        now = solver._state()
        kept = [*range(2 * len(old) - 2), 2 * depth - 2, 2 * depth - 1]
        for number, own in zip(kept, state):
            assert own.keys() == now[number].keys()
            assert all(torch.equal(torch.as_tensor(own[key]), torch.as_tensor(now[number][key])) for key in own)
        for number in set(range(2 * depth)) - set(kept):  # inserted: nothing remembered
            values = [torch.as_tensor(value) for value in now[number].values() if value is not None]
            assert all(not value.any() for value in values)


def test_a_stage_starts_from_the_best_of_the_one_before(graph):
    trained = Adam(layers=5, hidden=8, stages=(2, 5), iterations=30, learning_rate=0.01, hops=2).fit(graph)
    first, second = trained.stages_
    for part in ("train", "val", "test"):
        assert second[f"start_{part}_accuracy"] == pytest.approx(first[f"{part}_accuracy"], abs=1e-6)
    assert [row["layers"] for row in trained.history_] == [2] * 30 + [5] * 30
    assert len(trained.model_.layers) == 5


def test_going_back_takes_the_optimiser_along():
    solver = made_solver(Adam, layers=4, stages=(2, 4))
    solver._pass(1)
    snapshot, before, state = solver._snapshot(), copies(solver), solver._state()
    solver._pass(2)
    assert not np.array_equal(copies(solver)[0], before[0])
    solver._go_back(snapshot)
    assert all(np.array_equal(one, other) for one, other in zip(copies(solver), before))
    assert torch.equal(solver._state()[0]["exp_avg"], state[0]["exp_avg"])
    solver._pass(2)
    assert float(solver._state()[0]["step"]) == 2
