"""Iterations repeated as a graph: the bits of iterations launched one by one, or no graph."""

from __future__ import annotations

import contextlib
import copy
import logging

import numpy as np
import pytest
import torch
from recorded_graph import Graph, recording
from stand_in_device import DEVICE, StandIn
from test_grid import make_problem

from pdadmm import InputError, Quantizer
from pdadmm.admm import builder as builder_module
from pdadmm.admm import replay as replay_module
from pdadmm.admm import solver as solver_module
from pdadmm.admm import stack as stack_module
from pdadmm.admm.network import Network
from pdadmm.admm.replay import SETTING, STEADY, TRIED, Replay, repeatable, replays_on
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.kernels import gpu_launch
from pdadmm.parallel.transport import LocalTransport
from pdadmm.trace import Trace

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RECORDING = replay_module.recording  # itself, not what the tests put in its place
SHAPE = {"layers": 5, "hidden": 6, "dtype": "float64", "acceleration": "none", "loss": "squared_error"}
FORMS = {
    "gram": {"first_layer": "gram"},
    "kernel": {"first_layer": "kernel", "activation": "leaky_relu"},
    "gradient": {"first_layer": "gradient", "mu": 1e-3},
    "cg": {"first_layer": "cg", "kappa_identity": 0.1},
    "labels": {"initial": "labels"},
    "two layers": {"layers": 2},
    "float32": {"dtype": "float32"},
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch) -> list[Graph]:
    """Let the stand-in be a GPU whose iterations are repeated; return the graphs that are made."""
    made: list[Graph] = []

    def new_graph() -> Graph:
        made.append(Graph())
        return made[-1]

    monkeypatch.setattr(replay_module, "new_graph", new_graph)
    monkeypatch.setattr(replay_module, "recording", recording)
    monkeypatch.setattr(replay_module, "kernels_take", lambda uppers: True)
    monkeypatch.setattr(builder_module, "replays_on", lambda device, transport: device == DEVICE)
    monkeypatch.setattr(solver_module, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    return made


def network_of(replays: bool, stacks: bool = False, **parameters) -> Network:
    """Return a network on the stand-in, in its first stage."""
    given = ADMMSettings(**SHAPE | {"device": "cuda"} | parameters)
    problem = make_problem(3, 20, 4, 7, 3, getattr(torch, given.dtype))
    solver = ADMMSolver(problem, given.checked(), LocalTransport())
    solver.builder.stacks, solver.builder.replays = stacks, replays
    network = solver.builder.begin(0, given.layers)
    assert (network.replay is not None) == replays
    return network


def arrays_of(network: Network) -> dict[str, np.ndarray]:
    """All that the layers hold, in main memory."""
    found = {}
    for number, state in enumerate(network.states()):
        arrays = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
        found |= {f"{number}.{name}": x.cpu().numpy() for name, x in arrays.items()}
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert np.array_equal(found[name], x), name


@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_repeated_iterations_have_the_bits_of_launched_ones(graphs, form, stacks):
    with StandIn():
        plain, repeated = (network_of(replays, stacks, **FORMS[form]) for replays in (False, True))
        for count in range(1, STEADY + 5):
            plain.iterate()
            repeated.iterate()
            assert_same(arrays_of(repeated), arrays_of(plain))
            assert repeated.terms() == plain.terms()
            used = count - STEADY
            assert [graph.replays for graph in graphs] == ([TRIED + used] if used > 0 else [])
        numbers = [[c.number for link in network._links() for c in (link.p_channel, link.q_channel)]
                   for network in (plain, repeated)]  # fmt: skip
        assert numbers[0] == numbers[1]
        logits = [network.forward(24).cpu() for network in (plain, repeated)]
        assert torch.equal(*logits)
        snapshots = [network.snapshot() for network in (plain, repeated)]
        kept = {name: x.clone() for name, x in snapshots[1][-1].items()}
        repeated.iterate()
        for name, x in snapshots[0][-1].items():  # a copy, which the next replay leaves alone
            assert torch.equal(x.cpu(), snapshots[1][-1][name].cpu())
            assert torch.equal(kept[name].cpu(), snapshots[1][-1][name].cpu())


def test_other_penalties_begin_anew(graphs):
    with StandIn():
        plain, repeated = (network_of(replays) for replays in (False, True))
        for count in range(2 * STEADY + 4):
            if count == STEADY + 2:
                for network in (plain, repeated):
                    network.layers[0].penalties.rho *= 3.0
            plain.iterate()
            repeated.iterate()
        assert_same(arrays_of(repeated), arrays_of(plain))
    assert [graph.replays for graph in graphs] == [TRIED + 2, TRIED + 2]


def test_a_restored_network_begins_anew(graphs):
    with StandIn():
        plain, repeated = (network_of(replays, stacks=True) for replays in (False, True))
        for network in (plain, repeated):
            for _ in range(STEADY + 1):
                network.iterate()
            states = [{name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in state.items()}
                      for state in network.states()]  # fmt: skip
            for _ in range(2):
                network.iterate()
            network.restore(lambda layer, states=states: states[layer])
            for _ in range(STEADY + 2):
                network.iterate()
        assert_same(arrays_of(repeated), arrays_of(plain))
    assert [graph.replays for graph in graphs] == [TRIED + 3, TRIED + 2]


def test_a_training_has_the_same_bits(graphs):
    problem = make_problem(3, 20, 8, 7, 3)
    parameters = SHAPE | {"device": "cuda", "stages": (2, 5), "iterations": 8, "acceleration": "first-stage"}
    results = []
    for replays in (False, True):
        with StandIn():
            solver = ADMMSolver(copy.copy(problem), ADMMSettings(**parameters).checked(), LocalTransport())
            solver.builder.replays = replays
            results.append(solver.run())
    histories = [[{**row, "seconds": 0} for row in solver.history] for solver in results]
    assert histories[0] == histories[1]
    weights = [solver.best_weights() for solver in results]
    assert all(torch.equal(a, b) for layer in weights[0] for a, b in zip(weights[0][layer], weights[1][layer]))
    assert [graph.replays for graph in graphs] == [TRIED + 8 - STEADY]  # none of the extrapolated stage


# No graph


def test_a_number_that_is_asked_for_cannot_be_recorded(graphs, caplog):
    with StandIn(), caplog.at_level(logging.INFO, "pdadmm"):
        plain, repeated = (network_of(replays, loss="cross_entropy") for replays in (False, True))  # torch's Newton
        for _ in range(STEADY + 3):
            plain.iterate()
            repeated.iterate()
        assert_same(arrays_of(repeated), arrays_of(plain))
    told = "iterations are not repeated as a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    assert caplog.messages == [told]
    assert [graph.replays for graph in graphs] == [0]


@pytest.mark.parametrize("forgotten", ["W", "b", "a"])
def test_a_graph_that_finds_other_numbers_is_noticed(graphs, monkeypatch, caplog, forgotten):
    """An array that moves from iteration to iteration and is not brought back."""
    record = Replay._record

    def careless(replay, graph, state) -> None:
        whole = state.slots, state.arrays
        pairs = [(slot, own) for slot, own in zip(*whole, strict=True) if slot[1] != forgotten]
        assert len(pairs) < len(whole[0])
        state.slots, state.arrays = [slot for slot, _ in pairs], [own for _, own in pairs]
        try:
            record(replay, graph, state)
        finally:
            state.slots, state.arrays = whole
            state.own_again()

    monkeypatch.setattr(Replay, "_record", careless)
    with StandIn(), caplog.at_level(logging.INFO, "pdadmm"):
        plain, repeated = (network_of(replays, first_layer="cg") for replays in (False, True))
        for _ in range(STEADY + 3):
            plain.iterate()
            repeated.iterate()
        assert_same(arrays_of(repeated), arrays_of(plain))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a CUDA graph found another ")
    assert [graph.replays for graph in graphs] == [TRIED]


@pytest.mark.parametrize("fails", [False, True])
def test_work_goes_on_in_the_stream_that_it_was_in(monkeypatch, fails):
    """torch.cuda.graph leaves its own stream, and up to 2.11 its memory, only where the recording succeeded."""
    current, ended = ["work"], []

    class Stream:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            self.before, current[0] = current[0], self.name

        def __exit__(self, *error):
            current[0] = self.before

    class Capture(Stream):
        def __init__(self, graph, pool, capture_error_mode):
            assert (graph, pool, capture_error_mode) == ("graph", "pool", "thread_local")
            super().__init__("own")

        def __exit__(self, *error):
            if error[0] is not None:
                raise RuntimeError("operation failed due to a previous error during capture")
            super().__exit__(*error)

    def ends(*given) -> None:
        ended.append(given)
        raise RuntimeError("not currently recording to mempool_id")  # as torch from 2.12 on has it

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ends, raising=False)
    monkeypatch.setattr(torch.cuda, "stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    expected = pytest.raises(RuntimeError, match="during capture") if fails else contextlib.nullcontext()
    with expected, RECORDING("graph"):
        assert current == ["own"]
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
    assert current == ["work"]
    assert ended == ([(0, "pool")] if fails else [])


def test_what_waits_for_messages_or_is_large_is_launched(monkeypatch):
    with StandIn():
        for more in (
            {"acceleration": "all-stages"},
            {"quantizer": Quantizer(bits=4)},
            {"form": "gradient"},
            {"products": "bf16", "dtype": "float32"},
        ):
            given = ADMMSettings(**SHAPE | {"device": "cuda"} | more).checked()
            problem = make_problem(3, 20, 4, 7, 3, getattr(torch, given.dtype))
            network = ADMMSolver(problem, given, LocalTransport()).builder.begin(0, 5)
            assert network.replay is None
        network = network_of(True)
        assert repeatable(network.layers, 20)
        monkeypatch.setattr(stack_module, "LARGEST", 119)
        assert not repeatable(network.layers, 20)


def test_graphs_are_for_one_process_with_a_gpu_and_our_kernels(monkeypatch):
    transport, two = LocalTransport(), LocalTransport()
    two.size = 2
    takes = {"kernels": True}
    monkeypatch.setattr(gpu_launch, "available", lambda device: takes["kernels"])
    monkeypatch.delenv(SETTING, raising=False)
    assert replays_on(GPU, transport)
    assert not replays_on(CPU, transport)
    assert not replays_on(GPU, two)
    takes["kernels"] = False
    assert not replays_on(GPU, transport)
    takes["kernels"] = True
    monkeypatch.setenv(SETTING, "0")
    assert not replays_on(GPU, transport)
    monkeypatch.setenv(SETTING, "no")
    with pytest.raises(InputError, match="PDADMM_GRAPHS = no: must be 0 or 1"):
        replays_on(GPU, transport)
    monkeypatch.delenv(SETTING)
    transport.trace = Trace()
    assert not replays_on(GPU, transport)
