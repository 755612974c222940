"""The table of data sets: one row each; the command line, the docs and the tests read it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pdadmm.data.graph import Graph
from pdadmm.data.npz import read_npz
from pdadmm.data.planetoid import find_planetoid, read_planetoid
from pdadmm.data.splits import make_splits
from pdadmm.data.synthetic import csbm, digits
from pdadmm.errors import InputError

__all__ = ["DATASETS", "Dataset", "load_dataset", "load_with_split"]


@dataclass(frozen=True)
class Dataset:
    """One row: facts about a data set, and how to load it (a file in the data folder, or a builder).

    ``edges`` counts undirected edges (csbm's: of its default form). ``split`` is the kind of its own split:
    public, 60/20/20 or 20 per class. ``files`` are the names to look for, in order; ``builder`` takes the
    text after the colon of ``name:text`` (empty without one), and ``form`` shows that name's form.
    """

    name: str
    description: str
    nodes: int
    edges: int
    features: int
    classes: int
    split: str
    citation: str
    licence: str
    files: tuple[str, ...] = ()
    builder: Callable[[str], Graph] | None = None
    form: str = ""


def _build_digits(text: str) -> Graph:
    if text:
        raise InputError("dataset", f"digits:{text}", "digits, which takes nothing after the name")
    return digits()


def _build_csbm(text: str) -> Graph:
    if text and not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InputError("dataset", f"csbm:{text}", "csbm or csbm:N with N nodes, such as csbm:50000")
    return csbm(int(text)) if text else csbm()


_PLANETOID = "Sen et al. 2008, Collective classification in network data; split: Yang et al. 2016, Planetoid"
_SHCHUR = "Shchur et al. 2018, Pitfalls of graph neural network evaluation (gnn-benchmark)"
_PLANETOID_LICENCE = "MIT (the Planetoid repository)"
_SHCHUR_LICENCE = "MIT (the repositories of the graph and of the split)"

_ROWS = (
    Dataset("cora", "citations between machine learning papers; features mark words", 2708, 5278, 1433, 7,
            "public", _PLANETOID, _PLANETOID_LICENCE, ("cora.npz",)),
    Dataset("citeseer", "citations between computing papers; 15 nodes are unlabelled", 3327, 4552, 3703, 6,
            "public", _PLANETOID, _PLANETOID_LICENCE, ("citeseer.npz",)),
    Dataset("pubmed", "citations between diabetes papers; features are TF-IDF weights", 19717, 44324, 500, 3,
            "public", "Namata et al. 2012, Query-driven active surveying; split: Yang et al. 2016, Planetoid",
            "MIT (the Planetoid repository); none stated for the features' copy", ("pubmed.npz",)),
    Dataset("amazon_computers", "goods bought together; features mark words of reviews", 13752, 245861, 767,
            10, "60/20/20", _SHCHUR, _SHCHUR_LICENCE,
            ("amazon_computers.npz", "amazon_electronics_computers.npz")),
    Dataset("coauthor_cs", "authors of joint papers; features count their keywords", 18333, 81894, 6805, 15,
            "60/20/20", _SHCHUR, _SHCHUR_LICENCE, ("coauthor_cs.npz", "ms_academic_cs.npz")),
    Dataset("digits", "8 x 8 images of digits joined to their 10 nearest neighbours", 1797, 12339, 64, 10,
            "20 per class", "Alpaydin and Kaynak 1998, Optical recognition of handwritten digits (UCI)",
            "CC BY 4.0 (UCI); part of scikit-learn", builder=_build_digits),
    Dataset("csbm", "random graph: degree-corrected contextual stochastic block model", 10000, 47650, 100, 10,
            "60/20/20", "Deshpande et al. 2018, Contextual stochastic block models; Karrer and Newman 2011",
            "none needed", builder=_build_csbm, form="csbm:N"),
)  # fmt: skip

DATASETS: dict[str, Dataset] = {row.name: row for row in _ROWS}


def load_dataset(name_or_path: str | Path, data_dir: str | Path | None = None) -> Graph:
    """Load a graph by registry name, from the path of an .npz file, or from a folder that `pdadmm convert` made.

    A name of ``DATASETS`` is looked for in ``data_dir``, else in the folder that the environment variable
    PDADMM_DATA names: its .npz file, then raw Planetoid files (``ind.NAME.allx`` and so on, there or in
    ``NAME/raw``). ``digits`` and ``csbm`` (or ``csbm:N``, N nodes) are made on the spot.

    Raises InputError for an unknown name, a missing file, or a file that does not hold a valid graph.

    >>> load_dataset("csbm:200").num_nodes
    200
    """
    text = os.fspath(name_or_path)
    if text.endswith(".npz"):
        known = DATASETS.get(Path(text).stem)
        return read_npz(text, own_split=known.split if known else "file")
    name, _, rest = text.partition(":")
    row = DATASETS.get(name)
    if row is None and text and Path(text).is_dir():
        from pdadmm.disk.graph import DiskGraph  # it needs this package's readers

        with DiskGraph(text) as graph:
            return graph.to_graph()
    if row is None or (rest and row.builder is None):
        raise _unknown(text)
    return row.builder(rest) if row.builder else _load_file(row, data_dir)


def load_with_split(
    name_or_path: str | Path, data_dir: str | Path | None = None, split: str | None = None, seed: int = 0
) -> Graph:
    """Load a graph with the split that ``split`` asks for (see make_splits), None is its own.

    Raises InputError where the graph or its split cannot be had.

    >>> len(load_with_split("csbm:200", split="random:5").splits["train"])
    50
    """
    graph = load_dataset(name_or_path, data_dir)
    if split is not None:
        return graph.with_splits(make_splits(graph, split, seed))
    if graph.splits is None:
        remedy = "add --split random:20 or --split fraction:60/20/20"
        raise InputError("split", "not given", f"given, as {graph.name} has none of its own", remedy)
    return graph


def _load_file(row: Dataset, data_dir: str | Path | None) -> Graph:
    given = data_dir if data_dir is not None else os.environ.get("PDADMM_DATA") or None
    remedy = "give its folder with --data-dir (data_dir in Python) or the environment variable PDADMM_DATA"
    if given is None:
        allowed = f"in a data folder (as {row.files[0]}), and none was given"
        raise InputError("dataset", row.name, allowed, remedy)
    folder = Path(given)
    if not folder.is_dir():
        raise InputError("data_dir", str(folder), "a folder that exists", remedy)
    for file in row.files:
        if (folder / file).is_file():
            return read_npz(folder / file, row.name, row.split)
    raw = find_planetoid(folder, row.name)
    if raw is not None:
        return read_planetoid(raw, row.name)
    looked = ", ".join([*row.files, f"ind.{row.name}.allx", f"{row.name}/raw/ind.{row.name}.allx"])
    raise InputError("dataset", row.name, f"in {folder}, which holds none of {looked}", remedy)


def _unknown(text: str) -> InputError:
    known = [f"{row.name} or {row.form}" if row.form else row.name for row in DATASETS.values()]
    close = difflib.get_close_matches(text.lower().partition(":")[0], DATASETS, n=2)
    remedy = f"did you mean {' or '.join(close)}?" if close else ""
    allowed = f"one of {', '.join(known)}, the path of an .npz file, or a folder with a graph.json"
    return InputError("dataset", text, allowed, remedy)
