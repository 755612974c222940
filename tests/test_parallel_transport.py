"""The in-process transport, the byte ledger, errors that ranks share, and what the launchers' environment says."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from mpi_transport import check_transport

from pdadmm.errors import InputError
from pdadmm.parallel import launch
from pdadmm.parallel.launch import launched_rank, launched_size, local_ranks, make_transport, set_threads, together
from pdadmm.parallel.ledger import PAYLOAD_KINDS, Ledger
from pdadmm.parallel.transport import LocalTransport

VARIABLES = (
    "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_NTASKS",
    "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMP_NUM_THREADS",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD", "OMPI_MCA_mpi_yield_when_idle",
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
    assert PAYLOAD_KINDS == ("p", "q", "features", "adjoints", "gradients", "blocks")


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
    assert local_ranks() == 1
    assert isinstance(make_transport(), LocalTransport)
    assert "MPIR_CVAR_ENABLE_HEAVY_YIELD" not in os.environ


@pytest.mark.parametrize(
    ("variables", "size", "rank", "local"),
    [
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2"}, 4, 3, 2),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1, 0, 1),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 8, 7, 4),
        ({"PMIX_RANK": "2", "SLURM_NTASKS": "5"}, 5, 2, 5),
        ({"SLURM_NTASKS": "5"}, 1, 0, 1),  # a batch script, not a rank
        ({"PMI_SIZE": "many", "PMI_RANK": ""}, 1, 0, 1),
    ],
)
def test_launchers(environment, variables, size, rank, local):
    environment(**variables)
    assert (launched_size(), launched_rank(), local_ranks()) == (size, rank, local)


def test_a_launched_run_without_mpi4py_says_what_to_install(environment, monkeypatch):
    environment(PMI_SIZE="2", PMI_RANK="0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match="mpi4py"):
        make_transport()


def test_crowded_ranks_yield(environment, monkeypatch):
    environment(PMI_SIZE="64", PMI_RANK="0")
    monkeypatch.setattr(launch, "cores", lambda: 2)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError):
        make_transport()
    assert os.environ.pop("MPIR_CVAR_ENABLE_HEAVY_YIELD") == "1"
    assert os.environ.pop("OMPI_MCA_mpi_yield_when_idle") == "1"


# Threads


def test_threads_as_asked(environment, threads):
    assert set_threads(1, LocalTransport()) == 1
    assert torch.get_num_threads() == 1
    assert set_threads(2, LocalTransport()) == 2
    assert set_threads(None, LocalTransport()) == 2  # alone: torch's own


def test_ranks_share_the_cores(environment, threads, monkeypatch):
    monkeypatch.setattr(launch, "cores", lambda: 6)
    environment(PMI_SIZE="3", MPI_LOCALNRANKS="3")
    ranks = Ranks(0, None)
    assert set_threads(None, ranks) == 2
    monkeypatch.setattr(launch, "cores", lambda: 2)
    assert set_threads(None, ranks) == 1
    torch.set_num_threads(2)
    environment(OMP_NUM_THREADS="2")
    assert set_threads(None, ranks) == 2  # the user's own choice stays
    assert set_threads(1, ranks) == 1


def test_cores_is_a_positive_number():
    assert launch.cores() >= 1
