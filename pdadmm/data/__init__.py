"""Graphs: the class, the readers, the registry of data sets, splits and synthetic graphs."""

from __future__ import annotations

from pdadmm.data.adapters import from_networkx, from_pyg
from pdadmm.data.catalogue import DATASETS, Dataset, Remote
from pdadmm.data.csv_tables import read_csv
from pdadmm.data.graph import Graph
from pdadmm.data.graphsaint import read_graphsaint
from pdadmm.data.npz import read_npz, write_npz
from pdadmm.data.ogb import read_ogb
from pdadmm.data.planetoid import read_planetoid
from pdadmm.data.readers import READERS, read_path
from pdadmm.data.registry import load_dataset, load_with_split
from pdadmm.data.scipy_npz import read_scipy
from pdadmm.data.splits import make_splits
from pdadmm.data.synthetic import csbm, digits

__all__ = [
    "DATASETS",
    "READERS",
    "Dataset",
    "Graph",
    "Remote",
    "csbm",
    "digits",
    "from_networkx",
    "from_pyg",
    "load_dataset",
    "load_with_split",
    "make_splits",
    "read_csv",
    "read_graphsaint",
    "read_npz",
    "read_ogb",
    "read_path",
    "read_planetoid",
    "read_scipy",
    "write_npz",
]
