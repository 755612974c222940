"""GIST: groups, blocks, the plain form on whole matrices, slices, Adam, bytes, and graphs that are odd."""

from __future__ import annotations

import doctest
import importlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_gnn import graph_of

from pdadmm import GCN, GIST, Graph, InputError, csbm
from pdadmm.augment import Augmenter
from pdadmm.gist.adam import adam_step_
from pdadmm.gist.groups import columns_of, deal_groups, matrices
from pdadmm.gist.homes import Homes
from pdadmm.gist.slices import infer_in_slices, layer_of
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, forward, infer, operator_of
from pdadmm.parallel.transport import LocalTransport
from pdadmm.sampling.network import Features

MODULES = ("adam", "estimator", "groups")
WIDTHS = st.lists(st.integers(5, 12), min_size=1, max_size=3)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(f"pdadmm.gist.{name}"))
    assert found.failed == 0


# Groups


@settings(max_examples=60, deadline=None)
@given(WIDTHS, st.integers(1, 5), st.integers(0, 3), st.integers(1, 4))
def test_groups_deal_every_hidden_dimension_once(hidden, parts, seed, number):
    widths = [4, *hidden, 3]
    groups = deal_groups(seed, number, widths, parts)
    assert len(groups) == len(hidden)
    for width, layer in zip(hidden, groups):
        np.testing.assert_array_equal(np.sort(np.concatenate(layer)), np.arange(width))
        sizes = [len(group) for group in layer]
        assert max(sizes) - min(sizes) <= 1
        assert all((np.diff(group) > 0).all() for group in layer)


def test_groups_are_drawn_anew_for_each_seed_round_and_layer():
    one = deal_groups(0, 1, [4, 30, 30, 3], 2)
    others = [deal_groups(1, 1, [4, 30, 30, 3], 2), deal_groups(0, 2, [4, 30, 30, 3], 2)]
    assert not np.array_equal(one[0][0], one[1][0])
    assert not any(np.array_equal(one[0][0], other[0][0]) for other in others)
    assert np.array_equal(one[1][1], deal_groups(0, 1, [4, 30, 30, 3], 2)[1][1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("d_0", "d", "C", "L", "m"), [(20, 12, 4, 2, 3), (7, 8, 2, 3, 4), (9, 6, 3, 4, 1)])
def test_a_narrow_network_has_the_size_of_the_paper(architecture, d_0, d, C, L, m):
    """Words of a worker: c (d_0 d / m + (L - 2) (d / m)^2 + C d / m), the hidden biases and the output's."""
    c, widths = ARCHITECTURES[architecture].copies, [d_0, *[d] * (L - 1), C]
    groups, words = deal_groups(0, 1, widths, m), C
    for matrix in matrices(architecture, widths):
        columns = columns_of(matrix, groups, 0)
        words += len(groups[matrix.rows - 1][0]) * (matrix.shape[1] if columns is None else len(columns))
    assert words == c * (d_0 * d // m + (L - 2) * (d // m) ** 2 + C * d // m) + (L - 1) * d // m + C


def homes_of(architecture: str, widths: list[int], parts: int, seed: int = 0) -> Homes:
    homes = Homes(architecture, widths, parts, torch.float64, LocalTransport())
    homes.start(seed)
    draw = torch.Generator().manual_seed(seed)
    for state in homes.state.values():
        for block in state:
            block += torch.randn(block.shape, generator=draw, dtype=torch.float64)
    return homes


def whole(homes: Homes) -> list[torch.Tensor]:
    """Every matrix with all its planes, put together from the homes."""
    return [torch.cat([homes.state[i][k] for i in range(homes.parts)], dim=1) for k in range(len(homes.matrices))]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(ARCHITECTURES)), WIDTHS, st.integers(1, 5), st.integers(0, 9))
def test_blocks_are_rows_and_columns_of_the_wide_matrices(architecture, hidden, parts, seed):
    """Worker i has W[group_l, group_{l-1}], for GraphSAGE the group shifted by d too, and what it changes goes home."""
    widths = [4, *hidden, 3]
    homes, groups = homes_of(architecture, widths, parts, seed), deal_groups(seed, 1, widths, parts)
    before = [matrix.clone() for matrix in whole(homes)]
    blocks = homes.scatter(groups)
    expected = [matrix.clone() for matrix in before]
    for worker in range(parts):
        for k, block in enumerate(blocks[worker]):
            rows = torch.from_numpy(groups[min(k, len(hidden) - 1)][worker])
            columns = torch.arange(before[k].shape[2])
            if 0 < k < len(hidden):
                group, d = torch.from_numpy(groups[k - 1][worker]), widths[k]
                shifted = [group, group + d] if architecture == "sage" else [group]
                columns = torch.cat([*shifted, columns[-1:]])
            assert torch.equal(block, before[k][:, rows][:, :, columns])
            change = torch.arange(block.numel(), dtype=torch.float64).view(block.shape) + worker
            block += change
            expected[k][:, rows[:, None], columns] += change
    homes.gather(groups, blocks)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole(homes), expected))


def test_evaluation_brings_the_weights_home_and_nothing_else():
    homes, widths = homes_of("gcn", [4, 8, 8, 3], 2), [4, 8, 8, 3]
    groups, before = deal_groups(0, 1, widths, 2), whole(homes)
    blocks = homes.scatter(groups)
    for worker in blocks.values():
        for block in worker:
            block += 1.0
    homes.gather(groups, blocks, "evaluation")
    for ours, theirs in zip(whole(homes), before):
        assert torch.equal(ours[1:], theirs[1:])
    assert torch.equal(whole(homes)[0][0], before[0][0] + 1.0)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_start_weights_do_not_depend_on_the_parts(parts):
    one, other = (Homes("sage", [4, 150, 70, 3], m, torch.float32, LocalTransport()) for m in (1, parts))
    one.start(5)
    other.start(5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole(one), whole(other)))
    W = whole(one)[1][0, :, :-1]
    assert float(W.abs().max()) <= (6 / 220) ** 0.5
    assert float(W.std()) == pytest.approx((2 / 220) ** 0.5, rel=0.05)
    assert not whole(one)[1][0, :, -1].any()


# Adam


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.floats(1e-3, 0.5), st.floats(0, 0.1), st.integers(3, 4))
def test_adam_is_that_of_torch(steps, learning_rate, weight_decay, planes):
    draw = torch.Generator().manual_seed(steps)
    weight = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    block = torch.zeros(planes, 4, 3, dtype=torch.float64)
    block[0] = weight
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], learning_rate, weight_decay=weight_decay)
    for step in range(1, steps + 1):
        weight.grad = torch.randn(4, 3, generator=draw, dtype=torch.float64)
        adam_step_(block, weight.grad, learning_rate, weight_decay, step)
        optimizer.step()
    torch.testing.assert_close(block[0], weight.detach(), rtol=1e-12, atol=1e-12)
    assert planes == 3 or bool((block[3] == steps).all())


# The whole of it


def plain_gist(graph: Graph, solver: GIST) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """GIST on whole matrices without dropout: each worker's slices by indexing, an Adam state and a count a number."""
    s, widths = solver, [graph.num_features, *[solver.hidden] * (solver.layers - 1), graph.num_classes]
    copies, d = ARCHITECTURES[s.architecture].copies, s.hidden
    start = Homes(s.architecture, widths, 1, torch.float64, LocalTransport())
    start.start(s.seed)
    W, b = map(list, zip(*layers_of(start)))
    state = {k: torch.zeros(3, *W[k].shape, dtype=torch.float64) for k in range(s.layers)}
    state |= {(k, "b"): torch.zeros(3, len(b[k]), dtype=torch.float64) for k in range(s.layers)}
    S = Aggregation(operator_of(graph, s.architecture, "float64"))
    X = Augmenter(hops=0, scaling=s.scaling, dtype="float64").fit_transform(graph, graph.splits["train"])
    X, train = torch.from_numpy(X), torch.from_numpy(graph.splits["train"])
    y = torch.from_numpy(graph.labels)[train]
    every = [torch.arange(n) for n in widths]

    def step(values, gradient, moments):
        gradient = gradient + s.weight_decay * values
        m, v, t = moments
        m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
        values = values - s.learning_rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        return values, torch.stack([m, v, t])

    for done in range(s.iterations):
        if done % s.local_steps == 0:
            number = done // s.local_steps + 1
            groups = deal_groups(s.seed, number, widths, s.parts)
            outputs = [(b[-1].clone(), state[s.layers - 1, "b"].clone()) for _ in range(s.parts)]
        for i in range(s.parts):
            own = [every[0], *(torch.from_numpy(layer[i]) for layer in groups), every[-1]]
            cells = [
                (n[:, None], torch.cat([m + copy * (d if k else widths[0]) for copy in range(copies)]))
                for k, (m, n) in enumerate(itertools.pairwise(own))
            ]
            b[-1], state[s.layers - 1, "b"] = outputs[i]
            leaves = [W[k][cell].clone().requires_grad_() for k, cell in enumerate(cells)]
            biases = [b[k][n].clone().requires_grad_() for k, n in enumerate(own[1:])]
            logits = forward(s.architecture, [S] * s.layers, X, list(zip(leaves, biases)), s.activation)
            loss = torch.nn.functional.cross_entropy(logits[train], y)
            gradients = torch.autograd.grad(loss, [*leaves, *biases])
            for k, cell in enumerate(cells):
                W[k][cell], state[k][:, *cell] = step(W[k][cell], gradients[k], state[k][:, *cell])
                n = own[k + 1]
                b[k][n], state[k, "b"][:, n] = step(b[k][n], gradients[s.layers + k], state[k, "b"][:, n])
            outputs[i] = b[-1].clone(), state[s.layers - 1, "b"].clone()
        # the copies stay apart until the round ends; what is here meanwhile is what an evaluation sees
        b[-1] = torch.stack([bias for bias, _ in outputs]).mean(0)
        state[s.layers - 1, "b"] = torch.stack([moments for _, moments in outputs]).mean(0)
    return list(zip(W, b))


def layers_of(homes: Homes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    last = len(homes.matrices) - 1
    return [
        tuple(part.clone() for part in layer_of(matrix, values[0], homes.output[0] if k == last else None))
        for k, (matrix, values) in enumerate(zip(homes.matrices, whole(homes)))
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("layers", "parts", "local_steps"), [(2, 2, 3), (3, 3, 2), (4, 2, 1), (2, 1, 4), (3, 2, 30)])
def test_it_is_the_plain_form(architecture, layers, parts, local_steps):
    """Weights after some rounds, the last cut short where the steps do not fill it."""
    solver = GIST(
        architecture=architecture, layers=layers, parts=parts, local_steps=local_steps, hidden=9, iterations=7,
        dropout=0.0, dtype="float64", eval_every=100, learning_rate=0.03,
    )  # fmt: skip
    graph = graph_of("csbm")
    for ours, theirs in zip(solver.fit(graph).model_.weights(), plain_gist(graph, solver)):
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one.detach(), other, rtol=1e-9, atol=1e-11)


def test_one_part_is_the_full_graph_network():
    """m = 1 takes the steps of the full-graph solver, from other start weights: about the same losses."""
    graph = csbm(200, num_classes=3, num_features=8, seed=1)
    given_ = {"hidden": 16, "iterations": 80, "dropout": 0.0, "dtype": "float64"}
    wide, full = GIST(parts=1, **given_).fit(graph), GCN(**given_).fit(graph)
    assert wide.history_[-1]["objective"] == pytest.approx(full.history_[-1]["objective"], rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(ARCHITECTURES)), WIDTHS, st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_inference_in_slices_is_inference(architecture, hidden, parts, seed, sparse):
    graph = graph_of("odd")
    X = graph.features.astype(np.float64) * ((np.arange(4) == 1) if sparse else 1.0)
    homes = homes_of(architecture, [4, *hidden, 3], parts, seed)
    S, own = Aggregation(operator_of(graph, architecture, "float64")), homes.state.items()
    weights = {home: [block[0] for block in state] for home, state in own}
    logits = infer_in_slices(homes, weights, homes.output[0] + 1.0, S, Features(X), "leaky_relu")
    layers = layers_of(homes)
    layers[-1] = layers[-1][0], layers[-1][1] + 1.0
    expected = infer(architecture, S, torch.from_numpy(X), layers, "leaky_relu")
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_evaluation_in_the_midst_of_a_round_changes_nothing():
    graph = csbm(100, num_classes=3, num_features=6, seed=1)
    given_ = {"parts": 2, "local_steps": 4, "iterations": 10, "hidden": 8, "layers": 3}
    often, never = GIST(eval_every=1, **given_).fit(graph), GIST(eval_every=100, **given_).fit(graph)
    assert often.history_.column("objective") == never.history_.column("objective")
    assert often.summary_["rounds"] == 3


@pytest.mark.parametrize("name", ["csbm", "odd", "tiny"])
def test_odd_graphs_and_clusters_without_training_nodes(name):
    graph = graph_of(name)
    trained = GIST(parts=3, hidden=6, clusters=8, clusters_per_batch=1, iterations=5, layers=3).fit(graph)
    assert np.isfinite(trained.predict_proba(graph)).all()
    assert all(np.isfinite(trained.history_.column("objective")))


def test_more_parts_than_hidden_neurons_is_an_error():
    with pytest.raises(InputError, match="parts = 9: must be at most 8, the hidden neurons"):
        GIST(parts=9, hidden=8).fit(csbm(30, num_classes=2, num_features=3))
    with pytest.raises(InputError, match="layers = 1: must be a whole number of at least 2"):
        GIST(layers=1).fit(csbm(30, num_classes=2, num_features=3))


def test_ultra_wide_is_the_same_network_in_slices(tmp_path):
    graph = graph_of("csbm")
    given_ = {"parts": 3, "hidden": 7, "layers": 3, "iterations": 6}
    wide, sliced = GIST(**given_).fit(graph), GIST(ultra_wide=True, **given_).fit(graph)
    np.testing.assert_allclose(sliced.predict_proba(graph), wide.predict_proba(graph), rtol=1e-4, atol=1e-6)
    assert sliced.history_.column("objective") == wide.history_.column("objective")
    assert sliced.score(graph) == pytest.approx(sliced.summary_["test_accuracy"])
    assert {name.partition(".")[0] for name in sliced.model_.state_dict()} == {"0", "1", "2", "output"}
    with pytest.raises(InputError, match=r"save = .*must be left out with ultra_wide"):
        sliced.save(tmp_path / "m")
