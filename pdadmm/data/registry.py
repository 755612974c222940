"""Graphs by name or path: where their files are looked for, and their splits."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pdadmm.data.cache import cache_folder
from pdadmm.data.catalogue import DATASETS, Dataset
from pdadmm.data.graph import Graph
from pdadmm.data.npz import read_npz
from pdadmm.data.planetoid import find_planetoid, read_planetoid
from pdadmm.data.readers import find_reader, read_path
from pdadmm.data.splits import make_splits
from pdadmm.errors import InputError

__all__ = ["check_data_dir", "load_dataset", "load_with_split", "read_files", "uses_data_dir"]


def load_dataset(name_or_path: str | Path, data_dir: str | Path | None = None) -> Graph:
    """Load a graph by registry name, or from a file or folder in a format of ``READERS``.

    A name of ``DATASETS`` is looked for in ``data_dir``, else in the folder that the environment variable
    PDADMM_DATA names, and then in the cache of `pdadmm datasets --download`: its files and folders, then raw
    Planetoid files (``ind.NAME.allx`` and so on), there, in ``NAME`` or in ``NAME/raw``. ``digits`` and ``csbm``
    (or ``csbm:N``, N nodes) are made on the spot: for these and for a path ``data_dir`` plays no part.

    Raises InputError for an unknown name, a missing file, or a file that does not hold a valid graph.

    >>> load_dataset("csbm:200").num_nodes
    200
    """
    text = os.fspath(name_or_path)
    if text.endswith(".npz"):
        known = DATASETS.get(Path(text).stem)
        return read_npz(text, own_split=known.own_split if known else "file")
    name, _, rest = text.partition(":")
    row = DATASETS.get(name)
    if row is None and text and Path(text).exists():
        return read_path(text)
    if row is None or (rest and row.builder is None):
        raise _unknown(text)
    return row.builder(rest) if row.builder else _load_file(row, data_dir)


def uses_data_dir(name_or_path: str | Path) -> bool:
    """Whether a graph is looked for in the data folder: it has a name, and is not made on the spot.

    >>> uses_data_dir("cora"), uses_data_dir("csbm:200"), uses_data_dir("cora.npz")
    (True, False, False)
    """
    row = DATASETS.get(os.fspath(name_or_path))
    return row is not None and row.builder is None


def check_data_dir(name_or_path: str | Path, data_dir: str | Path | None) -> None:
    """Raise InputError where a folder was named that plays no part; load_dataset lets it pass, for loops over names."""
    text = os.fspath(name_or_path)
    name, _, rest = text.partition(":")
    known = Path(text).exists() or (name in DATASETS and (DATASETS[name].builder is not None or not rest))
    if data_dir is not None and known and not uses_data_dir(text):
        remedy = "it is the folder of the data sets with files that pdadmm datasets lists"
        raise InputError("data_dir", str(data_dir), f"left out with dataset {text}", remedy)


def load_with_split(
    name_or_path: str | Path, data_dir: str | Path | None = None, split: str | None = None, seed: int = 0
) -> Graph:
    """Load a graph with the split that ``split`` asks for (see make_splits), None is its own.

    Raises InputError where the graph or its split cannot be had.

    >>> len(load_with_split("csbm:200", split="random:5").splits["train"])
    50
    """
    graph = load_dataset(name_or_path, data_dir)
    if split is not None:
        return graph.with_splits(make_splits(graph, split, seed))
    if graph.splits is None:
        remedy = "add --split random:20 or --split fraction:60/20/20"
        raise InputError("split", "not given", f"given, as {graph.name} has none of its own", remedy)
    return graph


def _load_file(row: Dataset, data_dir: str | Path | None) -> Graph:
    given = data_dir if data_dir is not None else os.environ.get("PDADMM_DATA") or None
    remedy = "give its folder with --data-dir (data_dir in Python) or the environment variable PDADMM_DATA"
    if given is not None and not Path(given).is_dir():
        source = "check the path" if data_dir is not None else "PDADMM_DATA names it: change that, or give --data-dir"
        raise InputError("data_dir", str(given), "a folder that exists", source)
    cache = cache_folder()
    graph = read_files(row, Path(given)) if given is not None else None
    if graph is None:
        graph = read_files(row, cache / row.name)
    if graph is not None:
        return graph
    if row.remotes:
        remedy = f"fetch it with pdadmm datasets --download {row.name}, or {remedy}"
    elif row.page:
        remedy += f"; {row.page} has the files"
    if given is None:
        allowed = f"in a data folder (as {row.files[0]}), and none was given, or in the cache {cache}"
        raise InputError("dataset", row.name, allowed, remedy)
    looked = ", ".join([*row.files, f"ind.{row.name}.allx", f"{row.name}/raw/ind.{row.name}.allx"])
    raise InputError("dataset", row.name, f"in {given}, which holds none of {looked}, or in the cache {cache}", remedy)


def read_files(row: Dataset, folder: Path) -> Graph | None:
    """Read the data set of ``row`` from ``folder`` or its subfolder of that name; None where neither holds it.

    Raises InputError for files that are there and cannot be read.
    """
    for place in (folder, folder / row.name):
        for path in (place / file for file in row.files):
            if path.is_file() or (path.is_dir() and find_reader(path)):
                return read_path(path, row.name, row.own_split)
        raw = find_planetoid(place, row.name) if place.is_dir() else None
        if raw is not None:
            return read_planetoid(raw, row.name)
    return None


def _unknown(text: str) -> InputError:
    if any(mark in text for mark in ("/", "\\")) or Path(text).suffix in (".csv", ".gz", ".npy"):
        return InputError("dataset", text, "a file or folder that exists", "check the path")
    known = [f"{row.name} or {row.form}" if row.form else row.name for row in DATASETS.values()]
    close = difflib.get_close_matches(text.lower().partition(":")[0], DATASETS, n=2)
    remedy = f"did you mean {' or '.join(close)}?" if close else ""
    value = f"{text}, of which there is no file or folder here"
    return InputError("dataset", value, f"a path that exists, or one of {', '.join(known)}", remedy)
