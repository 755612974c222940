"""The in-process transport, the byte ledger, errors that ranks share, and what the launchers' environment says."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import threading
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_transport import check_transport
from strategies import graphs

from pdadmm.errors import InputError
from pdadmm.parallel import launch
from pdadmm.parallel.agreement import data_digest, require_agreement
from pdadmm.parallel.envelope import ENVELOPE_BYTES, Envelope
from pdadmm.parallel.launch import (
    crowded,
    launched_rank,
    launched_size,
    local_ranks,
    make_transport,
    set_threads,
    together,
)
from pdadmm.parallel.ledger import PAYLOAD_KINDS, Ledger
from pdadmm.parallel.mpi import let_be_read
from pdadmm.parallel.transport import LocalTransport, alone

VARIABLES = (
    "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_NTASKS",
    "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMP_NUM_THREADS", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD", "OMPI_MCA_mpi_yield_when_idle", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a launcher; none is set to begin with, and all are put back."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_variables(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Ranks(LocalTransport):
    """A transport of which the test plays the other ranks: ``others`` maps a value to all ranks' values."""

    def __init__(self, rank: int, others) -> None:
        super().__init__()
        self.rank, self.size, self.others = rank, 3, others

    def allgather(self, value, kind="control"):
        return self.others(value)


# Ledger


def test_ledger_counts_by_kind():
    ledger = Ledger()
    for kind, size in (("p", 10), ("q", 20), ("p", 30), ("gradients", 40), ("init", 5), ("control", 7)):
        ledger.record_sent(kind, size)
    ledger.record_received("q", 99)
    assert ledger.sent == {"p": 40, "q": 20, "gradients": 40, "init": 5, "control": 7}
    assert ledger.messages["p"] == 2
    assert ledger.received == {"q": 99}
    assert ledger.bytes_sent == 100
    assert ledger.bytes_other == 12
    assert PAYLOAD_KINDS == ("p", "q", "moments", "features", "adjoints", "gradients", "blocks")


def test_a_new_ledger_is_empty():
    ledger = Ledger()
    assert ledger.bytes_sent == ledger.bytes_other == 0
    ledger.record_sent("p", 1)
    assert Ledger().bytes_sent == 0


# In process


def test_the_local_transport_keeps_its_word():
    check_transport(LocalTransport())


def test_one_process_has_no_peer():
    transport, x = LocalTransport(), torch.zeros(2)
    for call in (
        lambda: transport.sender(x, 1, 0, "p"), lambda: transport.receiver(x, 1, 0, "p"),
        lambda: transport.send(x, 1, "p"), lambda: transport.receive(x, 1, "p"),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="no peer"):
            call()


def test_collectives_return_the_object_itself():
    transport, value = LocalTransport(), object()
    assert transport.bcast(value) is value
    assert transport.gather(value)[0] is value
    assert transport.allgather(value)[0] is value


# Errors all ranks share


def test_together_returns_what_this_rank_made():
    assert together(Ranks(1, lambda value: [None, value, None]), lambda: "mine") == "mine"


def test_another_ranks_error_arrives_here():
    error = InputError("dataset", "x", "there")
    with pytest.raises(InputError) as caught:
        together(Ranks(1, lambda value: [None, value, error]), lambda: "mine")
    assert str(caught.value) == "dataset = x: must be there"


def test_the_lowest_ranks_error_is_everyones():
    def fail():
        raise InputError("mine", 1, "fine")

    first = InputError("first", 0, "fine")
    with pytest.raises(InputError, match="first") as caught:
        together(Ranks(1, lambda value: [first, value, None]), fail)
    assert caught.value is first


def test_own_error_is_told_to_the_others():
    told = []

    def fail():
        raise InputError("mine", 1, "fine")

    with pytest.raises(InputError, match="mine"):
        together(Ranks(1, lambda value: told.append(value) or [None, value, None]), fail)
    assert isinstance(told[0], InputError)


def test_other_exceptions_are_not_swallowed():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together(LocalTransport(), fail)


# Environment


def test_alone(environment):
    assert launched_size() == 1
    assert launched_rank() == 0
    assert local_ranks() == 0
    assert not crowded()
    assert isinstance(make_transport(), LocalTransport)
    assert "MPIR_CVAR_ENABLE_HEAVY_YIELD" not in os.environ


@pytest.mark.parametrize(
    ("variables", "size", "rank", "local"),
    [
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2"}, 4, 3, 2),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1, 0, 0),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 8, 7, 4),
        ({"PMIX_RANK": "2", "SLURM_NTASKS": "5"}, 5, 2, 0),
        ({"PMI_SIZE": "11", "PMI_RANK": "9", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 11, 9, 3),
        ({"PMI_SIZE": "8", "PMI_RANK": "0", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 8, 0, 4),
        ({"SLURM_NTASKS": "5", "SLURM_NODEID": "7", "SLURM_STEP_TASKS_PER_NODE": "5"}, 1, 0, 0),
        ({"SLURM_NTASKS": "5"}, 1, 0, 0),  # a batch script, not a rank
        ({"PMI_SIZE": "many", "PMI_RANK": ""}, 1, 0, 0),
    ],
)
def test_launchers(environment, variables, size, rank, local):
    environment(**variables)
    assert (launched_size(), launched_rank(), local_ranks()) == (size, rank, local)


@pytest.mark.parametrize(
    ("variables", "number"),
    [
        ({}, -1),
        ({"MPI_LOCALRANKID": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0"}, 0),
        ({"SLURM_LOCALID": "2", "MPI_LOCALRANKID": ""}, 2),
    ],
)
def test_the_number_among_the_ranks_of_a_host(environment, variables, number):
    environment(**variables)
    assert launch.local_rank() == number


def test_a_part_of_a_run_keeps_its_place_on_the_host():
    own = alone(LocalTransport(local_size=4, local_rank=2))
    assert (own.local_size, own.local_rank) == (4, 2)


def test_a_launched_run_without_mpi4py_says_what_to_install(environment, monkeypatch):
    environment(PMI_SIZE="2", PMI_RANK="0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match="mpi4py"):
        make_transport()


@pytest.mark.parametrize("ranks_of_host", ["", "64"])
def test_crowded_ranks_yield(environment, monkeypatch, ranks_of_host):
    """64 ranks on 2 cores; without a word of the launcher on this host's, all count as its."""
    environment(PMI_SIZE="64", PMI_RANK="0", MPI_LOCALNRANKS=ranks_of_host)
    monkeypatch.setattr(launch, "cores", lambda: 2)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError):
        make_transport()
    assert os.environ.pop("MPIR_CVAR_ENABLE_HEAVY_YIELD") == "1"
    assert os.environ.pop("OMPI_MCA_mpi_yield_when_idle") == "1"


def test_ranks_with_a_core_each_do_not_yield(environment, monkeypatch):
    """64 ranks on 32 hosts: it is those of this host that count."""
    environment(PMI_SIZE="64", PMI_RANK="0", MPI_LOCALNRANKS="2")
    monkeypatch.setattr(launch, "cores", lambda: 2)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError):
        make_transport()
    assert "MPIR_CVAR_ENABLE_HEAVY_YIELD" not in os.environ


# Threads


def test_threads_as_asked(environment, threads):
    assert set_threads(1, LocalTransport()) == 1
    assert torch.get_num_threads() == 1
    assert set_threads(2, LocalTransport()) == 2
    assert set_threads(None, LocalTransport()) == 2  # alone: torch's own


def test_ranks_share_the_cores(environment, threads, monkeypatch):
    monkeypatch.setattr(launch, "cores", lambda: 6)
    ranks = Ranks(0, None)
    ranks.local_size = 3
    assert set_threads(None, ranks) == 2
    monkeypatch.setattr(launch, "cores", lambda: 2)
    assert set_threads(None, ranks) == 1
    torch.set_num_threads(2)
    environment(OMP_NUM_THREADS="2")
    assert set_threads(None, ranks) == 2  # the user's own choice stays
    assert set_threads(1, ranks) == 1


def test_a_run_of_one_rank_leaves_cores_to_the_other_ranks(environment, threads, monkeypatch):
    """A communicator of one rank, as each trial of a search under mpirun may use."""
    monkeypatch.setattr(launch, "cores", lambda: 6)
    assert set_threads(None, LocalTransport(local_size=3)) == 2


def test_cores_is_a_positive_number():
    assert launch.cores() >= 1


# Agreement before a run


def test_equal_facts_pass_and_the_first_that_differs_is_named():
    facts = {"version": "1", "nu": "0.3", "data": "abc"}
    require_agreement(LocalTransport(), facts)
    require_agreement(Ranks(1, lambda value: [value, value, dict(value)]), facts)
    others = [facts, facts | {"data": "abd", "nu": "0.4"}]
    with pytest.raises(InputError, match=r"nu = 0\.3 on rank 0 and 0\.4 on rank 1: must be the same on every rank"):
        require_agreement(Ranks(1, lambda value: others), facts)
    with pytest.raises(InputError, match="more = unknown on rank 0 and 1 on rank 2"):
        require_agreement(Ranks(0, lambda value: [value, value, value | {"more": "1"}]), facts)


@given(graph=graphs(), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_digest_sees_every_change_of_the_data(graph, seed):
    assert data_digest(graph, None) == graph.fingerprint()
    random = np.random.default_rng(seed)
    X, y = random.normal(size=(5, 3)), random.integers(3, size=5)
    known = data_digest(X, y)
    assert len(known) == 32
    assert data_digest(X.copy(), y.tolist()) == known
    row, column = random.integers(5), random.integers(3)
    changed = X.copy()
    changed[row, column] = np.nextafter(changed[row, column], 9)
    assert data_digest(changed, y) != known
    assert data_digest(X, np.where(np.arange(5) == row, y + 1, y)) != known
    assert data_digest(X.T, y) != known
    assert data_digest(X.astype("f4"), y) != known


def test_data_that_fit_refuses_are_told_by_their_type():
    assert data_digest([[1, 2], [3]], [0, 1]) == "list"
    assert data_digest(object(), None) == "object"
    assert data_digest(None, None) == "NoneType"


# Envelopes of single arrays and collective calls


@given(data=st.data())
def test_an_envelope_fits_its_own_array_alone(data):
    kinds, types = st.sampled_from(["init", "evaluation", "migration"]), st.sampled_from(["f4", "f8", "i8", "u1"])
    shapes = st.lists(st.integers(0, 4), min_size=1, max_size=2).map(tuple)
    one, other = (data.draw(st.tuples(kinds, types, shapes, st.integers(1, 3))) for _ in range(2))
    sent, due = (Envelope(kind, np.zeros(shape, type_), number) for kind, type_, shape, number in (one, other))
    assert len(sent.packed) == ENVELOPE_BYTES
    sent.check(sent.packed, 0)
    if one == other:
        due.check(sent.packed, 0)
    else:
        with pytest.raises(RuntimeError, match=rf"rank 7 sent {one[0]} message {one[3]}, .*{other[0]}"):
            due.check(sent.packed, 7)


@given(packed=st.binary(min_size=ENVELOPE_BYTES, max_size=ENVELOPE_BYTES))
def test_any_bytes_are_refused_with_words(packed):
    with pytest.raises(RuntimeError, match="message out of order: rank 1 sent"):
        Envelope("init", np.zeros((2, 3), "f4"), 1).check(packed, 1)


def test_a_rank_that_ends_the_job_waits_until_its_words_are_read(monkeypatch):
    """What is left in the pipe when a rank aborts, mpiexec may throw away."""
    end, start = os.pipe()
    with open(start, "w") as stream, open(end, "rb", buffering=0) as launcher:
        monkeypatch.setattr(sys, "stderr", stream)
        stream.write("rank 1 of 2 failed")
        read = []
        reader = threading.Thread(target=lambda: read.append(launcher.read(100)))
        reader.start()  # nothing to read before let_be_read flushes
        let_be_read()
        assert fcntl.ioctl(launcher, termios.FIONREAD, bytes(4)) == bytes(4)
        reader.join()
    assert read == [b"rank 1 of 2 failed"]


def test_a_stream_that_nobody_reads_keeps_no_rank_waiting(monkeypatch, tmp_path):
    with open(tmp_path / "err", "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        let_be_read()  # a file
    let_be_read()  # closed
    for other in (None, types.SimpleNamespace(write=print, flush=lambda: None)):  # and one that is no file
        monkeypatch.setattr(sys, "stderr", other)
        let_be_read()
    end, start = os.pipe()
    with open(start, "w") as stream, open(end, "rb"):
        monkeypatch.setattr(sys, "stderr", stream)
        stream.write("lost")
        let_be_read()  # gives up
