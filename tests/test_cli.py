"""The command line: what it prints and writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_small import FAST, TINY, flags_of, npz, refuser, runner, tiny

import pdadmm
from pdadmm import History, csbm, load_model
from pdadmm.cli import COMMANDS
from pdadmm.data import DATASETS
from pdadmm.solvers import SOLVERS

SUMMARY = {
    "solver": str, "dataset": str, "split": str, "seed": int, "ranks": int, "layers": int, "hidden": int,
    "iterations": int, "stages": list, "test_accuracy": float, "val_accuracy": float, "train_accuracy": float,
    "seconds_training": float, "seconds_setup": float, "seconds_per_iteration": float,
    "seconds_augmentation": float, "bytes_sent": int, "bytes_other": int, "peak_rss_bytes": int,
}  # fmt: skip


@pytest.fixture
def run(capsys):
    return runner(capsys)


@pytest.fixture
def refused(run):
    return refuser(run)


# Training


def test_train_on_digits(run, tmp_path):
    files = {name: tmp_path / name for name in ("out.json", "out.jsonl", "model.safetensors")}
    status, out, err = run(
        "train", "--dataset", "digits", "--layers", 4, "--hidden", 40, "--iterations", 6, "--seed", 3,
        "--summary", files["out.json"], "--history", files["out.jsonl"], "--save", files["model.safetensors"],
    )  # fmt: skip
    assert status == 0, err
    summary = json.loads(files["out.json"].read_text())
    for key, kind in SUMMARY.items():
        assert type(summary[key]) is kind, key
    assert (summary["solver"], summary["dataset"], summary["seed"], summary["ranks"]) == ("pdadmm-g", "digits", 3, 1)
    assert summary["split"] == "20 per class"
    assert (summary["layers"], summary["hidden"], summary["iterations"]) == (4, 40, 12)
    assert summary["test_accuracy"] > 0.85
    for stage in summary["stages"]:
        for key in ("layers", "iterations", "val_accuracy", "test_accuracy", "start_test_accuracy"):
            assert key in stage
    history = History.from_jsonl(files["out.jsonl"])
    assert len(history) == 12
    assert history[-1]["layers"] == 4
    best = history[summary["stages"][-1]["best_iteration"] - 1]
    assert best["test_accuracy"] == summary["test_accuracy"]
    model, augmenter, classes = load_model(files["model.safetensors"])
    assert (len(model.layers), classes.tolist()) == (4, list(range(10)))
    assert augmenter.hops == 4
    graph = pdadmm.digits()
    again = pdadmm.PDADMMG().load(files["model.safetensors"])
    assert again.score(graph) == pytest.approx(summary["test_accuracy"])
    lines = out.splitlines()
    assert lines[0] == "pdadmm-g on digits (20 per class split, seed 3)"
    assert lines[-2] == f"test accuracy of the 4-layer network: {summary['test_accuracy']:.4f}"
    assert lines[-1].startswith("predicted / measured, an iteration: ")
    assert [line.split()[0] for line in lines[2:4]] == ["2", "4"]
    assert "4 layers, iteration 12" in err


def test_it_says_what_graph_it_read(run, tmp_path, monkeypatch):
    told = run(*TINY)[2].splitlines()
    assert told[0] == "csbm:120: 120 nodes, 383 edges, 100 features, 10 classes, 120 labelled nodes"
    assert sum("labelled nodes" in line for line in told) == 1
    path = npz(tmp_path / "gap.npz", y=np.arange(40) % 2 * 3)
    args = ("train", "--dataset", path, *FAST, "--split", "random:2")
    told = run(*args)[2].splitlines()
    assert told[0].startswith("gap: 40 nodes, ")
    assert told[0].endswith(" 3 features, 4 classes, 40 labelled nodes")
    warning = "no training node has the class 1 (2 such classes), which is never learned: classes go from 0 to 3"
    assert told[1] == warning
    monkeypatch.setattr("pdadmm.estimator._TOLD", set())  # as another process
    assert run(*args, "--quiet")[2] == warning + "\n"


def test_quiet_is_quiet(run):
    status, out, err = run(*TINY, "--quiet")
    assert (status, err) == (0, "")
    assert out
    assert run(*TINY, "--log-level", "warning")[2] == ""


@pytest.mark.parametrize(
    ("split", "seeds"), [("random:5", (0, 0, 1)), ("fraction:50/25/25", (0, 0, 1)), ("file", (0, 0, 0))]
)
def test_splits(run, tmp_path, split, seeds):
    found = []
    for seed in seeds:
        assert run(*TINY, "--split", split, "--split-seed", seed, "--summary", tmp_path / "s.json")[0] == 0
        found.append(json.loads((tmp_path / "s.json").read_text()))
    assert found[0]["split"] == split
    assert found[0]["test_accuracy"] == found[1]["test_accuracy"]
    assert found[2]["split_seed"] == seeds[2]
    assert found[0]["train_nodes"] == {"random:5": 50, "fraction:50/25/25": 60, "file": 72}.get(split)


def test_a_file_of_ones_own(run, tmp_path):
    path = npz(tmp_path / "mine.npz")
    assert run("train", "--dataset", path, *FAST, "--summary", tmp_path / "s.json")[0] == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["dataset"], summary["split"]) == (str(path), "file")


def test_a_data_set_of_the_folder(run, data_dir, tmp_path):
    """`pdadmm train --dataset cora` needs no other flag than where the data is."""
    arguments = ["train", "--dataset", "cora", *FAST, "--summary", tmp_path / "s.json"]
    assert run(*arguments, "--data-dir", data_dir)[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["split"] == "public"
    assert run(*arguments)[0] == 0  # PDADMM_DATA


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_trains_from_the_command_line(run, solver, tmp_path):
    assert run(*tiny(solver), "--solver", solver, "--summary", tmp_path / "s.json")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["solver"] == solver


def test_flags_reach_the_solver(run, tmp_path):
    arguments = (*TINY, "--summary", tmp_path / "s.json", "--history", tmp_path / "h.jsonl")
    flags = ("--stages", "2,3", "--rho", "2.5", "--eval-every", "2", "--dtype", "float64", "--first-layer", "gradient")
    assert run(*arguments, *flags)[0] == 0
    history = History.from_jsonl(tmp_path / "h.jsonl")
    assert set(history.column("rho")) == {2.5}
    assert "val_accuracy" not in history[0]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["dtype"], summary["first_layer"]) == ("float64", "gradient")
    assert [stage["layers"] for stage in summary["stages"]] == [2, 3]


@pytest.mark.parametrize("more", [[], ["--run"]])
def test_a_history_named_csv_is_a_table(run, tmp_path, more):
    places = [*more, *([tmp_path / "r"] if more else []), "--history", tmp_path / "h.csv"]
    assert run(*TINY, *places)[0] == 0
    header, *rows = (tmp_path / "h.csv").read_text().splitlines()
    assert header.startswith("iteration,stage,layers,objective,")
    assert [row.split(",")[0] for row in rows] == [str(k) for k in range(1, len(rows) + 1)]
    if more:
        assert len(History.from_jsonl(tmp_path / "r" / "history.jsonl")) == len(rows)


def test_the_same_as_in_python(run, tmp_path):
    assert run(*TINY, "--save", tmp_path / "m")[0] == 0
    graph = pdadmm.load_dataset("csbm:120")
    ours = pdadmm.PDADMMG(layers=3, hidden=6, hops=1, iterations=3).fit(graph)
    theirs = pdadmm.PDADMMG().load(tmp_path / "m")
    np.testing.assert_array_equal(ours.predict_proba(graph), theirs.predict_proba(graph))


# Presets


def summary_of(run, tmp_path, *arguments) -> dict:
    assert run(*arguments, "--summary", tmp_path / "s.json")[0] == 0
    return json.loads((tmp_path / "s.json").read_text())


@pytest.mark.parametrize(("solver", "cls"), [("pdadmm-g", pdadmm.PDADMMG), ("pdadmm-g-q", pdadmm.PDADMMGQ)])
def test_a_preset_sets_defaults_that_flags_override(run, tmp_path, solver, cls):
    summary = summary_of(run, tmp_path, *TINY, "--solver", solver, "--preset", "paper", "--nu", "0.02")
    changed = {"layers": 3, "hidden": 6, "hops": 1, "iterations": 3, "nu": 0.02}
    same = cls.preset("paper", **changed).fit(csbm(120))
    assert summary["preset"] == "paper"
    assert summary["stages"] == same.stages_
    assert summary["first_layer"] == "gradient"
    other = cls(**changed).fit(csbm(120))
    assert summary["stages"] != other.stages_


def test_the_default_preset_is_none(run, tmp_path):
    summary = summary_of(run, tmp_path, *TINY)
    assert summary["preset"] == "default"
    named = summary_of(run, tmp_path, *TINY, "--preset", "default")
    assert (named["preset"], named["stages"]) == ("default", summary["stages"])
    assert "preset" not in summary_of(run, tmp_path, *TINY, "--solver", "adam")


def test_help_shows_the_defaults_of_a_preset(run):
    def shown(*arguments) -> str:
        return " ".join(run("train", "--help", *arguments)[1].split())

    assert "(default: 0.3)" in shown()
    text = shown("--preset", "paper", "--solver", "pdadmm-g-q")
    assert "(default: 0.3)" not in text
    for name, value in pdadmm.PDADMMGQ.preset_parameters("paper").items():
        own = re.search(rf" --{name.lower().replace('_', '-')} [A-Z].*?(?= --|$)", text).group()
        assert f"(default: {value})" in own, name


def test_presets_that_are_not(refused):
    refused(*TINY, "--preset", "koala", words=["preset = koala", "default, paper"])
    refused(*TINY, "--preset", "", words=["preset = "])
    refused(*TINY, "--preset", words=["--preset"])
    refused(*TINY, "--solver", "adam", "--preset", "paper", words=["--preset"])
    refused("tune", "--dataset", "csbm:120", "--preset", "paper", words=["--preset"])


# Other commands


def test_help(run):
    for arguments in ((), ("--help",), ("-h",)):
        status, out, err = run(*arguments)
        assert (status, err) == (0, "")
        assert all(name in out for name in COMMANDS)
    for name in COMMANDS:
        status, out, err = run(name, "--help")
        assert (status, err) == (0, "")
        assert f"pdadmm {name}" in out


@pytest.mark.parametrize("solver", SOLVERS)
def test_help_of_train_lists_every_flag(run, solver):
    _, out, _ = run("train", "--solver", solver, "--help")
    text = " ".join(out.split())
    for field in flags_of(solver):
        assert "--" + field.name.lower().replace("_", "-") in text
        for choice in field.metadata["check"].choices or ():
            assert choice in text
    for flag in ("--dataset", "--data-dir", "--split", "--split-seed", "--solver", "--summary", "--history", "--save"):
        assert flag + " " in text


def test_version(run):
    assert run("--version") == (0, f"pdadmm {pdadmm.__version__}\n", "")


def test_datasets(run):
    status, out, err = run("datasets")
    assert (status, err) == (0, "")
    for row in DATASETS.values():
        line = next(line for line in out.splitlines() if line.split()[:1] == [row.name])
        assert str(row.nodes) in line
        assert row.description in line


def test_python_m_pdadmm():
    done = subprocess.run(
        [sys.executable, "-m", "pdadmm", *TINY, "--quiet"], capture_output=True, text=True, timeout=120,
        cwd=Path(pdadmm.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "test accuracy of the 3-layer network" in done.stdout
    assert done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-m", "pdadmm", "koala"], capture_output=True, text=True, timeout=120,
        cwd=Path(pdadmm.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("pdadmm: command = koala")
