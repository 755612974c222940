"""pdadmm doctor: what it prints, what it finds broken, alone, without MPI and under mpirun."""

from __future__ import annotations

import os
import re
import sys

import pytest
import torch
from mpi_launch import NEEDS_MPI, mpiexec
from stand_in_device import DEVICE, StandIn

from pdadmm import __version__, doctor
from pdadmm.admm import solver, updates
from pdadmm.cli import main
from pdadmm.kernels import gpu_launch
from pdadmm.parallel import device, launch
from pdadmm.quantize import Coder

CPU = torch.device("cpu")
FACTS = ("pdadmm", "packages", "kernels", "processor", "bf16", "gpu", "data", "threads")


def lines_of(text: str) -> dict[str, str]:
    found = [line.partition(":") for line in text.splitlines()]
    return {name: told.strip() for name, _, told in found}


@pytest.fixture
def alone(monkeypatch):
    """A machine without MPI."""
    monkeypatch.setattr(doctor, "starter", lambda: None)


def test_without_mpi_it_works(alone, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    told = lines_of(out)
    assert tuple(told) == (*FACTS, *doctor.checks(), "mpi")
    assert told["pdadmm"].startswith(f"{__version__} on Python {sys.version.split()[0]}")
    assert f"torch {torch.__version__.partition('+')[0]}" in told["packages"]  # a wheel may leave out its build
    assert all(told[name].startswith("ok: ") for name in doctor.checks())
    assert "pip install" in told["mpi"]
    assert err == ""


def test_a_gpu_is_told_with_what_its_kernels_lack(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    for why, words in ((None, "H100, CuPy runs its kernels"), ("CuPy is not installed", "H100, CuPy is not installed")):
        monkeypatch.setattr(gpu_launch, "lacking", lambda device, why=why: why)
        assert doctor.facts()["gpu"] == words
    monkeypatch.setenv("PDADMM_STACKS", "0")
    monkeypatch.setenv("PDADMM_GRAPHS", "1")
    assert doctor.facts()["gpu"] == "H100, CuPy is not installed, PDADMM_STACKS=0"


def test_a_training_on_the_gpu_is_compared_with_one_on_the_cpu(monkeypatch):
    monkeypatch.setattr(solver, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr("pdadmm.admm.estimator.check_device", lambda name: None)
    monkeypatch.setattr(device, "own_device", lambda name: CPU)
    with StandIn():
        passed, told = doctor.run_check(doctor.training_on_gpu)
        assert passed, told
        assert re.fullmatch(r"objectives of the CPU, to \de-\d+ of them \(.* s\)", told)
        update = updates.update_u_
        monkeypatch.setattr(updates, "update_u_", lambda u, p, q, rho: update(u, p, q, rho if u.is_cpu else 0.9 * rho))
        passed, told = doctor.run_check(doctor.training_on_gpu)
    assert not passed
    assert "an objective differs from the CPU's by" in told


def test_a_gpu_is_checked_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.checks() == doctor.CHECKS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [*doctor.checks()] == [*doctor.CHECKS, "gpu training"]


@pytest.mark.parametrize(
    ("flags", "used", "words"),
    [
        ("fpu avx512_bf16", True, "in hardware (avx512_bf16), products use it"),
        ("fpu avx512_bf16", False, "in hardware (avx512_bf16), products of torch do not use it"),
        ("fpu", True, "not in hardware"),
    ],
)
def test_bf16_is_told_with_whether_products_use_it(monkeypatch, flags, used, words):
    monkeypatch.setattr(doctor.Path, "read_text", lambda path, **more: flags)
    monkeypatch.setattr("pdadmm.admm.products.has_bf16", lambda: used)
    assert doctor._bf16() == words


@pytest.mark.parametrize(
    ("threads", "cores", "words"),
    [("1", 2, "1 for each of 1 rank of this host (OMP_NUM_THREADS)"), ("4", 2, "oversubscribed: 4 threads on 2 cores")],
)
def test_threads_beside_cores(alone, monkeypatch, capsys, threads, cores, words):
    from pdadmm.cli import doctor as command

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(command, "cores", lambda: cores)
    try:
        torch.set_num_threads(int(threads))
        assert main(["doctor"]) == 0
    finally:
        torch.set_num_threads(before)
    assert words in lines_of(capsys.readouterr().out)["threads"]


def test_kernels_and_packages_that_are_missing_are_named(alone, monkeypatch, capsys):
    from pdadmm.kernels import updates as fused

    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(fused, "available", lambda: False)
    monkeypatch.setattr(doctor, "PACKAGES", ("koala",))
    monkeypatch.setattr(doctor, "CUPY", ("cupy-of-one-cuda", "numpy"))
    assert main(["doctor"]) == 0
    told = lines_of(capsys.readouterr().out)
    assert "updates plain torch" in told["kernels"]
    assert re.fullmatch(r"koala not installed, numpy \d\S+", told["packages"])
    monkeypatch.setattr(doctor, "CUPY", ("cupy-of-one-cuda", "cupy-of-another"))
    assert main(["doctor"]) == 0
    told = lines_of(capsys.readouterr().out)
    assert told["packages"] == "koala not installed, cupy-of-one-cuda not installed"


def wrong_q(q, p_next, u, f_z, nu, rho) -> None:
    q.copy_(p_next)


def test_a_wrong_update_is_found(alone, monkeypatch, capsys):
    monkeypatch.setattr(updates, "update_q_", wrong_q)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert lines_of(out)["closed forms"].startswith("FAILED: RuntimeError: a gradient of ")
    assert lines_of(out)["codec"].startswith("ok: ")
    assert err.startswith("pdadmm: doctor: 1 of the checks failed, first closed forms: ")
    assert len(err.splitlines()) == 1


def test_a_wrong_codec_is_found(alone, monkeypatch, capsys):
    monkeypatch.setattr(Coder, "decode", lambda self, buffer: self.value)
    assert main(["doctor"]) == 1
    assert "the two ends differ at 16 bits" in lines_of(capsys.readouterr().out)["codec"]


def fake_mpiexec(folder, text: str):
    path = folder / "mpiexec"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo first >&2; echo no network >&2; exit 3", "ended with status 3: no network"),
        ("exit 0", "ended with status 0: no word of why"),
        ("exec tail -f /dev/null", "2 ranks did not end within 0 s"),
    ],
)
def test_an_mpi_that_does_not_work_is_found(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.setattr(doctor, "starter", lambda: fake_mpiexec(tmp_path, text))
    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(doctor, "LIMIT", 0.3 if "tail" in text else 60)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert words in lines_of(out)["ranks"]
    assert words in err


def test_mpirun_without_mpi4py_is_a_failed_check(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setattr(launch, "crowded", lambda: False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["doctor"]) == 1
    assert "pip install mpi4py mpich" in lines_of(capsys.readouterr().out)["mpi"]


def test_no_arguments_are_taken(capsys):
    assert main(["doctor", "--koala"]) == 2
    assert "--koala" in capsys.readouterr().err


def test_a_wrong_setting_of_gpu_messages_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("PDADMM_GPU_AWARE", "koala")
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "PDADMM_GPU_AWARE = koala: must be 0, 1 or auto" in err


def test_the_starter_is_the_one_beside_python(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    assert doctor.starter() is None
    (tmp_path / "bin").mkdir()
    on_path = fake_mpiexec(tmp_path / "bin", "exit 0")
    assert doctor.starter() == on_path
    assert doctor.starter() != fake_mpiexec(tmp_path, "exit 0")
    assert doctor.starter() == tmp_path / "mpiexec"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.starter() is None


class TestWithMPI:
    pytestmark = NEEDS_MPI

    def test_it_starts_two_ranks(self, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "CHECKS", {})
        monkeypatch.setenv("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
        monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        assert main(["doctor"]) == 0, capsys.readouterr().err
        told = lines_of(capsys.readouterr().out)
        assert told["ranks"].startswith("ok: 2 ranks give the bits of one process")
        assert "MPI" in told["mpi"]
        assert told["gpu-aware mpi"].partition(" (")[0] in ("yes", "no", "unknown")

    def test_under_mpirun_all_ranks_take_part_and_one_prints(self):
        done = mpiexec(2, "-m", "pdadmm", "doctor", timeout=180)
        assert done.returncode == 0, done.stderr
        told = lines_of(done.stdout)
        assert tuple(told) == (*FACTS, *doctor.CHECKS, "mpi", "gpu-aware mpi", "ranks")
        assert len(done.stdout.splitlines()) == len(told)
        assert told["ranks"].startswith("ok: 2 ranks give the bits of one process")
        assert told["threads"].startswith("1 for each of 2 ranks of this host")
