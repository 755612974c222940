"""Log lines as JSON, progress of long work, and Ctrl-C in every command."""

from __future__ import annotations

import datetime
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from mpi_launch import MPIEXEC, NEEDS_MPI

import pdadmm
from pdadmm import console
from pdadmm.augment import propagate
from pdadmm.cli import COMMANDS, main
from pdadmm.console import Work, start_logging, stop_logging

TINY = ["train", "--dataset", "csbm:120", "--layers", "3", "--hidden", "6", "--hops", "1", "--iterations", "3"]
LONG = ["--layers", "2", "--hidden", "4", "--hops", "1", "--iterations", "1000000", "--eval-every", "1000000"]
SENTENCE = "stopped by SIGINT (Ctrl-C)"


@pytest.fixture
def logging_to(monkeypatch):
    """Start logging to a stream, perhaps a terminal's, and return it; it stops with the test."""

    def start(*arguments, terminal: bool = False) -> io.StringIO:
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr("sys.stderr", stream)  # not sooner: pytest puts its own there for each test
        start_logging(*arguments)
        return stream

    yield start
    stop_logging()


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


# JSON


def test_every_line_is_an_object(capsys):
    """Also an error, and every iteration at the level debug, with its row."""
    assert main([*TINY, "--log-format", "json", "--log-level", "debug"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pdadmm-g on csbm:120")
    graph, *lines = [json.loads(line) for line in err.splitlines()]
    assert (graph["nodes"], graph["labelled"]) == (120, 120)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["rank"] == 0 and line["level"] == "info" for line in lines)
    assert all(isinstance(line["objective"], float) and "layers, iteration" in line["message"] for line in lines)
    times = [datetime.datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert times[0].utcoffset() == datetime.timedelta(0)
    assert main([*TINY, "--nu", "-1", "--log-format", "json"]) == 2
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert line["level"] == "error"
    assert "nu = -1" in line["message"]


def test_the_next_command_speaks_plainly_again(capsys):
    main([*TINY, "--nu", "-1", "--log-format", "json"])
    capsys.readouterr()
    assert main(["koala"]) == 2
    assert capsys.readouterr().err.startswith("pdadmm: command = koala")
    assert logging.getLogger("pdadmm").handlers == []


@pytest.mark.parametrize("command", ["train", "tune", "compare"])
def test_forms_and_levels_that_are_not(command, capsys, tmp_path):
    words = [command, "--dataset", "csbm:120", "--summary", str(tmp_path / "s.json")]
    for flag in ("--log-format", "--log-level"):
        assert main([*words, flag, "xml"]) == 2
        assert f"{flag[2:].replace('-', '_')} = xml: must be one of" in capsys.readouterr().err


def test_a_traceback_is_a_field(logging_to):
    stderr = logging_to("info", 2, "json")
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        logging.getLogger("pdadmm").exception("it %s", "failed")
    (line,) = map(json.loads, stderr.getvalue().splitlines())
    assert (line["level"], line["rank"], line["message"]) == ("error", 2, "it failed")
    assert "RuntimeError: a\nb" in line["traceback"]


# Work


def test_lines_of_long_work(logging_to, clock):
    stderr = logging_to("info", 0)
    work = Work("augmentation", 12)
    for _ in range(12):
        clock[0] += 1.5
        work.step()
    assert stderr.getvalue().splitlines() == [
        "augmentation: 4 of 12 in 6.0 s, about 12.0 s left",
        "augmentation: 8 of 12 in 12.0 s, about 6.0 s left",
        "augmentation: 12 of 12 in 18.0 s, about 0 us left",
    ]


def test_short_work_and_other_programs_hear_nothing(logging_to, clock):
    """The second time at a terminal, but in no command."""
    for terminal in (False, True):
        stderr = logging_to("info", 0, terminal=terminal)
        if terminal:
            stop_logging()
        work = Work("augmentation", 5)
        for _ in range(5):
            work.step()
        assert stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("level", "form", "shown"), [("info", "text", True), ("warning", "text", False), ("info", "json", False)]
)
def test_a_bar_at_a_terminal_alone(logging_to, level, form, shown):
    logging_to(level, 0, form, terminal=True)
    work = Work("augmentation", 3)
    assert (work.bar is not None) == shown
    for _ in range(3):
        work.step()
    assert not shown or (work.bar.n == 3 and work.bar.disable)  # closed: taken away


def test_augmentation_tells_each_hop_of_each_slice(monkeypatch):
    told = []
    monkeypatch.setattr("pdadmm.augment.hops.Work", lambda name, total: told.append((name, total)) or Counting(told))
    S = sp.csr_array(np.eye(4, dtype=np.float32))
    propagate(S, np.ones((4, 5), np.float32), 3, slice_columns=2)
    assert told[0] == ("augmentation", 4 * 3)
    assert told[1:] == ["step"] * 12


class Counting:
    def __init__(self, told: list) -> None:
        self.step = lambda: told.append("step")


# Ctrl-C


def child(*command: str | Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(pdadmm.__file__).parents[1])}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        return subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(job: subprocess.Popen, first: str, group: bool = False) -> tuple[int, str]:
    """Wait for a line with ``first`` on standard error, send SIGINT; return the status and what was said after."""
    try:
        for line in job.stderr:
            if first in line:
                break
        else:
            pytest.fail(f"ended without {first!r}: {job.wait()}")
        os.killpg(job.pid, signal.SIGINT) if group else job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=120)
        return job.returncode, err
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_in_one_sentence(command):
    """Interrupted within its own module: the module's ``run`` waits for the signal."""
    code = (
        "import importlib, signal, sys; from pdadmm.cli import COMMANDS, main;"
        "module = importlib.import_module(COMMANDS[sys.argv[1]].module);"
        "module.run = lambda arguments: print('ready', file=sys.stderr, flush=True) or signal.pause();"
        "sys.exit(main(sys.argv[1:]))"
    )
    assert interrupted(child(sys.executable, "-c", code, command), "ready") == (130, f"pdadmm: {SENTENCE}\n")


def test_training_ends_in_one_sentence():
    train = ["train", "--dataset", "csbm:120", *LONG, "--log-level", "debug", "--log-format", "json"]
    status, err = interrupted(child(sys.executable, "-m", "pdadmm", *train), '"iteration": 3,')
    assert status == 130
    assert [json.loads(line)["message"] for line in err.splitlines() if '"iteration"' not in line] == [SENTENCE]


def test_a_contest_ends_with_its_children(tmp_path):
    """As at a terminal, where the children are sent the signal, too: none says anything, or stays to hold the pipe."""
    contest = ["compare", "--dataset", "csbm:120", "--layers", "2", "--budget", "0", "--seeds", "50"]
    job = child(sys.executable, "-m", "pdadmm", *contest, "--solvers", "pdadmm-g", "--summary", tmp_path / "c.json")
    assert interrupted(job, "seed 0", group=True) == (130, f"pdadmm: {SENTENCE}\n")


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=NEEDS_MPI)])
def test_one_rank_ends_all(ranks):
    """SIGINT at the launcher ends the job, without a traceback of ours."""
    train = ["train", "--dataset", "csbm:120", *LONG, "--log-level", "debug"]
    status, err = interrupted(child(MPIEXEC, "-n", ranks, sys.executable, "-m", "pdadmm", *train), "iteration 3,", True)
    assert status != 0
    assert "Traceback" not in err
