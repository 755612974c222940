"""Unpacking zip archives: what is fine, and every kind of member that must not be written."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.data import archive as module
from pdadmm.data.archive import unpack
from pdadmm.errors import InputError

LIMIT = 10**6


def member(name: str, mode: int = 0, **more) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    for key, value in more.items():
        setattr(info, key, value)
    return info


def written(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in members:
            archive.writestr(info, content)
    return path


def refused(folder: Path, words: str, limit: int = LIMIT) -> None:
    """The archive is refused, and nothing but it lies in ``folder`` or beside it."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError, match=words):
        unpack(folder / "a.zip", folder, "set", limit)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_plain_archive(tmp_path):
    contents = {"set/raw/edge.csv.gz": b"1,2\n", "set/split/time/train.csv.gz": b"", "set/a b+c_1.txt": b"x" * 5000}
    path = written(tmp_path / "a.zip", (member("set/", stat.S_IFDIR | 0o755), b""), *contents.items())
    assert unpack(path, tmp_path, "set", LIMIT) == tmp_path / "set"
    assert {str(file.relative_to(tmp_path)): file.read_bytes() for file in (tmp_path / "set").rglob("*") if
            file.is_file()} == contents  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip", "set"]


OUTSIDE = {
    "parent": "set/../../escape", "absolute": "/etc/escape", "beside": "other/escape", "bare": "escape",
    "drive": "C:/escape", "backslash": "set\\..\\escape", "zero": "set/a\0b", "line": "set/a\nb",
    "unicode": "set/\u202egnp.exe", "dots": "..", "deep": "set/" + 20 * "a/" + "b", "long": "set/" + 1000 * "a",
    "root": "set",
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
def test_no_member_leaves_its_folder(tmp_path, name):
    (tmp_path / "here").mkdir()
    info = member("placeholder")
    info.filename = name  # ZipInfo itself would cut or turn some of these
    written(tmp_path / "here" / "a.zip", ("set/fine", b"fine"), (info, b"harm"))
    refused(tmp_path / "here", r"plain files below set/|complete zip archive")


KINDS = {
    "link": stat.S_IFLNK, "device": stat.S_IFCHR, "block": stat.S_IFBLK, "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK, "folder that is a file": stat.S_IFDIR,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_only_plain_files(tmp_path, kind):
    written(tmp_path / "a.zip", ("set/fine", b"fine"), (member("set/link", kind | 0o777), b"/etc/passwd"))
    refused(tmp_path, "not a plain file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_twice(tmp_path):
    written(tmp_path / "a.zip", ("set/a", b"1"), ("set/a", b"2"))
    refused(tmp_path, "a name that comes twice")
    written(tmp_path / "a.zip", ("set/a", b"1"), ("set/A", b"2"))  # one file where case does not count
    refused(tmp_path, "a name that comes twice")
    written(tmp_path / "a.zip", ("set/a", b"1"), ("set/a/b", b"2"))  # a file and a folder
    refused(tmp_path, "a complete zip archive")


def test_bombs(tmp_path, monkeypatch):
    written(tmp_path / "a.zip", ("set/a", bytes(LIMIT + 1)))
    refused(tmp_path, f"of {LIMIT + 1} bytes unpacked.*at most {LIMIT} bytes")
    written(tmp_path / "a.zip", *((f"set/{k}", bytes(LIMIT // 4)) for k in range(5)))
    refused(tmp_path, f"at most {LIMIT} bytes")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 100))
    written(tmp_path / "a.zip", ("set/a", bytes(200)))
    refused(tmp_path, "at most the 100 that are free")
    monkeypatch.setattr(module, "_MOST_MEMBERS", 3)
    written(tmp_path / "a.zip", *((f"set/{k}", b"") for k in range(4)))
    refused(tmp_path, "with 4 members")


def claims(path: Path, size: int) -> None:
    """Write another size of the first member into the directory of the archive."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


def test_sizes_that_lie(tmp_path):
    path = written(tmp_path / "a.zip", ("set/a", b"abc" * 1000))
    claims(path, 10)
    refused(tmp_path, "more than the 10 bytes|complete zip archive")
    claims(path, 5000)
    refused(tmp_path, "3000 bytes of 5000|complete zip archive")
    claims(path, 900_000)
    refused(tmp_path, "900000 bytes out of")


def test_encrypted_and_broken(tmp_path):
    path = written(tmp_path / "a.zip", ("set/a", b"abc" * 1000), ("set/b", b"def"))
    whole = path.read_bytes()
    content = bytearray(whole)
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(tmp_path, "encrypted")
    for broken in (b"", b"not a zip", whole[:-30], whole[:60] + b"\xff\xff" + whole[62:]):
        path.write_bytes(broken)
        refused(tmp_path, r"a complete zip archive|plain files below")


def test_an_older_folder_stays(tmp_path):
    """What lies there already is not mixed with an archive's contents."""
    written(tmp_path / "a.zip", ("set/a", b"1"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    refused(tmp_path, f"absent from {tmp_path}; remove that folder")


@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, database=None)
def test_damage_leaves_the_contents_or_nothing(tmp_path_factory, at, value):
    folder = tmp_path_factory.getbasetemp() / "damage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    contents = {"set/a": b"abc" * 100, "set/b/c": b"0123456789"}
    content = bytearray(written(folder / "a.zip", *contents.items()).read_bytes())
    content[at % len(content)] = value
    (folder / "a.zip").write_bytes(content)
    try:
        unpack(folder / "a.zip", folder, "set", LIMIT)
    except InputError:
        assert [path.name for path in folder.iterdir()] == ["a.zip"]
        return
    found = [path.read_bytes() for path in sorted((folder / "set").rglob("*")) if path.is_file()]
    assert set(found) <= set(contents.values())
