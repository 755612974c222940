"""Reader of the Open Graph Benchmark's folders: raw/*.csv.gz or raw/data.npz, and split/NAME/*.csv.gz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.data.graph import Graph
from pdadmm.data.npz import in_file, opened_npz
from pdadmm.data.parts import class_numbers
from pdadmm.data.tables import find_table, read_table
from pdadmm.errors import InputError

__all__ = ["holds_ogb", "read_ogb"]

_SPLIT_FILES = {"train": "train", "val": "valid", "test": "test"}


def holds_ogb(path: Path) -> bool:
    """Whether ``path`` is a folder in this format."""
    raw = path / "raw"
    return find_table(raw, "edge") is not None or (raw / "data.npz").is_file()


def read_ogb(folder: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from an unpacked folder of OGB's node sets (Hu et al. 2020), without the package ``ogb``.

    ``raw`` holds ``num-node-list``, ``num-edge-list``, ``edge`` [E, 2], ``node-feat`` [V, F] and ``node-label``
    [V, 1] as .csv or .csv.gz; or, as papers100M has it, ``data.npz`` (``edge_index``, ``node_feat``) and
    ``node-label.npz`` (``node_label``). ``split/NAME`` holds ``train``, ``valid`` and ``test``. Edges are taken
    as undirected, duplicates dropped; a label of NaN is no label. Edge features and other files are not read.

    Raises InputError for a file that is missing, damaged or does not fit the others, and for sets whose
    nodes have several labels or no features (ogbn-proteins).

    >>> read_ogb("arxiv")  # doctest: +SKIP
    Graph(arxiv: 169,343 nodes, 1,157,799 edges, 128 dense features, 40 classes, splits 90,941/29,799/48,603)
    """
    folder = Path(folder)
    pairs, features, labels = (_from_npz if (folder / "raw" / "data.npz").is_file() else _from_tables)(folder / "raw")
    splits = _read_splits(folder / "split")
    with in_file(folder):
        return Graph.from_edges(pairs, features, class_numbers("node-label", labels), splits,
                                name or folder.resolve().name, own_split=own_split if splits else "")  # fmt: skip


def _from_tables(raw: Path) -> tuple[Any, Any, Any]:
    nodes, edges = (_count(raw, stem) for stem in ("num-node-list", "num-edge-list"))
    pairs = read_table(raw, "edge", "i4", edges)
    if edges and pairs.shape[1] != 2:
        raise InputError("dataset", f"{raw / 'edge.csv'} with {pairs.shape[1]} columns", "two columns")
    labels = read_table(raw, "node-label", "f8", nodes)
    return pairs.reshape(-1, 2).T, read_table(raw, "node-feat", "f4", nodes), labels


def _count(raw: Path, stem: str) -> int:
    """The number in a file that lists the size of one graph."""
    table = read_table(raw, stem, "i8")
    if table.shape != (1, 1) or not 0 <= table[0, 0] < 2**40:
        raise InputError("dataset", f"{raw / stem}.csv with {table.size} numbers", "one number, that of one graph")
    return int(table[0, 0])


def _from_npz(raw: Path) -> tuple[Any, Any, Any]:
    with opened_npz(raw / "data.npz") as file:
        pairs, features = file["edge_index"], file["node_feat"]
    with opened_npz(raw / "node-label.npz") as file:
        return pairs, features, file["node_label"]


def _read_splits(folder: Path) -> dict[str, np.ndarray] | None:
    """The one split in ``folder``, whatever its name; None where there is no such folder."""
    if not folder.is_dir():
        return None
    kinds = [path for path in sorted(folder.iterdir()) if find_table(path, "train") is not None]
    if len(kinds) != 1:
        found = ", ".join(path.name for path in kinds) or "none"
        raise InputError("dataset", f"{folder} with the splits {found}", "a folder of one split", "remove the others")
    parts = {part: read_table(kinds[0], stem, "i4") for part, stem in _SPLIT_FILES.items()}
    for part, table in parts.items():
        if table.size and table.shape[1] != 1:
            raise InputError("dataset", f"{kinds[0] / _SPLIT_FILES[part]}.csv", "one node number a line")
    return {part: table.reshape(-1) for part, table in parts.items()}
