"""Checkpoints: a run that goes on equals one that was never cut off, and damage is noticed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pdadmm
from pdadmm import PDADMMG, PDADMMGQ, Adam, DivergenceError, InputError, csbm
from pdadmm.admm.network import Network
from pdadmm.checkpoint import Checkpoint, DamagedError, commit, found, partial_folder, write_part
from pdadmm.cli import main
from pdadmm.console import Progress
from pdadmm.errors import Interrupted
from pdadmm.recording import KINDS_OF_WORK
from pdadmm.solvers import solver_class

GRAPH = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
SMALL = {"layers": 3, "hidden": 5, "hops": 1, "iterations": 4}  # stages of 2 and 3 layers: 8 iterations
MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class CutOff(Exception):
    """What ends a run here without any warning."""


def cut_off_after(iteration: int):
    """A watcher that ends the run in the iteration that follows."""

    def watch(row) -> None:
        if row["iteration"] > iteration:
            raise CutOff

    return watch


def outcome(trained) -> tuple:
    """All that two runs with the same result share."""
    seconds = ("seconds", "bytes", "peak_rss")
    rows = [{k: v for k, v in row.items() if not k.startswith(seconds)} for row in trained.history_]
    weights = {name: value.numpy().tobytes() for name, value in trained.model_.state_dict().items()}
    return weights, rows, trained.stages_


def cut_off(solver, folder: Path, at: int, every: int) -> None:
    """Fit with checkpoints every ``every`` iterations, and die after iteration ``at``."""
    with contextlib.suppress(CutOff):
        solver.fit(GRAPH, checkpoint=folder, checkpoint_every=every, watch=cut_off_after(at))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "ranks")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run that was cut off, with checkpoints of iterations 2 and 4, and the run's whole result."""
    folder = tmp_path_factory.mktemp("two")
    cut_off(PDADMMG(**SMALL), folder, 5, 2)
    assert names(folder) == ["iteration-000002", "iteration-000004"]
    return folder, outcome(PDADMMG(**SMALL).fit(GRAPH))


# The same bits


@st.composite
def admm_settings(draw):
    """A solver of pdADMM-G with random settings, of small size."""
    given = {
        "form": draw(st.sampled_from(["exact", "gradient"])),
        "first_layer": draw(st.sampled_from(["gram", "kernel", "gradient"])),
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


# What is on the disk


def test_files_hold_the_state_by_its_names(two):
    saved = Checkpoint.open(two[0] / "iteration-000002")
    assert saved.layers == 2
    first, last = saved.layer(0), saved.layer(1)
    assert {"b", "z", "r", "u", "q.own", "momentum.last_q", "best.b"} <= set(first)
    assert {"W", "b", "z", "r", "p.own", "unit", "best.W"} <= set(last)
    assert last["W"].shape == (3, 5)
    manifest = json.loads((two[0] / "iteration-000002" / "manifest.json").read_text())
    assert manifest["body"]["version"] == pdadmm.__version__
    assert manifest["body"]["run"]["hidden"] == 5
    assert manifest["body"]["progress"]["stage"]["iterations"] == 2


def damage(path: Path, how: str, place: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    where = int(place * (len(content) - 1))
    if how == "flip":
        content[where] ^= 1 << bit
    elif how == "cut":
        del content[where:]
    elif how == "lengthen":
        content += bytes(bit + 1)
    elif how == "foreign":
        content = bytearray(random.Random(where).randbytes(200))
    path.write_bytes(content)
    if how == "remove":
        path.unlink()


WAYS = ["flip", "cut", "lengthen", "foreign", "remove"]
DAMAGE = st.tuples(st.sampled_from(WAYS), st.floats(0, 1), st.integers(0, 7))
FILES = ["manifest.json", "layer-0001.safetensors", "layer-0002.safetensors"]


@MANY
@given(file=st.sampled_from(FILES), how=DAMAGE)
def test_after_damage_the_checkpoint_before_is_used(two, tmp_path_factory, file, how):
    folder = shutil.copytree(two[0], tmp_path_factory.mktemp("damaged") / "run")
    damage(folder / "iteration-000004" / file, *how)
    assert outcome(PDADMMG(**SMALL).fit(GRAPH, checkpoint=folder, resume=True)) == two[1]


@MANY
@given(file=st.sampled_from(FILES), how=DAMAGE)
def test_damage_is_always_noticed(two, tmp_path_factory, file, how):
    """A file that changed in any byte is refused, but for blank space in the manifest, which means nothing."""
    path = shutil.copytree(two[0] / "iteration-000002", tmp_path_factory.mktemp("damaged") / "run")
    before = Checkpoint.open(path)
    damage(path / file, *how)
    said = ""
    try:
        saved = Checkpoint.open(path)
        for layer in range(saved.layers):
            saved.layer(layer)
    except DamagedError as error:
        said = str(error)
    assert file in said or (file == "manifest.json" and saved.body == before.body)


def test_where_every_checkpoint_is_damaged_the_run_is_refused(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "run")
    damage(folder / "iteration-000004" / "layer-0001.safetensors", "flip", 0.5, 0)
    (folder / "iteration-000002" / "manifest.json").write_text('{"format": "pdadmm-checkpoint-99"}')
    with pytest.raises(InputError) as caught:
        PDADMMG(**SMALL).fit(GRAPH, checkpoint=folder, resume=True)
    for word in ("iteration-000004: layer-0001.safetensors differs from its checksum", "pdadmm-checkpoint-99"):
        assert word in str(caught.value)


def test_a_write_that_was_cut_off_leaves_no_checkpoint(tmp_path):
    partial_folder(tmp_path, 7).mkdir()
    digest = write_part(tmp_path, 7, 0, {"W": torch.zeros(2, 3), "unit": 1.5, "none": None})
    assert found(tmp_path) == []
    commit(tmp_path, 7, {"run": {}}, {0: digest})
    assert found(tmp_path) == [tmp_path / "iteration-000007"]
    state = Checkpoint.open(tmp_path / "iteration-000007").layer(0)
    assert torch.equal(state.pop("W"), torch.zeros(2, 3))
    assert state == {"unit": 1.5, "none": None}
    partial_folder(tmp_path, 8).mkdir()  # killed while it wrote
    PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path / "run")
    assert names(tmp_path / "run") == ["iteration-000008"]


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


# A full disk


def test_a_full_disk_costs_the_checkpoint_not_the_run(two, tmp_path, caplog):
    """Files may grow to a size that the second checkpoint, of a deeper network, passes; the first one stays."""
    folder = shutil.copytree(two[0], tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        trained = PDADMMG(**SMALL).fit(GRAPH, checkpoint=folder, checkpoint_every=3, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome(trained) == two[1]
    assert "the checkpoint of iteration 6 could not be written" in caplog.text
    assert "the one of iteration 4 stays" in caplog.text
    assert names(folder) == ["iteration-000002", "iteration-000004"]
    assert outcome(PDADMMG(**SMALL).fit(GRAPH, checkpoint=folder, resume=True)) == two[1]


# Signals


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("solver", [PDADMMG(**SMALL), Adam(**SMALL | {"iterations": 8})], ids=["pdadmm-g", "adam"])
def test_a_signal_leaves_a_checkpoint(tmp_path, caplog, number, error, solver):
    expected, before = outcome(solver.fit(GRAPH)), [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def watch(row) -> None:
        if row["iteration"] == 2:
            signal.raise_signal(number)

    with pytest.raises(error) as caught:
        solver.fit(GRAPH, checkpoint=tmp_path, checkpoint_every=100, watch=watch)
    assert not isinstance(caught.value, SystemExit) or caught.value.code == 143
    assert f"stopped by {signal.Signals(number).name} after iteration 3" in caplog.text
    assert names(tmp_path) == ["iteration-000003"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert outcome(solver.fit(GRAPH, checkpoint=tmp_path, resume=True)) == expected


def test_a_second_signal_has_its_usual_effect(tmp_path):
    def watch(row) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, watch=watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Interrupted)
    assert names(tmp_path) == []


# Divergence


def test_divergence_names_the_first_update_that_is_not_finite(tmp_path, monkeypatch):
    """A NaN put into z of layer 2 before iteration 6 shows in what is computed from it first: p of layer 2."""
    iterate, count = Network.iterate, 0

    def damaging(network):
        nonlocal count
        count += 1
        if count == 6:
            network.layers[1].z[3, 1] = torch.nan
            network.layers[1].r[3, 1] = torch.nan
        iterate(network)

    monkeypatch.setattr(Network, "iterate", damaging)
    with pytest.raises(DivergenceError, match=r"iteration 6: layer 2 of 3 is not finite \(p first\) .*raise rho") as no:
        PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, checkpoint_every=2)
    assert "the checkpoint of iteration 4 in" in str(no.value)
    assert names(tmp_path) == ["iteration-000002", "iteration-000004"]
    monkeypatch.setattr(Network, "iterate", iterate)
    assert outcome(PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, resume=True)) == outcome(
        PDADMMG(**SMALL).fit(GRAPH)
    )


SINGULAR = {"form": "exact", "nu": 28.0, "rho": 1e-10}  # rho I + nu W^T W is singular in float32


def test_backing_off_raises_rho_until_it_trains(caplog):
    with pytest.raises(DivergenceError, match="rho = 1e-10"):
        PDADMMG(**SMALL, **SINGULAR).fit(GRAPH)
    trained = PDADMMG(**SMALL, **SINGULAR, on_divergence="backoff").fit(GRAPH)
    rho = trained.history_.column("rho")
    assert len(rho) == 8
    assert rho == sorted(rho)
    assert 1e-9 <= rho[-1] <= 1e-5
    assert caplog.text.count("going on from the best weights so far with rho") >= 1
    assert np.isfinite(trained.history_.column("lagrangian")).all()


def test_backing_off_gives_up_where_it_does_not_help():
    X = np.random.default_rng(0).normal(size=(20, 6)) * 1e30
    with pytest.raises(DivergenceError, match="layer 1"):
        PDADMMG(**SMALL, on_divergence="backoff").fit(X, np.arange(20) % 3)


def test_backing_off_keeps_the_best_weights(monkeypatch):
    """Diverging after the best iteration costs nothing of it: the stage ends with weights at least as good."""
    iterate, count = Network.iterate, 0

    def damaging(network):
        nonlocal count
        count += 1
        iterate(network)
        if count == 3:
            network.layers[0].z.fill_(torch.nan)

    monkeypatch.setattr(Network, "iterate", damaging)
    trained = PDADMMG(**SMALL, on_divergence="backoff").fit(GRAPH)
    rows = [row for row in trained.history_ if row["stage"] == 0]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["rho"] for row in rows] == pytest.approx([0.3, 0.3, 3.0, 3.0])
    assert trained.stages_[0]["val_accuracy"] == max(row["val_accuracy"] for row in rows)


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
