"""Where a run starts, which stages are extrapolated, and how a network grows."""

from __future__ import annotations

import pytest
import torch
from admm_small import Recorder, fit, small_graph

from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.growth import grow, random_layer
from pdadmm.data import Graph
from pdadmm.models.gamlp import GAMLP
from pdadmm.parallel.placement import place_layers
from pdadmm.parallel.transport import LocalTransport


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# Start and acceleration


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("scaling", ["hop-std", "none"])
def test_first_scale_is_the_deviation_that_z_1_starts_with(graph, monkeypatch, scale, scaling):
    seen = Recorder(monkeypatch)
    fit(graph, layers=2, hidden=800, iterations=1, first_scale=scale, scaling=scaling)
    assert seen.before[0]["0.z"].std() == pytest.approx(scale, rel=0.1)


def test_acceleration_names_the_stages_that_are_extrapolated(graph):
    histories = {}
    for name, stages in {"none": (), "first-stage": (0,), "all-stages": (0, 1)}.items():
        trained = fit(graph, acceleration=name, iterations=6)
        histories[name] = [
            [row["objective"] for row in trained.history_ if row["stage"] == stage] for stage in (0, 1)
        ]
        assert [bool(ACCELERATIONS[name](stage)) for stage in (0, 1)] == [stage in stages for stage in (0, 1)]
    plain, first, every = histories["none"], histories["first-stage"], histories["all-stages"]
    assert plain[0][0] == first[0][0]  # the first step has no past to extrapolate from
    assert plain[0] != first[0] == every[0]
    assert first[1][0] == every[1][0]
    assert first[1] != every[1]
    assert fit(graph, iterations=6).history_.column("objective") == [*first[0], *first[1]]  # the default


def test_one_layer_has_nothing_to_extrapolate(graph):
    objectives = [fit(graph, layers=1, acceleration=name).history_.column("objective") for name in ACCELERATIONS]
    assert objectives[0] == objectives[1] == objectives[2]


# Growth


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_growth_keeps_the_function_on_all_labelled_nodes(graph, monkeypatch, activation, dtype):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 3, 6), layers=6, activation=activation, dtype=dtype)
    rows = sum(len(part) for part in graph.splits.values())
    assert all(len(logits) == rows for logits in seen.logits)
    starts = [0, 5, 10]  # one evaluation before each stage's four iterations
    for number in (1, 2):
        best = trained.stages_[number - 1]["best_iteration"]
        before = seen.logits[best - 1 + number]  # number evaluations belong to starts
        after = seen.logits[starts[number]]
        tolerance = 1e-11 if dtype == "float64" else 1e-4
        torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance * float(1 + before.abs().max()))
        for part in ("train", "val", "test"):
            same = trained.stages_[number - 1][f"{part}_accuracy"]
            assert trained.stages_[number][f"start_{part}_accuracy"] == pytest.approx(same, abs=0.02)


def test_relu_grows_without_changing_a_bit(graph, monkeypatch):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 4), first_layer="kernel")
    assert torch.equal(seen.logits[5], seen.logits[trained.stages_[0]["best_iteration"]])


@pytest.mark.parametrize(("old_depth", "new_depth"), [(2, 3), (2, 10), (5, 10), (4, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_grow_puts_identity_layers_before_the_last(old_depth, new_depth, shifted):
    hidden, widths = 3, [4, *[3] * (new_depth - 1), 2]
    outputs = {l: hidden if l < old_depth - 1 else 2 for l in range(1, old_depth)}
    old = {l: random_layer(1, l, n, hidden, 1.0, torch.float64) for l, n in outputs.items()}
    kept = {l: (W.clone(), b.clone()) for l, (W, b) in old.items()}
    placements = [place_layers([1.0] * depth, 1) for depth in (old_depth, new_depth)]
    shift = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64) if shifted else None
    new = grow(old, *placements, widths, shift, torch.float64, LocalTransport())
    assert sorted(new) == list(range(1, new_depth))
    for l in range(1, old_depth - 1):
        assert torch.equal(new[l][0], kept[l][0])
    for l in range(old_depth - 1, new_depth - 1):
        assert torch.equal(new[l][0], torch.eye(hidden, dtype=torch.float64))
    assert torch.equal(new[new_depth - 1][0], kept[old_depth - 1][0])
    h = torch.rand(6, hidden, dtype=torch.float64)  # not negative: every activation is the identity there
    first = torch.eye(hidden, dtype=torch.float64), torch.zeros(hidden, dtype=torch.float64)
    models = [GAMLP.from_weights([first, *(w[l] for l in sorted(w))], "relu") for w in (kept, new)]
    with torch.no_grad():
        torch.testing.assert_close(models[1](h), models[0](h))


def test_random_layers_depend_on_seed_and_layer_alone():
    W, b = random_layer(1, 2, 4, 3, 0.5, torch.float64)
    assert torch.equal(W, random_layer(1, 2, 4, 3, 0.5, torch.float64)[0])
    assert not b.any()
    assert not torch.equal(W, random_layer(1, 3, 4, 3, 0.5, torch.float64)[0])
    assert not torch.equal(W, random_layer(2, 2, 4, 3, 0.5, torch.float64)[0])
    assert torch.equal(W.float(), random_layer(1, 2, 4, 3, 0.5, torch.float32)[0])
    big, _ = random_layer(2**70, 0, 100, 100, 0.5, torch.float64)
    assert float(big.std()) == pytest.approx(0.5, rel=0.05)


def test_with_the_identity_the_network_is_linear(graph):
    trained = fit(graph, activation="identity", dtype="float64")
    X = torch.from_numpy(trained.augmenter_.transform(graph))
    model = trained.model_
    with torch.no_grad():
        a, b = model(X[:30]), model(X[30:60])
        torch.testing.assert_close(model(0.3 * X[:30] + 0.7 * X[30:60]), 0.3 * a + 0.7 * b)
        relu = GAMLP.from_weights([(layer.weight, layer.bias) for layer in model.layers], "relu")
        assert not torch.allclose(relu(X), model(X))
