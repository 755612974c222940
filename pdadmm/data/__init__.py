"""Graphs: the class, the readers, the registry of data sets, splits and synthetic graphs."""

from __future__ import annotations

from pdadmm.data.graph import Graph
from pdadmm.data.npz import read_npz, write_npz
from pdadmm.data.planetoid import read_planetoid
from pdadmm.data.registry import DATASETS, Dataset, load_dataset, load_with_split
from pdadmm.data.splits import make_splits
from pdadmm.data.synthetic import csbm, digits

__all__ = [
    "DATASETS",
    "Dataset",
    "Graph",
    "csbm",
    "digits",
    "load_dataset",
    "load_with_split",
    "make_splits",
    "read_npz",
    "read_planetoid",
    "write_npz",
]
