"""Batches and dropout: the same nodes and masks whatever the cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backprop_small import by_hand, copies, made_problem, made_solver, small_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import GD, Adam, Graph
from pdadmm.baselines.dropout import BLOCK, draw_mask
from pdadmm.baselines.shards import Shard, run_of


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# Batches


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_a_pass_visits_every_node_once(V, size, ranks, iteration):
    problem = made_problem(V, others=2)
    visited, sizes = [], []
    for rank in range(ranks):
        solver = made_solver(GD, problem, batch_size=size)
        own = run_of(V, rank, ranks)
        solver.shard = Shard(problem, own, range(V, V), problem.X[own.start : own.stop], problem.X[:0])
        batches = list(solver._batches(iteration))
        sizes.append([count for _, count in batches])
        for number, (rows, count) in enumerate(batches):
            found = torch.arange(len(own)) if rows is None else rows
            assert count == min(size, V - number * size)
            visited += (found + own.start).tolist()
    assert sorted(visited) == list(range(V))
    assert all(found == sizes[0] for found in sizes)
    assert sum(sizes[0]) == V


def test_batches_change_from_pass_to_pass_and_seed_to_seed():
    def first(seed, iteration):
        solver = made_solver(GD, batch_size=5, seed=seed)
        return next(iter(solver._batches(iteration)))[0].tolist()

    assert first(0, 1) == first(0, 1)
    assert first(0, 1) != first(0, 2)
    assert first(0, 1) != first(1, 1)


def test_batches_take_steps_on_their_own_means():
    problem = made_problem(V=7)
    solver = made_solver(GD, problem, batch_size=3, momentum=0.0, weight_decay=0.0, learning_rate=0.2)
    weights, total = copies(solver), 0.0
    for rows, count in solver._batches(1):
        value, gradients = by_hand(weights, problem.X[rows].numpy(), problem.y[rows].numpy(), 0.0, "cross_entropy")
        weights = [w - 0.2 * g for w, g in zip(weights, gradients)]
        total += count * value
    assert solver._pass(1) == pytest.approx(total / 7, rel=1e-12)
    for ours, theirs in zip(copies(solver), weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


# Dropout


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 700), st.integers(0, 700), st.integers(1, 6), st.integers(0, 2**62))
def test_masks_do_not_depend_on_the_cut(one, other, width, seed):
    start, stop = sorted((one, other))
    whole = draw_mask(seed, 3, 1, range(700), width, 0.4)
    assert torch.equal(draw_mask(seed, 3, 1, range(start, stop), width, 0.4), whole[start:stop])


def test_masks_keep_their_share_and_differ():
    rows = range(40 * BLOCK)
    for share in (0.1, 0.5, 0.9):
        kept = float(draw_mask(0, 1, 0, rows, 20, share).double().mean())
        assert kept == pytest.approx(1 - share, abs=5 * math.sqrt(share * (1 - share) / (20 * len(rows))))
    one = draw_mask(0, 1, 0, rows, 20, 0.5)
    for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        agree = float((one == draw_mask(*other, rows, 20, 0.5)).double().mean())
        assert agree == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(one[:BLOCK], one[BLOCK : 2 * BLOCK])


def test_dropout_keeps_the_expectation_and_rests_at_evaluation():
    problem = made_problem(V=4)
    solver = made_solver(Adam, problem, layers=2, hidden=6, dropout=0.3)
    X = problem.X[:4]
    with torch.no_grad():
        plain = solver._forward(X)
        mean = torch.zeros_like(plain)
        for iteration in range(4000):
            mean += solver._forward(X, solver._masks(iteration)) / 4000
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.1)
    solver.settings.dropout = 0.0
    without = solver._evaluate()
    solver.settings.dropout = 0.3
    assert solver._evaluate() == without


def test_no_dropout_draws_no_mask():
    assert made_solver(Adam)._masks(1) is None
