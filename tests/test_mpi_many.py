"""Ten ranks under mpiexec, in one launch: the bits of one process on a layer each, its numbers on grids."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import mpi_grid
import mpi_run
import numpy as np
import pytest
from mpi_compare import Result, assert_all_arrived, assert_equal_results, assert_ledger_of_p_and_q
from mpi_launch import NEEDS_MPI, mpiexec
from test_grid import assert_close, join

HERE = Path(__file__).parent
# float32: ten layers from random weights amplify how the BLAS of this CPU rounds.
TOLERANCES = {"float64-51": 1e-9, "float32-1": 1e-5, "float32-51": 2e-3}
ALL_GRIDS = [grid for side_by_side in mpi_grid.GRIDS for grid in side_by_side]

pytestmark = [*NEEDS_MPI, pytest.mark.many_ranks, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    done = mpiexec(10, HERE / "mpi_many.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


# A layer a rank


@pytest.fixture(scope="module")
def alone(one_thread, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    mpi_run.run_cases(folder, 0)
    return folder


@pytest.mark.parametrize("name", mpi_run.CASES)
def test_ten_ranks_do_not_change_a_bit(alone, launched, name):
    assert_equal_results(Result(launched, name, 10), Result(alone, name, 1))


@pytest.mark.parametrize("name", ["exact-gram-32", "gradient-gradient-64", "leaky", "patience"])
def test_ledger_of_p_and_q_is_what_the_algorithm_sends(launched, name):
    assert_ledger_of_p_and_q(Result(launched, name, 10), name)


def test_what_was_sent_was_received_and_u_never_travels(launched):
    result = Result(launched, "exact-gram-32", 10)
    assert_all_arrived(result)
    kinds = {kind for told in result.told for kind in told["sent"]}
    assert kinds <= {"p", "q", "init", "evaluation", "migration", "control"}


# Grids


@pytest.fixture(scope="module")
def grids_alone(one_thread):
    return {case: mpi_grid.fit(case, "1x1") for case in mpi_grid.CASES}


@pytest.mark.parametrize("grid", ALL_GRIDS)
@pytest.mark.parametrize("case", mpi_grid.CASES)
def test_a_grid_finds_what_one_process_does(grids_alone, launched, case, grid):
    """W, p, z, q relative to themselves, u to nu |q|, b and r to |z|."""
    trained, expected, _, _ = grids_alone[case]
    groups, shards = map(int, grid.split("x"))
    ranks = range(groups * shards)
    told = [json.loads((launched / f"{case}.{grid}.{rank}.json").read_text()) for rank in ranks]
    states = {divmod(rank, shards): dict(np.load(launched / f"{case}.{grid}.{rank}.npz")) for rank in ranks}
    assert_close(join(states, groups, shards), expected, TOLERANCES[case])
    cuts = [90 * shard // shards for shard in range(shards + 1)]
    assert [told[rank]["rows"] for rank in range(shards)] == [list(run) for run in itertools.pairwise(cuts)]
    assert all(part["model"] == told[0]["model"] for part in told)
    assert all(part["history"] == told[0]["history"] for part in told)
    assert all(part["summary"]["grid"] == grid for part in told)
    ours, theirs = trained.summary_, told[0]["summary"]
    assert theirs["test_accuracy"] == pytest.approx(ours["test_accuracy"], abs=0.05)
    for kind in ("p", "q", "moments"):
        sent, received = (sum(part[what].get(kind, 0) for part in told) for what in ("sent", "received"))
        assert sent == received
        assert (sent > 0) == (kind == "moments" or groups > 1)
