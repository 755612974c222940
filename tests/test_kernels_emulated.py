"""The CUDA kernels, run on the CPU by tests/cuda_emulator, give the results of plain torch."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
from cuda_emulator import Emulator, cases
from stand_in_device import DEVICE, DeviceTensor
from test_device import CPU, assert_near, train
from test_grid import make_problem

from pdadmm import Quantizer
from pdadmm.admm import solver
from pdadmm.kernels import gpu, gpu_launch, updates

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


@pytest.mark.parametrize(("check", "args"), cases.ALL)
def test_kernel(emulated, check, args):
    check("cpu", *args)


@pytest.mark.parametrize("name", gpu_launch.SOURCES)
def test_every_kernel_ran(emulated, name):
    """Comes last: all kernels that the sources define were started by a test above."""
    missing = set(emulated.kernels(name)) - set(emulated.launched)
    if len(emulated.launched) < len(cases.ALL):
        pytest.skip("only some of the tests above ran")
    assert not missing


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({}, {"update_z", "update_q_u", "assemble_p", "softmax_newton"}),
        ({"form": "gradient", "dtype": "float32"}, {"update_z", "update_q_u", "step_p", "softmax_newton"}),
        ({"quantizer": Quantizer(bits=4)}, {"update_u", "codec_range", "codec_fit", "codec_encode"}),
        ({"quantizer": Quantizer(bits=1), "grid": "2x1"}, {"update_u", "codec_sums", "codec_encode", "codec_decode"}),
    ],
)
def test_training_with_the_kernels_finds_the_numbers_of_plain_torch(emulated, monkeypatch, options, kernels):
    """The stand-in's arrays, on which the solver starts these kernels by itself."""
    turn = threading.Lock()  # ranks are threads, and the emulator runs one kernel at a time

    def launch(*args) -> None:
        with turn:
            emulated.launch(*args)

    monkeypatch.setattr(gpu_launch, "launch", launch)
    monkeypatch.setattr(gpu_launch, "DEVICE", DEVICE.type)
    monkeypatch.setattr(gpu, "available", lambda: True)
    monkeypatch.setattr(DeviceTensor, "data_ptr", lambda x: x.inner.data_ptr())
    monkeypatch.setattr(solver, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr(updates, "_functions", {})
    problem = make_problem(3, 17, 6, 5, 3, getattr(torch, options.get("dtype", "float64")))
    results, before = [], len(emulated.launched)
    for device in ("cpu", "cuda"):
        results.append(train(problem, device, **SMALL_RUN | options))
        assert (len(emulated.launched) > before) == (device == "cuda")
    names = emulated.launched[before:]
    assert all(any(name.startswith(kernel) for name in names) for kernel in kernels), set(names)
    assert_near(*results, tolerance=1e-3 if "dtype" in options else 1e-9)


MISUSES = """
#include "cuda_emulator.h"
KERNEL(split_barrier, long long n) { if (threadIdx.x < n) __syncthreads(); else __any_sync(~0u, 1); }
KERNEL(wrong_mask, long long n) { __any_sync(threadIdx.x < n ? 1u : ~0u, 1); }
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
    emulator.launch("misuses", "missing_barrier", (2, 1), 64, (x,), device)
    good = torch.arange(63, -1, -1) + torch.tensor([[0.0], [100.0]])
    assert not torch.equal(x[0], good[0])
    assert not torch.equal(x[1], good[1])
