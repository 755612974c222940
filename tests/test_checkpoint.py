"""A run that goes on equals one that was never cut off; another run is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from checkpoint_small import GRAPH, MANY, SMALL, CutOff, cut_off, cut_off_after, cut_off_twice, names, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

import pdadmm
from pdadmm import PDADMMG, PDADMMGQ, Adam, InputError, csbm
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.label_start import INITIAL
from pdadmm.cli import main
from pdadmm.console import Progress
from pdadmm.recording import KINDS_OF_WORK
from pdadmm.solvers import solver_class


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run that was cut off, with checkpoints of iterations 2 and 4, and the run's whole result."""
    return cut_off_twice(tmp_path_factory.mktemp("two"))


# The same bits


@st.composite
def admm_settings(draw):
    """A solver of pdADMM-G with random settings, of small size."""
    given = {
        "form": draw(st.sampled_from(["exact", "gradient"])),
        "first_layer": draw(st.sampled_from(list(FIRST_LAYERS))),
        "initial": draw(st.sampled_from(INITIAL)),
        "acceleration": draw(st.sampled_from(["none", "first-stage", "all-stages"])),
        "rho_schedule": draw(st.sampled_from(["fixed", "stall"])),
        "rho": draw(st.sampled_from([None, 0.01])),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "activation": draw(st.sampled_from(["relu", "leaky_relu"])),
        "loss": draw(st.sampled_from(["cross_entropy", "squared_error"])),
        "eval_every": draw(st.integers(1, 3)),
        "patience": draw(st.sampled_from([None, 3])),
        "layers": draw(st.sampled_from([1, 2, 3, 4])),
        "on_divergence": draw(st.sampled_from(["stop", "backoff"])),
    }
    if not draw(st.booleans()):
        return PDADMMG(**SMALL | given)
    quantized = {
        "bits": draw(st.sampled_from([0, 1, 4, 16])),
        "coding": draw(st.sampled_from(["difference", "value"])),
        "rounding": draw(st.sampled_from(["nearest", "stochastic"])),
        "error_feedback": draw(st.booleans()),
        "q_bits": draw(st.sampled_from([None, 8, 32])),
    }
    if draw(st.integers(0, 4)) == 0:
        quantized = {"bits": 8, "coding": "constrained", "q_bits": draw(st.sampled_from([None, 4]))}
    return PDADMMGQ(**SMALL | given | quantized)


@MANY
@given(solver=admm_settings(), at=st.integers(1, 8), every=st.integers(1, 3))
def test_a_run_that_goes_on_equals_one_that_was_not_cut_off(tmp_path_factory, solver, at, every):
    folder = tmp_path_factory.mktemp("run")
    expected = outcome(solver.fit(GRAPH))
    cut_off(solver, folder, at, every)
    assert len(names(folder)) <= 2
    assert outcome(solver.fit(GRAPH, checkpoint=folder, checkpoint_every=2, resume=True)) == expected
    assert outcome(solver.fit(GRAPH, checkpoint=folder, resume=True)) == expected  # the finished run, read


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["GD", "Adadelta", "Adagrad", "Adam"]),
    stages=st.sampled_from([None, (2, 3)]),
    dropout=st.sampled_from([0.0, 0.3]),
    batch_size=st.sampled_from([None, 7]),
    eval_every=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
    momentum=st.sampled_from([0.0, 0.9]),
    at=st.integers(1, 8),
)
def test_backpropagation_goes_on_with_its_optimiser(tmp_path_factory, name, momentum, at, **more):
    more |= {"momentum": momentum} if name == "GD" else {}
    solver, folder = getattr(pdadmm, name)(**SMALL | more), tmp_path_factory.mktemp("run")
    expected = outcome(solver.fit(GRAPH))
    cut_off(solver, folder, at, 1)
    assert outcome(solver.fit(GRAPH, checkpoint=folder, resume=True)) == expected


GNNS = {
    "gcn": [{}, {"architecture": "sage", "dropout": 0.0}, {"layers": 3, "dtype": "float64"}],
    "mixgcn": [{"chunks": 2}],
    "sage": [{"batch_size": 9}, {"sampler": "cluster", "clusters": 4, "clusters_per_batch": 2}],
    "gist": [{"parts": 2, "local_steps": 3}, {"parts": 3, "local_steps": 2, "clusters": 3, "architecture": "sage"}],
}


@settings(max_examples=15, deadline=None)
@given(
    case=st.sampled_from([(name, more) for name, cases in GNNS.items() for more in cases]),
    eval_every=st.integers(1, 3),
    patience=st.sampled_from([None, 3]),
    every=st.integers(1, 3),
    at=st.integers(1, 8),
)
def test_gnns_go_on_with_their_optimiser(tmp_path_factory, case, at, every, **more):
    name, own = case
    solver, folder = solver_class(name)(hidden=6, iterations=9, **own, **more), tmp_path_factory.mktemp("run")
    expected = outcome(solver.fit(GRAPH))
    cut_off(solver, folder, at, every)
    assert outcome(solver.fit(GRAPH, checkpoint=folder, resume=True)) == expected
    again = solver.fit(GRAPH, checkpoint=folder, resume=True)  # the finished run, read
    assert outcome(again) == expected
    kinds = [again.summary_[f"seconds_{kind}"] for kind in KINDS_OF_WORK]
    assert sum(kinds) == pytest.approx(again.summary_["seconds_training"])


def test_arrays_go_on_too(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    expected = outcome(PDADMMG(**SMALL).fit(X, y))
    with pytest.raises(CutOff):
        PDADMMG(**SMALL).fit(X, y, checkpoint=tmp_path, checkpoint_every=3, watch=cut_off_after(4))
    assert outcome(PDADMMG(**SMALL).fit(X, y, checkpoint=tmp_path, resume=True)) == expected
    X[3, 2] += 1e-9
    with pytest.raises(InputError, match="fingerprint was"):
        PDADMMG(**SMALL).fit(X, y, checkpoint=tmp_path, resume=True)


def test_going_on_does_only_what_is_left(two, tmp_path, caplog):
    folder, seen = shutil.copytree(two[0], tmp_path / "run"), []
    caplog.set_level(logging.INFO, "pdadmm")
    trained = PDADMMG(**SMALL).fit(
        GRAPH, checkpoint=folder, resume=True, watch=lambda row: seen.append(row["iteration"])
    )
    assert seen == [5, 6, 7, 8]
    assert "going on from iteration 4" in caplog.text
    assert trained.history_.column("seconds") == sorted(trained.history_.column("seconds"))
    assert names(folder) == ["iteration-000004", "iteration-000008"]


def test_the_clock_goes_on(two, tmp_path):
    """The time limit is of the whole run: what was used up stays used up."""
    folder = shutil.copytree(two[0], tmp_path / "run")
    trained = PDADMMG(**SMALL, max_seconds=1e-9).fit(GRAPH, checkpoint=folder, resume=True)
    assert [stage["iterations"] for stage in trained.stages_] == [4, 1]  # the first stage was at its end


# Another run, or none


@pytest.mark.parametrize(
    ("solver", "word"),
    [
        (PDADMMG(**SMALL | {"hidden": 6}), "hidden was 5 and is 6"),
        (PDADMMG(**SMALL, nu=0.5, seed=3), "nu was 0.3 and is 0.5"),
        (PDADMMGQ(**SMALL), "solver was PDADMMG and is PDADMMGQ"),
        (Adam(**SMALL), "solver was PDADMMG and is Adam"),
    ],
)
def test_other_settings_are_refused_and_named(two, solver, word):
    with pytest.raises(InputError, match=word):
        solver.fit(GRAPH, checkpoint=two[0], resume=True)
    assert names(two[0]) == ["iteration-000002", "iteration-000004"]


def test_other_data_are_refused_and_named(two):
    other = csbm(50, num_classes=3, num_features=5, avg_degree=5, seed=2)
    with pytest.raises(InputError, match="nodes was 60 and is 50"):
        PDADMMG(**SMALL).fit(other, checkpoint=two[0], resume=True)


def test_settings_that_change_no_iteration_may_differ(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "run")
    free = {"threads": 1, "max_seconds": 1e6, "on_divergence": "backoff"}
    threads = torch.get_num_threads()
    assert outcome(PDADMMG(**SMALL, **free).fit(GRAPH, checkpoint=folder, resume=True)) == two[1]
    torch.set_num_threads(threads)


def test_a_folder_in_use_is_not_written_over(two):
    with pytest.raises(InputError, match="a folder without checkpoints; resume"):
        PDADMMG(**SMALL).fit(GRAPH, checkpoint=two[0])


def test_without_a_checkpoint_resume_starts(tmp_path, two, caplog):
    caplog.set_level(logging.INFO, "pdadmm")
    assert outcome(PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path / "a" / "b", resume=True)) == two[1]
    assert "starting from the beginning" in caplog.text


def test_arguments_are_checked(tmp_path):
    (tmp_path / "file").write_text("")
    solver = PDADMMG(**SMALL)
    for more, word in (
        ({"resume": True}, "resume = True: must be used with checkpoint"),
        ({"checkpoint": tmp_path, "checkpoint_every": 0}, "checkpoint_every = 0"),
        ({"checkpoint": tmp_path / "file"}, "must be a folder that can be written"),
        ({"checkpoint": tmp_path / "file" / "run"}, "must be a folder that can be written"),
    ):
        with pytest.raises(InputError, match=word):
            solver.fit(GRAPH, **more)


# The command line

TRAIN = ["train", "--dataset", "csbm:60", "--layers", "3", "--hidden", "5", "--hops", "1", "--iterations", "4"]


def test_the_command_line_goes_on(tmp_path, capsys, monkeypatch):
    def run(*more: str) -> tuple[int, str]:
        status = main([*TRAIN, *more])
        return status, capsys.readouterr().err

    assert run("--history", str(tmp_path / "whole.jsonl"))[0] == 0
    folder, told = str(tmp_path / "run"), Progress.__call__

    def interrupting(progress, row) -> None:
        told(progress, row)
        if row["iteration"] == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", interrupting)
    status, said = run("--checkpoint", folder, "--every", "3")
    assert status == 130
    assert said.count("stopped by SIGINT after iteration 5") == 1
    assert "Traceback" not in said
    monkeypatch.setattr(Progress, "__call__", told)
    assert run("--checkpoint", folder)[0] == 2
    assert run("--resume")[0] == 2
    status, said = run("--checkpoint", folder, "--resume", "--hidden", "7")
    assert (status, said.count("hidden was 5 and is 7")) == (2, 1)
    status, said = run("--checkpoint", folder, "--every", "x")
    assert (status, said.count("every = x")) == (2, 1)
    assert run("--checkpoint", folder, "--resume", "--history", str(tmp_path / "on.jsonl"))[0] == 0
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole.jsonl", tmp_path / "on.jsonl")
    ]
    assert rows[0] == rows[1]
    assert os.path.isdir(folder)
