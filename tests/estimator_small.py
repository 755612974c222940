"""A small graph, three clouds of points, and what trains on them in a moment."""

from __future__ import annotations

import numpy as np

from pdadmm import Graph, csbm

__all__ = ["LONGER", "SMALL", "small_graph", "three_clouds"]

SMALL = {"layers": 3, "hidden": 8, "iterations": 4, "hops": 2}
LONGER = SMALL | {"iterations": 10}  # where accuracy is looked at: 4 iterations of 8 neurons are a matter of luck


def small_graph() -> Graph:
    return csbm(150, num_classes=3, num_features=6, seed=2)


def three_clouds() -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of points with names."""
    random = np.random.default_rng(0)
    labels = random.integers(3, size=90)
    return random.normal(size=(90, 4)) + 3 * np.eye(3, 4)[labels], np.array(["red", "green", "blue"])[labels]
