"""Each example runs as a user would launch it, in a shrunken form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_mpi_layers_in_one_process(tmp_path):
    mpiexec()
    out = launch(sys.executable, str(EXAMPLES / "mpi_layers.py"), *SMALL, folder=tmp_path)
    assert "rank 0: layers 1, 2" in out
    assert "test accuracy of the 2-layer network" in out


def test_mpi_layers_with_a_layer_per_rank(tmp_path):
    out = launch(mpiexec(), "-n", "3", sys.executable, str(EXAMPLES / "mpi_layers.py"), *SMALL, folder=tmp_path)
    last_stage = out.partition("\n3 layers")[2]
    assert [f"rank {rank}: layers {rank + 1} " in last_stage for rank in range(3)] == [True] * 3
    assert "rank 2: waits for its layers" in out.partition("\n3 layers")[0]
    predicted, counted = re.search(r"over all iterations (.*); counted by the ranks' ledgers (.*)", out).groups()
    assert predicted == counted
    assert "0 B" not in predicted.split()


def test_convergence_trains_and_plots(tmp_path):
    pytest.importorskip("matplotlib")
    script = str(EXAMPLES / "convergence.py")
    out = launch(sys.executable, script, "--layers", "3", *SMALL, "--out", "two.png", folder=tmp_path)
    assert "exact subproblems: test accuracy" in out
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_convergence_plots_finished_runs(tmp_path):
    pytest.importorskip("matplotlib")
    train = ("-m", "pdadmm", "train", "--dataset", "digits", "--layers", "2", "--quiet", *SMALL, "--history", "a.jsonl")
    launch(sys.executable, *train, folder=tmp_path)
    script = str(EXAMPLES / "convergence.py")
    launch(sys.executable, script, "a.jsonl", "--x", "seconds", "--out", "a.svg", folder=tmp_path)
    assert "<svg" in (tmp_path / "a.svg").read_text("utf-8")


def test_custom_activation(tmp_path):
    out = launch(sys.executable, str(EXAMPLES / "custom_activation.py"), "--layers", "3", *SMALL, folder=tmp_path)
    assert re.fullmatch(r"relu  test accuracy \d.\d+ after 4 iterations\nmine  test .* 4 iterations\n", out)


def test_custom_quantizer(tmp_path):
    out = launch(sys.executable, str(EXAMPLES / "custom_quantizer.py"), "--layers", "3", *SMALL, folder=tmp_path)
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows] == [[c, g] for c in ("value", "constrained") for g in ("linspace", "from-zero")]
    sent = [int(row[5]) for row in rows]
    assert sent[0] == sent[1] < sent[2] == sent[3]  # where p is constrained, q goes in 32 bits


def test_quantized(tmp_path):
    script = str(EXAMPLES / "quantized.py")
    out = launch(sys.executable, script, "--layers", "3", "--bits", "32,4,0", *SMALL, folder=tmp_path)
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:]}
    assert rows["32"] == "1.0x"
    assert 1.0 < float(rows["4"][:-1]) < 8.0 < float(rows["0"][:-1])


def test_compare_solvers(tmp_path):
    out = launch(sys.executable, str(EXAMPLES / "compare_solvers.py"), *SMALL, folder=tmp_path)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(SOLVERS)
    assert all(0.0 <= float(row[2]) <= 1.0 for row in rows)


def test_own_graph(tmp_path):
    out = launch(sys.executable, str(EXAMPLES / "own_graph.py"), *SMALL, folder=tmp_path)
    assert "wrote out/classes.csv: 600 nodes, of which 60 had no label" in out
    rows = (tmp_path / "out/classes.csv").read_text().splitlines()
    assert rows[0] == "node,class,certainty"
    assert len(rows) == 601


def test_big_graph(tmp_path):
    script = (sys.executable, str(EXAMPLES / "big_graph.py"))
    out = launch(*script, "--nodes", "600", "--features", "8", "--layers", "3", *SMALL, folder=tmp_path)
    assert re.findall(r"^\$ pdadmm (\w+)", out, re.MULTILINE) == ["convert", "augment", "train"]
    assert "test accuracy of the 3-layer network" in out
    assert (tmp_path / "out/big-graph/model.safetensors").exists()


def test_paper(tmp_path):
    pytest.importorskip("matplotlib")
    script = str(EXAMPLES / "paper.py")
    out = launch(sys.executable, script, "--table", "3", "--layers", "3", "--seeds", "2", *SMALL, folder=tmp_path)
    assert re.fullmatch(r"(.* 3 layers of 8: test [01].\d{4} ± 0.\d{4}\n){2}", out)
    launch(sys.executable, script, "--figure", "2", "--layers", "2", *SMALL, "--out", "f.png", folder=tmp_path)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_purpose_run_time_and_command(path):
    docstring = path.read_text("utf-8").split('"""')[1]
    assert "Run time: about " in docstring
    assert f"python examples/{path.name}" in docstring
    assert f"def test_{path.stem}" in Path(__file__).read_text("utf-8"), "a new example needs a test here"
