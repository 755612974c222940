"""Runs under mpiexec: the same bits on any number of ranks, one sentence about bad input, no hangs."""

from __future__ import annotations

import json
from pathlib import Path

import mpi_run
import numpy as np
import pytest
import torch
from mpi_launch import NEEDS_MPI, mpiexec

import pdadmm
from pdadmm.admm.channel import HEADER_BYTES
from pdadmm.admm.settings import default_stages
from pdadmm.cli import main
from pdadmm.parallel.envelope import REMEDY

HERE = Path(__file__).parent
RANKS = (1, 2, 3, pytest.param(10, marks=pytest.mark.many_ranks))

pytestmark = NEEDS_MPI


# Same bits


class Result:
    """What the ranks of one launch wrote about one case."""

    def __init__(self, folder: Path, name: str, ranks: int) -> None:
        self.arrays = [dict(np.load(folder / f"{name}.{rank}.npz")) for rank in range(ranks)]
        self.told = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(ranks)]

    def total(self, what: str, kind: str) -> int:
        return sum(told[what].get(kind, 0) for told in self.told)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Every case in this very process."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    mpi_run.run_cases(folder, 0)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Launch every case on so many ranks, once a module."""
    folders = {}

    def launch(ranks: int) -> Path:
        if ranks not in folders:
            folder = tmp_path_factory.mktemp(f"ranks{ranks}")
            folders[ranks] = mpiexec(ranks, HERE / "mpi_run.py", folder), folder
        done, folder = folders[ranks]
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return launch


def assert_same_arrays(result: Result, alone: Result) -> None:
    expected = alone.arrays[0]
    for rank, arrays in enumerate(result.arrays):
        for name, array in arrays.items():
            assert array.dtype == expected[name].dtype
            same = array.tobytes() == expected[name].tobytes()
            gap = np.abs(array - expected[name]).max()
            assert same, f"{name} on rank {rank} of {len(result.arrays)} differs by up to {gap:.3g}"
    assert set().union(*result.arrays) == set(expected)  # every layer and both sides of every link were seen


def comparable(row: dict) -> dict:
    machine = ("seconds", "bytes", "peak_rss", "ranks", "grid", "threads")
    return {key: value for key, value in row.items() if not key.startswith(machine)}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", mpi_run.CASES)
def test_ranks_do_not_change_a_bit(alone, launched, ranks, name):
    one, many = Result(alone, name, 1), Result(launched(ranks), name, ranks)
    assert_same_arrays(many, one)
    for told in many.told:
        assert told["classes"] == one.told[0]["classes"]
        for key in ("history", "summary"):
            theirs, ours = told[key], one.told[0][key]
            if key == "history":
                assert [comparable(row) for row in theirs] == [comparable(row) for row in ours]
            else:
                assert comparable(theirs) == comparable(ours)
                assert theirs["ranks"] == ranks


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ["exact-gram-32", "gradient-gradient-64", "leaky", "patience"])
def test_ledger_of_p_and_q_is_what_the_algorithm_sends(launched, ranks, name):
    result = Result(launched(ranks), name, ranks)
    parameters = mpi_run.CSBM | mpi_run.CASES[name][1]
    rows, stages = result.told[0]["history"], result.told[0]["summary"]["stages"]
    assert [s["layers"] for s in stages] == list(parameters.get("stages", default_stages(10)))
    itemsize = 8 if parameters.get("dtype") == "float64" else 4
    message = HEADER_BYTES + 72 * parameters["hidden"] * itemsize
    boundaries = [min(ranks, row["layers"]) - 1 for row in rows]
    for kind in ("p", "q"):
        assert result.total("sent", kind) == result.total("received", kind) == message * sum(boundaries)
        assert result.total("messages", kind) == sum(boundaries)
    so_far = np.cumsum(boundaries) * 2 * message
    for told in result.told:
        assert [row["bytes"] for row in told["history"]] == so_far.tolist()
        assert told["summary"]["bytes_sent"] == so_far[-1]
        assert (told["summary"]["bytes_other"] > 0) == (ranks > 1)


@pytest.mark.parametrize("ranks", RANKS)
def test_what_was_sent_was_received(launched, ranks):
    result = Result(launched(ranks), "exact-gram-32", ranks)
    kinds = {kind for told in result.told for what in ("sent", "received") for kind in told[what]}
    totals = {kind: (result.total("sent", kind), result.total("received", kind)) for kind in kinds}
    assert {kind: sent for kind, (sent, _) in totals.items()} == {kind: got for kind, (_, got) in totals.items()}


@pytest.mark.many_ranks
def test_u_never_travels(launched):
    result = Result(launched(10), "exact-gram-32", 10)
    kinds = {kind for told in result.told for kind in told["sent"]}
    assert kinds <= {"p", "q", "init", "evaluation", "migration", "control"}


def test_a_communicator_of_ones_own(alone, launched):
    """Rank 0 fits alone, ranks 1 and 2 together: both as one process does."""
    one, folder = Result(alone, "exact-gram-32", 1), launched(3)
    for number, ranks in ((0, 1), (1, 2)):
        result = Result(folder / f"split-{number}", "exact-gram-32", ranks)
        assert_same_arrays(result, one)
        assert result.told[0]["summary"]["ranks"] == ranks


@pytest.mark.parametrize("name", mpi_run.DAMAGED)
def test_sides_that_differ_are_brought_together_with_acceleration(launched, name):
    """A value sent whole starts the extrapolation of its boundary again, on both ranks alike."""
    folder = launched(3)
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


# Bad input and failures


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Many command lines in one launch on two ranks: what each rank returned and said."""
    folder = tmp_path_factory.mktemp("commands")
    graph = pdadmm.csbm(40, num_classes=2, num_features=3, seed=0)
    features = graph.features.copy()
    features[3, 1] = np.nan
    pairs = np.stack([np.repeat(np.arange(40), np.diff(graph.indptr)), graph.indices])
    np.savez(folder / "nan.npz", edge_index=pairs, x=features, y=graph.labels)
    huge = 1e30 * graph.features
    np.savez(folder / "huge.npz", edge_index=pairs, x=huge, y=graph.labels)
    np.savez(folder / "keys.npz", something=pairs)
    train = ["train", "--dataset", "csbm:200", "--layers", "4", "--hidden", "4", "--hops", "1", "--iterations", "2"]
    lines = {
        "good": [*train, "--summary", str(folder / "good.json"), "--save", str(folder / "good.safetensors")],
        "grid": [*train, "--grid", "2x2"],
        "shards": [*train[:3], "--layers", "1", "--iterations", "2", "--summary", str(folder / "shards.json")],
        "dataset": ["train", "--dataset", "koala"],
        "missing": ["train", "--dataset", str(folder / "missing.npz")],
        "nan": ["train", "--dataset", str(folder / "nan.npz"), "--split", "random:5", "--layers", "4"],
        "keys": ["train", "--dataset", str(folder / "keys.npz")],
        "flag": [*train, "--koala", "3"],
        "number": [*train, "--nu", "-1"],
        "stages": [*train, "--stages", "2,3"],
        "split": [*train, "--split", "koala"],
        "solver": [*train, "--solver", "koala"],
        "folder": [*train, "--summary", str(folder / "nowhere" / "out.json")],
        "patience": [*train, "--split", "fraction:60/0/40", "--patience", "2"],
        "adam": [*train, "--solver", "adam", "--layers", "1", "--summary", str(folder / "adam.json")],
        "gd-divergence": [
            *("train", "--dataset", str(folder / "huge.npz"), *train[3:], "--solver", "gd"),
            *("--scaling", "none", "--split", "random:5"),
        ],
        "adam-nu": [*train, "--solver", "adam", "--nu", "1"],
        "divergence": [
            "train",
            "--dataset",
            str(folder / "huge.npz"),
            *train[3:],
            "--scaling",
            "none",
            "--split",
            "random:5",
        ],
    }
    (folder / "commands.json").write_text(json.dumps(lines))
    done = mpiexec(2, HERE / "mpi_cli.py", folder, folder / "commands.json", timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"cli.{rank}.json").read_text()) for rank in range(2)]


def test_a_command_line_trains_on_all_ranks(commands):
    folder, told = commands
    assert [rank["good"]["status"] for rank in told] == [0, 0]
    assert "test accuracy of the 4-layer network" in told[0]["good"]["out"]
    assert "2 ranks" in told[0]["good"]["out"]
    assert told[1]["good"]["out"] == told[1]["good"]["err"] == ""
    assert json.loads((folder / "good.json").read_text())["ranks"] == 2
    assert (folder / "good.safetensors").exists()


def test_backpropagation_takes_more_ranks_than_layers(commands):
    folder, told = commands
    assert [rank["adam"]["status"] for rank in told] == [0, 0], told[0]["adam"]["err"]
    summary = json.loads((folder / "adam.json").read_text())
    assert (summary["layers"], summary["ranks"]) == (1, 2)


def test_more_ranks_than_layers_share_nodes(commands):
    folder, told = commands
    assert [rank["shards"]["status"] for rank in told] == [0, 0], told[0]["shards"]["err"]
    summary = json.loads((folder / "shards.json").read_text())
    assert (summary["layers"], summary["ranks"], summary["grid"]) == (1, 2, "1x2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grid", ["grid = 2x2", "auto or one of 2x1, 1x2 on 2 ranks with 4 layers"]),
        ("dataset", ["dataset = koala"]), ("missing", ["missing.npz"]),
        ("nan", ["nan.npz"]), ("keys", ["keys.npz"]), ("flag", ["--koala"]), ("number", ["nu = -1"]),
        ("stages", ["stages = 2,3"]), ("split", ["split = koala"]), ("solver", ["solver = koala"]),
        ("folder", ["summary", "nowhere"]), ("patience", ["patience = 2"]), ("divergence", ["layer", "nu"]),
        ("gd-divergence", ["layers", "learning_rate"]), ("adam-nu", ["--nu"]),
    ],
)  # fmt: skip
def test_bad_input_ends_every_rank_with_one_sentence(commands, name, words):
    _, told = commands
    assert [rank[name]["status"] for rank in told] == [1 if "divergence" in name else 2] * 2
    said = "".join(rank[name]["err"] for rank in told)
    assert said.count("pdadmm: ") == 1
    assert len([line for line in said.splitlines() if "labelled nodes" not in line]) == 1  # which graph it was, first
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_tune_spreads_its_layers_and_compare_refuses(tmp_path):
    """tune finds on two ranks what it finds on one; compare ends all ranks with one sentence."""
    data = ["--dataset", "csbm:120", "--layers", "2", "--hidden", "6", "--hops", "1"]
    tune = ["tune", *data, "--iterations", "3", "--budget", "2", "--quiet", "--summary"]
    commands = {
        "tune": [*tune, str(tmp_path / "two.json")],
        "compare": ["compare", *data, "--summary", str(tmp_path / "contest.json")],
    }
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = mpiexec(2, HERE / "mpi_cli.py", tmp_path, tmp_path / "commands.json", timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"cli.{rank}.json").read_text()) for rank in range(2)]
    assert [rank["tune"]["status"] for rank in told] == [0, 0], told[0]["tune"]["err"]
    assert told[1]["tune"]["out"] == ""
    assert main([*tune, str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["best"] == two["best"]
    assert [rank["compare"]["status"] for rank in told] == [2, 2]
    assert told[1]["compare"]["err"] == ""
    assert "ranks = 2: must be 1 for compare" in told[0]["compare"]["err"]
    assert not (tmp_path / "contest.json").exists()


def test_ranks_that_do_not_fit_together_end_with_words(tmp_path):
    """Settings, data, versions, arrays and collective calls that differ between two ranks; then a run that agrees."""
    done = mpiexec(2, HERE / "mpi_mismatch.py", tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"mismatch.{rank}.json").read_text()) for rank in range(2)]
    both = {
        "nu": "nu = 0.3 on rank 0 and 0.5 on rank 1: must be the same on every rank; start all ranks",
        "solver": "solver = PDADMMG on rank 0 and PDADMMGQ on rank 1: must be the same",
        "graph": "data = ",
        "arrays": "data = ",
        "version": f"pdadmm version = {pdadmm.__version__} on rank 0 and 9.9.9 on rank 1: must be the same",
        "checksums": "checksums = False on rank 0 and True on rank 1",
    }
    for name, words in both.items():
        assert told[0][name] == told[1][name]
        assert told[0][name].startswith(f"InputError: {words}"), told[0][name]
    assert told[0]["shape"] == "sent"
    due = "init message 1, float32 of shape (2, 3) was due"
    assert f"rank 0 sent init message 1, float32 of shape (3, 2), where {due}" in told[1]["shape"]
    assert f"rank 0 sent evaluation message 1, int64 of shape (2, 3), where {due}" in told[1]["kind"]
    for rank in range(2):
        told_call = told[rank]["call"]
        assert "ranks out of step: rank" in told_call
        assert "allgather 1 of kind control" in told_call
        assert "allgather 1 of kind evaluation" in told_call
        assert told[rank]["number"].startswith("RuntimeError: ranks out of step")
        assert told[rank]["agreed"] == "fitted"
    assert "message of 32 bytes did not arrive" in told[1]["long"]
    for rank in range(2):
        assert told[rank]["sum"] == (
            "RuntimeError: ranks out of step: rank 0 is in sum of kind gradients, 4 numbers of type float32, "
            f"rank 1 is in sum of kind gradients, 5 numbers of type float32; {REMEDY}"
        )
        assert "sum of kind moments" in told[rank]["sum's kind"]
        assert (told[rank]["right sum"], told[rank]["right all-to-all"]) == ("summed", "sent")
        call = "is in all-to-all of kind blocks"
        words = f"rank 1 {call}, 2 numbers of type float32, rank 0 {call}, 3 numbers"
        assert words in told[rank]["all-to-all"]


def test_a_grid_of_another_number_of_ranks_ends_the_job_with_status_2():
    done = mpiexec(2, "-m", "pdadmm", "train", "--dataset", "csbm:200", "--layers", "1", "--grid", "2x1", timeout=90)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("grid = 2x1: must be auto or 1x2 on 2 ranks with 1 layer;") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_a_rank_that_raises_ends_the_job_with_its_traceback():
    done = mpiexec(2, HERE / "mpi_crash.py", timeout=90)
    assert done.returncode != 0
    assert "ZeroDivisionError: rank 1 has had enough" in done.stderr
    assert "rank 1 of 2" in done.stderr
    assert "Traceback" in done.stderr
    assert "in watch" in done.stderr
    assert "trained to the end" not in done.stdout
