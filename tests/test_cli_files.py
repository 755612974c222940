"""Commands and files: a refused command changes none, and no result is written over an input or over another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpi_launch import NEEDS_MPI, mpiexec

from pdadmm.cli import main
from pdadmm.data import csbm, write_npz

TRAIN = ("train", "--dataset", "csbm:60", "--layers", "2", "--hidden", "4", "--iterations", "2", "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, folder: Path, words: str, *arguments: str) -> None:
    """The command ends with status 2 and this sentence, and leaves every file as it was."""
    before = files(folder)
    assert main(list(arguments)) == 2
    assert words in capsys.readouterr().err
    assert files(folder) == before


# The folder of a run


@pytest.mark.parametrize("change", [("--nu", "0.5"), ("--solver", "adam"), ("--dataset", "csbm:70")])
def test_a_refused_resume_leaves_the_run_as_it_was(capsys, folder, change):
    assert main([*TRAIN, "--run", "r"]) == 0
    refused(capsys, folder, "must be a folder of the same", *TRAIN, "--run", "r", "--resume", *change)
    assert main(["train", "--config", "r/config.toml", "--run", "r", "--resume", "--quiet"]) == 0


def test_a_run_that_was_refused_claims_no_folder(capsys, folder):
    refused(capsys, folder, "memory", *TRAIN, "--run", "r", "--memory", "1KiB", "--scratch", "s")
    assert main([*TRAIN, "--run", "r"]) == 0


def test_the_model_of_a_run_may_be_asked_for_by_its_own_name(folder):
    assert main([*TRAIN, "--run", "r", "--save", "r/model.safetensors"]) == 0
    assert (folder / "r" / "model.safetensors").stat().st_size > 0


# Inputs and other outputs

OVERWRITES = {
    "data set": ((*TRAIN, "--dataset", "mine.npz", "--save", "mine.npz"), "save = mine.npz"),
    "each other": ((*TRAIN, "--summary", "a.json", "--history", "./a.json"), "history = ./a.json"),
    "copies": ((*TRAIN, "--run", "q", "--save", "x", "--summary", "x"), " = x"),
    "model": (("predict", "r/model.safetensors", "--dataset", "csbm:60", "-o", "r/model.safetensors"), "that of model"),
    "run": (("report", "r", "-o", "r/summary.json"), "out = r/summary.json"),
}


@pytest.mark.parametrize("case", OVERWRITES)
def test_no_result_is_written_over_another_file(capsys, folder, case):
    write_npz(csbm(60), folder / "mine.npz")
    assert main([*TRAIN, "--run", "r"]) == 0
    arguments, words = OVERWRITES[case]
    refused(capsys, folder, f"{words}", *arguments)


# Augmentation of a data set that is no folder

AUGMENT = ("augment", "--dataset", "csbm:60", "--hops", "1", "--memory", "1GiB", "--out", "a", "--quiet")


def test_an_augmented_folder_takes_no_other_data_set_or_split(capsys, folder):
    assert main([*AUGMENT]) == 0
    for change, words in (
        (("--dataset", "csbm:70"), "dataset = csbm:70: must be csbm:60, as a was begun"),
        (("--split", "random:5"), "split = random:5: must be left out, as a was begun"),
    ):
        refused(capsys, folder, words, *AUGMENT, *change)
    assert main([*AUGMENT]) == 0


# Under mpirun


@NEEDS_MPI[0]
@NEEDS_MPI[1]
def test_one_rank_of_several_converts(folder):
    (folder / "edges").write_text("0 1\n1 2\n")
    np.save(folder / "x.npy", np.eye(3, dtype=np.float32))
    done = mpiexec(2, "-m", "pdadmm", "convert", "--edges", "edges", "--features", "x.npy", "--out", "g", timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 nodes, 2 edges") == 1
