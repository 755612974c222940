"""Train / validation / test splits by a short specification, the same for every run with the same seed."""

from __future__ import annotations

import re
from fractions import Fraction
from hashlib import blake2b
from math import floor

import numpy as np

from pdadmm.data.graph import Graph
from pdadmm.errors import InputError

__all__ = ["generator", "make_splits"]

_FORMS = "file, public, random:K (K training nodes per class) or fraction:TRAIN/VAL/TEST (percent)"
_HELD_OUT = 1000  # validation and test nodes of random:K, as in the Planetoid protocol


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A numpy Generator that depends on ``seed`` and ``purpose`` alone. Raises InputError for a bad seed.

    >>> int(generator(0, "example").integers(10)) == int(generator(0, "example").integers(10))
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError("seed", seed, "a whole number of at least 0")
    tag = int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(seed), tag])))


def make_splits(graph: Graph, spec: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Splits of ``graph`` by ``spec``: {"train", "val", "test"} -> int64 indices of labelled nodes.

    ``file``: the graph's own. ``public``: its own where that is the published one (Planetoid sets).
    ``random:K``: K seeded training nodes per class, then 1000 validation and 1000 test nodes from the other
    labelled nodes, or these in two halves where fewer than 2000 remain (the odd one goes to test).
    ``fraction:60/20/20``: a seeded permutation of the labelled nodes, cut at percentages rounded to the
    nearest node; where they sum to 100 the rest is test, else the rest is unused. Drawn splits are sorted.

    Raises InputError for an unknown form, a split the graph does not have, or too few labelled nodes.

    >>> graph = Graph.from_edges([[0], [1]], [[0.0]] * 5, [0, 1, 0, 1, 0])
    >>> {name: nodes.size for name, nodes in make_splits(graph, "fraction:60/20/20").items()}
    {'train': 3, 'val': 1, 'test': 1}
    """
    kind, _, rest = str(spec).partition(":")
    if str(spec) in ("file", "public"):
        return _own_splits(graph, spec)
    if kind == "random" and re.fullmatch(r"[1-9]\d{0,8}", rest):
        return _random_splits(graph, str(spec), int(rest), seed)
    if kind == "fraction" and re.fullmatch(r"\d{1,3}(\.\d{1,9})?(/\d{1,3}(\.\d{1,9})?){2}", rest):
        return _fraction_splits(graph, str(spec), [Fraction(part) / 100 for part in rest.split("/")], seed)
    raise InputError("split", spec if isinstance(spec, str) else repr(spec), _FORMS)


def _own_splits(graph: Graph, spec: str) -> dict[str, np.ndarray]:
    draw = "draw one with random:20 or fraction:60/20/20"
    if graph.splits is None:
        raise InputError("split", spec, f"another form, as {graph.name} has no split", draw)
    if spec == "public" and graph.own_split != "public":
        remedy = f"take its own with file, or {draw}"
        raise InputError("split", spec, f"another form, as {graph.name} has no public split", remedy)
    return {name: nodes.copy() for name, nodes in graph.splits.items()}


def _random_splits(graph: Graph, spec: str, per_class: int, seed: int) -> dict[str, np.ndarray]:
    order = _shuffled_labelled(graph, seed, "split random")
    classes = graph.labels[order]
    counts = np.bincount(classes, minlength=graph.num_classes)
    short = np.flatnonzero((counts > 0) & (counts < per_class))  # a class no node has cannot be trained
    if short.size:
        value = f"{spec} with class {short[0]} of {counts[short[0]]} labelled nodes"
        raise InputError("split", value, f"random:K with K at most {counts[counts > 0].min()}", "lower K")
    by_class = np.argsort(classes, kind="stable")
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)  # rank inside its class
    chosen = np.zeros(order.size, dtype=bool)
    chosen[by_class[place < per_class]] = True
    others = order[~chosen]
    if others.size < 2:
        value = f"{spec} with {others.size} labelled nodes left to validate and test on"
        raise InputError("split", value, "random:K that leaves at least 2 labelled nodes", "lower K")
    cut = _HELD_OUT if others.size >= 2 * _HELD_OUT else others.size // 2
    end = 2 * _HELD_OUT if others.size >= 2 * _HELD_OUT else others.size
    return _named(order[chosen], others[:cut], others[cut:end])


def _fraction_splits(graph: Graph, spec: str, parts: list[Fraction], seed: int) -> dict[str, np.ndarray]:
    if sum(parts) > 1:
        raise InputError("split", spec, "fraction:TRAIN/VAL/TEST with percentages that sum to at most 100")
    if sum(parts) == Fraction(1, 100):
        meant = "/".join(f"{10000 * float(part):g}" for part in parts)
        raise InputError("split", spec, "fraction:TRAIN/VAL/TEST in percent, not shares of 1", f"fraction:{meant}")
    order = _shuffled_labelled(graph, seed, "split fraction")
    sizes = [floor(order.size * part + Fraction(1, 2)) for part in parts]  # the nearest node, halves up
    if sizes[0] == 0:
        value = f"{spec} of {order.size} labelled nodes"
        raise InputError("split", value, "at least one training node", "raise the first percentage")
    val = min(sizes[0] + sizes[1], order.size)
    test = order.size if sum(parts) == 1 else min(val + sizes[2], order.size)
    return _named(order[: sizes[0]], order[sizes[0] : val], order[val:test])


def _shuffled_labelled(graph: Graph, seed: int, purpose: str) -> np.ndarray:
    labelled = np.flatnonzero(graph.labels >= 0)
    if labelled.size == 0:
        raise InputError("labels", f"-1 for all of {graph.name}", "0 or more for some nodes to draw a split")
    return generator(seed, purpose).permutation(labelled)


def _named(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    # Sorted: gathering rows in memory order is faster, and the order of nodes carries no meaning.
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
