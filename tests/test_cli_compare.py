"""`pdadmm tune`, `pdadmm compare`, `pdadmm plot`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from pdadmm import Graph, contest, csbm
from pdadmm.cli import main
from pdadmm.contest import read_summary
from pdadmm.data import write_npz
from pdadmm.tuning import SPACES

DATA = ["--dataset", "csbm:120"]
TUNE = ["tune", *DATA, "--layers", "2", "--hidden", "6", "--hops", "1", "--iterations", "3"]
COMPARE = ["compare", *DATA, "--layers", "2", "--hidden", "6", "--hops", "1", "--threads", "1"]


@pytest.fixture
def run(capsys):
    """Run a command line; return its status, and what it wrote to standard output and standard error."""

    def go(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    return go


@pytest.fixture
def refused(run):
    """Run a command line that must end with status 2 and one sentence with these words."""

    def go(*arguments, words=()):
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert err.startswith("pdadmm: ")
        assert err.count("\n") == 1
        assert "must be" in err
        for word in words:
            assert word in err

    return go


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small contest with real child processes, made once."""
    path = tmp_path_factory.mktemp("contest") / "small.json"
    arguments = [*COMPARE, "--solvers", "pdadmm-g", "--seeds", "2", "--budget", "2", "--summary", str(path), "--quiet"]
    assert main(arguments) == 0
    return path, arguments


# tune


def test_tune(run, tmp_path):
    status, out, err = run(*TUNE, "--budget", 3, "--nu", "0.7", "--summary", tmp_path / "t.json")
    assert status == 0
    summary = json.loads((tmp_path / "t.json").read_text())
    assert summary["fixed"] == {"layers": 2, "hidden": 6, "hops": 1, "iterations": 3, "nu": 0.7}
    assert [trial["trial"] for trial in summary["trials"]] == [0, 1, 2]
    searched = set(SPACES["pdadmm-g"]) - {"nu", "iterations"}
    assert all(set(trial["parameters"]) == searched for trial in summary["trials"])
    best = max(summary["trials"], key=lambda trial: (trial["val_accuracy"], -trial["val_loss"]))
    assert summary["best"] == {key: best[key] for key in ("trial", "parameters", "val_accuracy")}
    assert "test_accuracy" not in json.dumps(summary)
    lines = out.splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[1 + best["trial"]].split()[2] == "*"
    assert "trial 2" in err


@pytest.mark.parametrize("more", [[], ["--solver", "adam", "--split", "random:5", "--split-seed", "2", "--seed", "3"]])
def test_the_best_trial_is_a_command_line(run, tmp_path, more):
    """What tune prints trains with the same validation accuracy."""
    _, out, _ = run(*TUNE, *more, "--budget", 2, "--summary", tmp_path / "t.json", "--quiet")
    program, *best = shlex.split(out.splitlines()[-1].removeprefix("best: "))
    assert program == "pdadmm"
    assert run(*best, "--summary", tmp_path / "s.json", "--quiet")[0] == 0
    trained, tuned = (json.loads((tmp_path / name).read_text()) for name in ("s.json", "t.json"))
    assert trained["val_accuracy"] == tuned["best"]["val_accuracy"]


def test_seeds_of_tune(run, tmp_path):
    def trials(*more):
        assert run(*TUNE, "--budget", 2, "--summary", tmp_path / "t.json", "--quiet", *more)[0] == 0
        return [trial["parameters"] for trial in json.loads((tmp_path / "t.json").read_text())["trials"]]

    one = trials()
    assert trials() == one
    assert trials("--tune-seed", 4)[0] == one[0]
    assert trials("--tune-seed", 4)[1] != one[1]
    assert trials("--split", "random:4", "--split-seed", 3) == one


def test_tune_where_every_trial_diverges(run, tmp_path):
    graph = csbm(60, num_classes=2, num_features=3, seed=0)
    parts = (graph.indptr, graph.indices, None, graph.features * np.float32(1e30), graph.labels, graph.splits)
    write_npz(Graph(*parts), tmp_path / "huge.npz")
    flags = ("--dataset", tmp_path / "huge.npz", "--scaling", "none", "--budget", 2, "--quiet")
    status, out, err = run(*TUNE, *flags, "--summary", tmp_path / "t.json")
    assert status == 1
    assert err.startswith("pdadmm: all 2 trials diverged; the first said: iteration")
    assert "diverged" in out
    summary = json.loads((tmp_path / "t.json").read_text())
    assert summary["best"] is None
    assert all("not finite" in trial["failed"] for trial in summary["trials"])


def test_bad_input_of_tune(refused, tmp_path, monkeypatch):
    from pdadmm.graph_classifier import GraphClassifier

    monkeypatch.setattr(GraphClassifier, "fit", lambda *args, **more: pytest.fail("it trained"))
    refused("tune", words=["--dataset"])
    refused(*TUNE, "--solver", "koala", words=["solver = koala"])
    for budget in ("0", "-1", "x", "1.5"):
        refused(*TUNE, "--budget", budget, words=[f"budget = {budget}"])
    refused(*TUNE, "--tune-seed", "-1", words=["tune_seed = -1"])
    refused(*TUNE, "--nu", "x", words=["nu = x"])
    refused(*TUNE, "--stages", "2,9", words=["stages = 2,9"])
    refused(*TUNE, "--split", "fraction:50/0/50", words=["validation nodes"])
    refused(*TUNE, "--summary", tmp_path / "none" / "t.json", words=["summary", "none"])
    refused(*TUNE, "--summary", tmp_path, words=["summary", str(tmp_path)])


# compare


def test_compare_in_children(finished):
    path, arguments = finished
    summary = read_summary(path)
    assert summary["contest"]["dataset"] == "csbm:120"
    assert summary["contest"]["versions"].keys() >= {"pdadmm", "python", "numpy", "scipy", "torch", "processor"}
    assert summary["commands"] == ["pdadmm " + " ".join(arguments)]
    (row,) = summary["rows"]
    assert (row["solver"], row["layers"], len(row["tuning"]["trials"])) == ("pdadmm-g", 2, 2)
    for run in row["runs"]:
        assert run["threads"] == 1
        assert run["peak_bytes"] > 1e7
        lengths = {len(column) for column in run["history"].values()}
        assert lengths == {run["iterations"]}
        assert run["val_accuracy"] == max(run["history"]["val_accuracy"])
        assert run["bytes"] == run["history"]["bytes"][-1] > 0
    best = row["figures"]["val_accuracy"]["mean"]
    assert summary["targets"] == [round(0.95 * best, 4), round(0.99 * best, 4)]


def test_compare_prints_a_table_and_goes_on(run, finished, monkeypatch):
    """The second call finds all rows done: it starts no child, and prints the same figures."""
    monkeypatch.setattr(contest, "_in_child", lambda work, job: pytest.fail("it ran again"))
    path, arguments = finished
    runs = read_summary(path)["rows"][0]["runs"]
    status, out, err = run(*arguments, "--targets", "0.3,.4,0.3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "| s to 0.3 | s to 0.4 | iterations |" in lines[0]
    assert lines[2].startswith("| pdadmm-g | 2 | 0.")
    assert lines[4].startswith("pdadmm-g, 2 layers: nu=")
    again = read_summary(path)
    assert again["rows"][0]["runs"] == runs
    assert len(again["commands"]) == 2
    assert "kept from" in run(*[word for word in arguments if word != "--quiet"])[2]


def test_another_contest_in_the_file(refused, finished):
    path, arguments = finished
    before = path.read_bytes()
    refused(*arguments, "--seeds", "3", words=["summary", "differs in seeds", "name another file"])
    assert path.read_bytes() == before


def test_bad_input_of_compare(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "_in_child", lambda work, job: pytest.fail("it ran"))
    refused(*COMPARE, words=["--summary"])
    ok = (*COMPARE, "--summary", tmp_path / "c.json")
    refused(*ok, "--solvers", "koala", words=["solvers = koala", "pdadmm-g"])
    refused(*ok, "--solvers", "", words=["solvers"])
    for name in ("layers", "hidden", "seeds"):
        refused(*ok, f"--{name}", "0", words=[f"{name} = 0"])
    refused(*ok, "--layers", "2,x", words=["layers = x"])
    refused(*ok, "--budget", "-1", words=["budget = -1"])
    refused(*ok, "--tune-seed", "3", words=["tune_seed = 3", "reported"])
    refused(*ok, "--first-seed", "-1", words=["first_seed = -1"])
    refused(*ok, "--first-seed", "998", words=["tune_seed = 1000", "seeds 998 to 1002"])
    refused(*ok, "--test", "twice", words=["test = twice", "curve, once"])
    refused(*ok, "--split-seeds", "koala", words=["split_seeds = koala", "same, fixed"])
    refused(*ok, "--split-seeds", "fixed", words=["split_seeds = fixed: must be left out", "random:N"])
    refused(*ok, "--solvers", "gcn", words=["hops = 1: must be left out with gcn alone", "augmented features"])
    refused(*ok, "--budget", "0", "--tune-seeds", "3", words=["tune_seeds = 3: must be left out with budget 0"])
    for target in ("0", "1.5", "x", "", "nan"):
        refused(*ok, "--targets", f"0.5,{target}", words=[f"targets = {target}"])
    refused(*ok, "--hops", "-1", words=["hops = -1"])
    refused(*ok, "--nu", "1", words=["--nu"])
    refused(*ok, "--split", "koala", words=["split = koala"])
    refused(*COMPARE, "--summary", tmp_path / "none" / "c.json", words=["summary", "none"])
    refused(*COMPARE, "--summary", tmp_path, words=["summary", str(tmp_path)])
    (tmp_path / "other.json").write_text('{"seed": 1}')
    refused(*COMPARE, "--summary", tmp_path / "other.json", words=["other.json", "a file that pdadmm compare wrote"])
    assert [file.name for file in tmp_path.iterdir()] == ["other.json"]


def test_compare_does_not_run_under_mpirun(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    refused(*COMPARE, "--summary", tmp_path / "c.json", words=["ranks = 2", "without mpirun"])
    assert not list(tmp_path.iterdir())


# plot


@pytest.fixture
def png(tmp_path):
    pytest.importorskip("matplotlib")
    return tmp_path / "out.png"


@pytest.mark.parametrize("x", [None, "seconds", "iteration", "bytes"])
def test_plot_a_contest(run, finished, png, x):
    status, out, err = run("plot", finished[0], "-o", png, *(["--x", x] if x else []))
    assert (status, out, err) == (0, f"wrote {png}\n", "")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_plot_histories(run, png, tmp_path):
    for seed in (0, 1):
        history = tmp_path / str(seed) / "run.jsonl"
        history.parent.mkdir()
        assert run("train", *TUNE[1:], "--seed", seed, "--quiet", "--history", history)[0] == 0
    status, out, _ = run("plot", tmp_path / "0" / "run.jsonl", tmp_path / "1" / "run.jsonl", "--out", png)
    assert (status, out) == (0, f"wrote {png}\n")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bad_input_of_plot(refused, finished, png, tmp_path):
    refused("plot", words=["FILE"])
    refused("plot", finished[0], words=["--out"])
    refused("plot", finished[0], "-o", png, "--x", "epochs", words=["x = epochs", "seconds"])
    refused("plot", finished[0], "-o", tmp_path / "none" / "p.png", words=["out", "none"])
    for name in ("p.nonsense", "p.gif", "p"):
        refused("plot", finished[0], "-o", tmp_path / name, words=[f"{name}: must be a file that ends in .png"])
    refused("plot", tmp_path / "a.txt", "-o", png, words=["a.txt", ".jsonl"])
    refused("plot", tmp_path / "a.json", "-o", png, words=["a.json", "pdadmm compare wrote"])
    refused("plot", tmp_path / "a.jsonl", "-o", png, words=["a.jsonl"])
    refused("plot", finished[0], tmp_path / "a.jsonl", "-o", png, words=["all histories", "of their own"])
    (tmp_path / "empty.json").write_text('{"contest": {}, "commands": [], "targets": [], "rows": []}')
    refused("plot", tmp_path / "empty.json", "-o", png, words=["empty", "finished runs"])
    assert not png.exists()
