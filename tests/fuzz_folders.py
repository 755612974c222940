"""The fuzzer's rows for graphs in folders and for archives: one or two files of a valid folder are damaged."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from fuzz_damage import VALUES, check_graph, damage_arrays, damage_bytes, damage_headers, damage_json, dumps, npz_bytes
from graph_writers import write_csv, write_disk, write_graphsaint, write_ogb, write_ogb_binary, write_scipy

from pdadmm.data import READERS, Graph
from pdadmm.data.archive import unpack

__all__ = ["FOLDERS"]

GRAPH = Graph.from_edges([[0, 1, 1, 2, 4], [1, 2, 3, 3, 3]], np.linspace(-1, 1, 20).reshape(5, 4), [0, 1, -1, 1, 0],
                         {"train": [0, 1], "val": [3], "test": [4]}, weights=[1, 2, 0.5, 1, 1])  # fmt: skip
CELLS = ("", "x", "-1", "1.5", "nan", "inf", "1e400", "99999999999999999999", "0x10", "1_0", '"1"', "\x00", "# 1", "5")
FORMS = {"ogb": (write_ogb, write_ogb_binary), "graphsaint": (write_graphsaint,), "csv": (write_csv,),
         "disk": (write_disk,),
         "scipy": tuple(partial(write_scipy, form=form) for form in ("csr", "csc", "coo"))}  # fmt: skip


def damage_table(text: str, r: random.Random) -> str:
    """Another cell, row, separator or end of line."""
    lines = text.splitlines()
    for _ in range(r.choice((1, 1, 3))):
        at = r.randrange(len(lines)) if lines else 0
        act = r.randrange(6)
        if act == 0 or not lines:
            lines.insert(at, r.choice(CELLS))
        elif act == 1:
            cells = lines[at].split(",")
            cells[r.randrange(len(cells))] = r.choice(CELLS)
            lines[at] = ",".join(cells)
        elif act == 2:
            lines[at] += "," + r.choice(CELLS)
        elif act == 3:
            del lines[at]
        elif act == 4:
            lines *= r.choice((2, 50))
        else:
            lines[at] = lines[at].replace(",", r.choice(("\t", ";", " ", "", ",,")))
    return r.choice(("\n", "\n", "\r\n", "\r")).join(lines) + r.choice(("\n", ""))


def damage_npz(raw: bytes, r: random.Random) -> bytes:
    """Damage to one array, its header, or the archive."""
    act = r.randrange(3)
    if act == 0:
        return damage_bytes(raw, r)
    if act == 1:
        return damage_headers(raw, r)
    with np.load(io.BytesIO(raw)) as file:
        parts = dict(file)
    if "format" in parts and r.random() < 0.1:
        parts["format"] = np.array(r.choice(("csr", "csc", "coo", "bsr", b"csr", "", "x" * 2000)))
    with np.errstate(all="ignore"):
        try:
            damage_arrays(parts, r)
        except (TypeError, ValueError):  # of numpy: damaged enough
            parts.popitem()
    return npz_bytes(parts)


def damage_npy(raw: bytes, r: random.Random) -> bytes:
    parts = {"x": np.load(io.BytesIO(raw))}
    if r.random() < 0.5:
        return damage_bytes(raw, r)
    with np.errstate(all="ignore"):
        try:
            damage_arrays(parts, r)
        except (TypeError, ValueError):
            parts = {}
    stream = io.BytesIO()
    np.save(stream, next(iter(parts.values()), np.zeros(0)))
    return stream.getvalue()


def damaged(name: str, raw: bytes, r: random.Random) -> bytes:
    """Damage of the kind that a file of this name can take."""
    if r.random() < 0.2:
        return damage_bytes(raw, r)
    if name.endswith(".csv.gz"):
        text = damage_table(gzip.decompress(raw).decode(), r).encode()
        return gzip.compress(text, mtime=0)
    if name.endswith(".csv"):
        return damage_table(raw.decode(), r).encode()
    if name.endswith(".json"):
        value = damage_json(json.loads(raw), r) if r.random() < 0.9 else r.choice(VALUES)
        return dumps(value, r)
    return (damage_npz if name.endswith(".npz") else damage_npy)(raw, r)


PRISTINE: dict[int, dict[str, bytes]] = {}


def pristine(write: Callable, folder: Path) -> dict[str, bytes]:
    """The files of a valid folder by name, written once."""
    if id(write) not in PRISTINE:
        place = folder / "pristine"
        place.mkdir()
        write(GRAPH, place)
        files = {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
        PRISTINE[id(write)] = {name: file.read_bytes() for name, file in files.items()}
        shutil.rmtree(place)
    return PRISTINE[id(write)]


def read_a_folder(form: str, folder: Path, r: random.Random) -> None:
    files = dict(pristine(r.choice(FORMS[form]), folder))
    for name in r.sample(list(files), r.choice((1, 1, 1, 2))):
        if r.random() < 0.03:
            del files[name]
        else:
            files[name] = damaged(name, files[name], r)
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    for name, raw in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(raw)
    check_graph(READERS[form].read(place, None, "file"))


NAMES = ("set/../../escape", "/escape", "set\\..\\..\\escape", "escape", "set/a", "set", "set/", "set/a/b", "..")


def read_an_archive(folder: Path, r: random.Random) -> None:
    """What unpacks lies in its folder, and nothing else anywhere."""
    contents = {"set/a": b"abc" * 100, "set/b/c": bytes(1000), "set/d": b""}
    place = folder / "here" / "in"
    shutil.rmtree(folder / "here", ignore_errors=True)
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "a.zip", "w", r.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            info.filename = r.choice(NAMES) if r.random() < 0.1 else name
            info.external_attr = r.choice((0, 0, 0o100644, 0o120777, 0o020666, r.getrandbits(16))) << 16
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
                archive.writestr(info, content)
    if r.random() < 0.6:
        (place / "a.zip").write_bytes(damage_bytes((place / "a.zip").read_bytes(), r))
    try:
        unpack(place / "a.zip", place, "set", 10**6)
    finally:
        found = [file for file in (folder / "here").rglob("*") if not file.is_dir() and file.name != "a.zip"]
        assert all(place / "set" in file.parents and not file.is_symlink() for file in found)
        assert sum(file.stat().st_size for file in found) <= 10**6
        assert not (folder / "escape").exists()


FOLDERS: dict[str, Callable[[Path, random.Random], None]] = {
    **{form: partial(read_a_folder, form) for form in FORMS},
    "archive": read_an_archive,
}
