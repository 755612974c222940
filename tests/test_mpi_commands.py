"""Command lines under mpiexec: one sentence about bad input, ranks that do not fit together, no hangs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from mpi_launch import NEEDS_MPI, mpiexec

import pdadmm
from pdadmm.cli import main
from pdadmm.parallel.envelope import REMEDY
from pdadmm.parallel.ledger import PAYLOAD_KINDS

HERE = Path(__file__).parent
SMALL = ["--dataset", "csbm:120", "--layers", "2", "--hidden", "6", "--hops", "1"]
RUN = ["train", *SMALL[:2], "--layers", "3", *SMALL[4:], "--iterations", "3", "--nu", "0.25", "--quiet"]
TUNE = ["tune", *SMALL, "--iterations", "3", "--budget", "2", "--quiet", "--summary"]

pytestmark = NEEDS_MPI


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Command lines, then ways not to fit together, in one launch on two ranks: what each rank returned and said."""
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
        "datasets": ["datasets"],
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
        "tune": [*TUNE, str(folder / "two.json")],
        "compare": ["compare", *SMALL, "--summary", str(folder / "contest.json")],
        "run": [*RUN, "--run", str(folder / "run"), "--trace"],
        "trace": [
            *("train", *SMALL[:2], "--layers", "4", "--hidden", "16", "--iterations", "3", "--quiet"),
            *("--trace", str(folder / "trace.json")),
        ],
        "adam-nu": [*train, "--solver", "adam", "--nu", "1"],
        "divergence": [
            *("train", "--dataset", str(folder / "huge.npz"), *train[3:]),
            *("--scaling", "none", "--split", "random:5"),
        ],
    }
    (folder / "commands.json").write_text(json.dumps(lines))
    done = mpiexec(2, HERE / "mpi_pair.py", folder, folder / "commands.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def commands(launched):
    return launched, [json.loads((launched / f"cli.{rank}.json").read_text()) for rank in range(2)]


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


def test_a_list_is_printed_once(commands):
    _, told = commands
    assert [rank["datasets"]["status"] for rank in told] == [0, 0]
    assert "pubmed" in told[0]["datasets"]["out"]
    assert told[1]["datasets"]["out"] == ""


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


def test_tune_spreads_its_layers_and_compare_refuses(launched, commands):
    """tune finds on two ranks what it finds on one; compare ends all ranks with one sentence."""
    _, told = commands
    assert [rank["tune"]["status"] for rank in told] == [0, 0], told[0]["tune"]["err"]
    assert told[1]["tune"]["out"] == ""
    assert main([*TUNE, str(launched / "one.json")]) == 0
    one, two = (json.loads((launched / name).read_text()) for name in ("one.json", "two.json"))
    assert one["best"] == two["best"]
    assert [rank["compare"]["status"] for rank in told] == [2, 2]
    assert told[1]["compare"]["err"] == ""
    assert "ranks = 2: must be 1 for compare" in told[0]["compare"]["err"]
    assert not (launched / "contest.json").exists()


def test_a_run_folder_is_that_of_one_process(one_thread, launched, commands, tmp_path):
    """The same model and confusion; bytes by kind add up to the two sums."""
    _, told = commands
    assert [rank["run"]["status"] for rank in told] == [0, 0], told[0]["run"]["err"]
    here, there = tmp_path / "run", launched / "run"
    assert main([*RUN, "--run", str(here), "--trace"]) == 0
    alone, summary = (json.loads((path / "summary.json").read_text()) for path in (here, there))
    assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
    assert summary["confusion"] == alone["confusion"]
    kinds = summary["bytes_by_kind"]
    assert alone["bytes_by_kind"] == {}
    assert sum(n for kind, n in kinds.items() if kind in PAYLOAD_KINDS) == summary["bytes_sent"] > 0
    assert sum(kinds.values()) == summary["bytes_sent"] + summary["bytes_other"]
    assert {"p", "q"} <= set(kinds)
    assert (there / "config.toml").read_text() == (here / "config.toml").read_text()


def test_a_trace_has_a_row_for_every_rank(launched, commands):
    _, told = commands
    assert [rank["trace"]["status"] for rank in told] == [0, 0], told[0]["trace"]["err"]
    events = json.loads((launched / "trace.json").read_text())["traceEvents"]
    rows = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert rows == {0: "rank 0", 1: "rank 1"}
    spans = [event for event in events if event["ph"] == "X"]
    for rank in range(2):
        own = [event for event in spans if event["pid"] == rank]
        assert {"update W, b", "update z"} <= {event["name"] for event in own}
        for event, following in itertools.pairwise(own):
            assert event["ts"] + event["dur"] <= following["ts"] + 0.2  # microseconds, rounded
    layers = [{e["args"]["layer"] for e in spans if e["pid"] == r and e["name"] == "update z"} for r in range(2)]
    assert layers[0] | layers[1] == {1, 2, 3, 4}
    assert {"wait for p"} <= {e["name"] for e in spans if e["pid"] == 0}
    assert {"wait for q"} <= {e["name"] for e in spans if e["pid"] == 1}


def test_ranks_that_do_not_fit_together_end_with_words(launched):
    """Settings, data, versions, arrays and collective calls that differ between two ranks; then a run that agrees."""
    told = [json.loads((launched / f"mismatch.{rank}.json").read_text()) for rank in range(2)]
    both = {
        "nu": "nu = 0.3 on rank 0 and 0.5 on rank 1: must be the same on every rank; start all ranks",
        "solver": "solver = PDADMMG on rank 0 and PDADMMGQ on rank 1: must be the same",
        "graph": "data = ",
        "checkpoint": "checkpoint = nowhere on rank 0 and None on rank 1: must be the same on every rank",
        "trace": "trace = given on rank 0 and None on rank 1",
        "comm": "comm = 'world': must be an mpi4py communicator",
        "arrays": "data = ",
        "version": f"pdadmm version = {pdadmm.__version__} on rank 0 and 9.9.9 on rank 1: must be the same",
        "checksums": "checksums = False on rank 0 and True on rank 1",
    }
    for name, words in both.items():
        assert told[0][name] == told[1][name]
        assert told[0][name].startswith(f"InputError: {words}"), told[0][name]
    assert "on rank 0 and NoneType on rank 1" in told[0]["no graph"]
    for rank in range(2):
        assert (told[rank]["flag"], told[rank]["config"]) == ("status 2", "status 2")
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


@pytest.mark.parametrize("output", [(), ("tee",), ("none",)])
def test_a_rank_that_raises_ends_the_job_with_its_traceback(output):
    done = mpiexec(2, HERE / "mpi_crash.py", *output, timeout=90)
    assert done.returncode != 0
    assert "ZeroDivisionError: rank 1 has had enough" in done.stderr
    assert "rank 1 of 2" in done.stderr
    assert "Traceback" in done.stderr
    assert "in watch" in done.stderr
    assert "trained to the end" not in done.stdout


def test_a_rank_that_raises_before_it_trains_ends_the_job():
    done = mpiexec(2, HERE / "mpi_early.py", timeout=90)
    assert done.returncode != 0
    assert "rank 1 of 2 failed" in done.stderr
    assert "nowhere.npz" in done.stderr
    assert "trained to the end" not in done.stdout
