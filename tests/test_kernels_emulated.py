"""The CUDA kernels, run on the CPU by tests/cuda_emulator, give the results of plain torch."""

from __future__ import annotations

import shutil

import pytest
from cuda_emulator import Emulator, cases

from pdadmm.kernels import gpu_launch

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
    import torch

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
