"""Blocks of rows on their way to a device and back: whatever the copies overlap with, nothing is lost or seen early."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from simulated_streams import Stream
from stand_in_device import DEVICE, StandIn

from pdadmm.disk.blocks import Traffic
from pdadmm.parallel import pinned as pinned_module
from pdadmm.parallel.pinned import PAGE, PinError, Pinned, whole_pages
from pdadmm.parallel.shuttle import Shuttle

CPU = torch.device("cpu")


@pytest.mark.parametrize("block", [1, 3, 4, 10, 12])
def test_every_row_goes_there_and_back_once(block):
    x, y = torch.arange(20.0).view(10, 2), torch.arange(10.0).view(10, 1)
    with StandIn() as device:
        shuttle, seen = Shuttle(DEVICE, block, Traffic()), []
        for rows, room in shuttle.passing({"x": x, "y": y, "new": y.clone()}, 10, ["x", "y"], ["y"]):
            seen.append(rows)
            assert all(part.device == DEVICE and len(part) == len(rows) <= block for part in room.values())
            room["y"].mul_(2).add_(room["x"][:, :1])
        assert sum(device.crossings) == 20 + 10 + 10
    assert [row for rows in seen for row in rows] == list(range(10))
    assert torch.equal(y, 2 * torch.arange(10.0).view(10, 1) + x[:, :1])
    assert (shuttle.traffic.read, shuttle.traffic.written) == (4 * 30, 4 * 10)
    shuttle.clear(["y", "new"])
    assert {*shuttle.rooms[0]} == {"x"}


def test_a_pass_may_end_before_the_last_row():
    x = torch.arange(7.0).view(7, 1)
    parts = [room["x"].clone() for _, room in Shuttle(CPU, 2, Traffic()).passing({"x": x}, 5, ["x"], [])]
    assert torch.equal(torch.cat(parts), x[:5])


# Streams, without a GPU: work that is done in any order that the events allow


@pytest.mark.parametrize("seed", range(40))
def test_copies_beside_the_work_change_nothing(monkeypatch, seed):
    order = random.Random(seed)
    compute, copies = Stream(), Stream()
    inside = [compute]

    def work(piece) -> None:
        inside[-1].work.append(piece)
        for _ in range(order.randrange(4)):  # the device is slower than the program, or as fast
            order.choice([compute, copies]).step()

    def synchronize() -> None:
        while copies.done < len(copies.work):
            order.choice([compute, copies]).step()

    @contextmanager
    def stream(chosen):
        inside.append(chosen)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: inside[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    copies.synchronize = synchronize
    shuttle = Shuttle(CPU, 3, Traffic())
    shuttle.stream = copies
    shuttle._copy = lambda target, source: work(lambda: target.copy_(source))
    x, z, found = torch.arange(20.0).view(20, 1), torch.arange(20.0).view(20, 1) ** 2, []
    expected = 2 * z + x
    for write in (True, False, True):
        for _, room in shuttle.passing({"x": x, "z": z}, 20, ["x", "z"], ["z"] if write else []):
            work(lambda z=room["z"], x=room["x"]: z.mul_(2).add_(x))
            work(lambda z=room["z"]: found.append(z.clone()))
    while compute.step() or copies.step():
        pass
    assert torch.equal(torch.cat(found[:7]), expected)
    assert torch.equal(torch.cat(found[7:14]), 2 * expected + x)  # seen, and not written
    assert torch.equal(torch.cat(found[14:]), 2 * expected + x)
    assert torch.equal(z, 2 * expected + x)


def test_copies_end_with_a_pass_that_is_cut_off(monkeypatch):
    told = []
    stream = type("stream", (Stream,), {"synchronize": lambda self: told.append("waited")})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda chosen: contextmanager(lambda: iter([None]))())
    shuttle = Shuttle(CPU, 2, Traffic())
    shuttle.stream = stream
    passing = shuttle.passing({"x": torch.zeros(6, 1)}, 6, ["x"], ["x"])
    next(passing)
    passing.close()
    assert told == ["waited"]


# Pinned memory


def test_whole_pages_share_none():
    arrays = [whole_pages(rows, 3, dtype) for rows in (1, 500, 2000) for dtype in (torch.float32, torch.float64)]
    for x in arrays:
        assert (x.shape[1], x.data_ptr() % PAGE, x.is_contiguous()) == (3, 0, True)
        storage = x.untyped_storage()
        end = -(-(x.data_ptr() + x.numel() * x.element_size()) // PAGE) * PAGE
        assert end <= storage.data_ptr() + storage.nbytes()


def test_memory_is_pinned_for_a_gpu_alone_and_given_back(monkeypatch):
    class Runtime:
        cudaError = type("codes", (), {"success": 0})

        def __init__(self) -> None:
            self.pinned, self.fails = {}, 0

        def cudaHostRegister(self, address, size, flags):
            if not self.fails:
                self.pinned[address] = size
            return self.fails

        def cudaHostUnregister(self, address):
            del self.pinned[address]

        def cudaGetErrorString(self, error):
            return f"error {error}"

    runtime = Runtime()
    monkeypatch.setattr(pinned_module.torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(pinned_module.torch.cuda, "device", lambda device: contextmanager(lambda: iter([None]))())
    x, y = torch.zeros(5, 2), torch.zeros(3, 1, dtype=torch.float64)
    assert Pinned(CPU).pin(x) is x
    assert runtime.pinned == {}
    pinned = Pinned(torch.device("cuda", 0))
    assert pinned.pin(x) is x
    pinned.pin(y)
    assert runtime.pinned == {x.data_ptr(): 40, y.data_ptr(): 24}
    runtime.fails = 2
    with pytest.raises(PinError, match="error 2"):
        pinned.pin(torch.zeros(1))
    pinned.release()
    assert runtime.pinned == {}
    pinned.release()
