"""Reader of GraphSAINT's folders: adj_full.npz, feats.npy, class_map.json, role.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.data.graph import Graph
from pdadmm.data.npz import in_file, read_npy
from pdadmm.data.scipy_npz import read_sparse
from pdadmm.errors import InputError
from pdadmm.files import parse_json, regular_file

__all__ = ["holds_graphsaint", "read_graphsaint"]

_ROLES = {"train": "tr", "val": "va", "test": "te"}


def holds_graphsaint(path: Path) -> bool:
    """Whether ``path`` is a folder in this format."""
    return (path / "adj_full.npz").is_file()


def read_graphsaint(folder: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from a folder in the layout of GraphSAINT (Zeng et al. 2020).

    ``adj_full.npz`` [V, V] as scipy's save_npz writes it, ``feats.npy`` [V, F], ``class_map.json`` with
    "node": class for every node, ``role.json`` with the lists "tr", "va" and "te" of nodes. Edges are taken
    as unweighted and undirected; features stay as they are (GraphSAINT standardises them when it trains).

    Raises InputError for a file that is missing, damaged or does not fit the others, and for sets whose
    nodes have several classes (Yelp, PPI).

    >>> read_graphsaint("flickr")  # doctest: +SKIP
    Graph(flickr: 89,250 nodes, 449,878 edges, 500 dense features, 7 classes, splits 44,625/22,312/22,313)
    """
    folder = Path(folder)
    features = read_npy(folder / "feats.npy")
    if features.ndim != 2:
        raise InputError("dataset", f"{folder / 'feats.npy'} of shape {features.shape}", "of shape (nodes, features)")
    labels = _classes(folder / "class_map.json", features.shape[0])
    splits = _roles(folder / "role.json")
    adjacency = read_sparse(folder / "adj_full.npz", features.shape[0])
    adjacency.sum_duplicates()  # an edge that is stored twice is one
    adjacency.data = np.ones(adjacency.nnz, dtype=np.int8)
    with in_file(folder):
        return Graph.from_adjacency(adjacency, features, labels, splits, name or folder.resolve().name,
                                    own_split=own_split)  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        return parse_json(regular_file(path).read_text("utf-8"))
    except (OSError, ValueError) as problem:
        detail = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise InputError("dataset", f"{path} ({detail})", "a file with a JSON object", "fetch the file again") from None


def _classes(path: Path, num_nodes: int) -> np.ndarray:
    """Class of each node, int64 [V], -1 where the file names none."""
    labels = np.full(num_nodes, -1, dtype=np.int64)
    for node, label in _json(path).items():
        if not (node.isascii() and node.isdigit() and len(node) < 10 and int(node) < num_nodes):
            raise InputError("dataset", f"{path} with the node {node}", f"node numbers, 0 to {num_nodes - 1}")
        if type(label) is not int or not 0 <= label < 2**31:
            remedy = "sets whose nodes have several classes cannot be read" if isinstance(label, list) else ""
            raise InputError("dataset", f"{path} with the class {label!r}", "one whole number a node", remedy)
        labels[int(node)] = label
    return labels


def _roles(path: Path) -> dict[str, list[int]]:
    roles = _json(path)
    for key in _ROLES.values():
        nodes = roles.get(key)
        if not isinstance(nodes, list) or not all(type(node) is int and 0 <= node < 2**31 for node in nodes):
            raise InputError("dataset", f"{path}, {key}", "a list of node numbers")
    return {part: roles[key] for part, key in _ROLES.items()}
