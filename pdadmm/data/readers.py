"""The table of file formats: one row each; load_dataset, the command line, the docs and the tests read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pdadmm.data.csv_tables import TABLES, holds_csv, read_csv
from pdadmm.data.graph import Graph
from pdadmm.data.graphsaint import holds_graphsaint, read_graphsaint
from pdadmm.data.npz import read_npz
from pdadmm.data.ogb import holds_ogb, read_ogb
from pdadmm.data.planetoid import holds_planetoid, read_planetoid_folder
from pdadmm.data.scipy_npz import holds_scipy, read_scipy
from pdadmm.data.tables import find_table
from pdadmm.errors import InputError

__all__ = ["READERS", "Reader", "find_reader", "read_path"]

_LISTED = "pdadmm datasets lists the formats and their files"


@dataclass(frozen=True)
class Reader:
    """One row: the format's name, what it looks like, whether a path holds it, and how to read it.

    ``read`` takes the path, the graph's name (None: the path's own) and what to call its own split.
    """

    name: str
    description: str
    holds: Callable[[Path], bool]
    read: Callable[[Path, str | None, str], Graph]


def _read_disk(path: Path, name: str | None, own_split: str) -> Graph:
    from pdadmm.disk.graph import DiskGraph  # it needs this package

    with DiskGraph(path) as graph:
        return graph.to_graph(name, own_split)


READERS: dict[str, Reader] = {
    row.name: row
    for row in (
        Reader("npz", "one .npz file: edge_index, x, y (or PyTorch Geometric's or GraphBolt's names), or Shchur's",
               lambda path: path.suffix == ".npz", read_npz),
        Reader("planetoid", "a folder with ind.NAME.allx, tx, y, ty, ally, graph, test.index",
               holds_planetoid, lambda path, name, own_split: read_planetoid_folder(path, name)),  # split: public
        Reader("ogb", "a folder of the Open Graph Benchmark: raw/edge.csv.gz or raw/data.npz, split/NAME",
               holds_ogb, read_ogb),
        Reader("graphsaint", "a folder with adj_full.npz, feats.npy, class_map.json, role.json",
               holds_graphsaint, read_graphsaint),
        Reader("scipy", "a folder with adjacency.npz of scipy.sparse.save_npz, features.npz or .npy, labels.npy",
               holds_scipy, read_scipy),
        Reader("disk", "a folder with graph.json, which pdadmm convert made",
               lambda path: (path / "graph.json").is_file(), _read_disk),
        Reader("csv", "a folder with edges.csv, features.csv, labels.csv (or .csv.gz)", holds_csv, read_csv),
    )
}  # fmt: skip


def find_reader(path: Path) -> Reader | None:
    """The row whose format ``path`` holds, judged by names of files; None for none."""
    return next((row for row in READERS.values() if row.holds(path)), None)


def read_path(path: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from a file or folder in any format of READERS.

    Raises InputError for a path that is missing or in no known format, and for what its reader refuses.

    >>> read_path("folder")  # doctest: +SKIP
    Graph(folder: 3 nodes, 2 edges, 4 dense features, 2 classes, no splits)
    """
    path = Path(path)
    row = find_reader(path)
    if row is not None:
        return row.read(path, name, own_split)
    if not path.exists():
        raise InputError("dataset", str(path), "a file or folder that exists", "check the path")
    if path.is_file():
        table = path.name.removesuffix(".gz").endswith(".csv")
        remedy = "give the folder, which has edges.csv, features.csv and labels.csv" if table else ""
        raise InputError("dataset", f"the file {path}", "an .npz file, or a folder", remedy or _LISTED)
    files = sorted(entry.name for entry in path.iterdir())
    lacking = [f"{stem}.csv" for stem in TABLES if find_table(path, stem) is None]
    if len(lacking) < len(TABLES) or any(".csv" in Path(file).suffixes for file in files):
        shown = ", ".join(files[:8]) + (", .." if len(files) > 8 else "")
        remedy = f"it has {shown}, and lacks {', '.join(lacking)}"
        raise InputError("dataset", f"the folder {path}", "one with edges.csv, features.csv and labels.csv", remedy)
    raise InputError("dataset", f"the folder {path}", f"in one of the formats {', '.join(READERS)}", _LISTED)
