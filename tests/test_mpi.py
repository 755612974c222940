"""Runs under mpiexec: the same bits on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import mpi_run
import numpy as np
import pytest
from mpi_compare import Result, assert_all_arrived, assert_equal_results, assert_ledger_of_p_and_q
from mpi_launch import NEEDS_MPI, mpiexec

HERE = Path(__file__).parent
RANKS = (1, 2, 3)  # ten in test_mpi_many.py

pytestmark = NEEDS_MPI


@pytest.fixture(scope="module")
def alone(one_thread, tmp_path_factory) -> Path:
    """Every case in this very process."""
    folder = tmp_path_factory.mktemp("alone")
    mpi_run.run_cases(folder, 0)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Every case on three ranks, then on one beside two."""
    folder = tmp_path_factory.mktemp("ranks")
    done = mpiexec(3, HERE / "mpi_run.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", mpi_run.CASES)
def test_ranks_do_not_change_a_bit(alone, launched, ranks, name):
    """Three ranks are the world; one and two have communicators of their own, side by side."""
    assert_equal_results(Result(launched / str(ranks), name, ranks), Result(alone, name, 1))


def test_a_world_of_one_rank(alone, tmp_path):
    done = mpiexec(1, HERE / "mpi_run.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_results(Result(tmp_path / "1", "exact-gram-32", 1), Result(alone, "exact-gram-32", 1))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ["exact-gram-32", "gradient-gradient-64", "leaky", "patience"])
def test_ledger_of_p_and_q_is_what_the_algorithm_sends(launched, ranks, name):
    assert_ledger_of_p_and_q(Result(launched / str(ranks), name, ranks), name)


@pytest.mark.parametrize("ranks", RANKS)
def test_what_was_sent_was_received(launched, ranks):
    assert_all_arrived(Result(launched / str(ranks), "exact-gram-32", ranks))


@pytest.mark.parametrize("name", mpi_run.DAMAGED)
def test_sides_that_differ_are_brought_together_with_acceleration(launched, name):
    """A value sent whole starts the extrapolation of its boundary again, on both ranks alike."""
    folder = launched / "3"
    arrays = Result(folder, name, 3).arrays
    told = [json.loads((folder / f"{name}.{rank}.resent.json").read_text()) for rank in range(3)]
    damaged = 1 if mpi_run.DAMAGED[name][0] == "p" else 0
    for boundary in (0, 1):
        lower, upper = f"{boundary}.above", f"{boundary + 1}.below"
        for x in "pqu":
            ours, theirs = arrays[boundary][f"{lower}.{x}"], arrays[boundary + 1][f"{upper}.{x}"]
            assert np.isfinite(ours).all()
            assert np.array_equal(ours, theirs), f"{x} of boundary {boundary}"
        assert told[boundary][lower] == told[boundary + 1][upper]
        assert told[boundary][lower][0] == (2 if boundary == damaged else 0)
