"""Reader of folders with an edge list and tables of features and labels: edges.csv, features.csv, labels.csv."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.data.graph import Graph
from pdadmm.data.npz import in_file
from pdadmm.data.parts import class_numbers
from pdadmm.data.tables import Table, find_table, numbered_lines, read_named_table
from pdadmm.errors import InputError

__all__ = ["TABLES", "holds_csv", "read_csv"]

log = logging.getLogger("pdadmm")

TABLES = ("edges", "features", "labels")
_NODES = "number the nodes from 0, in the order of features.csv"
_CLASSES = "number the classes from 0 (pandas.factorize does), with -1 or nothing where the class is not known"
_VALUES = "replace it by a number, or leave its line or column out"


def holds_csv(path: Path) -> bool:
    """Whether ``path`` is a folder in this format."""
    return find_table(path, "edges") is not None


def read_csv(folder: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from a folder of tables, .csv or .csv.gz, with or without a line of column names.

    ``edges``: two node numbers a line and, optionally, a weight; ``features``: a line for each node, from node 0
    on; ``labels``: its class, -1, nan, NA or an empty line for unlabelled; and, all or none, ``train``, ``val``,
    ``test``: a node number a line. Commas, semicolons, tabs or spaces stand between numbers. Edges are undirected.
    A first line 0,1,2,.. is taken for names where the features or the numbers of lines show that it is none of data.

    Raises InputError for a file that is missing, damaged or does not fit the others.

    >>> read_csv("folder")  # doctest: +SKIP
    Graph(folder: 3 nodes, 2 edges, 4 dense features, 2 classes, no splits)
    """
    folder = Path(folder)
    found = [path.name for stem in TABLES if (path := find_table(folder, stem)) is not None]
    if len(found) < len(TABLES):
        missing = [f"{stem}.csv" for stem in TABLES if find_table(folder, stem) is None]
        raise InputError("dataset", f"{folder} with {', '.join(found)}", f"a folder with {', '.join(missing)}, too")
    features = read_named_table(folder, "features", "f4", _VALUES)
    labels = _column(folder, "labels", "f8", _CLASSES, blanks=True)
    edges = read_named_table(folder, "edges", "f8", _NODES)
    if edges.values.size and edges.values.shape[1] not in (2, 3):
        value = f"{edges.path} with {edges.values.shape[1]} columns"
        raise InputError("dataset", value, "two columns of nodes and, optionally, one of weights")
    features, labels, edges = _without_counting(features, labels, edges)
    for table in (edges, features, labels):
        names = ", first line taken for names" if table.names is not None else ""
        log.info("%s: %s rows%s", table.path.name, f"{table.values.shape[0]:,}", names)
    if features.values.shape[0] != labels.values.shape[0]:
        value = " and ".join(f"{table.values.shape[0]} rows in {table.path}" for table in (features, labels))
        raise InputError("dataset", value, "as many rows in one as in the other, a row for each node")
    _check_nodes(edges, labels.values.shape[0])
    weights = edges.values[:, 2] if edges.values.size and edges.values.shape[1] == 3 else None
    splits = _splits(folder)
    with in_file(folder):
        pairs = edges.values[:, :2].T if edges.values.size else np.empty((2, 0))
        classes = class_numbers("labels", labels.values.reshape(-1))
        return Graph.from_edges(pairs, features.values, classes, splits, name or folder.resolve().name,
                                weights, own_split=own_split if splits else "")  # fmt: skip


def _column(folder: Path, stem: str, dtype: str, remedy: str, blanks: bool = False) -> Table:
    table = read_named_table(folder, stem, dtype, remedy, blanks)
    if table.values.size and table.values.shape[1] != 1:
        raise InputError("dataset", f"{table.path} with {table.values.shape[1]} columns", "one number a line")
    return table


def _without_counting(features: Table, labels: Table, edges: Table) -> tuple[Table, Table, Table]:
    """Take first lines 0,1,2,.. for names where they are: pandas writes such where columns have no names.

    As a node's features such a line is next to impossible from three columns on. Below, and for the labels, the other
    file's number of rows decides; edges follow these two, as 0,1 is an edge like any other.
    """
    if features.counting and features.values.shape[1] >= 3:
        features = features.headed()
    nodes, lines = features.values.shape[0], labels.values.shape[0]
    if lines > nodes:  # empty lines at the end are no nodes where there are too many
        labels = labels._replace(values=labels.values[: lines - min(labels.open_rows, lines - nodes)])
        lines = labels.values.shape[0]
    if labels.counting and lines == nodes + 1:
        labels = labels.headed()
    elif features.counting and nodes == lines + 1:
        features = features.headed()
    elif features.counting and labels.counting and (not edges.values.size or edges.values[:, :2].max() < nodes - 1):
        log.warning("%s and %s begin with 0, 1, ..: taken for node 0; give the columns names if these are such",
                    features.path.name, labels.path.name)  # fmt: skip
    unnamed = any(table.names == [str(k) for k in range(table.values.shape[1])] for table in (features, labels))
    if edges.counting and unnamed:
        first, edges = edges.values[0, :2], edges.headed()
        pairs = edges.values[:, :2] if edges.values.size else np.empty((0, 2))
        if not ((pairs == first).all(1) | (pairs == first[::-1]).all(1)).any():
            log.warning("%s: first line 0,1 taken for names, not for an edge, as in the other tables", edges.path.name)
    return features, labels, edges


def _check_nodes(edges: Table, nodes: int) -> None:
    """Raise InputError with the line of the first edge whose ends are not both nodes."""
    if not edges.values.size:
        return
    pairs = edges.values[:, :2]
    with np.errstate(invalid="ignore"):
        wrong = ~((pairs >= 0) & (pairs < nodes) & (pairs == np.trunc(pairs))).all(axis=1)
    if not wrong.any():
        return
    first = int(np.argmax(wrong)) + (edges.names is not None)
    number, line = next(found for k, found in enumerate(numbered_lines(edges.path)) if k == first)
    value = f"{line.strip()} in {edges.path}, line {number} ({int(wrong.sum())} such lines)"
    raise InputError("dataset", value, f"an edge between two nodes, 0 to {nodes - 1}", _NODES)


def _splits(folder: Path) -> dict[str, np.ndarray] | None:
    """Return the nodes of train, val and test; a first line 0 in all of them is a name, as they are disjoint."""
    if not any(find_table(folder, part) for part in SPLIT_NAMES):
        return None
    tables = {part: _column(folder, part, "i8", _NODES) for part in SPLIT_NAMES}
    if all(table.counting or not table.values.size for table in tables.values()) and sum(
        table.counting for table in tables.values()
    ) > 1:  # fmt: skip
        tables = {part: table.headed() if table.counting else table for part, table in tables.items()}
    return {part: table.values.reshape(-1) for part, table in tables.items()}
