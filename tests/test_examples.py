"""Each example runs, in a shrunken form: the first and those with MPI as a user would launch them, the others here."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from pdadmm import csbm
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.cli import main
from pdadmm.data import write_npz
from pdadmm.quantize import GRIDS
from pdadmm.solvers import SOLVERS

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--hidden", "8", "--iterations", "2")


def launch(*command: str, folder: Path) -> str:
    """Run a command to its end and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "MPI"))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run an example in this process, in an empty folder, and return what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        threads = torch.get_num_threads()
        with mock.patch.dict(ACTIVATIONS), mock.patch.dict(GRIDS):  # some examples add a row
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        torch.set_num_threads(threads)
        return capfd.readouterr().out

    return run


def mpiexec() -> str:
    """The mpiexec installed with this Python, as the mpich wheel does."""
    pytest.importorskip("mpi4py")
    path = Path(sys.executable).with_name("mpiexec")
    if not path.exists():
        pytest.skip(f"{path} does not exist: pip install mpich")
    return str(path)


def test_quickstart(tmp_path):
    out = launch(sys.executable, str(EXAMPLES / "quickstart.py"), "--layers", "3", *SMALL, folder=tmp_path)
    assert "Graph(digits" in out
    assert re.search(r"^ 3 layers after 2 iterations: validation [01]\.\d+, test", out, re.MULTILINE)
    assert "agrees on 100.0% of the nodes" in out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def mpi_layers(tmp_path) -> list[str]:
    """The command of the example, with a graph that every rank reads quickly."""
    write_npz(csbm(200, num_classes=3, num_features=6, seed=0), tmp_path / "small.npz")
    return [sys.executable, str(EXAMPLES / "mpi_layers.py"), "--dataset", "small.npz", *SMALL]


def test_mpi_layers_in_one_process(mpi_layers, tmp_path):
    mpiexec()
    out = launch(*mpi_layers, folder=tmp_path)
    assert "rank 0: layers 1, 2" in out
    assert "test accuracy of the 2-layer network" in out


def test_mpi_layers_with_a_layer_per_rank(mpi_layers, tmp_path):
    out = launch(mpiexec(), "-n", "3", *mpi_layers, folder=tmp_path)
    last_stage = out.partition("\n3 layers")[2]
    assert [f"rank {rank}: layers {rank + 1} " in last_stage for rank in range(3)] == [True] * 3
    assert "rank 2: waits for its layers" in out.partition("\n3 layers")[0]
    predicted, counted = re.search(r"over all iterations (.*); counted by the ranks' ledgers (.*)", out).groups()
    assert predicted == counted
    assert "0 B" not in predicted.split()


def test_convergence_trains_and_plots(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("convergence.py", "--layers", "3", *SMALL, "--out", "two.png")
    assert "exact subproblems: test accuracy" in out
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_convergence_plots_finished_runs(run, tmp_path):
    pytest.importorskip("matplotlib")
    train = ["train", "--dataset", "digits", "--layers", "2", "--quiet", *SMALL]
    assert main([*train, "--history", str(tmp_path / "a.jsonl")]) == 0
    run("convergence.py", "a.jsonl", "--x", "seconds", "--out", "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text("utf-8")


def test_custom_activation(run):
    out = run("custom_activation.py", "--layers", "3", *SMALL)
    assert re.fullmatch(r"relu  test accuracy \d.\d+ after 4 iterations\nmine  test .* 4 iterations\n", out)


def test_custom_quantizer(run):
    out = run("custom_quantizer.py", "--layers", "3", *SMALL)
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows] == [[c, g] for c in ("value", "constrained") for g in ("linspace", "from-zero")]
    sent = [int(row[5]) for row in rows]
    assert sent[0] == sent[1] < sent[2] == sent[3]  # where p is constrained, q goes in 32 bits


def test_quantized(run):
    out = run("quantized.py", "--layers", "3", "--bits", "32,4,0", *SMALL)
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:]}
    assert rows["32"] == "1.0x"
    assert 1.0 < float(rows["4"][:-1]) < 8.0 < float(rows["0"][:-1])


def test_compare_solvers(run):
    out = run("compare_solvers.py", *SMALL)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(SOLVERS)
    assert all(0.0 <= float(row[2]) <= 1.0 for row in rows)


def test_own_graph(run, tmp_path):
    out = run("own_graph.py", *SMALL)
    assert "wrote out/classes.csv: 600 nodes, of which 60 had no label" in out
    rows = (tmp_path / "out/classes.csv").read_text().splitlines()
    assert rows[0] == "node,class,certainty"
    assert len(rows) == 601


def test_big_graph(run, tmp_path):
    out = run("big_graph.py", "--nodes", "600", "--features", "8", "--layers", "3", *SMALL)
    assert re.findall(r"^\$ pdadmm (\w+)", out, re.MULTILINE) == ["convert", "augment", "train"]
    assert "test accuracy of the 3-layer network" in out
    assert (tmp_path / "out/big-graph/model.safetensors").exists()


def test_paper(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("paper.py", "--table", "3", "--layers", "3", "--seeds", "2", *SMALL)
    assert re.fullmatch(r"(.* 3 layers of 8: test [01].\d{4} ± 0.\d{4}\n){2}", out)
    run("paper.py", "--figure", "2", "--layers", "2", *SMALL, "--out", "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_purpose_run_time_and_command(path):
    docstring = path.read_text("utf-8").split('"""')[1]
    assert "Run time: about " in docstring
    assert f"python examples/{path.name}" in docstring
    assert f"def test_{path.stem}" in Path(__file__).read_text("utf-8"), "a new example needs a test here"
