"""Graphs of other libraries in memory: torch_geometric.data.Data and networkx; neither is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.data.graph import Graph
from pdadmm.data.parts import class_numbers, nodes_in_masks, unlabelled
from pdadmm.errors import InputError

__all__ = ["from_networkx", "from_pyg"]


def from_pyg(data: Any, name: str = "graph", undirected: bool = True) -> Graph:
    """A graph out of a ``torch_geometric.data.Data``, or any object with the same attributes.

    Read are ``edge_index`` [2, E], ``x`` [V, F] (dense or a sparse tensor) and, where they are set, ``y`` [V] or [V, 1]
    (NaN: unlabelled, as all nodes are without it), ``edge_weight`` [E] and ``train_mask``, ``val_mask``, ``test_mask``
    [V]. Self-loops and duplicates are dropped; ``undirected`` as for Graph.from_edges.

    Raises InputError for an attribute that is missing or that Graph refuses.

    >>> from_pyg(data)  # doctest: +SKIP
    Graph(graph: 2,708 nodes, 5,278 edges, 1,433 dense features, 7 classes, splits 140/500/1,000)
    """
    if isinstance(data, dict):
        remedy = "types.SimpleNamespace(**data) has a dict's entries as attributes"
        raise InputError("data", "a dict", "an object with the attributes edge_index and x", remedy)
    found = {key: _array(getattr(data, key, None)) for key in ("edge_index", "x", "y", "edge_weight")}
    for key in ("edge_index", "x"):
        if found[key] is None:
            remedy = "leave out the transform ToSparseTensor, which drops it" if key == "edge_index" else ""
            raise InputError(f"data.{key}", "None", "set", remedy)
    labels = unlabelled(found["x"]) if found["y"] is None else class_numbers("data.y", found["y"])
    masks = {part: _array(getattr(data, f"{part}_mask", None)) for part in SPLIT_NAMES}
    missing = [part for part, mask in masks.items() if mask is None]
    if 0 < len(missing) < len(masks):
        raise InputError(f"data.{missing[0]}_mask", "None", "set, as other masks are")
    splits = None if missing else nodes_in_masks(masks, labels.size)
    return Graph.from_edges(found["edge_index"], found["x"], labels, splits, name, found["edge_weight"], undirected,
                            own_split="file" if splits else "")  # fmt: skip


def from_networkx(
    graph: Any, features: str = "x", label: str | None = "y", split: str | None = "split",
    weight: str | None = "weight", name: str = "graph",
) -> Graph:  # fmt: skip
    """A graph out of a networkx graph; nodes are numbered in its own order (``list(graph)``).

    ``features``, ``label`` and ``split`` name attributes of nodes: a number or list of numbers, for every node; a
    whole number or a text (texts are numbered in their order), -1 where a node has none; train, val or test,
    on any nodes. ``weight`` names the attribute of edges with their weights, 1 where an edge has none. None leaves
    labels, splits or weights out. A directed graph stays directed; of parallel edges the largest weight is kept.

    Raises InputError for what is no graph of networkx, a node without features, a name other than these defaults
    that no node or edge has, and what Graph refuses.

    >>> G = networkx.path_graph(3)  # doctest: +SKIP
    >>> networkx.set_node_attributes(G, {0: [1.0], 1: [0.5], 2: [0.0]}, "x")  # doctest: +SKIP
    >>> from_networkx(G)  # doctest: +SKIP
    Graph(graph: 3 nodes, 2 edges, 1 dense features, 0 classes, no splits)
    """
    if not all(hasattr(graph, part) for part in ("nodes", "edges", "is_directed")):
        raise InputError("graph", type(graph).__name__, "a networkx graph", "Graph.from_edges takes pairs of nodes")
    nodes = list(graph)
    place = {node: k for k, node in enumerate(nodes)}
    bare = next((node for node in nodes if features not in graph.nodes[node]), None)
    if bare is not None or not nodes:
        value = f"node {bare!r} without the attribute {features!r}" if nodes else "no nodes"
        remedy = "set it with networkx.set_node_attributes, or name another with features="
        raise InputError("graph", value, "a graph whose nodes all have features", remedy)
    rows = [np.atleast_1d(_array(graph.nodes[node][features])) for node in nodes]
    odd = next((k for k, row in enumerate(rows) if row.shape != rows[0].shape or row.ndim != 1), None)
    if odd is not None:
        value = f"features of shape {rows[odd].shape} at node {nodes[odd]!r}"
        raise InputError("graph", value, f"features of one shape, {rows[0].shape}")
    _check_names(graph, label, split, weight)
    edges = list(graph.edges(data=True))
    weights = np.array([edge[2].get(weight, 1) for edge in edges], dtype=np.float32)
    pairs = np.array([(place[edge[0]], place[edge[1]]) for edge in edges], dtype=np.int64).reshape(-1, 2).T
    labels = _numbered([graph.nodes[node].get(label, -1) for node in nodes], str(label))
    splits = _parts([graph.nodes[node].get(split) for node in nodes], str(split))
    return Graph.from_edges(pairs, np.stack(rows), labels, splits, name, None if (weights == 1).all() else weights,
                            undirected=not graph.is_directed(), own_split="file" if splits else "")  # fmt: skip


def _check_names(graph: Any, label: str | None, split: str | None, weight: str | None) -> None:
    """Raise InputError for a name that was given, and that no node, or edge, has."""
    for argument, key, usual, held, what in (
        ("label", label, "y", graph.nodes, "node"), ("split", split, "split", graph.nodes, "node"),
        ("weight", weight, "weight", graph.edges, "edge"),
    ):  # fmt: skip
        if len(held) and key not in (None, usual) and not any(key in entry[-1] for entry in held(data=True)):
            known = set().union(*(entry[-1] for entry in held(data=True)))
            has = ", ".join(sorted(map(str, known))) or "none"
            remedy = f"they have: {has}; {argument}=None leaves it out"
            raise InputError(argument, repr(key), f"an attribute that some {what} has", remedy)


def _array(value: Any) -> Any:
    """A tensor as an array, a sparse tensor as a scipy matrix; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    if str(value.layout) == "torch.strided":
        return value.numpy()
    value = value.to_sparse_coo().coalesce()
    return sp.coo_array((value.values().numpy(), tuple(value.indices().numpy())), shape=tuple(value.shape)).tocsr()


def _numbered(labels: list[Any], key: str) -> np.ndarray:
    """Class numbers of ``labels``: whole numbers as they are, texts by their place among the sorted texts."""
    texts = sorted({label for label in labels if isinstance(label, str)})
    if not texts:
        return class_numbers(f"node attribute {key!r}", labels)
    other = next((label for label in labels if not isinstance(label, str) and label != -1), None)
    if other is not None:
        raise InputError(f"node attribute {key!r}", repr(other), "all texts or all whole numbers")
    number = {text: k for k, text in enumerate(texts)}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64)


def _parts(given: list[Any], key: str) -> dict[str, list[int]] | None:
    if all(part is None for part in given):
        return None
    other = next((part for part in given if part is not None and part not in SPLIT_NAMES), None)
    if other is not None:
        raise InputError(f"node attribute {key!r}", repr(other), f"one of {', '.join(SPLIT_NAMES)}")
    return {name: [k for k, part in enumerate(given) if part == name] for name in SPLIT_NAMES}
