"""Small writers of every format that the library reads, for the tests: the same graph in each."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pdadmm.data import Graph, write_npz
from pdadmm.disk.graph import write_graph

PARTS = ("train", "val", "test")


def upper(graph: Graph) -> tuple[np.ndarray, np.ndarray | None]:
    """Each edge once, [2, E], and its weight."""
    rows = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    once = rows < graph.indices
    weights = None if graph.weights is None else graph.weights[once]
    return np.stack([rows[once], graph.indices[once]]), weights


def dense(graph: Graph) -> np.ndarray:
    return graph.features.toarray() if sp.issparse(graph.features) else graph.features


def masks(graph: Graph) -> dict[str, np.ndarray]:
    return {f"{part}_mask": np.isin(np.arange(graph.num_nodes), graph.splits[part]) for part in PARTS}


def write_pyg(graph: Graph, folder: Path) -> Path:
    """As people export a torch_geometric Data: both directions, masks, labels in a column."""
    pairs, weights = upper(graph)
    arrays = {"edge_index": np.hstack([pairs, pairs[::-1]]), "x": dense(graph), "y": graph.labels[:, None]}
    arrays |= {} if weights is None else {"edge_weight": np.hstack([weights, weights])}
    np.savez(folder / "g.npz", **arrays, **(masks(graph) if graph.splits else {}))
    return folder / "g.npz"


def write_graphbolt(graph: Graph, folder: Path) -> Path:
    """By columns, under GraphBolt's names."""
    arrays = {"csc_indptr": graph.indptr, "indices": graph.indices, "feat": dense(graph), "labels": graph.labels}
    np.savez(folder / "g.npz", **arrays, **(masks(graph) if graph.splits else {}))
    return folder / "g.npz"


def write_own(graph: Graph, folder: Path) -> Path:
    write_npz(graph, folder / "g.npz")
    return folder / "g.npz"


def write_shchur(graph: Graph, folder: Path) -> Path:
    features = sp.csr_array(graph.features)
    adjacency = sp.triu(graph.adjacency, format="csr")
    arrays = {"labels": graph.labels}
    for prefix, matrix in (("adj", adjacency), ("attr", features)):
        arrays |= {f"{prefix}_{key}": getattr(matrix, key) for key in ("data", "indices", "indptr")}
        arrays[f"{prefix}_shape"] = np.array(matrix.shape)
    np.savez(folder / "g.npz", **arrays)
    return folder / "g.npz"


def write_planetoid(graph: Graph, folder: Path) -> Path:
    """Needs a split that Planetoid can tell: the first nodes train, the next ones validate, the last ones test."""
    train, test = graph.splits["train"].size, graph.splits["test"]
    known = graph.num_nodes - test.size
    onehot = (graph.labels[:, None] == np.arange(graph.num_classes)).astype(np.int32)
    features, order = sp.csr_matrix(graph.features), test[::-1]
    lists = np.split(graph.indices.tolist(), graph.indptr[1:-1])
    parts = {"allx": features[:known], "ally": onehot[:known], "tx": features[order], "ty": onehot[order],
             "y": onehot[:train],
             "graph": {node: [int(other) for other in ends] for node, ends in enumerate(lists)}}  # fmt: skip
    for part, value in parts.items():
        (folder / f"ind.g.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.g.test.index").write_text("\n".join(map(str, order)) + "\n")
    return folder


def write_table(path: Path, rows, separator: str = ",", names: str = "") -> None:
    """Text, packed where the name ends in .gz; numbers with all their digits."""
    lines = [separator.join(repr(value) for value in np.atleast_1d(row).tolist()) for row in rows]
    text = "".join(line + "\n" for line in ([names] if names else []) + lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def write_ogb(graph: Graph, folder: Path) -> Path:
    pairs, _ = upper(graph)
    raw = folder / "raw"
    labels = np.where(graph.labels < 0, np.nan, graph.labels)
    for stem, rows in {"edge": pairs.T, "node-feat": dense(graph), "num-node-list": [graph.num_nodes],
                       "num-edge-list": [pairs.shape[1]]}.items():  # fmt: skip
        write_table(raw / f"{stem}.csv.gz", rows)
    write_table(raw / "node-label.csv.gz", labels if np.isnan(labels).any() else graph.labels)
    return _with_ogb_split(graph, folder)


def write_ogb_binary(graph: Graph, folder: Path) -> Path:
    """As papers100M comes."""
    pairs, _ = upper(graph)
    labels = np.where(graph.labels < 0, np.nan, graph.labels)[:, None].astype(np.float32)
    (folder / "raw").mkdir()
    np.savez_compressed(folder / "raw" / "data.npz", edge_index=pairs, node_feat=dense(graph))
    np.savez_compressed(folder / "raw" / "node-label.npz", node_label=labels)
    return _with_ogb_split(graph, folder)


def _with_ogb_split(graph: Graph, folder: Path) -> Path:
    for part, stem in zip(PARTS, ("train", "valid", "test")) if graph.splits else ():
        write_table(folder / "split" / "time" / f"{stem}.csv.gz", graph.splits[part])
    return folder


def write_graphsaint(graph: Graph, folder: Path) -> Path:
    sp.save_npz(folder / "adj_full.npz", sp.csr_matrix(graph.adjacency.astype(bool)))
    np.save(folder / "feats.npy", dense(graph).astype(np.float64))
    classes = {str(node): int(label) for node, label in enumerate(graph.labels) if label >= 0}
    roles = {role: graph.splits[part].tolist() for role, part in zip(("tr", "va", "te"), PARTS)}
    (folder / "class_map.json").write_text(json.dumps(classes))
    (folder / "role.json").write_text(json.dumps(roles))
    return folder


def write_scipy(graph: Graph, folder: Path, form: str = "csr") -> Path:
    sp.save_npz(folder / "adjacency.npz", graph.adjacency.asformat(form))
    if sp.issparse(graph.features):
        sp.save_npz(folder / "features.npz", graph.features.asformat(form))
    else:
        np.save(folder / "features.npy", graph.features)
    np.save(folder / "labels.npy", graph.labels)
    for part in PARTS if graph.splits else ():
        np.save(folder / f"{part}_idx.npy", graph.splits[part])
    return folder


def write_csv(graph: Graph, folder: Path, separator: str = ",", names: bool = False, end: str = ".csv") -> Path:
    pairs, weights = upper(graph)
    rows = pairs.T if weights is None else [[*pair, weight] for pair, weight in zip(pairs.T.tolist(), weights.tolist())]
    head = separator.join(["source", "target", "weight"][: 2 if weights is None else 3]) if names else ""
    write_table(folder / f"edges{end}", rows, separator, head)
    columns = separator.join(f"f{k}" for k in range(graph.num_features))
    write_table(folder / f"features{end}", dense(graph), separator, columns if names else "")
    write_table(folder / f"labels{end}", graph.labels, separator, "label" if names else "")
    for part in PARTS if graph.splits else ():
        write_table(folder / f"{part}{end}", graph.splits[part])
    return folder


def write_disk(graph: Graph, folder: Path) -> Path:
    parts = graph.indptr, graph.indices, None, dense(graph), graph.labels, graph.splits, graph.name
    write_graph(Graph(*parts, graph.num_classes or None), folder)
    return folder


# Name -> (row of READERS, writer, what the format cannot hold)
WRITERS: dict[str, tuple[str, Callable[[Graph, Path], Path], set[str]]] = {
    "npz": ("npz", write_own, set()),
    "npz, PyTorch Geometric": ("npz", write_pyg, {"sparse"}),
    "npz, GraphBolt": ("npz", write_graphbolt, {"sparse", "weights"}),
    "npz, Shchur": ("npz", write_shchur, {"dense", "weights", "splits"}),
    "planetoid": ("planetoid", write_planetoid, {"dense", "weights", "free splits"}),
    "ogb": ("ogb", write_ogb, {"sparse", "weights"}),
    "ogb, binary": ("ogb", write_ogb_binary, {"sparse", "weights"}),
    "graphsaint": ("graphsaint", write_graphsaint, {"sparse", "weights", "no splits"}),
    "scipy": ("scipy", write_scipy, set()),
    "scipy, csc": ("scipy", lambda graph, folder: write_scipy(graph, folder, "csc"), set()),
    "scipy, coo": ("scipy", lambda graph, folder: write_scipy(graph, folder, "coo"), set()),
    "disk": ("disk", write_disk, {"sparse", "weights"}),
    "csv": ("csv", write_csv, {"sparse"}),
    "csv, names": ("csv", lambda graph, folder: write_csv(graph, folder, "\t", True), {"sparse"}),
    "csv, packed": ("csv", lambda graph, folder: write_csv(graph, folder, " ", False, ".csv.gz"), {"sparse"}),
}


def fitted(graph: Graph, lacks: set[str]) -> Graph | None:
    """The graph without what a format cannot hold; None where nothing is left to test."""
    V = graph.num_nodes
    splits = None if graph.splits is None else {part: np.sort(nodes) for part, nodes in graph.splits.items()}
    features = sp.csr_array(graph.features) if "dense" in lacks else graph.features
    features = dense(graph) if "sparse" in lacks else features
    weights = None if "weights" in lacks else graph.weights
    if weights is not None and (weights == 1).all():
        weights = None  # a matrix of ones has no weights
    if "splits" in lacks:
        splits = None
    if "no splits" in lacks and splits is None:
        return None
    if "free splits" in lacks:
        cut, end = max(1, V // 3), V - V // 3
        if cut >= V or end == V or graph.labels[0] < 0 or (graph.labels[:cut] < 0).any():
            return None
        val, test = np.arange(cut, end), np.arange(end, V)
        if (graph.labels[test] < 0).any():
            return None
        splits = {"train": np.arange(cut), "val": val[graph.labels[val] >= 0], "test": test}
    return Graph(graph.indptr, graph.indices, weights, features, graph.labels, splits)
