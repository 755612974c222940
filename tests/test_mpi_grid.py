"""Checkpoints of a grid of ranks under mpiexec go on on the same grid, on others, and in one process."""

from __future__ import annotations

import json
from pathlib import Path

import mpi_grid
import numpy as np
import pytest
from mpi_launch import NEEDS_MPI, mpiexec

HERE = Path(__file__).parent

pytestmark = [*NEEDS_MPI, pytest.mark.usefixtures("one_thread")]


def test_checkpoints_go_on_on_the_same_grid_with_the_same_bits_and_on_others_to_rounding(tmp_path):
    whole = {name: mpi_grid.fit_saved(name, "1x1", None) for name in mpi_grid.SAVED}
    for name in mpi_grid.SAVED:
        assert mpi_grid.fit_saved(name, "1x1", tmp_path / f"{name}-one", stops=True) == 143
    done = mpiexec(4, HERE / "mpi_grid.py", tmp_path)
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
