"""Backpropagation on ranks: the result of one process to rounding, and the bytes of its gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpi_backprop
import numpy as np
import pytest
from mpi_launch import NEEDS_MPI, mpiexec

from pdadmm.parallel.ledger import ring_bytes

HERE = Path(__file__).parent

pytestmark = NEEDS_MPI


@pytest.fixture(scope="module")
def alone(one_thread, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    mpi_backprop.run_cases(folder)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Every case on three ranks, then on one beside two."""
    folder = tmp_path_factory.mktemp("ranks")
    done = mpiexec(3, HERE / "mpi_backprop.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", mpi_backprop.CASES)
def test_ranks_agree_with_one_process(alone, launched, ranks, name):
    folder = launched / str(ranks)
    expected = dict(np.load(alone / f"{name}.0.npz"))
    ours = json.loads((alone / f"{name}.0.json").read_text())
    for rank in range(ranks):
        for key, array in np.load(folder / f"{name}.{rank}.npz").items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-10, atol=1e-10, err_msg=key)
        told = json.loads((folder / f"{name}.{rank}.json").read_text())
        assert told["summary"]["ranks"] == ranks
        assert len(told["history"]) == len(ours["history"])
        for one, other in zip(told["history"], ours["history"]):
            assert one.keys() == other.keys()
            for key in one.keys() - {"seconds", "bytes"}:
                assert one[key] == pytest.approx(other[key], rel=1e-10, abs=1e-12), key


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_those_of_the_gradients(launched, ranks):
    told = json.loads((launched / str(ranks) / "gd.0.json").read_text())
    summary, history = told["summary"], told["history"]
    numbers = sum(array.size for array in np.load(launched / str(ranks) / "gd.0.npz").values()) + 1  # and the loss
    steps = math.ceil(168 / 37)  # training nodes of csbm:280 in batches of 37
    assert summary["bytes_per_iteration"] == steps * ranks * ring_bytes(8 * numbers, ranks)
    assert summary["bytes_sent"] == history[-1]["bytes"] == 6 * summary["bytes_per_iteration"]
    assert summary["bytes_other"] > 0
    told = json.loads((launched / str(ranks) / "adam.0.json").read_text())["summary"]
    assert told["bytes_sent"] == sum(stage["iterations"] * stage["bytes_per_iteration"] for stage in told["stages"])
