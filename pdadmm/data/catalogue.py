"""The table of data sets: one row each; the command line, the docs and the tests read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdadmm.data.graph import Graph
from pdadmm.data.synthetic import csbm, digits
from pdadmm.errors import InputError

__all__ = ["DATASETS", "Dataset", "Remote"]


@dataclass(frozen=True)
class Remote:
    """A file to download: its ``url``, and the ``limit`` in bytes beyond which the transfer is refused.

    ``sha256`` is "" where no published checksum is known: then the one of the first download is kept and holds from
    then on. ``unpacked`` names the folder inside a zip archive and bounds, in bytes, what it may unpack to.
    """

    url: str
    limit: int
    sha256: str = ""
    unpacked: tuple[str, int] | None = None

    @property
    def file(self) -> str:
        """Name of the file on disk."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Dataset:
    """One row: facts about a data set, and how to load it (files in the data folder, or a builder).

    ``edges`` counts undirected edges (csbm's: of its default form; those of OGB's sets are the published
    counts, in which an edge may stand twice). ``split`` is the kind of its own split. ``files`` are the names of
    files or folders to look for, in order; ``builder`` takes the text after the colon of ``name:text`` (empty
    without one), and ``form`` shows that name's form. ``page`` is where its makers describe it, ``remotes`` what
    to download; where there are none, ``page`` has the files.
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
    page: str = ""
    remotes: tuple[Remote, ...] = ()

    @property
    def own_split(self) -> str:
        """What to call a split found in its files."""
        return "file" if self.split == "none" else self.split


def _build_digits(text: str) -> Graph:
    if text:
        raise InputError("dataset", f"digits:{text}", "digits, which takes nothing after the name")
    return digits()


def _build_csbm(text: str) -> Graph:
    if text and not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InputError("dataset", f"csbm:{text}", "csbm or csbm:N with N nodes, such as csbm:50000")
    return csbm(int(text)) if text else csbm()


_MB, _GB = 10**6, 10**9


def _planetoid_files(name: str, limit: int) -> tuple[Remote, ...]:
    """Raw files at one commit, so that a later one changes nothing."""
    base = "https://raw.githubusercontent.com/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"
    parts = ("allx", "tx", "y", "ally", "ty", "graph", "test.index")
    return tuple(Remote(f"{base}/ind.{name}.{part}", limit) for part in parts)


def _shchur_file(file: str) -> tuple[Remote, ...]:
    return (Remote(f"https://raw.githubusercontent.com/shchur/gnn-benchmark/master/data/npz/{file}", 100 * _MB),)


def _ogb_zip(stem: str, limit: int, unpacked: int) -> tuple[Remote, ...]:
    url = f"https://snap.stanford.edu/ogb/data/nodeproppred/{stem}.zip"
    return (Remote(url, limit, unpacked=(stem, unpacked)),)


_PLANETOID = "Sen et al. 2008, Collective classification in network data; split: Yang et al. 2016, Planetoid"
_PUBMED = "Namata et al. 2012, Query-driven active surveying; split: Yang et al. 2016, Planetoid"
_SHCHUR = "Shchur et al. 2018, Pitfalls of graph neural network evaluation (gnn-benchmark)"
_SAINT = "Zeng et al. 2020, GraphSAINT: graph sampling based inductive learning method"
_OGB = "Hu et al. 2020, Open Graph Benchmark: datasets for machine learning on graphs"
_REDDIT = f"Hamilton et al. 2017, Inductive representation learning on large graphs; this form: {_SAINT}"
_PLANETOID_LICENCE = "MIT (the Planetoid repository)"
_SHCHUR_LICENCE = "MIT (the repositories of the graph and of the split)"
_SHCHUR_ALONE = "MIT (the gnn-benchmark repository)"
_SAINT_LICENCE = "none stated for the data; MIT (the GraphSAINT repository)"
_PLANETOID_PAGE = "https://github.com/kimiyoung/planetoid"
_SHCHUR_PAGE = "https://github.com/shchur/gnn-benchmark"
_SAINT_PAGE = "https://github.com/GraphSAINT/GraphSAINT"
_OGB_PAGE = "https://ogb.stanford.edu/docs/nodeprop/"

_ROWS = (
    Dataset("cora", "citations between machine learning papers; features mark words", 2708, 5278, 1433, 7,
            "public", _PLANETOID, _PLANETOID_LICENCE, ("cora.npz",),
            page=_PLANETOID_PAGE, remotes=_planetoid_files("cora", 5 * _MB)),
    Dataset("citeseer", "citations between computing papers; 15 nodes are unlabelled", 3327, 4552, 3703, 6,
            "public", _PLANETOID, _PLANETOID_LICENCE, ("citeseer.npz",),
            page=_PLANETOID_PAGE, remotes=_planetoid_files("citeseer", 5 * _MB)),
    Dataset("pubmed", "citations between diabetes papers; features are TF-IDF weights", 19717, 44324, 500, 3,
            "public", _PUBMED, "MIT (the Planetoid repository); none stated for the features' copy", ("pubmed.npz",),
            page=_PLANETOID_PAGE, remotes=_planetoid_files("pubmed", 30 * _MB)),
    Dataset("amazon_computers", "goods bought together; features mark words of reviews", 13752, 245861, 767,
            10, "60/20/20", _SHCHUR, _SHCHUR_LICENCE,
            ("amazon_computers.npz", "amazon_electronics_computers.npz"),
            page=_SHCHUR_PAGE, remotes=_shchur_file("amazon_electronics_computers.npz")),
    Dataset("amazon_photo", "goods bought together; features mark words of reviews", 7650, 119081, 745,
            8, "none", _SHCHUR, _SHCHUR_ALONE, ("amazon_photo.npz", "amazon_electronics_photo.npz"),
            page=_SHCHUR_PAGE, remotes=_shchur_file("amazon_electronics_photo.npz")),
    Dataset("coauthor_cs", "authors of joint papers; features count their keywords", 18333, 81894, 6805, 15,
            "60/20/20", _SHCHUR, _SHCHUR_LICENCE, ("coauthor_cs.npz", "ms_academic_cs.npz"),
            page=_SHCHUR_PAGE, remotes=_shchur_file("ms_academic_cs.npz")),
    Dataset("coauthor_physics", "authors of joint papers; features count their keywords", 34493, 247962, 8415, 5,
            "none", _SHCHUR, _SHCHUR_ALONE, ("coauthor_physics.npz", "ms_academic_phy.npz"),
            page=_SHCHUR_PAGE, remotes=_shchur_file("ms_academic_phy.npz")),
    Dataset("flickr", "pictures that share properties; features mark words of descriptions", 89250, 449878, 500, 7,
            "50/25/25", _SAINT, _SAINT_LICENCE, ("flickr.npz", "flickr"), page=_SAINT_PAGE),
    Dataset("reddit", "posts with a commentator in common; features are word vectors", 232965, 11606919, 602, 41,
            "time", _REDDIT, _SAINT_LICENCE, ("reddit.npz", "reddit"), page=_SAINT_PAGE),
    Dataset("ogbn-arxiv", "citations between computing papers on arXiv; features are word vectors", 169343, 1166243,
            128, 40, "time", f"{_OGB}; Wang et al. 2020, Microsoft academic graph", "ODC-BY",
            ("ogbn-arxiv.npz", "ogbn_arxiv", "arxiv"),
            page=_OGB_PAGE, remotes=_ogb_zip("arxiv", 200 * _MB, _GB)),
    Dataset("ogbn-products", "goods bought together on Amazon; features are words of descriptions", 2449029, 61859140,
            100, 47, "sales rank", f"{_OGB}; Chiang et al. 2019, Cluster-GCN", "Amazon licence (see the page)",
            ("ogbn-products.npz", "ogbn_products", "products"),
            page=_OGB_PAGE, remotes=_ogb_zip("products", 3 * _GB, 12 * _GB)),
    Dataset("ogbn-papers100M", "citations between papers of all fields; features are word vectors", 111059956,
            1615685872, 128, 172, "time", f"{_OGB}; Wang et al. 2020, Microsoft academic graph", "ODC-BY",
            ("ogbn-papers100M.npz", "ogbn_papers100M", "papers100M-bin"),
            page=_OGB_PAGE, remotes=_ogb_zip("papers100M-bin", 80 * _GB, 200 * _GB)),
    Dataset("digits", "8 x 8 images of digits joined to their 10 nearest neighbours", 1797, 12339, 64, 10,
            "20 per class", "Alpaydin and Kaynak 1998, Optical recognition of handwritten digits (UCI)",
            "CC BY 4.0 (UCI); part of scikit-learn", builder=_build_digits,
            page="https://archive.ics.uci.edu/dataset/80"),
    Dataset("csbm", "random graph: degree-corrected contextual stochastic block model", 10000, 47650, 100, 10,
            "60/20/20", "Deshpande et al. 2018, Contextual stochastic block models; Karrer and Newman 2011",
            "none needed", builder=_build_csbm, form="csbm:N"),
)  # fmt: skip

DATASETS: dict[str, Dataset] = {row.name: row for row in _ROWS}
