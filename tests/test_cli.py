"""The command line: what it prints and writes, and the one sentence it says about bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pdadmm
from pdadmm import History, csbm, load_model
from pdadmm.__main__ import main
from pdadmm.cli import COMMANDS
from pdadmm.data import DATASETS, write_npz
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class

FAST = ["--layers", "3", "--hidden", "6", "--hops", "1", "--iterations", "3"]
TINY = ["train", "--dataset", "csbm:120", *FAST]

SUMMARY = {
    "solver": str, "dataset": str, "split": str, "seed": int, "ranks": int, "layers": int, "hidden": int,
    "iterations": int, "stages": list, "test_accuracy": float, "val_accuracy": float, "train_accuracy": float,
    "seconds_training": float, "seconds_setup": float, "seconds_per_iteration": float,
    "seconds_augmentation": float, "bytes_sent": int, "bytes_other": int, "peak_rss_bytes": int,
}  # fmt: skip


def tiny(solver: str) -> list[str]:
    """TINY without the flags that a solver does not have."""
    known = {field.name for field in flags_of(solver)} | {"dataset", "data_dir"}
    pairs = zip(TINY[1::2], TINY[2::2])
    return [TINY[0], *(word for flag, value in pairs if flag[2:].replace("-", "_") in known for word in (flag, value))]


def flags_of(solver: str) -> list:
    """The hyper-parameters of a solver that the command line offers."""
    return [field for field in parameters(solver_class(solver)) if field.metadata["check"].flag]


@pytest.fixture
def run(capsys):
    """Run a command line; return its status, and what it wrote to standard output and standard error."""

    def go(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return go


@pytest.fixture
def refused(run):
    """Run a command line that must end with status 2 and one sentence with these words, the first but for the log."""

    def go(*arguments, words=()) -> str:
        status, out, err = run(*arguments)
        assert status == 2, (out, err)
        assert out == ""
        assert err.endswith("\n")
        *log, err = err.splitlines()
        assert err.startswith("pdadmm: ")
        assert not any(line.startswith(("pdadmm: ", "Traceback")) for line in log)
        assert "must be" in err
        for word in words:
            assert word in err, err
        return err

    return go


def npz(path: Path, **changes) -> Path:
    """Write a small graph with a split, some of its arrays changed, or left out by None."""
    graph = csbm(40, num_classes=2, num_features=3, seed=0)
    write_npz(graph, path)
    with np.load(path) as arrays:
        arrays = dict(arrays) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


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


def test_it_says_what_graph_it_read(run, tmp_path):
    told = run(*TINY)[2].splitlines()
    assert told[0] == "csbm:120: 120 nodes, 383 edges, 100 features, 10 classes, 120 labelled nodes"
    assert sum("labelled nodes" in line for line in told) == 1
    path = npz(tmp_path / "gap.npz", y=np.arange(40) % 2 * 3)
    args = ("train", "--dataset", path, *FAST, "--split", "random:2")
    told = run(*args)[2].splitlines()
    assert told[0].startswith("gap: 40 nodes, ")
    assert told[0].endswith(" 3 features, 4 classes, 40 labelled nodes")
    warning = "no node has the class 1 (2 such classes), though classes go up to 3: they are counted from 0"
    assert told[1] == warning
    assert run(*args, "--quiet")[2] == warning + "\n"


def test_quiet_is_quiet(run):
    status, out, err = run(*TINY, "--quiet")
    assert (status, err) == (0, "")
    assert out
    assert run(*TINY, "--log-level", "warning")[2] == ""


@pytest.mark.parametrize("split", ["random:5", "fraction:50/25/25", "file"])
def test_splits(run, tmp_path, split):
    found = []
    for seed in (0, 0, 1):
        assert run(*TINY, "--split", split, "--split-seed", seed, "--summary", tmp_path / "s.json")[0] == 0
        found.append(json.loads((tmp_path / "s.json").read_text()))
    assert found[0]["split"] == split
    assert found[0]["test_accuracy"] == found[1]["test_accuracy"]
    assert found[2]["split_seed"] == 1
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


# Bad input


def test_unknown_words(refused):
    refused("koala", words=["command = koala", "train", "datasets"])
    refused("train", "--dataset", "koala", words=["dataset = koala"])
    refused("train", "--dataset", "coro", words=["did you mean cora"])
    refused(*TINY, "--solver", "koala", words=["solver = koala", "pdadmm-g"])
    refused(*TINY, "--split", "koala", words=["split = koala"])
    refused(*TINY, "--koala", "1", words=["flag = --koala: must be a flag of pdadmm train; pdadmm train --help"])
    refused(*TINY, "koala", words=["argument = koala", "--dataset koala"])
    refused("train", "--datset", "digits", words=["flag = --datset", "did you mean --dataset?"])
    refused(*TINY, "--hiden=3", words=["flag = --hiden:", "did you mean --hidden?"])
    owners = "with --solver pdadmm-g; it is of gd, adadelta, adagrad, adam, gcn, mixgcn, sage, gist"
    refused(*TINY, "--learning-rate", "1", words=["flag = --learning-rate", owners])
    refused("tune", "--dataset", "digits", "--fanouts", "3", words=["with --solver pdadmm-g; it is of sage"])
    refused(*TINY, "--solver", "adam", "--scratch", "x", words=["with --solver adam; it is of pdadmm-g"])
    refused(*TINY, "--log-level", "koala", words=["log_level = koala"])
    refused("datasets", "--koala", words=["--koala"])
    refused("--koala", words=["koala"])


def test_missing_words(refused):
    refused("train", words=["dataset = nothing: must be given, as --dataset NAME"])
    refused("train", "--dataset", words=["dataset = nothing: must be given as --dataset NAME"])
    refused(*TINY, "--solver", words=["--solver"])
    refused(*TINY, "--layers", words=["layers = nothing: must be given as --layers N"])
    refused("convert", "--splits", "a", words=["splits = too few values: must be given as --splits TRAIN VAL TEST"])
    refused("plot", words=["FILE, out = nothing: must be given, as FILE --out PICTURE"])
    refused("plot", "x.json", "-o", words=["out = nothing: must be given as --out PICTURE"])


def test_abbreviations_are_not_guessed(refused):
    refused(*TINY, "--lay", "3", words=["--lay"])
    refused(*TINY, "--summ", "x", words=["--summ"])


def test_files(refused, tmp_path):
    refused("train", "--dataset", tmp_path / "none.npz", words=["none.npz", "exists"])
    refused("train", "--dataset", "cora", "--data-dir", tmp_path, words=["cora"])
    refused("train", "--dataset", "cora", "--data-dir", tmp_path / "none", words=["none"])
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    refused("train", "--dataset", tmp_path / "bad.npz", words=["bad.npz"])
    refused("train", "--dataset", tmp_path, words=[str(tmp_path)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": None}, ["y"]),
        ({"edge_index": None}, ["keys"]),
        ({"x": np.full((40, 3), np.nan)}, ["features", "NaN", "bad.npz"]),
        ({"x": np.full((40, 3), np.inf)}, ["bad.npz"]),
        ({"x": np.zeros((39, 3))}, ["bad.npz"]),
        ({"y": np.full(40, -7)}, ["bad.npz", "-7"]),
        ({"y": np.full(40, 0.5)}, ["bad.npz"]),
        ({"y": np.full(40, -1)}, ["bad.npz"]),
        ({"edge_index": np.array([[0], [40]])}, ["bad.npz", "40"]),
        ({"train_idx": np.array([], dtype=int)}, ["train"]),
        ({"train_idx": np.array([40])}, ["train", "40"]),
        ({"train_idx": np.array([-1])}, ["train", "-1"]),
        ({"val_idx": None}, ["val"]),
    ],
    ids=lambda value: ",".join(value),
)
def test_graphs_that_cannot_be_trained_on(refused, tmp_path, changes, words):
    refused("train", "--dataset", npz(tmp_path / "bad.npz", **changes), *FAST, words=words)


def test_splits_that_cannot_be_drawn(refused, tmp_path):
    path = npz(tmp_path / "mine.npz", train_idx=None, val_idx=None, test_idx=None)
    refused("train", "--dataset", path, *FAST, words=["split", "--split random:20"])
    refused("train", "--dataset", path, *FAST, "--split", "file", words=["split = file"])
    refused("train", "--dataset", path, *FAST, "--split", "public", words=["split = public"])
    refused("train", "--dataset", path, *FAST, "--split", "random:20", words=["random:20"])
    refused("train", "--dataset", path, *FAST, "--split", "random:0", words=["random:0"])
    refused("train", "--dataset", path, *FAST, "--split", "fraction:0/50/50", words=["fraction:0/50/50"])
    refused("train", "--dataset", path, *FAST, "--split", "fraction:60/30/20", words=["fraction:60/30/20"])
    for seed in ("-1", "x", "1.5", ""):
        refused(*TINY, "--split", "random:2", f"--split-seed={seed}", words=["split_seed"])


@pytest.mark.parametrize("solver", SOLVERS)
def test_bad_values_of_every_flag(refused, solver):
    for field in flags_of(solver):
        flag = "--" + field.name.lower().replace("_", "-")
        for value in ("koala", "", "-3", "nan", "1e400"):
            check = field.metadata["check"]
            try:
                check.accept(value)
            except (ValueError, TypeError, KeyError, OverflowError):
                err = refused(*tiny(solver), "--solver", solver, f"{flag}={value}", words=[check.allowed])
                assert err.startswith(f"pdadmm: {field.name} = {value}")


def test_negative_values_in_their_own_word(refused):
    refused(*TINY, "--nu", "-1", words=["nu = -1"])
    refused(*TINY, "--seed", "-1", words=["seed = -1"])
    refused(*TINY, "--layers", "0", words=["layers = 0"])
    refused(*TINY, "--stages", "2,5", words=["stages = 2,5", "layers = 3"])


@pytest.mark.parametrize("flag", ["--summary", "--history", "--save"])
def test_results_that_cannot_be_written(refused, run, tmp_path, flag):
    refused(*TINY, flag, tmp_path / "none" / "file", words=[flag[2:], "none"])
    status, _, err = run(*TINY, "--quiet", flag, tmp_path)  # a folder
    assert status == 2
    assert err.startswith("pdadmm: ")
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_bad_input_is_found_before_training(refused, tmp_path, monkeypatch):
    from pdadmm.graph_classifier import GraphClassifier

    monkeypatch.setattr(GraphClassifier, "fit", lambda *args, **more: pytest.fail("it trained"))
    refused(*TINY, "--summary", tmp_path / "none" / "s.json", words=["summary"])
    refused(*TINY, "--nu", "x", words=["nu"])
    refused(*TINY, "--stages", "2,9", words=["stages"])


def test_divergence_is_status_1(run, tmp_path):
    path = npz(tmp_path / "huge.npz", x=np.random.default_rng(0).normal(size=(40, 3)) * 1e30)
    status, out, err = run("train", "--dataset", path, *FAST, "--scaling", "none", "--quiet")
    assert status == 1
    assert err.startswith("pdadmm: iteration")
    assert "layer" in err
    assert err.count("\n") == 1
    assert out == ""


def test_too_many_hops_are_refused_before_memory_is_taken(refused):
    words = ["hops = 1000000000, for which 120 nodes need 48.0 TB", "weighting ppr", "pdadmm augment"]
    refused("train", "--dataset", "csbm:120", "--hops", "1000000000", words=words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory = used up: must be within what this machine has; a smaller network"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "memory = 7.28 TiB in one piece: must be within"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 71 bytes. Error code 12"),
            "memory = 71 bytes in one piece: must be within",
        ),
        (
            torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has a total capacity of 79.11 GiB of which "
                "5.25 GiB is free. Including non-PyTorch memory, this process has 73.80 GiB memory in use."
            ),
            "memory = 20.00 GiB in one piece: must be within what GPU 1 has, 5.25 GiB free of 79.11 GiB; a smaller",
        ),
    ],
)
def test_out_of_memory_is_one_sentence(refused, monkeypatch, error, words):
    def fails(*args, **more):
        raise error

    monkeypatch.setattr("pdadmm.graph_classifier.GraphClassifier.fit", fails)
    refused(*TINY, words=[words])
    monkeypatch.setattr("pdadmm.graph_classifier.GraphClassifier.fit", lambda *args, **more: {}[0])
    with pytest.raises(KeyError):
        main(TINY)


def test_other_ranks_say_nothing(run, monkeypatch):
    monkeypatch.setattr("pdadmm.cli.launched_rank", lambda: 1)
    assert run("koala") == (2, "", "")


@pytest.mark.parametrize("solver", SOLVERS)
def test_flags_are_consistent(run, solver):
    """One flag a hyper-parameter, in lower case with hyphens, each explained once."""
    _, out, _ = run("train", "--solver", solver, "--help")
    listed = re.findall(r"^  (?:-h, )?(--\S+)", out, flags=re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert all(flag == flag.lower() and "_" not in flag for flag in listed)
    own = {"--" + field.name.lower().replace("_", "-") for field in flags_of(solver)}
    assert own < set(listed)


def test_bits_alone_select_the_quantized_solver(run, tmp_path):
    assert run(*TINY, "--bits", "2", "--summary", tmp_path / "s.json")[0] == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["solver"] == "pdadmm-g-q"
