"""Training from disk: the exact algorithm, whatever the block; a run that is cut off goes on with the same bits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdadmm import PDADMMG, PDADMMGQ, Adam, Augmenter, DivergenceError, InputError, csbm, make_splits
from pdadmm.cli import main
from pdadmm.disk import rows as disk_rows
from pdadmm.disk import state as state_files
from pdadmm.disk import storage
from pdadmm.disk.augment import Request, augment_folder
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.blocks import DiskArray
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.disk.state import Layout
from pdadmm.disk.storage import state_columns

ROOT = Path(__file__).parent.parent
GRAPH = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(50, 6)), np.arange(50) % 3
X[:, :3] += 2 * np.eye(3)[Y]
SMALL = {"layers": 3, "hidden": 5, "hops": 1, "iterations": 4}  # stages of 2 and 3 layers: 8 iterations
MEMORY = "200MiB"
SECONDS = ("seconds", "bytes", "peak_rss")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small blocks, and no waiting for the disk: nobody pulls the plug here."""
    monkeypatch.setattr(storage, "LEAST_BLOCK", 7)
    monkeypatch.setattr(storage, "LARGEST_BLOCK", 1500)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(os, "fdatasync", lambda file: None, raising=False)


def blocks_of(nodes: int):
    """Make the blocks of this size, as nearly as their limits allow."""
    storage.LEAST_BLOCK, storage.LARGEST_BLOCK = nodes, 1  # the fixture puts them back


def outcome(trained) -> tuple:
    rows = [{k: v for k, v in row.items() if not k.startswith(SECONDS)} for row in trained.history_]
    weights = {name: value.numpy().tobytes() for name, value in trained.model_.state_dict().items()}
    return weights, rows, trained.stages_


def close(memory, disk, tolerance: float) -> None:
    """Weights and history of two runs agree to ``tolerance`` of their size.

    Where logits are equal but for rounding accuracies differ, and so may the iteration that a stage ends with: such
    runs agree as far as that stage.
    """
    assert len(memory.history_) == len(disk.history_)
    same, rows = True, 0
    for ours, theirs in zip(memory.stages_, disk.stages_, strict=True):
        if same:
            same, rows = ours["best_iteration"] == theirs["best_iteration"], rows + ours["iterations"]
    for name, value in memory.model_.state_dict().items() if same else ():
        other = disk.model_.state_dict()[name]
        assert float((value - other).abs().max()) <= tolerance * (1 + float(value.abs().max())), name
    for ours, theirs in zip(memory.history_[:rows], disk.history_[:rows]):
        scale = abs(ours["objective"]) + ours["q_squared"]
        for key in ("objective", "lagrangian", "risk", "residual_linear", "residual_activation", "residual_link"):
            assert abs(ours[key] - theirs[key]) <= tolerance * (1 + scale), (ours["iteration"], key)
        assert theirs["rho"] == ours["rho"]


CHOICES = {
    "form": st.sampled_from(["auto", "gradient"]),
    "first_layer": st.sampled_from(["gram", "gradient", "cg"]),
    "initial": st.sampled_from(["random", "labels"]),
    "acceleration": st.sampled_from(["none", "first-stage", "all-stages"]),
    "rho_schedule": st.sampled_from(["fixed", "stall"]),
    "rho": st.sampled_from([None, 0.01]),
    "activation": st.sampled_from(["relu", "leaky_relu", "identity"]),
    "loss": st.sampled_from(["cross_entropy", "squared_error"]),
    "kappa_identity": st.sampled_from([0.0, 0.01]),
    "layers": st.integers(1, 5),
}
SETTINGS = st.fixed_dictionaries(
    CHOICES | {"mu": st.sampled_from([0.0, 0.1]), "eval_every": st.integers(1, 3)}
)
MANY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(more=SETTINGS, block=st.sampled_from([1, 7, 25, 49, 50, 60]))
def test_every_block_size_gives_the_run_in_memory(tmp_path_factory, more, block):
    blocks_of(block)
    solver = PDADMMG(**SMALL | more, dtype="float64")
    disk = PDADMMG(**SMALL | more, dtype="float64").fit(X, Y, memory=MEMORY, scratch=tmp_path_factory.mktemp("run"))
    assert disk.summary_["block_nodes"] == min(block, 50)
    close(solver.fit(X, Y), disk, 1e-8)


def test_float32_agrees_as_far_as_it_can(tmp_path):
    """A long run in the default setting, restarts of the extrapolation included."""
    more = SMALL | {"first_layer": "gram", "iterations": 1, "stages": (3,)}
    close(PDADMMG(**more).fit(X, Y), PDADMMG(**more).fit(X, Y, memory=MEMORY, scratch=tmp_path / "1"), 1e-5)
    more |= {"iterations": 50}
    # two runs in memory part by 1e-2 here when the last bit of one feature changes
    close(PDADMMG(**more).fit(X, Y), PDADMMG(**more).fit(X, Y, memory=MEMORY, scratch=tmp_path / "50"), 2e-2)


def test_restarts_and_schedules_happen_in_these_tests(tmp_path):
    """Else the passes that make the sums anew would not be met."""
    passes = []
    kept = storage.Storage.sweep

    def sweep(self, write):
        passes.append(write)
        return kept(self, write)

    for more, least in (({"acceleration": "all-stages"}, 1), ({"rho_schedule": "stall", "rho": 0.01}, 1)):
        passes.clear()
        storage.Storage.sweep = sweep
        try:
            run = PDADMMG(**SMALL | more | {"iterations": 12}).fit(X, Y, memory=MEMORY, scratch=tmp_path / str(more))
        finally:
            storage.Storage.sweep = kept
        assert passes.count(True) == len(run.history_)
        assert passes.count(False) >= 2 + least  # one at each stage's start


def test_the_composed_network_is_scored_alike(tmp_path):
    """Validation chooses the same iteration, on a graph with splits; the trained networks predict alike."""
    memory = PDADMMG(**SMALL, first_layer="gram", dtype="float64").fit(GRAPH)
    disk = PDADMMG(**SMALL, dtype="float64").fit(GRAPH, memory=MEMORY, scratch=tmp_path)
    for ours, theirs in zip(memory.stages_, disk.stages_):
        assert {k: v for k, v in ours.items() if k != "bytes_per_iteration"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "bytes_per_iteration"}, rel=1e-9
        )
    assert disk.history_.column("val_loss") == pytest.approx(memory.history_.column("val_loss"), rel=1e-9)
    np.testing.assert_allclose(disk.predict_proba(GRAPH), memory.predict_proba(GRAPH), rtol=1e-8)


def test_features_on_disk_give_the_same_bits(tmp_path):
    expected = outcome(PDADMMG(**SMALL).fit(X, Y, memory=MEMORY, scratch=tmp_path / "array"))
    np.save(tmp_path / "X.npy", X)
    with DiskArray(tmp_path / "X.npy") as on_disk:
        assert outcome(PDADMMG(**SMALL).fit(on_disk, Y, memory=MEMORY, scratch=tmp_path / "disk")) == expected
        with pytest.raises(InputError, match=r"X, y = \(50, 6\) and \(49,\)"):
            PDADMMG(**SMALL).fit(on_disk, Y[1:], memory=MEMORY, scratch=tmp_path / "short")
        with pytest.raises(InputError, match="must be a matrix of real numbers"):
            PDADMMG(**SMALL).fit(on_disk, Y)  # in memory it must be an array


@pytest.mark.parametrize("rows", ["labelled", "all"])
def test_a_folder_of_augmented_features_gives_the_run_on_the_graph(tmp_path, monkeypatch, rows):
    """From the graph's file to the trained network nothing needs to fit in memory."""
    monkeypatch.setattr(disk_rows, "block_rows", lambda shape, size: 9)
    monkeypatch.setattr(disk_rows, "NUMBERS_AT_ONCE", 200)
    write_graph(GRAPH, tmp_path / "graph")
    wanted = Augmenter(hops=1, scaling="hop-std", dtype="float64")
    with DiskGraph(tmp_path / "graph") as graph:
        augment_folder(graph, Request(wanted, rows, "random:5", 0, 1 << 30), tmp_path / "augmented")
    same = GRAPH.with_splits(make_splits(GRAPH, "random:5", 0))
    memory = PDADMMG(**SMALL, first_layer="gram", dtype="float64").fit(same)
    with AugmentedFolder(tmp_path / "augmented") as folder:
        disk = PDADMMG(**SMALL, dtype="float64").fit(folder, memory=MEMORY, scratch=tmp_path / "run")
    close(memory, disk, 1e-8)
    assert disk.score(same) == memory.score(same)
    assert disk.summary_["val_accuracy"] == memory.summary_["val_accuracy"]


def test_divergence_is_named_alike(tmp_path):
    wild = SMALL | {"nu": 1e19, "rho": 1e-19, "acceleration": "none"}
    said = []
    for more in ({}, {"memory": MEMORY, "scratch": tmp_path / "a"}):
        with pytest.raises(DivergenceError) as caught:
            PDADMMG(**wild, first_layer="gram").fit(X, Y, **more)
        said.append(str(caught.value).partition(";")[0])
    assert said[0] == said[1]


# Files


def test_bytes_are_those_of_the_formula(tmp_path):
    """Per iteration the state is read and written once and the training rows of X read; see docs/disk-training.md."""
    blocks_of(16)
    more = SMALL | {"stages": (3,), "iterations": 6, "eval_every": 6, "acceleration": "none"}
    run = PDADMMG(**more).fit(X, Y, memory=MEMORY, scratch=tmp_path)
    layout = Layout(state_columns([6, 5, 5, 3], [], False), torch.float32)
    state, features = 3 * layout.nbytes(16) + layout.nbytes(2), 4 * 50 * 6
    assert run.summary_["bytes_written"] == features + 6 * state
    # X: the factor, the score at the start, the first sums, six iterations, the score at the end
    assert run.summary_["bytes_read"] == (4 + 6) * features - 0 + 5 * state
    assert run.summary_["state_bytes"] == pytest.approx(state, rel=0.5)
    assert run.summary_["memory_bytes"] == 200 << 20
    assert run.summary_["memory_peak_bytes"] < 200 << 20
    assert not list(tmp_path.glob("state-*")) + list(tmp_path.glob("features*"))


class CutOff(Exception):
    """What ends a run here without any warning."""


def cut_off(solver, folder: Path, at: int, in_pass: bool, **more) -> None:
    """Fit, and die after iteration ``at``: as its row is shown, or in the middle of the next pass."""
    count = 0
    write = state_files.StateFiles._write

    def watch(row) -> None:
        if row["iteration"] > at:
            raise CutOff

    def dying(self, target, number, block) -> None:
        nonlocal count
        count += 1
        if count > 4 * at + 2:
            raise CutOff
        write(self, target, number, block)

    with contextlib.suppress(CutOff), pytest.MonkeyPatch.context() as patch:
        if in_pass:
            patch.setattr(state_files.StateFiles, "_write", dying)
            watch = None
        solver.fit(X, Y, memory=MEMORY, scratch=folder, watch=watch, **more)


@MANY
@given(more=SETTINGS, at=st.integers(0, 7), in_pass=st.booleans(), backoff=st.sampled_from(["stop", "backoff"]))
def test_a_run_that_goes_on_has_the_same_bits(tmp_path_factory, more, at, in_pass, backoff):
    blocks_of(15)
    folder, solver = tmp_path_factory.mktemp("run"), PDADMMG(**SMALL | more, on_divergence=backoff)
    expected = outcome(solver.fit(X, Y, memory=MEMORY, scratch=folder / "whole"))
    cut_off(solver, folder / "cut", at, in_pass)
    cut_off(solver, folder / "cut", at + 1, not in_pass, resume=True)
    assert outcome(solver.fit(X, Y, memory=MEMORY, scratch=folder / "cut", resume=True)) == expected
    assert outcome(solver.fit(X, Y, memory=MEMORY, scratch=folder / "cut", resume=True)) == expected  # the finished run


@pytest.fixture
def cut(tmp_path):
    """The folder of a run that was cut off after iteration 6, in the middle of iteration 7's pass."""
    blocks_of(15)
    cut_off(PDADMMG(**SMALL), tmp_path / "run", 6, in_pass=True)
    return tmp_path / "run"


def resume(folder: Path, solver=None, data=(X, Y), memory: str = MEMORY):
    return (solver or PDADMMG(**SMALL)).fit(*data, memory=memory, scratch=folder, resume=True)


def test_torn_and_foreign_folders_are_refused(cut, tmp_path):
    def changed(how) -> Path:
        folder = shutil.copytree(cut, tmp_path / how.__name__)
        how(folder)
        return folder

    def cut_short(folder: Path) -> None:
        for path in folder.glob("state-?"):
            path.write_bytes(path.read_bytes()[:500])

    def swapped(folder: Path) -> None:
        (folder / "state-0").rename(folder / "x")
        (folder / "state-1").rename(folder / "state-0")
        (folder / "x").rename(folder / "state-1")

    def missing(folder: Path) -> None:
        (folder / "state-0").unlink()

    for how, word in ((cut_short, "has 500 bytes"), (swapped, "is not what pass"), (missing, "state-0 is missing")):
        with pytest.raises(InputError, match=rf"scratch = .*{word}.*must be the folder as the run left it; remove"):
            resume(changed(how))
    for arguments, word in (
        ({"solver": PDADMMG(**SMALL | {"hidden": 6})}, "hidden was 5 and is 6"),
        ({"data": (X + 1, Y)}, "fingerprint was"),
        ({"memory": "300MiB"}, "memory was 209715200 and is 314572800"),
    ):
        with pytest.raises(InputError, match=f"scratch = .*must be a folder of the same settings and data; .*{word}"):
            resume(cut, **arguments)
    with pytest.raises(InputError, match=r"scratch = .*must be a folder without checkpoints; resume"):
        PDADMMG(**SMALL).fit(X, Y, memory=MEMORY, scratch=cut)
    assert outcome(resume(cut)) == outcome(PDADMMG(**SMALL).fit(X, Y, memory=MEMORY, scratch=tmp_path / "whole"))


def test_a_stage_that_begins_again_keeps_what_was_saved(cut):
    """After a divergence the stage begins anew from its best weights: the file of the checkpoint stays whole."""
    saved = [(cut / f"state-{file}").read_bytes() for file in (0, 1)]
    held, targets, solver = storage.Storage.sweep, [], PDADMMG(**SMALL, on_divergence="backoff")

    def spoiled(self, write):
        if write:
            targets.append(self.saved)
            if len(targets) == 3:
                raise CutOff
        for nodes, X, state in held(self, write):
            if write and len(targets) == 1:
                state["z1"].fill_(float("nan"))
            yield nodes, X, state

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CutOff):
        patch.setattr(storage.Storage, "sweep", spoiled)
        resume(cut, solver)
    assert targets == [targets[0], targets[0], 1 - targets[0]]  # the first iteration after it is what is saved then
    assert (cut / f"state-{targets[0]}").read_bytes() == saved[targets[0]]
    assert len(resume(cut, solver).history_) == 8


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path):
    """Files may grow to a size that X has and the state has not; the state's room is taken as its stage begins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(InputError, match=r"scratch = .*: must be on a disk that takes the data"):
            PDADMMG(**SMALL | {"hidden": 60, "stages": (3,)}).fit(X, Y, memory=MEMORY, scratch=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_is_refused(tmp_path):
    run = {"memory": MEMORY, "scratch": tmp_path / "run"}
    for solver, more, word in (
        (PDADMMG(**SMALL), {"memory": MEMORY}, "memory, scratch = 200MiB, None: must be given both, or neither"),
        (PDADMMG(**SMALL), {"scratch": tmp_path}, "memory, scratch = None"),
        (PDADMMG(**SMALL), run | {"memory": "lots"}, "memory = lots: must be a size such as 2GiB"),
        (PDADMMG(**SMALL), run | {"memory": "1MiB"}, r"memory = 1MiB: must be at least \d+MiB for this network"),
        (PDADMMG(**SMALL), run | {"checkpoint": tmp_path}, "checkpoint = .*: must be left out with memory"),
        (PDADMMG(**SMALL), run | {"checkpoint_every": 3}, "checkpoint_every = 3: must be left out with memory"),
        (PDADMMG(**SMALL, first_layer="kernel"), run, "first_layer = kernel: must be auto, gram, gradient or cg with"),
        (PDADMMGQ(**SMALL), run, "memory = 200MiB: must be left out: PDADMMGQ trains in memory"),
        (Adam(**SMALL), {"scratch": tmp_path}, "scratch = .*: must be left out: Adam trains in memory"),
    ):
        with pytest.raises(InputError, match=word):
            solver.fit(X, Y, **more)
    bad = X.copy()
    bad[7, 1] = np.inf
    with pytest.raises(InputError, match="X = NaN or infinity in rows"):
        PDADMMG(**SMALL).fit(bad, Y, **run)


def test_the_command_line(tmp_path, capsys):
    flags = ["train", "--dataset", "digits", "--layers", "2", "--hidden", "8", "--iterations", "2", "--hops", "1"]
    disk = ["--memory", MEMORY, "--scratch", str(tmp_path / "run"), "--quiet"]
    assert main([*flags, *disk, "--summary", str(tmp_path / "s.json")]) == 0
    first = capsys.readouterr().out
    assert main([*flags, *disk]) == 2
    assert "pdadmm: scratch = " in capsys.readouterr().err
    assert main([*flags, *disk, "--resume"]) == 0
    again = capsys.readouterr().out
    accuracies = [[line for line in out.splitlines() if line.startswith("test accuracy")] for out in (first, again)]
    assert accuracies[0] == accuracies[1] != []
    assert '"block_nodes"' in (tmp_path / "s.json").read_text()


def test_killed_runs_go_on(tmp_path):
    """Kill -9 at random moments, in processes of their own; the benchmark does it twenty times."""
    sizes = {"kills": 3, "kill-nodes": 300, "hidden": 8, "inputs": 12, "layers": 3, "iterations": 2}
    flags = ["--parts=kills", *(f"--{name}={value}" for name, value in sizes.items())]
    command = [sys.executable, str(ROOT / "benchmarks" / "disk_training.py"), *flags, "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 kills, the same result: yes" in done.stdout
