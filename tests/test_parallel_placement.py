"""Layers on ranks: contiguous, complete, balanced as well as any placement can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdadmm.parallel.placement import layer_costs, owner_of, place_layers

COSTS = st.lists(st.one_of(st.integers(0, 9).map(float), st.floats(1e-3, 1e12)), min_size=1, max_size=9)


def largest(costs, runs) -> float:
    return max(sum(costs[i] for i in run) for run in runs)


@given(costs=COSTS, ranks=st.integers(1, 12))
def test_runs_are_contiguous_and_cover_every_layer_once(costs, ranks):
    runs = place_layers(costs, ranks)
    assert len(runs) == ranks
    assert [layer for run in runs for layer in run] == list(range(len(costs)))
    used = min(ranks, len(costs))
    assert all(len(run) >= 1 for run in runs[:used])  # no rank idles while another has two layers
    assert all(len(run) == 0 for run in runs[used:])
    for layer in range(len(costs)):
        assert layer in runs[owner_of(runs, layer)]


@given(costs=COSTS, ranks=st.integers(1, 5))
def test_no_placement_is_better_balanced(costs, ranks):
    layers, groups = len(costs), min(ranks, len(costs))
    best = float("inf")
    for cuts in itertools.combinations(range(1, layers), groups - 1):
        ends = [0, *cuts, layers]
        best = min(best, largest(costs, [range(i, j) for i, j in itertools.pairwise(ends)]))
    assert largest(costs, place_layers(costs, ranks)) <= best * (1 + 1e-12)


@given(costs=COSTS, ranks=st.integers(1, 12))
def test_placement_is_a_function_of_its_arguments(costs, ranks):
    assert place_layers(costs, ranks) == place_layers(tuple(costs), ranks)


def test_one_layer_a_rank():
    assert place_layers([5.0, 1.0, 1.0], 3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert place_layers([5.0], 1) == [range(0, 1)]


def test_ties_give_later_ranks_more():
    assert place_layers([1.0] * 5, 2) in ([range(0, 2), range(2, 5)], [range(0, 3), range(3, 5)])
    assert place_layers([4, 1, 1, 2], 2) == [range(0, 1), range(1, 4)]


def test_the_owner_of_a_missing_layer_is_an_error():
    with pytest.raises(StopIteration):
        owner_of([range(0, 2)], 2)


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
def test_costs_of_layers(depth):
    widths = [50, *[8] * (depth - 1), 4]
    costs = layer_costs(100, widths, 123.0)
    assert len(costs) == depth
    assert min(costs) > 0
    if depth > 1:
        assert costs[0] == 123.0
    assert len(set(costs[1:-1])) <= 1  # equal layers cost the same
    wider = layer_costs(100, [50, *[16] * (depth - 1), 4], 123.0)
    assert all(b >= a for a, b in zip(costs, wider))
