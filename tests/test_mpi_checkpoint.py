"""Checkpoints under mpiexec: any number of ranks goes on, a killed rank is named, the guard keeps its word."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mpi_checkpoint
import numpy as np
import pytest
from mpi_checkpoint import CASES, GNN_CASES, KILLED_IN, STOPPED_IN
from mpi_launch import NEEDS_MPI, mpiexec

from pdadmm.checkpoint import found
from pdadmm.parallel import guard

HERE = Path(__file__).parent


def needs_mpi(test):
    for mark in NEEDS_MPI:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Every case on three ranks, of which one was sent SIGTERM; what was said on standard error."""
    folder = tmp_path_factory.mktemp("stopped")
    done = mpiexec(3, HERE / "mpi_checkpoint.py", "stop", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stderr


@pytest.fixture(scope="module")
def on_two(stopped, tmp_path_factory) -> Path:
    """A copy of that folder, gone on with on two ranks."""
    folder = shutil.copytree(stopped[0], tmp_path_factory.mktemp("resumed") / "two")
    done = mpiexec(2, HERE / "mpi_checkpoint.py", "resume", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@needs_mpi
def test_a_run_goes_on_with_the_same_bits_on_any_number_of_ranks(stopped, on_two, one_thread):
    """Stopped on three ranks by a signal to one of them; gone on with on two, and in one process."""
    folder, said = stopped
    assert said.count(f"stopped by SIGTERM after iteration {STOPPED_IN}") == len(CASES) + len(GNN_CASES)
    for name in CASES:
        for rank in range(3):
            assert json.loads((folder / f"{name}.stop.{rank}.json").read_text()) == {"status": 143}
        assert [path.name for path in found(folder / name)] == ["iteration-000007", "iteration-000006"]
        whole = mpi_checkpoint.outcome(mpi_checkpoint.fit(name, None))
        alone = mpi_checkpoint.outcome(mpi_checkpoint.fit(name, folder / name, resume=True))
        assert alone == whole
        for rank in range(2):
            told = json.loads((on_two / f"{name}.resume.{rank}.json").read_text())
            assert told.pop("status") == 0
            sent = told.pop("bytes")  # of the ranks before, then of these
            assert all(later > earlier for earlier, later in itertools.pairwise(sent))
            assert told == json.loads(json.dumps(whole))


@needs_mpi
def test_gnns_go_on_with_the_same_bits_on_as_many_ranks_and_on_others_up_to_rounding(stopped, on_two):
    """On three ranks each, then from the same checkpoints on two; an old halo is of use to three ranks alone."""
    told = [json.loads((stopped[0] / f"gnn.stop.{rank}.json").read_text()) for rank in range(3)]
    for name in GNN_CASES:
        for own in (part[name] for part in told):
            assert own["status"] == 143
            assert own["again"] == own["whole"] == told[0][name]["whole"]
    two = json.loads((on_two / "gnn.resume.0.json").read_text())
    assert "ranks was 3 and is 2" in two["gcn-pipelined"]
    for name in ("gcn", "mixgcn", "sage", "gist"):  # others read other shares of the boundaries
        objectives = ([row["objective"] for row in run["history"]] for run in (two[name], told[0][name]["whole"]))
        np.testing.assert_allclose(*objectives, rtol=1e-9)


@needs_mpi
def test_a_killed_rank_is_named_and_the_run_goes_on(one_thread, tmp_path):
    done = mpiexec(2, HERE / "mpi_checkpoint.py", "kill", tmp_path, timeout=90)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("pdadmm: ")]
    assert "rank 1 (process" in line
    assert "with layer" in line
    assert f" of 4) died in iteration {KILLED_IN}; resume (--resume) goes on from iteration-000009" in line
    whole = mpi_checkpoint.outcome(mpi_checkpoint.fit("exact", None))
    assert mpi_checkpoint.outcome(mpi_checkpoint.fit("exact", tmp_path / "exact", resume=True)) == whole


# The guard by itself


@pytest.fixture
def watched(tmp_path):
    """Two processes that wait, their status files, and a guard over them."""
    folder = tmp_path / "ranks"
    folder.mkdir()
    waiting = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    for rank in range(2):
        told = {"host": "here", "iteration": 4 * rank, "holds": f"layer {rank + 1} of 2"}
        (folder / f"rank-{rank:04d}.json").write_text(json.dumps(told))
    command = [sys.executable, "-I", "-S", guard.__file__, str(folder)]
    command += [f"{rank}:{process.pid}" for rank, process in enumerate(waiting)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield folder, waiting, watcher
    for process in (*waiting, watcher):
        process.kill()
        process.communicate()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the guard needs Linux")
@pytest.mark.parametrize(
    ("rank", "where"), [(1, "layer 2 of 2) died in iteration 4"), (0, "layer 1 of 2) died before its first iteration")]
)
def test_the_guard_names_the_first_to_die(watched, rank, where):
    folder, waiting, watcher = watched
    os.kill(waiting[rank].pid, signal.SIGKILL)
    waiting[rank].wait()
    waiting[1 - rank].kill()  # as the launcher does
    said = watcher.communicate(timeout=60)[1]
    assert said.startswith(f"pdadmm: rank {rank} (process {waiting[rank].pid} on here, with {where}")
    assert said.count("died") == 1
    assert "there is no checkpoint yet" in said
    assert (folder / "died.txt").read_text() in said


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the guard needs Linux")
@pytest.mark.parametrize("told", [True, False])
def test_the_guard_says_nothing_of_ranks_that_left(watched, told):
    folder, waiting, watcher = watched
    for file in folder.iterdir():
        file.unlink()
    if told:
        said = watcher.communicate("left", timeout=60)[1]
    else:
        for process in waiting:
            process.communicate(b"\n")
        said = watcher.communicate(timeout=60)[1]
    assert said == ""
    assert watcher.returncode == 0
    assert not list(folder.iterdir())
