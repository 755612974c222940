"""Graphs of torch_geometric (a stand-in with its attributes) and networkx in memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from graph_writers import dense, masks, upper
from hypothesis import given, settings
from strategies import graphs

from pdadmm import from_networkx, from_pyg
from pdadmm.data import Graph
from pdadmm.errors import InputError

networkx = pytest.importorskip("networkx", reason="networkx is not installed")


def as_data(graph: Graph, **changes) -> SimpleNamespace:
    """What torch_geometric.data.Data would hold."""
    pairs, weights = upper(graph)
    known = {"edge_index": torch.from_numpy(np.hstack([pairs, pairs[::-1]])), "x": torch.from_numpy(dense(graph)),
             "y": torch.from_numpy(graph.labels), "edge_attr": None}  # fmt: skip
    if weights is not None:
        known["edge_weight"] = torch.from_numpy(np.hstack([weights, weights]))
    if graph.splits is not None:
        known |= {key: torch.from_numpy(mask) for key, mask in masks(graph).items()}
    return SimpleNamespace(**known | changes)


def in_order(graph: Graph) -> Graph:
    """With splits sorted, as masks give them back."""
    return graph.with_splits(graph.splits and {part: np.sort(nodes) for part, nodes in graph.splits.items()})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@given(graph=graphs())
@settings(max_examples=40, deadline=None, database=None)
def test_from_pyg(graph):
    again = from_pyg(as_data(graph), name="cora")
    sparse = sp.issparse(graph.features)
    expected = Graph(graph.indptr, graph.indices, graph.weights, dense(graph), graph.labels, in_order(graph).splits)
    assert again.fingerprint() == expected.fingerprint()
    assert again.name == "cora"
    assert again.own_split == ("file" if graph.splits else "")
    if sparse:
        for layout in ("to_sparse_coo", "to_sparse_csr"):
            x = getattr(torch.from_numpy(dense(graph)), layout)()
            assert from_pyg(as_data(graph, x=x)).fingerprint() == in_order(graph).fingerprint()


def test_from_pyg_in_other_forms():
    graph = Graph.from_edges([[0, 1], [1, 2]], np.eye(3), [0, -1, 1])
    plain = SimpleNamespace(edge_index=[[0, 1], [1, 2]], x=np.eye(3), y=np.array([[0.0], [np.nan], [1.0]]))
    assert from_pyg(plain).fingerprint() == graph.fingerprint()
    assert from_pyg(SimpleNamespace(edge_index=plain.edge_index, x=plain.x)).labels.tolist() == [-1, -1, -1]
    with pytest.raises(InputError, match="features"):
        from_pyg(SimpleNamespace(edge_index=plain.edge_index, x=1.0))
    trained = as_data(graph, x=torch.eye(3, requires_grad=True))
    assert from_pyg(trained).fingerprint() == graph.fingerprint()
    assert from_pyg(plain, undirected=False).num_edges == 2
    assert not from_pyg(plain, undirected=False).is_undirected


BAD_DATA = {
    "no x": ({"x": None}, r"data\.x = None: must be set"),
    "no edges": ({"edge_index": None}, r"data\.edge_index = None: must be set; leave out .*ToSparseTensor"),
    "labels": ({"y": torch.zeros(3, 4)}, r"data\.y = an array of shape \(3, 4\).*choose one column"),
    "fraction": ({"y": torch.tensor([0.5, 1, 2])}, r"data\.y = 0.5"),
    "one mask": ({"train_mask": torch.ones(3, dtype=torch.bool)}, r"data\.val_mask = None: must be set"),
    "range": ({"edge_index": torch.tensor([[0], [7]])}, "edge_index = 7"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_from_pyg_refuses(changes, words):
    graph = Graph.from_edges([[0, 1], [1, 2]], np.eye(3), [0, 1, 1])
    with pytest.raises(InputError, match=words):
        from_pyg(as_data(graph, **changes))


@pytest.mark.parametrize(
    ("mask", "words"),
    [(torch.ones(3, 10, dtype=torch.bool), r"val_mask = an array of shape \(3, 10\).*keep one column"),
     (torch.ones(2, dtype=torch.bool), "val_mask = .*3 truth values"), (torch.tensor([0, 2, 0]), "3 truth values"),
     (torch.tensor([0.0, 1.0, 0.0]), "3 truth values")],
)  # fmt: skip
def test_masks_are_truth_values(mask, words):
    graph = Graph.from_edges([[0, 1], [1, 2]], np.eye(3), [0, 1, 1], {"train": [0], "val": [1], "test": [2]})
    with pytest.raises(InputError, match=words):
        from_pyg(as_data(graph, val_mask=mask))


@given(graph=graphs())
@settings(max_examples=40, deadline=None, database=None)
def test_from_networkx(graph):
    pairs, weights = upper(graph)
    other = networkx.Graph()
    for node, row in enumerate(dense(graph)):
        other.add_node(f"n{node}", feat=row, y=int(graph.labels[node]))
    for part, nodes in (graph.splits or {}).items():
        for node in nodes:
            other.nodes[f"n{node}"]["split"] = part
    for k, (i, j) in enumerate(pairs.T):
        other.add_edge(f"n{i}", f"n{j}", **({} if weights is None else {"weight": float(weights[k])}))
    again = from_networkx(other, features="feat", name="mine")
    kept = None if weights is None or (weights == 1).all() else graph.weights
    expected = Graph(graph.indptr, graph.indices, kept, dense(graph), graph.labels, in_order(graph).splits)
    assert again.fingerprint() == expected.fingerprint()
    assert again.name == "mine"


def test_from_networkx_in_other_forms():
    club = networkx.karate_club_graph()
    networkx.set_node_attributes(club, dict(club.degree()), "degree")
    graph = from_networkx(club, features="degree", label="club", weight=None)
    assert (graph.num_nodes, graph.num_edges, graph.num_features, graph.num_classes) == (34, 78, 1, 2)
    assert graph.weights is None
    assert graph.labels[0] == 0  # Mr. Hi; the texts in their order
    assert graph.labels[33] == 1
    assert from_networkx(club, features="degree", label="club").weights is not None
    assert from_networkx(club, features="degree", label=None, split=None).labels.tolist() == [-1] * 34
    bare = from_networkx(club, features="degree")
    assert bare.labels.tolist() == [-1] * 34
    assert bare.splits is None
    arcs = networkx.DiGraph([(0, 1), (1, 0), (1, 2)])
    networkx.set_node_attributes(arcs, [1.0, 2.0], "x")
    assert from_networkx(arcs).num_edges == 3
    many = networkx.MultiGraph([(0, 1, {"weight": 2.0}), (0, 1, {"weight": 3.0}), (1, 1, {})])
    networkx.set_node_attributes(many, [1.0], "x")
    assert from_networkx(many).weights.tolist() == [3.0, 3.0]


def changed(node, **attributes):
    graph = networkx.path_graph(3)
    networkx.set_node_attributes(graph, {k: {"x": [1.0, 2.0], "y": k} for k in range(3)})
    graph.nodes[node].update(attributes)
    return graph


BAD_GRAPHS = {
    "empty": (networkx.Graph(), "graph = no nodes"),
    "no x": (networkx.path_graph(2), "node 0 without the attribute 'x'.*set_node_attributes"),
    "lengths": (changed(1, x=[1.0]), r"features of shape \(1,\) at node 1: must be features of one shape, \(2,\)"),
    "text x": (changed(1, x=["a", "b"]), "features"),
    "mixed labels": (changed(1, y="a"), "node attribute 'y' = 0: must be all texts or all whole numbers"),
    "fraction": (changed(1, y=0.5), "node attribute 'y' = 0.5"),
    "split": (changed(1, split="dev"), "node attribute 'split' = 'dev': must be one of train, val, test"),
    "no train": (changed(1, split="val"), "no nodes"),
    "no graph": ([1, 2], "graph = list: must be a networkx graph; Graph.from_edges takes pairs"),
}


@pytest.mark.parametrize(("graph", "words"), BAD_GRAPHS.values(), ids=BAD_GRAPHS)
def test_from_networkx_refuses(graph, words):
    with pytest.raises(InputError, match=words):
        from_networkx(graph)


@pytest.mark.parametrize(
    ("names", "words"),
    [({"label": "lbl"}, r"label = 'lbl': must be an attribute that some node has; they have: x, y; label=None"),
     ({"split": "part"}, "split = 'part': must be an attribute that some node has"),
     ({"weight": "w"}, "weight = 'w': must be an attribute that some edge has; they have: none"),
     ({"features": "feat"}, "without the attribute 'feat'")],
)  # fmt: skip
def test_names_that_nothing_has_are_refused(names, words):
    with pytest.raises(InputError, match=words):
        from_networkx(changed(0), **names)
