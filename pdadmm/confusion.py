"""The confusion matrix of a fitted estimator on one part of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from pdadmm.data import Graph

__all__ = ["confusion_matrix"]


def confusion_matrix(estimator: Any, graph: Graph, part: str = "test") -> list[list[int]] | None:
    """Return how many nodes of class i (row) were given class j (column); None without such nodes or a whole model.

    Only the rows of ``part`` are augmented where the network is an MLP on augmented features, so memory is theirs; the
    hops themselves run once more.

    >>> from pdadmm import PDADMMG, digits
    >>> graph = digits()
    >>> counts = confusion_matrix(PDADMMG(layers=2, hidden=8, hops=0, iterations=1).fit(graph), graph)
    >>> len(counts), sum(map(sum, counts)) == len(graph.splits["test"])
    (10, True)
    """
    rows = graph.splits[part] if graph.splits is not None else ()
    if not len(rows) or getattr(estimator, "model_", None) is None:
        return None
    if estimator.network == "GAMLP":
        predicted = estimator.predict(estimator.augmenter_.transform(graph, rows))
    else:
        predicted = estimator.predict(graph)[rows]
    C = len(estimator.classes_)
    counts = np.bincount(graph.labels[rows].astype(np.int64) * C + predicted, minlength=C * C)
    return counts.reshape(C, C).tolist()
