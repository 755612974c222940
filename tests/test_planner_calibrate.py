"""The calibration measures every rate, and its ranks start; how fast they are is not tested."""

from __future__ import annotations

import dataclasses
import time

import pytest
from mpi_launch import NEEDS_MPI

from pdadmm.cli import main
from pdadmm.errors import InputError
from pdadmm.planner import calibrate as module
from pdadmm.planner.machine import host_facts, known_machine, load_machine


@pytest.fixture
def quick(monkeypatch):
    """One call of each piece of work in one round, and ranks that answer without being started."""

    def once(run, budget=0.0):
        began = time.thread_time()
        run()
        return max(1e-9, time.thread_time() - began)

    monkeypatch.setattr(module, "median_seconds", once)
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "starter", lambda: "mpiexec")
    told = {"work": 1.0, "meeting": 1e-4, "latency": 1e-5, "large": 1e-3}
    monkeypatch.setattr(module, "launched", lambda ranks, folder: {**told, "work": float(ranks)})


def test_a_calibration_has_every_rate_and_is_known_again(quick, monkeypatch, tmp_path, capsys):
    assert main(["plan", "--calibrate", "--machine-dir", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    machine = load_machine(tmp_path)
    for field in dataclasses.fields(machine):
        value = getattr(machine, field.name)
        rates = value.values() if isinstance(value, dict) else [value]
        assert all(isinstance(rate, str) or rate > 0 for rate in rates), field.name
    assert machine.slowdown[8] > machine.slowdown[2] >= 1.0
    assert known_machine(tmp_path) == machine
    monkeypatch.setattr("pdadmm.planner.machine.host_facts", lambda: host_facts() | {"torch": "another"})
    assert known_machine(tmp_path) is None
    assert known_machine(tmp_path / "none") is None


def test_without_an_mpi_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(module, "starter", lambda: None)
    with pytest.raises(InputError, match="pip install mpi4py mpich"):
        module.calibrate()


def test_under_mpirun_it_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(InputError, match="outside of mpirun"):
        module.calibrate()


@pytest.mark.skipif(any(mark.args[0] for mark in NEEDS_MPI), reason="needs an MPI")
def test_two_ranks_time_their_work_and_their_messages(tmp_path):
    told = module.launched(2, tmp_path)
    assert set(told) == {"work", "meeting", "latency", "large"}
    assert all(seconds > 0 for seconds in told.values())
    assert told["large"] > told["latency"]
