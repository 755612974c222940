"""The command line: the one sentence it says about bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_small import FAST, TINY, flags_of, npz, refuser, runner, tiny

from pdadmm import csbm
from pdadmm.__main__ import main
from pdadmm.disk.graph import write_graph
from pdadmm.solvers import SOLVERS


@pytest.fixture
def run(capsys):
    return runner(capsys)


@pytest.fixture
def refused(run):
    return refuser(run)


def test_unknown_words(refused):
    refused("koala", words=["command = koala", "train", "datasets"])
    refused("trian", *TINY[1:], words=["command = trian", "did you mean train?"])
    refused(*TINY, "--solver", "Adam", words=["solver = Adam", "did you mean adam?"])
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
    missing = ["a folder that exists; check the path"]
    refused("train", "--dataset", "cora", "--data-dir", tmp_path / "none", words=missing)
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


def test_run_folders_in_place_of_their_files(refused, tmp_path):
    for name in ("model.safetensors", "config.toml", "history.jsonl", "summary.json"):
        (tmp_path / name).write_text("{}\n")
    given = f"that is a folder: give {tmp_path}"
    refused("predict", tmp_path, *TINY[1:3], "-o", "t.csv", words=[f"{given}/model.safetensors"])
    refused("train", "--config", tmp_path, words=[f"{given}/config.toml"])
    refused("plot", tmp_path, "-o", "x.png", words=[f"{given}/history.jsonl"])
    refused("plot", tmp_path / "summary.json", "-o", "x.png", words=[f"history is in {tmp_path}/history.jsonl"])
    refused("train", "--config", tmp_path.parent, words=["not a regular file"])
    refused("train", "--config", "x" * 5000, words=["a readable TOML file; File name too long"])


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


def test_flags_that_would_play_no_part(refused, tmp_path):
    seed = ["split_seed = 3: must be left out with a split that is not drawn", "random:N"]
    refused(*TINY, "--split-seed", "3", words=seed)
    refused("tune", "--dataset", "digits", "--split", "file", "--split-seed", "3", words=seed)
    refused(*TINY, "--every", "3", words=["every = 3: must be left out without checkpoint"])
    refused(*TINY, "--resume", words=["resume = True: must be used with checkpoint"])
    refused(*TINY, "--memory", "1GiB", words=["memory, scratch = 1GiB, None: must be given both"])
    refused(*TINY, "--scratch", "s", words=["memory, scratch = None, s: must be given both"])
    alpha = ["alpha = 0.3: must be left out with weighting powers; it plays a part with weighting ppr"]
    refused(*TINY, "--alpha", "0.3", words=alpha)
    augment = ["augment", "--dataset", "digits", "--memory", "1GiB", "--out", tmp_path / "out"]
    refused(*augment, "--alpha", "0.3", words=alpha)
    compare = ["compare", "--dataset", "digits", "--summary", tmp_path / "s.json"]
    refused(*compare, "--alpha", "0.3", words=alpha)
    clusters = ["clusters = 3: must be left out with sampler walk; it plays a part with sampler cluster"]
    sampled = ["train", "--dataset", "digits", "--solver", "sage"]
    refused(*sampled, "--sampler", "walk", "--clusters", "3", words=clusters)
    share = ["boundary_share = 0.5: must be left out with halo exact", "halo sampled"]
    refused("train", "--dataset", "digits", "--solver", "gcn", "--boundary-share", "0.5", words=share)


@pytest.mark.parametrize("command", ["train", "tune", "compare", "augment", "predict"])
def test_a_data_folder_that_plays_no_part(refused, tmp_path, monkeypatch, command):
    """A graph that is made on the spot, the path of a file, a folder on disk: none is looked for there."""
    monkeypatch.setenv("PDADMM_DATA", str(tmp_path))  # which is no flag, and never complained of
    write_graph(csbm(40, num_classes=2), tmp_path / "disk")
    more = {"compare": ["--summary", tmp_path / "s"], "augment": ["--memory", "1GiB", "--out", tmp_path / "out"],
            "predict": [tmp_path / "none", "-o", tmp_path / "p.csv"]}  # fmt: skip
    for name in ("digits", "csbm:120", str(npz(tmp_path / "mine.npz")), str(tmp_path / "disk")):
        words = [f"data_dir = {tmp_path}: must be left out with dataset {name}; it is the folder of the data sets"]
        refused(command, "--dataset", name, "--data-dir", tmp_path, *more.get(command, []), words=words)
    unknown = refused(command, "--dataset", "koala", "--data-dir", tmp_path, *more.get(command, []))
    assert "data_dir" not in unknown


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_takes_one_result_and_not_the_others(run, tmp_path):
    flags = [f"--{name}={tmp_path / name}" for name in ("history", "save")]
    status, out, err = run(*TINY, "--quiet", "--summary", "/dev/full", *flags)
    assert status == 2
    assert "test accuracy of the" in out
    assert err == "pdadmm: summary = /dev/full: must be a file that can be written; No space left on device\n"
    assert {path.name for path in tmp_path.iterdir()} == {"history", "save"}


def test_nobody_reads_what_is_printed():
    command = [sys.executable, "-m", "pdadmm", "datasets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()  # before anything was printed
        assert done.stderr.read() == b""
        assert done.wait(timeout=60) == 141


def test_a_configuration_of_another_solver(refused, tmp_path):
    (tmp_path / "c.toml").write_text('dataset = "digits"\nsolver = "adam"\npreset = "paper"\n')
    owners = "must be a flag of pdadmm train with --solver adam; it is of pdadmm-g, pdadmm-g-q"
    refused("train", "--config", tmp_path / "c.toml", words=["key preset", owners])


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
