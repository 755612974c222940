"""GIST and sample-based training under mpiexec: the same on any number of ranks, bytes as predicted."""

from __future__ import annotations

import json
from pathlib import Path

import mpi_sampling
import numpy as np
import pytest
import torch
from mpi_gnn import graph_of
from mpi_launch import NEEDS_MPI, mpiexec
from mpi_sampling import RANKS

from pdadmm.parallel.ledger import ring_bytes

HERE = Path(__file__).parent
GIST = [name for name, (solver, _, _) in mpi_sampling.CASES.items() if solver == "gist"]
SAMPLED = [name for name in mpi_sampling.CASES if name not in GIST]

pytestmark = NEEDS_MPI


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Every case on three ranks, in one launch."""
    folder = tmp_path_factory.mktemp("sampling")
    done = mpiexec(RANKS, HERE / "mpi_sampling.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone():
    """Every case in this very process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {name: mpi_sampling.fit(name) for name in mpi_sampling.CASES}
    torch.set_num_threads(threads)
    return found


def results(folder: Path, name: str) -> list[tuple[dict, dict]]:
    """What each rank wrote: its weights, and its history and summary."""
    return [
        (dict(np.load(folder / f"{name}.{rank}.npz")), json.loads((folder / f"{name}.{rank}.json").read_text()))
        for rank in range(RANKS)
    ]


@pytest.mark.parametrize("name", GIST)
def test_workers_on_ranks_are_workers_in_one_process(launched, alone, name):
    """Bit for bit, the accuracies too: m parts on fewer ranks, as many, or more."""
    expected = {key: value.numpy() for key, value in alone[name].model_.state_dict().items()}
    for weights, told in results(launched, name):
        assert weights.keys() == expected.keys()
        assert all(weights[key].tobytes() == expected[key].tobytes() for key in expected)
        for ours, theirs in zip(told["history"], alone[name].history_, strict=True):
            assert {**ours, "seconds": 0, "bytes": 0} == {**theirs, "seconds": 0, "bytes": 0}


@pytest.mark.parametrize("name", SAMPLED)
def test_ranks_take_the_steps_of_one_process(launched, alone, name):
    expected = {key: value.numpy() for key, value in alone[name].model_.state_dict().items()}
    every = results(launched, name)
    for weights, told in every:
        for key in expected:
            np.testing.assert_allclose(weights[key], expected[key], rtol=1e-7, atol=1e-9)
            assert weights[key].tobytes() == every[0][0][key].tobytes()  # all ranks end with the same bits
        ours, theirs = ([row["objective"] for row in rows] for rows in (told["history"], alone[name].history_))
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("name", mpi_sampling.CASES)
def test_bytes_are_the_predicted_ones(launched, name):
    for _, told in results(launched, name):
        summary = told["summary"]
        assert summary["ranks"] == RANKS
        assert summary["bytes_sent"] == summary["bytes_predicted"] == told["history"][-1]["bytes"] > 0


def test_a_sampled_step_sends_gradients_loss_and_count(launched):
    (weights, told), *_ = results(launched, "neighbour")
    numbers = sum(array.size for array in weights.values()) + 2
    steps = -(-len(graph_of("csbm").splits["train"]) // 19)
    assert told["summary"]["bytes_per_iteration"] == steps * RANKS * ring_bytes(8 * numbers, RANKS)


def test_gist_bytes_are_about_the_papers(launched):
    """Of a worker's words (d_0 + 1) d / m + C d / m a share travels, three times over with Adam's state, both ways."""
    _, told = results(launched, "gist-shallow")[0]
    m, d_0, d, C, hosts = 10, 4, 10, 3, np.array([3, 3, 4])
    words = (d_0 + 1) * d // m + C * d // m
    moving = 1 - ((hosts / m) ** 2).sum()  # a number stays where its home is on the worker's rank
    expected = 4 * (2 * m * 3 * words * moving + m * 3 * C * (RANKS - 1))
    summary = told["summary"]
    rounds_per_iteration = 9 / 20  # clusters, steps
    assert summary["bytes_per_iteration"] == round(expected * rounds_per_iteration)
    assert summary["bytes_sent"] == pytest.approx(expected * summary["rounds"], rel=0.25)


def test_no_rank_holds_a_sliced_network(launched, alone):
    """All ranks predict as the whole network does, each holds a third of it."""
    total = sum(array.numel() for array in alone["gist"].model_.state_dict().values())
    expected = alone["gist"].predict_proba(graph_of("csbm"))
    for rank in range(RANKS):
        found = np.load(launched / f"sliced.{rank}.npz")
        np.testing.assert_allclose(found["proba"], expected, rtol=1e-4, atol=1e-6)
        assert total / 4 < found["held"] < total / 2
