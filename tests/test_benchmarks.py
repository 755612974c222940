"""The benchmarks of speed run, in a small form, and print the ratios that the docs quote."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from pdadmm.kernels import spmm

FOLDER = Path(__file__).parent.parent / "benchmarks"
SHAPE = ["--nodes", "40", "--inputs", "12", "--hidden", "8", "--layers", "4", "--classes", "3"]
SMALL = {
    "iteration": (
        [*SHAPE, "--repeat", "2", "--products", "bf16"],
        ["products bf16", "iteration / (products + traffic): ", "iteration / Adam epoch: "],
    ),
    "spmm": (["--nodes", "60", "--nonzeros", "300", "--columns", "20", "--repeat", "2"], ["copy: "]),
    "memory": (SHAPE, ["peak / state: "]),
    "ranks": (
        [*SHAPE, "--repeat", "2"],
        ["efficiency against 1 copies: ", "speedup over one rank: ", "rank 0: exposed "],
    ),
    "scaling": (["--share", "0.01", "--repeat", "1"], ["V: slope ", "n: slope ", "L: slope "]),
    "sign": (["--nodes", "60", "--edges", "200", "--features", "9", "--repeat", "1"], ["torch.sparse / pdadmm"]),
    "disk_training": (
        ["--parts", "limit,time,agreement", "--nodes", "200", "--time-nodes", "80", "--inputs", "12", "--hidden", "8",
         "--layers", "4", "--iterations", "2", "--repeat", "1"],
        ["within the limit: yes", "1.0000 of the formula", "from disk / in memory: ", "| float64 | 2 |"],
    ),
    "plan": (["--machine-dir", str(FOLDER.parent / "examples"), "--only", "1", "--share", "0.01", "--repeat", "1"],
             ["bytes: predicted / measured 1.000 to 1.000 over 1 runs"]),
    "disk_sage": (
        ["accuracy", "--runs", "csbm/file/20,csbm/metis/20", "--nodes", "100", "--iterations", "1", "--eval-every", "1",
         "--seeds", "1"],
        ["| csbm | file | ", "| csbm | metis | ", " MB | "],
    ),
    "depth": (
        ["budget", "--datasets", "digits", "--seeds", "0", "--hidden", "4", "--iterations", "1"],
        ["| digits | 2 | 3 |", "| digits | 20 | 1 + 1 + 1 |"],
    ),
    "codec": (["--nodes", "64", "--width", "8", "--repeat", "1"], ["| 2 bits | torch |"]),
}


@pytest.fixture
def run(capsys, monkeypatch):
    def run(name: str, *arguments: str) -> str:
        threads = torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.syspath_prepend(str(FOLDER))
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def test_grid_sets_a_grid_beside_one_process(run):
    agree = run("grid", "agree", "--layers", "2", "--hidden", "8", "--grids", "1x1")
    assert agree.count("| digits |") == 12
    assert agree.count("| 1x1 | 0.0e+00 | 0.0e+00 | 0.0e+00 | 0.0e+00 |") == 4
    assert "1x1 / 1x1: 1.000" in run("grid", "time", *SHAPE, "--repeat", "2")


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_ratios(run, name):
    arguments, expected = SMALL[name]
    out = run(name, *arguments)
    for words in expected:
        assert words in out
    if name == "spmm" and spmm.available():
        assert "times scipy's speed" in out


def test_time_to_accuracy_reads_a_contest(run, tmp_path):
    contest = {"dataset": "digits", "split": None, "split_seeds": "same", "hidden": 8, "common": {"eval_every": 2}}
    history = {"iteration": [1, 2], "layers": [3, 3], "seconds": [0.1, 0.2], "val_accuracy": [None, 0.4]}
    figures = ("test_accuracy", "val_accuracy", "seconds_training", "iterations", "peak_bytes", "bytes")
    runs = [dict.fromkeys(figures, 1) | {"history": history}]
    row = {"layers": 3, "parameters": {"iterations": 4}, "runs": runs}
    rows = [{"solver": name, **row} for name in ("adam", "pdadmm-g")]
    file = tmp_path / "digits.json"
    file.write_text(json.dumps({"contest": contest, "commands": [], "targets": [], "rows": rows}))
    out = run("time_to_accuracy", str(file), "--layers", "3", "--seeds", "1")
    assert "validation accuracy 0.3960, 1 seeds" in out
    names = "adam, tuned", "pdadmm-g, tuned", "pdadmm-g, defaults", "adam, soonest", "pdadmm-g, from labels"
    assert all(f"| {name} |" in out for name in names)
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"rows": rows[:1]}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(summary | {"contest": contest | {"hidden": 9}, "rows": rows[1:]}))
    with pytest.raises(SystemExit):
        run("time_to_accuracy", str(file), str(other), "--layers", "3")


def test_augmentation_from_disk_prints_its_table(run, tmp_path):
    shape = ["--nodes", "60", "--edges", "200", "--features", "20"]
    out = run("disk", "--folder", str(tmp_path / "d"), *shape, "--limits", "100MiB", "--repeat", "1", "--kills", "1")
    assert "| 100MiB | 1 | in memory |" in out
    assert "the same bits in all runs" in out
    assert "1 of 1 killed and resumed runs gave the same files" in out


def test_disk_sage_keeps_to_its_limit(run):
    out = run("disk_sage", "limit", "--limit-nodes", "2000", "--features", "8", "--memory", "128")
    assert "within the limit: True" in out
