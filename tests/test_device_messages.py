"""Messages from GPU memory to GPU memory: the bits and bytes of staged ones, nothing starts early, all ranks agree."""

from __future__ import annotations

import copy
import json
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from direct_transport import OWN, DirectThreads, Late, watching
from mpi_launch import NEEDS_MPI, mpiexec
from stand_in_device import DEVICE
from test_device import (  # noqa: F401
    CASES,
    CPU,
    assert_near,
    assert_same,
    plain,
    problem_of,
    settings_of,
    stand_in,
    train_rank,
)
from thread_transport import ThreadTransport, going_astray, run_ranks

from pdadmm import InputError
from pdadmm.admm import packet
from pdadmm.admm.solver import ADMMSolver
from pdadmm.parallel.device import DirectTransport, StagedTransport, join_device, messages_of
from pdadmm.parallel.gpu_aware import SETTING, Support
from pdadmm.parallel.ledger import Ledger
from pdadmm.parallel.mpi import _Persistent
from pdadmm.parallel.transport import LocalTransport

pytestmark = pytest.mark.usefixtures("one_thread")
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SCRIPT = Path(__file__).with_name("mpi_device_messages.py")
MODES = {"direct": ("cuda", DirectThreads), "staged": ("cuda", ThreadTransport), "cpu": ("cpu", ThreadTransport)}


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    """Whatever the shell says, MPI is asked."""
    monkeypatch.delenv(SETTING, raising=False)


@pytest.fixture(autouse=True)
def late(monkeypatch):
    """No message of the stand-in may start before it is waited for, and no copy is done before."""
    held = packet.side_stream
    monkeypatch.setattr(packet, "side_stream", lambda device: Late() if device == DEVICE else held(device))


# The same numbers


def train(case: str, grid: str, mode: str, watched: bool = True, **more):
    """Return what ``assert_same`` compares, each rank's ledger, and its stand-in for a device where ``watched``."""
    device, kind = MODES[mode]
    groups, shards = map(int, grid.split("x"))
    given, problem = settings_of(device, grid, CASES[case] | more), problem_of(case)

    def work(transport):
        return *train_rank(problem, given, transport), transport.ledger

    results = run_ranks(groups * shards, watching(work) if watched else lambda transport: (work(transport), None), kind)
    assert all(history == results[0][0][0] for (history, *_), _ in results)
    weights = {layer: pair for (_, own, _), _ in results for layer, pair in own.items()}
    return (results[0][0][0], weights), [ledger.state() for (*_, ledger), _ in results], [own for _, own in results]


@pytest.mark.parametrize("case", CASES)
def test_direct_messages_have_the_bits_and_bytes_of_staged_ones_in_every_form(plain, case):  # noqa: F811
    """And of plain torch on the CPU."""
    direct, staged, cpu = (train(case, "2x1", mode) for mode in MODES)
    for other in (staged, cpu):
        assert_same(direct[0], other[0])
        assert direct[1] == other[1]
    assert all(own.starts == own.waits > 0 for own in direct[2])
    assert all(own.starts == own.waits == 0 for own in staged[2])


@pytest.mark.parametrize("case", ["default", "gradient", "8 bits, stochastic"])
@pytest.mark.parametrize("grid", ["4x1", "1x2", "2x2"])
def test_direct_messages_on_grids(plain, case, grid):  # noqa: F811
    direct, staged = (train(case, grid, mode, loss="squared_error") for mode in ("direct", "staged"))
    assert_same(direct[0], staged[0])
    assert direct[1] == staged[1]
    assert any(own.starts for own in direct[2]) == (grid != "1x2")  # shards alone send sums only
    assert any(state["sent"].get("moments") for state in direct[1]) == (grid != "4x1")


def test_a_value_that_went_astray_is_sent_whole(plain, monkeypatch):  # noqa: F811
    """That one message goes through main memory; those after it go direct again."""
    monkeypatch.setenv("PDADMM_CHECKSUMS", "1")
    changed = going_astray(monkeypatch)
    results = []
    for mode in MODES:
        results.append(train("4 bits", "2x1", mode, loss="squared_error", stages=(4,), iterations=8))
        assert len(changed) == 2
        changed.clear()
    for other in results[1:]:
        assert_same(results[0][0], other[0])
        assert results[0][1] == other[1]


# What crosses between the memories


@pytest.mark.parametrize("grid", ["2x1", "4x1", "2x2"])
@pytest.mark.parametrize("case", ["default", "gradient", "4 bits"])
def test_no_array_of_nodes_crosses_in_an_iteration(monkeypatch, case, grid):
    """Sums over shards do, three numbers together do; p, q and their codes do not, where staged ones do."""
    held, crossed = ADMMSolver._step, []

    def step(solver, stage, network):
        OWN.device.crossings.clear()
        held(solver, stage, network)
        crossed.extend(OWN.device.crossings)

    monkeypatch.setattr(ADMMSolver, "_step", step)
    # which sends activations of its own
    monkeypatch.setattr(ADMMSolver, "_evaluate", lambda solver, network: {"train_accuracy": 0.0})
    *_, devices = train(case, grid, "direct", loss="squared_error")
    messages = set().union(*(own.sizes for own in devices))
    assert messages
    assert not messages & set(crossed)
    if grid != "2x2":
        assert max(crossed, default=0) <= 3
    crossed.clear()
    train(case, grid, "staged", loss="squared_error")
    assert messages & set(crossed)


# Which way


def test_one_rank_that_cannot_makes_all_stage(caplog):
    class Unlike(DirectThreads):
        @property
        def takes(self):
            return self.rank != self.lacking

    def work(transport):
        joined = join_device(transport, DEVICE)
        part = joined.split(transport.rank % 2)
        assert type(part) is type(joined)
        return type(joined), messages_of(joined), transport.ledger.state()

    for lacking, kind, words in (
        (2, StagedTransport, "p and q go staged; rank 2: MPI takes GPU memory: no"),
        (0, StagedTransport, "p and q go staged; rank 0: MPI takes GPU memory: no (test)"),
        (-1, DirectTransport, "p and q go direct; rank 0: MPI takes GPU memory: yes (test)"),
    ):
        Unlike.lacking = lacking
        caplog.clear()
        with caplog.at_level("INFO", "pdadmm"):
            found = run_ranks(3, work, Unlike)
        assert found == [(kind, "direct" if kind is DirectTransport else "staged", found[0][2])] * 3
        assert caplog.text.count(words) == 1
        assert caplog.text.count("p and q go") == 1


def test_a_wrong_setting_on_one_rank_is_an_error_on_all():
    class Wrong(DirectThreads):
        def gpu_aware(self):
            if self.rank == 1:
                raise InputError(SETTING, "koala", "0, 1 or auto")
            return super().gpu_aware()

    def work(transport):
        with pytest.raises(InputError, match="PDADMM_GPU_AWARE = koala"):
            join_device(transport, DEVICE)

    run_ranks(3, work, Wrong)


def test_one_process_sends_no_messages(monkeypatch):
    transport = LocalTransport()
    monkeypatch.setattr(transport, "gpu_aware", lambda: pytest.fail("asked"), raising=False)
    joined = join_device(transport, DEVICE)
    assert type(joined) is StagedTransport
    assert messages_of(joined) is None
    assert messages_of(transport) is None
    assert LocalTransport().gpu_aware() == Support(None)


@pytest.mark.parametrize("mode", MODES)
def test_the_summary_says_how_messages_went(plain, mode):  # noqa: F811
    device, kind = MODES[mode]
    given, problem = settings_of(device, "2x1", {}), problem_of("default")

    def work(transport):
        problem_of_rank = copy.copy(problem)
        problem_of_rank.X = problem.X.clone() if transport.rank == 0 else None
        return ADMMSolver(problem_of_rank, given, transport).run().summary()["messages"]

    assert [told for told, _ in run_ranks(2, watching(work), kind)] == [None if mode == "cpu" else mode] * 2
    given = settings_of(device, "1x2", {})  # shards alone have no p and q to send
    assert [told for told, _ in run_ranks(2, watching(work), kind)] == [None, None]


# MPI


class Requests:
    """Persistent requests of which MPI says that so many bytes arrived."""

    def __init__(self, *counts: int) -> None:
        self.Status, self.BYTE, self.counts, self.started = lambda: self, None, counts, []
        self.requests = [types.SimpleNamespace(Start=partial(self.started.append, n), Wait=partial(self.wait, n),
                                               Free=lambda: None) for n in range(len(counts))]  # fmt: skip

    def wait(self, number, status):
        self.number = number

    def Get_count(self, byte):
        return self.counts[self.number]


@pytest.mark.parametrize("receives", [False, True])
def test_header_and_body_are_one_message_of_the_ledger(receives):
    ledger, buffers = Ledger(), [torch.zeros(16, dtype=torch.uint8), torch.zeros(3, 4)]
    record = partial(ledger.record_received if receives else ledger.record_sent, "p")
    mpi = Requests(16, 48)
    message = _Persistent(mpi.requests, buffers, mpi, record, receives)
    for _ in range(2):
        message.start()
        message.wait()
        message.wait()  # nothing is under way
    assert mpi.started == [0, 1, 0, 1]
    assert (ledger.received if receives else ledger.sent) == {"p": 128}
    assert ledger.messages == ({} if receives else {"p": 2})


@pytest.mark.parametrize(("counts", "words"), [((16, 40), "40 bytes .* where 48"), ((8, 48), " 8 bytes .* where 16")])
def test_a_part_of_another_length_is_an_error(counts, words):
    mpi = Requests(*counts)
    buffers = [torch.zeros(16, dtype=torch.uint8), torch.zeros(3, 4)]
    message = _Persistent(mpi.requests, buffers, mpi, lambda n: None, receives=True)
    message.start()
    with pytest.raises(RuntimeError, match=words):
        message.wait()
    message.under_way = False  # nothing is left to MPI


@pytest.mark.parametrize("needs", [pytest.param(None, marks=NEEDS_MPI)])
def test_under_mpi(needs):
    """What this MPI says is done; told to go direct it reads and writes the stand-in's memory itself."""
    done = mpiexec(4, SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["auto"] == ["direct" if told["takes"] else "staged", told["support"]]
    assert told["forbidden"] == ["staged", "no (PDADMM_GPU_AWARE=0)"]
    assert told["told to"] == ["direct", "yes (PDADMM_GPU_AWARE=1)"]


@pytest.mark.parametrize("needs", [pytest.param(None, marks=[*ON_GPU, *NEEDS_MPI])])
def test_under_an_mpi_that_takes_gpu_memory(needs):
    done = mpiexec(2, SCRIPT, "gpu")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    if not told["takes"]:
        pytest.skip(f"this MPI takes no GPU memory: {told['support']}")
    assert told["auto"] == ["direct", told["support"]]


# A GPU


@pytest.mark.parametrize("case", ["default", "gradient", "4 bits", "8 bits, stochastic"])
@pytest.mark.parametrize("grid", [pytest.param(grid, marks=ON_GPU) for grid in ("2x1", "2x2")])
def test_messages_between_threads_that_share_a_gpu(monkeypatch, case, grid):
    monkeypatch.undo()  # the stand-in
    direct, staged = (train(case, grid, mode, watched=False, loss="squared_error") for mode in ("direct", "staged"))
    assert_near(direct[0], staged[0], 1e-9)
    assert direct[1] == staged[1]
