"""A few thousand malformed files for every reader, and those that once went wrong; the long form is fuzz_readers.py."""

from __future__ import annotations

import json
import os
import pickle
import resource
import warnings

import fuzz_readers
import numpy as np
import pytest
from fuzz_readers import READERS, good_model, npz_bytes, own_parts, run_cases, summary_of_contest, tiny_planetoid
from hypothesis import given
from hypothesis import strategies as st

from pdadmm import History, load_model
from pdadmm.contest import read_summary
from pdadmm.data import read_npz, read_planetoid
from pdadmm.errors import InputError
from pdadmm.files import is_number, parse_json
from pdadmm.plot import plot_convergence

CASES = 500


@pytest.mark.parametrize("reader", READERS)
def test_malformed_files_are_refused_or_valid(reader, tmp_path):
    if reader == "model":
        good_model(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)  # of the zip file written here
        counts, found = run_cases(reader, 20, range(CASES), tmp_path)
    assert not found, found[:5]
    assert counts["refused"] > CASES / 3
    assert counts["refused"] + counts["valid"] == CASES


def test_the_fuzzer_notices_what_it_is_for(tmp_path, monkeypatch):
    """A reader that raises something else, hangs, or takes memory."""

    def other(folder, r):
        raise KeyError("x")

    def hangs(folder, r):
        while True:
            pass

    def takes(folder, r):
        return len(np.ones(fuzz_readers.BYTES // 4).tobytes())

    def two_lines(folder, r):
        error = InputError("a", "b", "c")
        error.args = ("a\nb",)
        raise error

    cases = ((other, "KeyError"), (takes, "memory"), (two_lines, "several lines"), (hangs, "TookTooLong"))
    for reader, words in cases:
        monkeypatch.setitem(READERS, "bad", reader)
        if reader is hangs:
            monkeypatch.setattr(fuzz_readers, "SECONDS", 1)
        counts, found = run_cases("bad", 0, range(1), tmp_path)
        assert counts == {"found": 1}
        assert words in found[0].what


# What once went wrong


def planetoid(folder, **changes):
    for name, value in (tiny_planetoid() | {"test.index": b"5\n3\n"} | changes).items():
        raw = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
        (folder / f"ind.case.{name}").write_bytes(raw)
    return folder


def nested(levels: int) -> bytes:
    """A dict whose key is a tuple of two references to a tuple of two references, and so on."""
    twice = b"".join(b"h%ch%c\x86q%c0" % (level, level, level + 1) for level in range(levels))
    return b"\x80\x02}K\x01q\x000" + twice + b"h%cK\x01s." % levels


SHARED = list(range(2000))
BOMBS = {
    "hash": nested(60),  # 2^60 steps to hash the key
    "set": b"\x80\x04\x8f(K\x01\x90.",
    "bytes": b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
    "dup": b"\x80\x02]" + b"2" * 1000 + b".",
    "copies": b"\x80\x02(c__builtin__\nlist\nX\x05\x00\x00\x00abcde\x85Rt.",
    "shared": pickle.dumps(dict.fromkeys(range(2000), SHARED), protocol=2),  # 4 million edges in 20 kB
    "large key": b"\x80\x02}\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7fK\x01s.",
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_pickles_set_neither_time_nor_memory(raw, tmp_path):
    with pytest.raises(InputError, match=r"ind\.case\.graph"):
        read_planetoid(planetoid(tmp_path, graph=raw), "case")


def test_a_number_in_a_pickle_does_not_size_the_memo(tmp_path):
    """The unpickler in C would take 34 GB here."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = read_planetoid(planetoid(tmp_path, graph=b"\x80\x02}r\xff\xff\xff\x7f."), "case")
    assert graph.num_edges == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (1 << 18)


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path):
    """A name with a line break in a pickle; control characters and long texts anywhere."""
    with pytest.raises(InputError) as caught:
        read_planetoid(planetoid(tmp_path, graph=b"\x80\x04\x8c\x04a\x1b\nb\x8c\x01c\x93."), "case")
    assert str(caught.value).isprintable()
    assert "a\\x1b\\nb.c" in str(caught.value)
    assert len(str(InputError("x" * 9999, "y" * 9999, "z"))) < 5000
    assert str(InputError("name", "grün", "z")) == "name = grün: must be z"


@pytest.mark.parametrize("kind", ["u8", "f2", "f8", "i1", ">i4"])
def test_node_numbers_of_every_type(kind, tmp_path):
    """uint64 beside int64 became float; 2^53 is infinite in float16."""
    parts = own_parts()
    (tmp_path / "a.npz").write_bytes(npz_bytes(parts))
    (tmp_path / "b.npz").write_bytes(npz_bytes(parts | {"edge_index": parts["edge_index"].astype(kind)}))
    assert read_npz(tmp_path / "a.npz").fingerprint() == read_npz(tmp_path / "b.npz").fingerprint()


def test_an_array_that_memory_cannot_hold_is_refused_unread(tmp_path, monkeypatch):
    from pdadmm.data import npz

    (tmp_path / "a.npz").write_bytes(npz_bytes(own_parts() | {"y": np.zeros(10**6, dtype=np.int8)}))
    monkeypatch.setattr(npz, "memory_bytes", lambda: 10**5)
    with pytest.raises(InputError, match="y: claims 1000128 bytes"):
        read_npz(tmp_path / "a.npz")


def test_a_member_outside_its_folder_is_not_an_array(tmp_path):
    """Members are read by name, never unpacked: no path in an archive is ever opened."""
    parts = own_parts()
    (tmp_path / "a.npz").write_bytes(npz_bytes({f"../{name}": array for name, array in parts.items()}))
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(InputError, match="with the keys"):
        read_npz(tmp_path / "a.npz")
    assert sorted(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize("reader", [History.from_jsonl, read_summary, load_model])
def test_pipes_devices_and_deep_nesting_are_refused(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "deep").write_bytes(b"[" * 200000)
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "deep", tmp_path):
        with pytest.raises(InputError):
            reader(path)


def test_a_planetoid_pipe_is_refused(tmp_path):
    planetoid(tmp_path)
    (tmp_path / "ind.case.tx").unlink()
    os.mkfifo(tmp_path / "ind.case.tx")
    with pytest.raises(InputError, match="not a regular file"):
        read_planetoid(tmp_path, "case")


@pytest.mark.parametrize("value", ["x", True, [1], {}, float("nan"), float("inf"), 10**400, "$\\frac{"])
@pytest.mark.parametrize("key", ["iteration", "objective", "residual_link", "val_accuracy", "layers", "stage"])
def test_histories_with_other_things_than_numbers_are_not_drawn(key, value):
    rows = [{"iteration": 1, "objective": 1.0}, {"iteration": 2, "objective": 0.5} | {key: value}]
    with pytest.raises(InputError, match=f"row 2 {key}"):
        plot_convergence({"a": rows})


def changed(summary: dict, path: tuple, value) -> dict:
    node = summary
    for key in path[:-1]:
        node = node[key]
    if value == "gone":
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return summary


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("rows",), {}, "rows"), (("rows", 0), [], "rows"), (("targets", 0), "x", "targets"),
        (("contest",), None, "contest"), (("commands",), [1], "commands"), (("rows", 1, "solver"), 3, "row 2: solver"),
        (("rows", 0, "layers"), 2.5, "row 1: layers"), (("rows", 0, "runs"), {}, "row 1: runs"),
        (("rows", 0, "runs", 1, "bytes"), "gone", "row 1, run 2: bytes"),  # the fuzzer's first find
        (("rows", 0, "runs"), [], "row 1: runs"), (("rows", 0, "runs", 0, "peak_bytes"), None, "peak_bytes"),
        (("rows", 0, "runs", 0, "history", "seconds"), [1], "columns of one length"),
        (("rows", 0, "runs", 0, "history", "layers", 1), True, "run 1: layers"),
        (("rows", 0, "runs", 0, "history", "val_accuracy"), "gone", "val_accuracy"),
        (("rows", 1, "runs", 1, "failed"), 1, "run 2: failed"), (("rows", 0, "parameters"), [], "parameters"),
    ],
)  # fmt: skip
def test_a_summary_of_another_shape_is_refused(path, value, words, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(summary_of_contest()))
    assert read_summary(tmp_path / "c.json") == summary_of_contest()
    (tmp_path / "c.json").write_text(json.dumps(changed(summary_of_contest(), path, value)))
    with pytest.raises(InputError, match=f"a file that pdadmm compare wrote; .*{words}"):
        read_summary(tmp_path / "c.json")


@given(value=st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
def test_a_number_is_what_float_holds(value):
    plain = type(value) in (int, float) and abs(value) < 1e300
    assert is_number(value) == plain


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 10**5, '{"a": ' + "9" * 5000 + "}", "{}{}"])
def test_text_that_is_no_json_object(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
