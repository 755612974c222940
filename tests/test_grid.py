"""Layer groups x node shards, with a thread for each rank: every grid finds what one process does, to rounding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_state import state_of
from mpi_transport import check_transport
from thread_transport import run_ranks

from pdadmm.admm.first_layer import FIRST_LAYERS, GramFirst
from pdadmm.admm.label_start import INITIAL
from pdadmm.admm.network import Network
from pdadmm.admm.problem import Problem, scores, tally
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.shard import Shard, deal
from pdadmm.admm.solver import ADMMSolver
from pdadmm.errors import DivergenceError, InputError
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.rank_grid import RankGrid, check_grid, choose_grid, grid_name, grids_of, numbers_of_moments
from pdadmm.parallel.transport import LocalTransport

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
pytestmark = pytest.mark.usefixtures("one_thread")
STACKED = ("W", "b")  # one for all shards; other arrays have a row for each node


def make_problem(seed: int, V: int, others: int, n0: int, classes: int, dtype: torch.dtype = torch.float64) -> Problem:
    """Two noisy directions for each class; ``others`` nodes, half of them for validation."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=V + others)
    X = random.normal(size=(classes, n0))[y] + random.normal(size=(V + others, n0))
    X -= X[:V].mean(0)
    val = V + others // 2
    parts = {"train": slice(0, V), "val": slice(V, val), "test": slice(val, V + others)}
    return Problem(torch.from_numpy(X).to(dtype), torch.from_numpy(y), n0, classes, parts)


def train(problem: Problem, grid: str, **parameters):
    """Train on a grid; return the history, the final state of all layers together, and each rank's ledger."""
    groups, shards = map(int, grid.split("x"))
    given = ADMMSettings(**{"dtype": "float64", "grid": grid} | parameters).checked()
    states: dict[tuple[int, int], dict] = {}

    def work(transport):
        own = copy.copy(problem)
        own.X = problem.X.clone() if transport.rank == 0 else None
        solver = ADMMSolver(own, given, transport).run()
        if shards > 1:
            assert own.X is None
        return solver.history, solver.best_weights(), transport.ledger

    finish = Network.finish

    def collecting(network):
        finish(network)
        rows = network.shard.rows
        told = f", nodes {rows.start + 1} to {rows.stop} of {problem.nodes}" if shards > 1 and network.active else ""
        assert network.describe().partition(",")[1:] == told.partition(",")[1:]
        states[network.transport.rank, network.shard.group.rank] = state_of(network)  # the last stage's stays

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "finish", collecting)
        results = [work(LocalTransport())] if groups * shards == 1 else run_ranks(groups * shards, work)
    assert all(history == results[0][0] for history, _, _ in results)
    return results, join(states, groups, shards)


def join(states: dict, groups: int, shards: int) -> dict[str, np.ndarray]:
    """Put the shards' rows together; W and b are the same bits on all of them."""
    found = {}
    for group in range(groups):
        parts = [states[group, shard] for shard in range(shards)]
        for name in parts[0]:
            arrays = [part[name] for part in parts]
            if name.rpartition(".")[2] in STACKED:
                assert len({array.tobytes() for array in arrays}) == 1, name
                found[name] = arrays[0]
            else:
                found[name] = np.concatenate(arrays)
    return found


def assert_close(found: dict, expected: dict, tolerance: float, nu: float = 0.3) -> None:
    """Compare states; u is nu times a small difference of q and f(z), b and r of z and p W^T."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        layer = name.partition(".")[0]
        beside = {"u": name[:-1] + "q", "b": layer + ".z", "r": layer + ".z"}.get(name[-1], name)
        size = np.abs(expected[beside]).max() * (nu if name[-1] == "u" else 1.0)
        assert array.shape == found[name].shape
        gap = np.abs(array - found[name]).max(initial=0.0)
        size += 1e-6  # a W that dies out is what rounding leaves of 0
        assert gap <= tolerance * size, f"{name} differs by {gap:.3g} beside {size:.3g}"


def assert_both_sides_agree(state: dict) -> None:
    for name, array in state.items():
        layer, side, *rest = name.split(".")
        if side == "above":
            other = state[f"{int(layer) + 1}.below.{rest[0]}"]
            assert array.tobytes() == other.tobytes(), name


# The same iterations


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    shards=st.integers(2, 3),
    more_layers=st.integers(0, 2),
    V=st.integers(3, 24),
    others=st.integers(0, 9),
    n0=st.integers(1, 12),
    hidden=st.integers(1, 6),
    form=st.sampled_from(["exact", "gradient"]),
    first_layer=st.sampled_from(["auto", *FIRST_LAYERS]),
    initial=st.sampled_from(INITIAL),
    activation=st.sampled_from(["relu", "leaky_relu"]),
    loss=st.sampled_from(["cross_entropy", "squared_error"]),
    mu=st.sampled_from([0.0, 0.1]),
    acceleration=st.sampled_from(["none", "all-stages"]),
)
@SLOW
def test_every_grid_finds_what_one_process_does(seed, groups, shards, more_layers, V, others, n0, **more):
    layers = groups + more_layers
    problem = make_problem(seed, V, others, n0, 3)
    more |= {"layers": layers, "stages": (layers,), "iterations": 4, "seed": seed % 99}
    (one, *_), expected = train(problem, "1x1", **more)
    (first, *rest), found = train(problem, f"{groups}x{shards}", **more)
    assert_close(found, expected, 1e-7)
    assert_both_sides_agree(found)
    for ours, theirs in zip(one[0], first[0], strict=True):
        for key in ("objective", "lagrangian", "residual_linear", "residual_activation", "q_squared"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-7, abs=1e-12), key
        assert theirs.get("val_loss", 0.0) == pytest.approx(ours.get("val_loss", 0.0), rel=1e-7)
    assert not any(set(weights) & set(first[1]) for _, weights, _ in rest)  # one rank tells of a layer


@pytest.mark.parametrize("grid", ["1x2", "2x2", "3x2", "2x3"])
@pytest.mark.parametrize("more", [{}, {"activation": "leaky_relu"}, {"rho": 0.01, "rho_schedule": "stall"}], ids=str)
def test_growth_and_idle_groups(grid, more):
    """Stages of 2, 3 and 5 layers: a third group waits in the first."""
    problem = make_problem(1, 50, 40, 7, 3)
    more = {"layers": 5, "stages": (2, 3, 5), "hidden": 8, "iterations": 5} | more
    (one, *_), expected = train(problem, "1x1", **more)
    (first, *_), found = train(problem, grid, **more)
    assert_close(found, expected, 1e-9)
    for ours, theirs in zip(one[0], first[0], strict=True):
        assert [ours[key] for key in ("val_accuracy", "test_accuracy")] == [
            theirs[key] for key in ("val_accuracy", "test_accuracy")
        ]


@pytest.mark.parametrize("grid", ["1x3", "3x2"])
@pytest.mark.parametrize(
    "quantizer",
    [
        {"bits": 8, "coding": "value", "delta": "linspace", "delta_low": -0.5, "delta_high": 3.0},
        {"bits": 4, "coding": "value", "delta": "linspace", "delta_low": -0.5, "delta_high": 3.0}
        | {"rounding": "stochastic"},
        {"bits": 8, "coding": "constrained", "q_bits": 32},
    ],
    ids=["nearest", "stochastic", "constrained"],
)
def test_fixed_grids_of_codes_give_what_one_process_does(grid, quantizer):
    """Noise belongs to a node, whatever shard it is in: else stochastic codes would differ."""
    problem = make_problem(3, 30, 10, 6, 3)
    more = {"layers": 3, "stages": (3,), "hidden": 8, "iterations": 6, "first_scale": 1.0}
    more["quantizer"] = Quantizer(**quantizer)
    _, expected = train(problem, "1x1", **more)
    _, found = train(problem, grid, **more)
    assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("quantizer", [{"bits": 4}, {"bits": 2, "rounding": "stochastic"}], ids=str)
def test_scales_of_a_shard_leave_both_sides_equal(quantizer):
    problem = make_problem(4, 60, 20, 6, 3)
    more = {"layers": 3, "stages": (3,), "hidden": 8, "iterations": 20, "acceleration": "all-stages"}
    (one, *_), _ = train(problem, "1x1", **more)
    (first, *_), found = train(problem, "3x2", quantizer=Quantizer(**quantizer), **more)
    assert_both_sides_agree(found)
    assert first[0][-1]["objective"] < 1.5 * one[0][-1]["objective"]


def test_divergence_is_told_alike_on_every_rank():
    problem = make_problem(5, 30, 0, 6, 3)
    problem.X *= 1e200
    more = {"layers": 3, "hidden": 4, "iterations": 3, "first_layer": "gradient"}
    with pytest.raises(DivergenceError) as one:
        train(problem, "1x1", **more)
    for grid in ("1x2", "2x2"):
        with pytest.raises(DivergenceError) as many:
            train(problem, grid, **more)
        assert str(many.value) == str(one.value)


def test_a_grid_backs_off_together():
    problem = make_problem(7, 30, 10, 5, 3, torch.float32)
    more = {"layers": 4, "hidden": 5, "iterations": 6, "form": "exact", "dtype": "float32"}
    more |= {"nu": 28.0, "rho": 1e-10, "on_divergence": "backoff"}
    for grid in ("1x1", "2x2"):
        (first, *_), found = train(problem, grid, **more)
        assert first[0][-1]["rho"] > 1e-9  # it did
        assert np.isfinite(first[0][-1]["lagrangian"])
        assert_both_sides_agree(found)


def test_moments_are_counted_as_the_docs_say():
    """An iteration more: 2 (N-1)/N numbers for each one of the moments, whatever V."""
    problem, widths = make_problem(6, 40, 0, 9, 3), [9, 8, 8, 8, 3]
    more = {"layers": 4, "stages": (4,), "hidden": 8, "acceleration": "none", "form": "exact", "first_layer": "gram"}
    sent = []
    for iterations in (2, 3):
        results, _ = train(problem, "2x3", iterations=iterations, **more)
        sent.append([ledger.sent["moments"] for _, _, ledger in results])
    first, *others = (ring_bytes(8 * numbers, 3) for numbers in numbers_of_moments(widths))
    assert first + sum(others) == sum(np.subtract(*sent[::-1])[::3])
    assert len(set(np.subtract(*sent[::-1]))) == 2  # the same on all shards of a group


# The parts


def test_ranks_as_threads_keep_a_transports_word():
    run_ranks(3, check_transport)
    run_ranks(4, lambda transport: check_transport(transport.split(transport.rank % 2)))


@given(V=st.integers(1, 12), others=st.integers(0, 9), shards=st.integers(1, 4), seed=st.integers(0, 99))
@SLOW
def test_shards_hold_all_rows_once_and_add_up(V, others, shards, seed):
    shards = min(shards, V)
    whole = make_problem(seed, V, others, 3, 3)
    own, logits = whole.X[:V], torch.randn(V + others, 3, dtype=torch.float64)

    def work(transport):
        shard = Shard(transport, V)
        X = shard.cut(own)
        state = {"W": own[:1], "best.b": own[0], "z": X, "best.a": 2 * X, "t": 1.5}
        joined = shard.joined(state)
        assert (joined is not None) == shard.leads
        state = shard.part(transport.bcast(joined))
        assert torch.equal(state["z"], X)
        assert torch.equal(state["best.a"], 2 * X)
        assert torch.equal(shard.whole(X), own)
        assert torch.equal(state["W"], own[:1])
        torch.testing.assert_close(shard.mean(X), own.mean(0))
        a, b = shard.totals((X.sum(0), X.mT @ X))
        torch.testing.assert_close(a, own.sum(0))
        torch.testing.assert_close(b, own.mT @ own)
        assert shard.sums(float(len(X)), 1.0) == [V, shards]
        given = copy.copy(whole)
        given.X = whole.X.clone() if shard.leads else None
        return deal(given, shard, True, torch.float64), shard

    results = [work(LocalTransport())] if shards == 1 else run_ranks(shards, work)
    assert torch.equal(torch.cat([part.X[: part.nodes] for part, _ in results]), whole.X[:V])
    assert torch.equal(torch.cat([part.X[part.nodes :] for part, _ in results]), whole.X[V:])
    assert torch.equal(torch.cat([part.y[: part.nodes] for part, _ in results]), whole.y[:V])
    assert torch.equal(torch.cat([part.y[part.nodes :] for part, _ in results]), whole.y[V:])
    tallies, begin = [], V
    for part, shard in results:
        end = begin + len(part.y) - part.nodes
        tallies.append(tally(torch.cat([shard.cut(logits[:V]), logits[begin:end]]), part.y, part.parts))
        begin = end
    counts = {name: run.stop - run.start for name, run in whole.parts.items()}
    assert scores(tallies, counts) == pytest.approx(scores([tally(logits, whole.y, whole.parts)], counts))


# Which grid


@given(ranks=st.integers(1, 64), layers=st.integers(1, 12), nodes=st.integers(1, 10**6), hidden=st.integers(1, 512))
def test_auto_takes_a_grid_that_fits(ranks, layers, nodes, hidden):
    widths = [50, *[hidden] * (layers - 1), 5]
    grids = grids_of(ranks, layers, nodes)
    if not grids:
        with pytest.raises(InputError, match="ranks = "):
            choose_grid("auto", ranks, nodes, widths, 1e9)
        return
    grid = choose_grid("auto", ranks, nodes, widths, 1e9)
    assert grid in grids
    assert grid.groups * grid.shards == ranks
    assert grid.groups <= layers
    assert grid.shards <= nodes
    if ranks <= layers:
        assert grid == RankGrid(ranks, 1)
    assert choose_grid(str(grids[-1]), ranks, nodes, widths, 1e9) == grids[-1]


def test_auto_weighs_work_against_sums():
    """Many nodes: equal shares of all layers. Few: sums cost more than products, so as few shards as can be."""
    widths = [256, *[256] * 9, 10]
    names = [str(choose_grid("auto", 12, V, widths, GramFirst.cost(V, 256, 256))) for V in (100, 2000, 10**6)]
    assert names == ["6x2", "4x3", "1x12"]


@pytest.mark.parametrize("text", ["2x3", "1x1", "auto", "012x3"])
def test_names_of_grids(text):
    assert grid_name.accept(text) == ("12x3" if text == "012x3" else text)


@pytest.mark.parametrize("text", ["", "x", "2", "2x", "2x0", "-1x2", "2x3x4", "2 by 3", "1.5x2", None, 6])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(InputError, match=r"grid = .*: must be auto, or layer groups x node shards such as 2x3"):
        ADMMSettings(grid=text).checked()


def test_a_grid_that_does_not_fit_is_refused_with_those_that_do():
    check_grid("3x4", 12, 10)
    check_grid("auto", 12, 10, 2)
    with pytest.raises(InputError, match="grid = 12x1: must be auto or one of 6x2, 4x3, 3x4, 2x6, 1x12 on 12 ranks"):
        check_grid("12x1", 12, 10)
    with pytest.raises(InputError, match="grid = 3x4: must be auto or 6x2 on 12 ranks with 10 layers and 2 training"):
        check_grid("3x4", 12, 10, 2)
    with pytest.raises(InputError, match=r"ranks = 7: must be a number that a grid .* with 2 layers and 3 training"):
        check_grid("auto", 7, 2, 3)
