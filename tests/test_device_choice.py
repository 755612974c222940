"""Which device a rank has, what keeps its kernels from running, and how arrays of devices pass through main memory."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from mpi_transport import check_transport
from stand_in_device import DEVICE, StandIn
from thread_transport import run_ranks

from pdadmm import InputError
from pdadmm.kernels import gpu_launch
from pdadmm.parallel import device as device_module
from pdadmm.parallel.device import HostMemory, StagedTransport, check_device, choose_device
from pdadmm.parallel.transport import LocalTransport
from pdadmm.recording import Clock
from pdadmm.trace import Trace

CPU = torch.device("cpu")


# Choosing


class Ranks(LocalTransport):
    """Rank 1 of three; ``others`` are what the other two say."""

    rank, size = 1, 3

    def __init__(self, *others) -> None:
        super().__init__(local_size=3, local_rank=1)
        self.others = others

    def allgather(self, value, kind="control"):
        return [self.others[0], value, self.others[1]]


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch has so many GPUs; returns with ``current`` those that were made the current one."""
    current: list[torch.device] = []

    def pretend(count: int, fused: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        why = None if fused else "CuPy is not installed"
        monkeypatch.setattr(device_module.gpu_launch, "lacking", lambda device: why)
        monkeypatch.setattr(device_module.gpu_launch, "available", lambda device: fused)

    pretend.current = current
    return pretend


def test_the_cpu_asks_nobody():
    assert choose_device("cpu", Ranks()) == CPU


def test_without_a_gpu(gpus):
    gpus(0)
    assert choose_device("auto", LocalTransport()) == CPU
    assert choose_device("auto", Ranks(("H100", True), ("H100", True))) == CPU  # no rank alone
    for refuse in (lambda: check_device("cuda"), lambda: choose_device("cuda", LocalTransport())):
        with pytest.raises(InputError, match=r"device = cuda: must be cpu or auto.*(CUDA build|finds no GPU)"):
            refuse()
    check_device("auto")


def test_a_gpu_for_each_rank(gpus):
    same = ("H100", True)
    gpus(1)
    assert choose_device("cuda", LocalTransport()) == torch.device("cuda", 0)
    for count, index in ((1, 0), (2, 1), (8, 1)):
        gpus(count)
        assert choose_device("auto", Ranks(same, same)) == torch.device("cuda", index)
        assert gpus.current[-1] == torch.device("cuda", index)  # no rank opens another's
    with pytest.raises(InputError, match="A100 with CuPy's kernels and H100 with CuPy's kernels"):
        choose_device("auto", Ranks(same, ("A100", True)))
    with pytest.raises(InputError, match="H100 with CuPy's kernels and H100 without CuPy's kernels"):
        choose_device("cuda", Ranks(same, ("H100", False)))
    with pytest.raises(InputError, match="ranks are without a GPU"):
        choose_device("cuda", Ranks(same, None))
    assert choose_device("auto", Ranks(same, None)) == CPU
    plain = ("H100", False)
    assert choose_device("cuda", Ranks(plain, plain), kernels=False) == torch.device("cuda", 1)
    assert gpus.current[-1] == torch.device("cuda", 1)  # it was asked for its kernels


def test_without_cupy_it_is_said(gpus, caplog):
    gpus(1, fused=False)
    with caplog.at_level("INFO", "pdadmm"):
        assert choose_device("cuda", LocalTransport()) == torch.device("cuda", 0)
    assert "several passes over their arrays: CuPy is not installed" in caplog.text


def test_what_keeps_the_kernels_from_running_is_told(monkeypatch):
    def lacking(device: str = "cuda:0") -> str | None:
        return gpu_launch.lacking.__wrapped__(torch.device(device))

    monkeypatch.setenv("PDADMM_KERNELS", "0")
    assert "PDADMM_KERNELS=0" in lacking()
    monkeypatch.setenv("PDADMM_KERNELS", "1")
    assert lacking("cpu") == "there is no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lacking() == "there is no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert lacking() == "this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert lacking() == "CuPy is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu_launch, "try_out", lambda device: None)
    assert lacking() is None

    def broken(device: torch.device) -> None:
        raise ImportError("libnvrtc.so.13: cannot open\nmore of it")

    monkeypatch.setattr(gpu_launch, "try_out", broken)
    assert lacking() == "CuPy cannot run them: ImportError: libnvrtc.so.13: cannot open"


def test_clocks_wait_for_the_device():
    told = []
    clock, trace = Clock(lambda: told.append("clock")), Trace()
    trace.wait = lambda: told.append("trace")
    clock.start()
    trace.mark("update p")
    clock.stop()
    assert told == ["clock", "trace", "clock"]


# Staging


def test_staging_keeps_the_words_of_a_transport():
    check_transport(StagedTransport(LocalTransport()))
    run_ranks(3, lambda transport: check_transport(StagedTransport(transport)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_arrays_of_a_device_are_staged(dtype):
    def work(transport):
        staged, (rank, size) = StagedTransport(transport), (transport.rank, transport.size)
        with StandIn():
            for shape in ((3, 2), (0, 5), (), (7,)):
                x = torch.full(shape, rank + 1, dtype=dtype).to(DEVICE)
                assert staged.sum_(x, "moments") is x
                assert bool((x == size * (size + 1) // 2).all())
                found = torch.zeros(shape, dtype=dtype, device=DEVICE)
                if rank == 0:
                    staged.send(x + 1, 1, "init")
                elif rank == 1:
                    assert staged.receive(found, 0, "init") is found
                    assert torch.equal(found.cpu(), (x + 1).cpu())
            part = staged.split(rank % 2)
            x = torch.ones(4, device=DEVICE)
            assert bool((part.sum_(x, "moments") == part.size).all())
            assert part.memory is staged.memory
            out = torch.empty(size, dtype=dtype, device=DEVICE)
            given = torch.full((size,), rank, dtype=dtype).to(DEVICE)
            assert staged.alltoall(given, [1] * size, out, [1] * size, "blocks") is out
            assert out.tolist() == list(range(size))

    run_ranks(3, work)


def test_host_memory_is_taken_once():
    memory = HostMemory()
    large = memory.like(torch.zeros(5, 3))
    small = memory.like(torch.zeros(2, dtype=torch.float64))
    assert (large.shape, large.dtype, small.shape, small.dtype) == ((5, 3), torch.float32, (2,), torch.float64)
    assert small.data_ptr() == large.data_ptr()
    assert memory.like(torch.zeros(9, 9)).data_ptr() != large.data_ptr()
