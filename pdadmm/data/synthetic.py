"""Graphs made on the spot: a random graph with classes at any size, and scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.graph import Graph
from pdadmm.data.splits import generator, make_splits
from pdadmm.errors import InputError

__all__ = ["csbm", "digits"]


def csbm(
    num_nodes: int = 10_000,
    num_classes: int = 10,
    num_features: int = 100,
    avg_degree: float = 10.0,
    homophily: float = 0.8,
    feature_signal: float = 1.0,
    degree_exponent: float | None = 2.5,
    seed: int = 0,
    sparse_features: bool = False,
) -> Graph:
    """A degree-corrected contextual stochastic block model: classes shape both edges and features.

    Classes are of equal size. An edge starts at a node drawn by its weight theta and ends, with probability
    ``homophily``, in the same class, else in another one, again by theta (Chung-Lu inside and between
    blocks). theta follows a power law with ``degree_exponent`` (at least 2; None: all equal). Dropped
    self-loops and duplicates put the mean degree below ``avg_degree``, the more so the smaller the graph.
    Dense features [V, F] are ``feature_signal`` times a unit vector per class plus standard normal noise;
    sparse ones mark words, one in twenty per node, each from its class's share of the words with
    probability feature_signal / (1 + feature_signal). The split is fraction:60/20/20. Time and memory grow
    with the edges: 2 million nodes with 30 million edges fit an ordinary machine.

    Raises InputError for a parameter outside its range.

    >>> csbm(100, num_classes=2, num_features=4).splits["train"].size
    60
    """
    _check_whole("num_nodes", num_nodes, 2, 2**31 - 1)
    _check_whole("num_classes", num_classes, 1, min(num_nodes, 2**20))
    _check_whole("num_features", num_features, 1, 2**24)
    _check_real("avg_degree", avg_degree, 0.0, num_nodes - 1)
    _check_real("homophily", homophily, 0.0, 1.0)
    _check_real("feature_signal", feature_signal, 0.0, 1e6)
    if degree_exponent is not None:
        _check_real("degree_exponent", degree_exponent, 2.0, 1e6)
    labels = generator(seed, "csbm labels").permutation(np.arange(num_nodes) % num_classes)
    theta = _degree_weights(generator(seed, "csbm degrees"), num_nodes, avg_degree, degree_exponent)
    pairs = _block_edges(generator(seed, "csbm edges"), labels, num_classes, theta, avg_degree, homophily)
    draw = _words if sparse_features else _gaussians
    features = draw(generator(seed, "csbm features"), labels, num_classes, num_features, feature_signal)
    graph = Graph.from_edges(pairs, features, labels, name=f"csbm:{num_nodes}", num_classes=num_classes)
    return graph.with_splits(make_splits(graph, "fraction:60/20/20", seed), own_split="60/20/20")


def digits(k: int = 10) -> Graph:
    """scikit-learn's 1,797 handwritten digits, joined to their ``k`` nearest neighbours (either way round).

    Features [1797, 64] are the 8 x 8 pixels divided by 16. The split is fixed: 20 training nodes per class,
    500 validation nodes, and the other 1,097 for test. The same graph on every machine.

    Raises InputError for k outside 1 .. 1796, and where scikit-learn is not installed.

    >>> digits()  # doctest: +SKIP
    Graph(digits: 1,797 nodes, 12,339 edges, 64 dense features, 10 classes, splits 200/500/1,097)
    """
    _check_whole("k", k, 1, 1796)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        allowed = "another one, as scikit-learn is not installed"
        raise InputError("dataset", "digits", allowed, "install scikit-learn") from None
    pixels, labels = load_digits(return_X_y=True)
    # Whole pixel values make squared distances exact, and a tie goes to the lower number: a search whose
    # ties depend on threads or on the BLAS would give each machine its own graph.
    squares = (pixels**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1, kind="stable")[:, :k]
    pairs = np.stack([np.repeat(np.arange(labels.size), k), neighbours.ravel()])
    graph = Graph.from_edges(pairs, pixels / 16, labels, name="digits")
    splits = make_splits(graph, "random:20", seed=0)
    others = generator(0, "digits").permutation(np.concatenate([splits["val"], splits["test"]]))
    splits.update(val=np.sort(others[:500]), test=np.sort(others[500:]))
    return graph.with_splits(splits, own_split="20 per class")


def _check_whole(argument: str, value: Any, low: int, high: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise InputError(argument, value, f"a whole number from {low} to {high}")


def _check_real(argument: str, value: Any, low: float, high: float) -> None:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise InputError(argument, value, f"a number from {low:g} to {high:g}")


def _degree_weights(random, num_nodes: int, avg_degree: float, exponent: float | None) -> np.ndarray:
    """theta, float64 [V], with mean 1."""
    if exponent is None:
        return np.ones(num_nodes)
    theta = random.random(num_nodes)
    np.subtract(1.0, theta, out=theta)  # in (0, 1]
    np.power(theta, -1.0 / (exponent - 1.0), out=theta)
    # The bound keeps expected degrees near sqrt(V * degree) at most: beyond, multiple edges pile up.
    theta /= theta.mean()
    np.minimum(theta, max(1.0, np.sqrt(num_nodes / max(avg_degree, 1.0))), out=theta)
    return theta / theta.mean()


def _block_edges(random, labels, num_classes: int, theta, avg_degree: float, homophily: float) -> np.ndarray:
    """Node pairs int32 [2, E]. Both ends are dealt out as counts per node: no search per edge."""
    num_nodes = labels.size
    num_pairs = round(num_nodes * avg_degree / 2)
    pairs = np.empty((2, num_pairs), dtype=np.int32)
    source_counts = random.multinomial(num_pairs, theta / theta.sum())
    pairs[0] = np.repeat(np.arange(num_nodes, dtype=np.int32), source_counts)
    small = np.int16 if num_classes <= 2**14 else np.int32
    block = labels.astype(small)[pairs[0]]  # becomes the class of each pair's other end
    if num_classes > 1:
        leaves = np.flatnonzero(random.random(num_pairs, dtype=np.float32) >= homophily)
        block[leaves] += random.integers(1, num_classes, leaves.size, dtype=small)
        block[leaves] %= num_classes
    order = np.argsort(block, kind="stable")  # a radix sort for small integers
    sizes = np.bincount(block, minlength=num_classes)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    start = 0
    for nodes, size in zip(members, sizes):
        ends = np.repeat(nodes.astype(np.int32), random.multinomial(size, theta[nodes] / theta[nodes].sum()))
        random.shuffle(ends)
        pairs[1, order[start : start + size]] = ends
        start += size
    return pairs


def _gaussians(random, labels, num_classes: int, num_features: int, signal: float) -> np.ndarray:
    means = random.standard_normal((num_classes, num_features))
    means = (signal * means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    features = random.standard_normal((labels.size, num_features), dtype=np.float32)
    for start in range(0, labels.size, 65536):  # in pieces: means[labels] would double the memory
        features[start : start + 65536] += means[labels[start : start + 65536]]
    return features


def _words(random, labels, num_classes: int, num_features: int, signal: float) -> sp.csr_array:
    per_node = max(1, num_features // 20)
    words = random.integers(0, num_features, (labels.size, per_node), dtype=np.int32)
    topical = random.random(words.shape, dtype=np.float32) < signal / (1.0 + signal)
    # Word w belongs to class w mod C; move a topical word to the nearest one of the node's class below it.
    own = words - words % num_classes + labels[:, None].astype(np.int32)
    own = np.where(own < num_features, own, labels[:, None] % num_features)
    words = np.where(topical, own, words).astype(np.int32).ravel()
    indptr = np.arange(labels.size + 1, dtype=np.int64) * per_node
    matrix = sp.csr_array((np.ones(words.size, np.float32), words, indptr), shape=(labels.size, num_features))
    matrix.sum_duplicates()
    matrix.data.fill(1.0)
    return matrix
