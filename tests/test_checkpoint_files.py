"""Checkpoints on the disk: damage is noticed, and a full disk costs the checkpoint, not the run."""

from __future__ import annotations

import json
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_small import GRAPH, MANY, SMALL, cut_off_twice, names, outcome
from hypothesis import given
from hypothesis import strategies as st

import pdadmm
from pdadmm import PDADMMG, InputError
from pdadmm.checkpoint import Checkpoint, DamagedError, commit, found, partial_folder, write_part


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run that was cut off, with checkpoints of iterations 2 and 4, and the run's whole result."""
    return cut_off_twice(tmp_path_factory.mktemp("two"))


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
