"""Equal hidden layers updated together: the numbers of layer after layer, to rounding, whatever else is going on."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from checkpoint_small import GRAPH, cut_off, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_state import state_of
from test_grid import make_problem
from thread_transport import run_ranks

from pdadmm import PDADMMG, InputError, Quantizer
from pdadmm.admm import builder as builder_module
from pdadmm.admm import stack as stack_module
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.layer import FirstLayer, HiddenLayer
from pdadmm.admm.network import Network
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.admm.stack import SETTING, Stack, stacks_on
from pdadmm.admm.updates import Moments, assemble_W
from pdadmm.parallel.transport import LocalTransport

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def stacking(monkeypatch, on: bool = True) -> None:
    """Let networks stack their layers on the CPU."""
    monkeypatch.setattr(builder_module, "stacks_on", lambda device, transport: on)


def solver_of(problem, transport=None, **parameters) -> ADMMSolver:
    given = ADMMSettings(**{"dtype": "float64", "stages": (parameters["layers"],), "iterations": 1} | parameters)
    own = copy.copy(problem)
    own.X = None if transport is not None and transport.rank else problem.X.clone()
    return ADMMSolver(own, given.checked(), transport or LocalTransport())


def network_of(problem, transport=None, **parameters) -> Network:
    solver = solver_of(problem, transport, **{"acceleration": "none"} | parameters)
    return solver.builder.begin(0, solver.settings.layers)


def units_of(problem, transport=None, **parameters) -> list[str]:
    """Say what a network updates at once: each layer's number, and the first and the last of a stack."""
    network = network_of(problem, transport, **parameters)
    return [
        f"{unit.index + 1}-{unit.index + len(unit.layers)}" if isinstance(unit, Stack) else str(unit.index + 1)
        for unit in network.units
    ]


# The same numbers


@settings(max_examples=40)
@given(
    V=st.integers(1, 9),
    n=st.integers(1, 7),
    layers=st.integers(4, 7),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    scalars=st.fixed_dictionaries(
        {name: st.sampled_from((0.0, 0.3)) for name in ("mu", "kappa_identity", "prox_z")}
        # without a ridge the W of few nodes is a matter of rounding
        | {"prox_W": st.sampled_from((0.1, 0.5))}
    ),
    first=st.sampled_from(("gram", "kernel", "cg")),
    seed=st.integers(0, 99),
)
def test_layers_together_are_layers_one_by_one(V, n, layers, activation, scalars, first, seed):
    problem = make_problem(seed, V, 4, 5, 3)
    parameters = {"layers": layers, "hidden": n, "activation": activation, "form": "exact", "first_layer": first}
    states, terms = [], []
    for on in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            stacking(patch, on)
            network = network_of(problem, nu=0.1, rho=0.1, **parameters, **scalars)
            assert on == any(isinstance(unit, Stack) for unit in network.units)
            for _ in range(3):
                network.iterate()
        states.append(state_of(network))
        terms.append([vars(own) for own in network.terms()])
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-7, atol=1e-7, err_msg=name)
    for found, expected in zip(terms[1], terms[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


@settings(max_examples=40)
@given(K=st.integers(1, 4), V=st.integers(1, 9), n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_systems_of_layers_together_are_those_of_each(K, V, n, m, seed):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    p, z, W, target, prox, kappa = draw(K, V, m), draw(K, V, n), draw(K, n, m), draw(n, m), draw(K).abs(), draw(K).abs()
    together = assemble_W(Moments(p.mT @ p, z.mT @ p, p.sum(1), z.sum(1), V), W, 0.1, prox, kappa, target)
    for k in range(K):
        own = assemble_W(Moments.of(p[k], z[k]), W[k], 0.1, float(prox[k]), float(kappa[k]), target)
        for found, expected in zip(together, own, strict=True):
            torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "parameters",
    [
        {"first_layer": "gram"},
        {"first_layer": "kernel", "activation": "leaky_relu"},
        {"rho_schedule": "stall", "mu": 1e-3},
        {"loss": "squared_error", "initial": "labels"},
    ],
    ids=["gram", "kernel", "stall", "labels"],
)
def test_a_training_with_stages_finds_the_same(monkeypatch, parameters):
    problem = make_problem(1, 30, 12, 6, 3)
    results = []
    for on in (False, True):
        stacking(monkeypatch, on)
        solver = solver_of(problem, layers=6, hidden=8, stages=(2, 4, 6), iterations=4, **parameters).run()
        results.append((solver.history, solver.best_weights()))
    for found, expected in zip(*(history for history, _ in results), strict=True):
        assert {**found, "seconds": 0} == pytest.approx({**expected, "seconds": 0}, rel=1e-6, abs=1e-8)
    for layer, pair in results[0][1].items():
        torch.testing.assert_close(results[1][1][layer], pair, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", ["2x1", "1x2", "2x2"])
def test_on_a_grid_the_layers_of_a_rank_are_stacked_between_its_boundaries(monkeypatch, grid):
    problem = make_problem(2, 23, 10, 6, 3)
    groups, shards = map(int, grid.split("x"))
    parameters = {"layers": 10, "hidden": 6, "iterations": 3, "grid": grid}

    def work(transport):
        solver = solver_of(problem, transport, **parameters).run()
        return solver.history, solver.best_weights()

    results = []
    for on in (False, True):
        stacking(monkeypatch, on)
        results.append(run_ranks(groups * shards, work))
    weights = [{layer: pair for _, own in result for layer, pair in own.items()} for result in results]
    for layer, pair in weights[0].items():
        torch.testing.assert_close(weights[1][layer], pair, rtol=1e-7, atol=1e-7)
    for found, expected in zip(results[1][0][0], results[0][0][0], strict=True):
        assert {**found, "seconds": 0} == pytest.approx({**expected, "seconds": 0}, rel=1e-7, abs=1e-9)


# Which layers


def test_layers_of_one_width_are_stacked_where_nothing_forbids_it(monkeypatch):
    stacking(monkeypatch)
    problem = make_problem(3, 20, 4, 5, 3)
    shape = {"layers": 6, "hidden": 7}
    assert units_of(problem, **shape) == ["1", "2-5", "6"]
    assert units_of(problem, layers=4, hidden=7) == ["1", "2-3", "4"]
    one_by_one = ["1", "2", "3", "4", "5", "6"]
    for more in (
        {"form": "gradient"},
        {"acceleration": "all-stages"},
        {"quantizer": Quantizer(bits=4)},
        {"products": "bf16", "dtype": "float32"},
    ):
        dtype = getattr(torch, more.get("dtype", "float64"))
        assert units_of(make_problem(3, 20, 4, 5, 3, dtype), **shape, **more) == one_by_one
    assert units_of(problem, layers=3, hidden=7) == ["1", "2", "3"]
    monkeypatch.setattr(stack_module, "LARGEST", 140)
    assert units_of(problem, **shape) == ["1", "2-5", "6"]
    monkeypatch.setattr(stack_module, "LARGEST", 139)
    assert units_of(problem, **shape) == one_by_one


def test_layers_beside_another_rank_stay_alone(monkeypatch):
    stacking(monkeypatch)
    problem = make_problem(3, 20, 4, 5, 3)
    shape = {"layers": 20, "hidden": 7, "first_layer": "gram"}
    found = run_ranks(3, lambda transport: units_of(problem, transport, **shape, grid="3x1"))
    placed = run_ranks(3, lambda transport: network_of(problem, transport, **shape).layers)
    for units, own in zip(found, placed, strict=True):
        layers = [layer.index + 1 for layer in own]
        first, last = layers[0], layers[-1]
        alone = {1, 20, first, last}
        inner = [layer for layer in layers if layer not in alone]
        assert len(inner) > 1
        stack = f"{inner[0]}-{inner[-1]}"
        assert units == [str(layer) for layer in layers if layer < inner[0]] + [stack] + [
            str(layer) for layer in layers if layer > inner[-1]
        ]


def test_shards_of_unequal_size_decide_alike(monkeypatch):
    stacking(monkeypatch)
    monkeypatch.setattr(stack_module, "LARGEST", 70)  # 11 nodes and 10 of width 7
    problem = make_problem(3, 21, 4, 5, 3)
    shape = {"layers": 5, "hidden": 7, "grid": "1x2", "first_layer": "gram"}
    assert run_ranks(2, lambda transport: units_of(problem, transport, **shape)) == [["1", "2", "3", "4", "5"]] * 2


def test_a_gpu_stacks_unless_a_rank_is_told_not_to(monkeypatch):
    class Three:
        def __init__(self, *others: bool, error: InputError | None = None) -> None:
            self.others, self.error, self.asked = others, error, 0

        def allgather(self, own):
            self.asked += 1
            return [*self.others, own] if isinstance(own, bool) else [self.error, own]

    monkeypatch.delenv(SETTING, raising=False)
    assert stacks_on(GPU, Three(True, True))
    assert not stacks_on(GPU, Three(True, False))
    nobody = Three()
    assert not stacks_on(CPU, nobody)
    assert not nobody.asked
    with pytest.raises(InputError, match="PDADMM_STACKS = no"):
        stacks_on(GPU, Three(True, True, error=InputError(SETTING, "no", "0 or 1")))
    monkeypatch.setenv(SETTING, "0")
    assert not stacks_on(GPU, Three(True, True))
    monkeypatch.setenv(SETTING, "off")
    with pytest.raises(InputError, match="PDADMM_STACKS = off: must be 0 or 1"):
        stacks_on(GPU, Three(True, True))


# What lies where


def test_layers_and_links_are_views_of_the_stack(monkeypatch):
    stacking(monkeypatch)
    network = network_of(make_problem(4, 20, 4, 5, 3), layers=5, hidden=7)
    for _ in range(2):
        network.iterate()
        _, stack, _ = network.units
        inside = {name: getattr(stack, name).untyped_storage().data_ptr() for name in "zrWbpqu"}
        for k, layer in enumerate(stack.layers):
            assert isinstance(layer, HiddenLayer)
            own = {"z": layer.z, "r": layer.r, "W": layer.W, "b": layer.b}
            own |= {"p": layer.below.own_p, "q": layer.above.own_q, "u": layer.above.u}
            for name, x in own.items():
                assert x.untyped_storage().data_ptr() == inside[name]
                row = getattr(stack, name)[k + 1 if name in ("q", "u") else k]
                assert x.data_ptr() == row.data_ptr()
    first, last = network.layers[0], network.layers[-1]
    assert isinstance(first, FirstLayer)
    assert first.above.p is stack.belows[0].p
    assert last.below.q is stack.aboves[-1].q


def test_all_terms_of_a_stack_come_in_one_copy(monkeypatch):
    stacking(monkeypatch)
    network = network_of(make_problem(4, 20, 4, 5, 3), layers=6, hidden=7)
    network.iterate()
    stack = network.units[1]
    seen: Counter[str] = Counter()
    for name in ("tolist", "item", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda x, name=name, plain=plain: seen.update([name]) or plain(x)
        )
    assert len(stack.terms()) == 4
    assert seen == {"tolist": 1}
    seen.clear()
    stack.prepare_p(network.scratch)
    stack.update_p()
    stack.update_z()
    stack.update_q()
    assert not seen


def test_a_layer_that_fails_is_named(monkeypatch):
    stacking(monkeypatch)
    network = network_of(make_problem(4, 20, 4, 5, 3), layers=6, hidden=7)
    network.iterate()
    network.layers[3].W[2, 3] = torch.nan  # a view: it is the stack's
    network.iterate()
    found = network.not_finite()
    assert min(found)[1:] == (3, "p")


@pytest.mark.parametrize("at", [3, 7])
def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(monkeypatch, tmp_path, at):
    stacking(monkeypatch)
    settings = {"layers": 6, "hidden": 8, "stages": (4, 6), "iterations": 5, "hops": 1}
    whole = outcome(PDADMMG(**settings).fit(GRAPH))
    cut_off(PDADMMG(**settings), tmp_path, at, 1)
    assert outcome(PDADMMG(**settings).fit(GRAPH, checkpoint=tmp_path, resume=True)) == whole
