"""The benchmark of speed on a GPU runs from end to end, in a small form: its kernels emulated, nothing timed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from cuda_emulator import Emulator

from pdadmm.kernels import factor, gpu_launch, updates

FOLDER = Path(__file__).parent.parent / "benchmarks"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the kernels for the CPU")


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """The benchmark's module, on the CPU with the kernels emulated."""
    Emulator(tmp_path).install(monkeypatch)
    monkeypatch.setattr(updates, "_functions", {})  # as on a GPU
    monkeypatch.setattr(factor, "_inverse", {})
    monkeypatch.setattr(gpu_launch, "lacking", lambda device: None)
    for name, value in {"empty_cache": None, "mem_get_info": (10**9, 10**9), "get_device_name": "emulated"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(__version__="0"))
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))

    def once(call, repeat: int) -> list[float]:
        call()
        return [1.0] * repeat

    monkeypatch.setattr(module, "milliseconds", once)
    setting = torch.backends.cuda.matmul  # the benchmark sets it, for the process
    held = setting.fp32_precision
    yield module
    setting.fp32_precision = held


@needs_compiler
@pytest.mark.filterwarnings("ignore:Sparse")
def test_every_row_of_the_table_is_made(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "SYSTEMS", ((1, 5), (2, 20)))
    monkeypatch.setattr(benchmark, "SMALL", (12, 6, 5))
    shape = ["--nodes", "40", "--width", "8", "--layers", "4", "--inputs", "6", "--products", "full", "tf32"]
    graph = ["--graph-nodes", "30", "--edges", "90", "--columns", "4", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu", *shape, *graph, "--json", str(tmp_path / "gpu.json")])
    benchmark.main()
    printed = capsys.readouterr().out
    rows = {row["what"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    for what in (
        "copy", "update_z_", "link_sums", "extrapolate_z_", "encode, 4 bits", "solve, 2 of 20 columns",
        "power law: ours", "augmentation, 4 hops of 4 columns, ours", "epoch of Adam, 5 layers of 6, 12 nodes",
        "iteration, 5 layers of 6, 12 nodes, equal layers stacked", "iteration, 4 layers of 8, products full",
    ):  # fmt: skip
        assert what in rows
    assert "iteration / (products + traffic), products full: " in printed
    assert "iteration / (products + traffic), products tf32: " in printed


@needs_compiler
def test_a_part_that_fails_leaves_the_others_their_figures(benchmark, monkeypatch, capsys, tmp_path):
    def fails(table, *given) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore about it")

    for name in ("newton", "messages", "products", "augmentation", "small", "iteration"):
        monkeypatch.setattr(benchmark, name, lambda table, *given: None)
    fails.__name__ = "factors"
    monkeypatch.setattr(benchmark, "factors", fails)
    monkeypatch.setattr(benchmark, "SYSTEMS", ((2, 5),))
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--nodes", "40", "--width", "8", "--repeat", "1", "--json", str(path)])
    with pytest.raises(SystemExit, match=r"failed: factors\(2, 5\)"):
        benchmark.main()
    written = json.loads(path.read_text())
    assert written["failed"] == ["factors(2, 5)"]
    assert written["about"]["nodes"] == 40
    assert "copy" in {row["what"] for row in written["rows"]}
    assert "| factors(2, 5) failed: OutOfMemoryError: CUDA out of memory. Tried | | | | |" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "benchmarks/gpu.py needs a CUDA GPU, torch with CUDA and CuPy: there is no GPU\n"
