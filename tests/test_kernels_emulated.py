"""The CUDA kernels, run on the CPU by tests/cuda_emulator, give the results of plain torch."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections import Counter

import pytest
import torch
from cuda_emulator import SHARED, Emulator, cases, factor_cases, sum_cases
from recorded_graph import Graph, recording
from stand_in_device import DEVICE, DeviceTensor, StandIn
from test_device import CPU, assert_near, settings_of, train
from test_grid import make_problem

from pdadmm import Quantizer
from pdadmm.admm import replay, solver
from pdadmm.disk.storage import Blocks
from pdadmm.kernels import gpu_launch, updates
from pdadmm.parallel.transport import LocalTransport

ALL = [*cases.ALL, *sum_cases.ALL, *factor_cases.ALL]
SMALL_RUN = {"acceleration": "none", "iterations": 2}
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the kernels for the CPU")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def emulated(emulator, monkeypatch) -> Emulator:
    emulator.install(monkeypatch)
    cases.plain_codec(monkeypatch)
    return emulator


@pytest.mark.parametrize(("check", "args"), ALL)
def test_kernel(emulated, check, args):
    check("cpu", *args)


def test_a_kernel_is_tried_before_the_others_are_relied_on(emulated, monkeypatch):
    gpu_launch.try_out(CPU)
    assert emulated.launched[-1] == "update_u_float_1"
    monkeypatch.setattr(gpu_launch, "launch", lambda *args: None)
    with pytest.raises(RuntimeError, match=r"update_u returned 1\.0 for 1\.5"):
        gpu_launch.try_out(CPU)


@pytest.fixture
def in_training(emulated, monkeypatch) -> Emulator:
    """Let the solver start these kernels by itself, on the stand-in's arrays."""
    turn = threading.Lock()  # ranks are threads, and the emulator runs one kernel at a time

    def launch(*args) -> None:
        if Graph.now is not None:
            Graph.now.launch(emulated.launch, args)
            return
        with turn:
            emulated.launch(*args)

    monkeypatch.setattr(gpu_launch, "launch", launch)
    monkeypatch.setattr(gpu_launch, "DEVICE", DEVICE.type)
    monkeypatch.setattr(DeviceTensor, "data_ptr", lambda x: x.inner.data_ptr())
    monkeypatch.setattr(solver, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr(updates, "_functions", {})
    return emulated


@pytest.mark.parametrize("name", gpu_launch.SOURCES)
def test_every_kernel_ran(emulated, name):
    """Comes last: all kernels that the sources define were started by a test above."""
    missing = set(emulated.kernels(name)) - set(emulated.launched)
    if len(emulated.launched) < len(ALL):
        pytest.skip("only some of the tests above ran")
    assert not missing


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({}, {"update_z", "update_q_u", "assemble_p", "softmax_newton", "spd_inverse", "spd_solve"}),
        ({"form": "gradient", "dtype": "float32"}, {"update_z", "update_q_u", "step_p", "softmax_newton"}),
        ({"acceleration": "all-stages"}, {"square", "distance", "link", "movement", "extrapolate_q", "extrapolate_z"}),
        ({"acceleration": "all-stages", "grid": "2x1", "dtype": "float32"}, {"link", "movement", "extrapolate_"}),
        ({"quantizer": Quantizer(bits=4)}, {"update_u", "codec_range", "codec_fit", "codec_encode"}),
        ({"quantizer": Quantizer(bits=1), "grid": "2x1"}, {"update_u", "codec_sums", "codec_encode", "codec_decode"}),
    ],
)
def test_training_with_the_kernels_finds_the_numbers_of_plain_torch(in_training, options, kernels):
    problem = make_problem(3, 17, 6, 5, 3, getattr(torch, options.get("dtype", "float64")))
    results, before = [], len(in_training.launched)
    for device in ("cpu", "cuda"):
        results.append(train(problem, device, **SMALL_RUN | options))
        assert (len(in_training.launched) > before) == (device == "cuda")
    names = in_training.launched[before:]
    assert all(any(name.startswith(kernel) for name in names) for kernel in kernels), set(names)
    assert_near(*results, tolerance=1e-3 if "dtype" in options else 1e-9)


def test_a_stack_of_layers_takes_one_launch_of_each_kernel(in_training, monkeypatch):
    monkeypatch.setattr("pdadmm.admm.builder.stacks_on", lambda device, transport: True)
    problem = make_problem(3, 17, 6, 5, 3, torch.float64)
    given = settings_of("cuda", "1x1", {"layers": 6, "stages": (6,), "acceleration": "none"})
    with StandIn():
        network = solver.ADMMSolver(problem, given, LocalTransport()).builder.begin(0, 6)
        network.iterate()
        before = len(in_training.launched)
        network.iterate()
    kernels = Counter(name.partition("_double")[0] for name in in_training.launched[before:])
    # the stack of four, layer 1 or layer 6
    twice = dict.fromkeys(("update_z", "update_q_u", "assemble_p", "spd_inverse", "spd_solve"), 2)
    expected = twice | {"softmax_newton": 1}
    assert {name: kernels[name] for name in expected} == expected


def test_a_graph_of_the_kernels_finds_the_bits_of_launched_ones(in_training, monkeypatch):
    monkeypatch.setattr(replay, "new_graph", Graph)
    monkeypatch.setattr(replay, "recording", recording)
    problem = make_problem(3, 17, 6, 5, 3, torch.float64)
    given = settings_of("cuda", "1x1", {"layers": 5, "stages": (5,), "acceleration": "none"})
    with StandIn():
        networks = []
        for replays in (False, True):
            run = solver.ADMMSolver(dataclasses.replace(problem), given, LocalTransport())
            run.builder.stacks, run.builder.replays = True, replays
            networks.append(run.builder.begin(0, 5))
        for _ in range(replay.STEADY + 3):
            for network in networks:
                network.iterate()
        states = [[x.cpu() for state in network.states() for x in state.values() if isinstance(x, torch.Tensor)]
                  for network in networks]  # fmt: skip
    assert networks[1].replay.graph.replays == replay.TRIED + 3
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"first_layer": "gram"}, {"update_z", "update_q_u", "assemble_p", "softmax_newton", "spd_inverse"}),
        ({"first_layer": "gram", "acceleration": "all-stages"}, {"update_z", "assemble_p", "movement", "link"}),
        ({"form": "gradient", "first_layer": "gradient"}, {"update_z", "update_q_u", "step_p", "softmax_newton"}),
    ],
)
def test_blocks_of_nodes_take_the_kernels_too(in_training, monkeypatch, options, kernels):
    """With a limit on device memory, in blocks of which the last is ragged."""
    monkeypatch.setattr(Blocks, "nodes", lambda self, memory: 5)
    problem = make_problem(3, 17, 6, 5, 3, torch.float64)
    expected = train(problem, "cpu", **SMALL_RUN | options)
    before = len(in_training.launched)
    settings = settings_of("cuda", "1x1", SMALL_RUN | options | {"device_memory": "1GiB"})
    with StandIn():
        run = solver.ADMMSolver(dataclasses.replace(problem), settings, LocalTransport()).run()
    found = [{**row, "seconds": 0} for row in run.history], run.best_weights()
    names = in_training.launched[before:]
    assert all(any(name.startswith(kernel) for name in names) for kernel in kernels), set(names)
    assert_near(found, expected, tolerance=1e-9)


MISUSES = """
#include "cuda_emulator.h"
KERNEL(split_barrier, long long n) { if (threadIdx.x < n) __syncthreads(); else __any_sync(~0u, 1); }
KERNEL(wrong_mask, long long n) { __any_sync(threadIdx.x < n ? 1u : ~0u, 1); }
KERNEL(shared_size, float *x, long long n) {
  shared_memory<float>()[threadIdx.x + n] = 1;
  x[threadIdx.x] = shared_memory<float>()[64 + threadIdx.x];
}
KERNEL(missing_barrier, float *x) {
  __shared__ float held[64];
  held[threadIdx.x] = (float)(threadIdx.x + 100 * blockIdx.x);
  x[64 * blockIdx.x + threadIdx.x] = held[63 - threadIdx.x];
}
"""


def test_the_emulator_notices_misuse(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_launch, "source", lambda name: MISUSES)
    monkeypatch.setattr(gpu_launch, "SOURCES", ("misuses",))
    emulator, device = Emulator(tmp_path), torch.device("cpu")
    with pytest.raises(AssertionError, match="wait for each other"):
        emulator.launch("misuses", "split_barrier", (1, 1), 64, (40,), device)
    with pytest.raises(AssertionError, match="mask"):
        emulator.launch("misuses", "wrong_mask", (1, 1), 64, (10,), device)
    with pytest.raises(AssertionError, match="number of arguments"):
        emulator.launch("misuses", "wrong_mask", (1, 1), 64, (), device)
    x = torch.zeros(2, 64)
    with pytest.raises(AssertionError, match="past the end"):
        emulator.launch("misuses", "shared_size", (1, 1), 64, (x, 65), device, 512)
    with pytest.raises(AssertionError, match="more shared memory"):
        emulator.launch("misuses", "shared_size", (1, 1), 64, (x, 64), device, SHARED + 16)
    emulator.launch("misuses", "shared_size", (2, 1), 64, (x, 0), device, 512)
    assert bool(x[0].isnan().all())
    emulator.launch("misuses", "missing_barrier", (2, 1), 64, (x,), device)
    good = torch.arange(63, -1, -1) + torch.tensor([[0.0], [100.0]])
    assert not torch.equal(x[0], good[0])
    assert not torch.equal(x[1], good[1])
