"""make_splits: sizes, seeds and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.data import Graph, csbm, make_splits
from pdadmm.errors import InputError


def bare_graph(labels, splits=None, own_split="") -> Graph:
    labels = np.asarray(labels)
    return Graph.from_edges(
        np.empty((2, 0)), np.ones((labels.size, 1)), labels, splits, "bare", own_split=own_split
    )


label_lists = st.lists(st.integers(-1, 3), min_size=1, max_size=60)


def check_disjoint(graph: Graph, splits: dict) -> None:
    together = np.concatenate(list(splits.values()))
    assert np.unique(together).size == together.size
    assert (graph.labels[together] >= 0).all()
    assert all((np.diff(nodes) > 0).all() for nodes in splits.values())
    graph.with_splits(splits)


@given(label_lists, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_random_splits(labels, per_class, seed):
    graph = bare_graph(labels)
    counts = np.bincount(graph.labels[graph.labels >= 0])
    counts = counts[counts > 0]
    rest = counts.sum() - per_class * counts.size
    if not counts.size or counts.min() < per_class or rest < 2:
        with pytest.raises(InputError, match=r"split|labels"):
            make_splits(graph, f"random:{per_class}", seed)
        return
    splits = make_splits(graph, f"random:{per_class}", seed)
    check_disjoint(graph, splits)
    train_counts = np.bincount(graph.labels[splits["train"]])
    assert set(train_counts[train_counts > 0]) == {per_class}
    assert [splits["val"].size, splits["test"].size] == [rest // 2, rest - rest // 2]
    again = make_splits(graph, f"random:{per_class}", seed)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


@given(label_lists, st.tuples(*[st.integers(0, 50)] * 3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_fraction_splits(labels, percent, seed):
    graph, spec = bare_graph(labels), "fraction:{}/{}/{}".format(*percent)
    labelled = np.count_nonzero(graph.labels >= 0)
    train = int(labelled * percent[0] / 100 + 0.5)
    if train == 0 or sum(percent) > 100:
        with pytest.raises(InputError):
            make_splits(graph, spec, seed)
        return
    splits = make_splits(graph, spec, seed)
    check_disjoint(graph, splits)
    assert splits["train"].size == train
    for name, part in zip(("val", "test"), percent[1:]):
        assert abs(splits[name].size - labelled * part / 100) <= 1
    if sum(percent) == 100:
        assert sum(nodes.size for nodes in splits.values()) == labelled


def test_large_random_split_holds_out_1000_each():
    graph = bare_graph(np.arange(3000) % 5)
    sizes = [nodes.size for nodes in make_splits(graph, "random:20", 0).values()]
    assert sizes == [100, 1000, 1000]
    first, second = (make_splits(graph, "random:20", seed)["train"] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_fraction_sizes_of_amazon_computers():
    sizes = [nodes.size for nodes in make_splits(bare_graph(np.zeros(13752)), "fraction:60/20/20").values()]
    assert sizes == [8251, 2750, 2751]
    sizes = [
        nodes.size for nodes in make_splits(bare_graph(np.zeros(1000)), "fraction:33.3/33.3/33.4").values()
    ]
    assert sizes == [333, 333, 334]


def test_drawn_nodes_stay_the_same():
    splits = make_splits(bare_graph(np.arange(12) % 2), "random:2", 7)
    assert {name: nodes.tolist() for name, nodes in splits.items()} == {
        "train": [5, 8, 10, 11],
        "val": [1, 3, 7, 9],
        "test": [0, 2, 4, 6],
    }
    splits = make_splits(bare_graph(np.arange(10) % 2), "fraction:40/30/30", 7)
    assert {name: nodes.tolist() for name, nodes in splits.items()} == {
        "train": [1, 2, 3, 8],
        "val": [0, 6, 7],
        "test": [4, 5, 9],
    }


def test_own_splits():
    own = {"train": [2], "val": [0], "test": [1]}
    for spec, kind in (("file", ""), ("file", "public"), ("public", "public")):
        splits = make_splits(bare_graph([0, 1, 0], own, kind), spec)
        assert {name: nodes.tolist() for name, nodes in splits.items()} == own
    with pytest.raises(InputError, match="no public split; take its own with file"):
        make_splits(bare_graph([0, 1, 0], own, "60/20/20"), "public")
    for spec in ("file", "public"):
        with pytest.raises(InputError, match="bare has no split; draw one"):
            make_splits(bare_graph([0, 1, 0]), spec)


def test_a_drawn_split_is_not_public():
    graph = bare_graph([0, 1, 0, 1], {"train": [0], "val": [1], "test": [2]}, "public")
    drawn = graph.with_splits(make_splits(graph, "fraction:50/25/25"))
    with pytest.raises(InputError, match="no public split"):
        make_splits(drawn, "public")


@pytest.mark.parametrize(
    "spec",
    ["", "File", "random", "random:", "random:0", "random:-1", "random:2.5", "random:20 ", "fraction:60/20",
     "fraction:60/20/20/0", "fraction:a/b/c", "fraction:-1/50/51", "fraction:1e2/0/0", "fraction:nan/1/1",
     "file:1", "public:", 20, None],
)  # fmt: skip
def test_unknown_forms_list_the_forms(spec):
    with pytest.raises(InputError, match=r"split = .*file, public, random:K .*fraction:TRAIN/VAL/TEST"):
        make_splits(csbm(20, num_classes=2), spec)


def test_refusals_name_the_cause():
    graph = bare_graph([0, 0, 0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match="class 1 of 3 labelled nodes: must be random:K with K at most 3"):
        make_splits(graph, "random:4")
    with pytest.raises(InputError, match="0 labelled nodes left"):
        make_splits(bare_graph([0, 1]), "random:1")
    with pytest.raises(InputError, match="sum to at most 100"):
        make_splits(graph, "fraction:60/20/21")
    with pytest.raises(InputError, match="at least one training node"):
        make_splits(graph, "fraction:1/50/49")
    with pytest.raises(InputError, match="labels = -1 for all"):
        make_splits(bare_graph([-1, -1]), "random:1")
    for seed in (-1, 0.5, True, None):
        with pytest.raises(InputError, match="seed"):
            make_splits(graph, "random:1", seed)
