"""Grids of ranks under mpiexec: the result of one process to rounding, and checkpoints that go on on another grid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import mpi_grid
import numpy as np
import pytest
from mpi_launch import NEEDS_MPI, mpiexec
from test_grid import assert_close, join

HERE = Path(__file__).parent
TOLERANCES = {"float64-51": 1e-9, "float32-1": 1e-5, "float32-51": 2e-3}
ALL_GRIDS = [grid for side_by_side in mpi_grid.GRIDS for grid in side_by_side]

pytestmark = [*NEEDS_MPI, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def alone(one_thread):
    return {case: mpi_grid.fit(case, "1x1") for case in mpi_grid.CASES}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    done = mpiexec(12, HERE / "mpi_grid.py", "agree", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.many_ranks
@pytest.mark.parametrize("grid", ALL_GRIDS)
@pytest.mark.parametrize("case", mpi_grid.CASES)
def test_a_grid_finds_what_one_process_does(alone, launched, case, grid):
    """W, p, z, q relative to themselves, u to nu |q|, b and r to |z|."""
    trained, expected, _, _ = alone[case]
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


def test_checkpoints_go_on_on_the_same_grid_with_the_same_bits_and_on_others_to_rounding(tmp_path):
    whole = {name: mpi_grid.fit_saved(name, "1x1", None) for name in mpi_grid.SAVED}
    for name in mpi_grid.SAVED:
        assert mpi_grid.fit_saved(name, "1x1", tmp_path / f"{name}-one", stops=True) == 143
    done = mpiexec(4, HERE / "mpi_grid.py", "checkpoint", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in mpi_grid.SAVED:
        told = [json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for rank in range(4)]
        assert all(part == told[0] for part in told)
        assert told[0]["cut"] == 143
        assert told[0]["2x2"] == told[0]["whole"]
        back = mpi_grid.fit_saved(name, "1x1", tmp_path / name)
        if name == "stochastic":  # scales are those of a shard: another grid, other codes
            assert told[0]["4x1"]["objective"][-1] == pytest.approx(whole[name]["objective"][-1], rel=0.1)
            continue
        for other in (told[0]["whole"], told[0]["1x4"], told[0]["4x1"], told[0]["from one"], back):
            np.testing.assert_allclose(other["objective"], whole[name]["objective"], rtol=1e-9)
            for key, value in whole[name]["weights"].items():
                np.testing.assert_allclose(other["weights"][key], value, rtol=1e-6, atol=1e-9)
