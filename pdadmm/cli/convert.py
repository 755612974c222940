"""``pdadmm convert``: a graph on disk from lists of edges of any size."""

from __future__ import annotations

import argparse
from pathlib import Path

from pdadmm import console
from pdadmm.cli.common import accepted
from pdadmm.disk.blocks import Traffic
from pdadmm.disk.convert import Sources, convert_graph
from pdadmm.disk.graph import DiskGraph
from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank
from pdadmm.parameters import memory_size, one_of, whole

__all__ = ["run"]

RAW_TYPES = ("float32", "float16", "float64")


def run(arguments: list[str]) -> int:
    """Convert, check the result and say what it is; on rank 0 alone."""
    given = _parser().parse_args(arguments)
    if launched_rank() > 0:
        return 0
    if given.raw_features is None and given.raw_type is not None:
        raise InputError("raw_type", given.raw_type, "used with --raw-features")
    raw = None
    if given.raw_features is not None:
        kind = accepted("raw_type", given.raw_type or "float32", one_of(RAW_TYPES))
        raw = accepted("raw_features", given.raw_features, whole(1)), kind
    splits = None if given.splits is None else [Path(name) for name in given.splits]
    labels = None if given.labels is None else Path(given.labels)
    sources = Sources([Path(name) for name in given.edges], Path(given.features), labels, splits, raw)
    traffic = Traffic()
    try:
        convert_graph(sources, given.out, accepted("memory", given.memory, memory_size), traffic)
    except OSError as error:
        raise InputError("out", given.out, "a folder on a disk that takes the data", error.strerror or "") from None
    if not given.quiet:
        with DiskGraph(given.out) as graph:
            split = graph.splits()
            parts = "no split" if split is None else "split " + "/".join(f"{len(rows):,}" for rows in split.values())
            print(f"{given.out}: {graph.num_nodes:,} nodes, {graph.num_edges // 2:,} edges, "
                  f"{graph.num_features:,} features, {graph.num_classes} classes, {parts}")  # fmt: skip
        print(f"read {console.human_bytes(traffic.read)}, wrote {console.human_bytes(traffic.written)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm convert",
        description="Make a graph on disk from lists of edges of any size; edges are undirected, self-loops and "
        "duplicates are dropped.",
    )
    parser.add_argument(
        "--edges", required=True, nargs="+", metavar="FILE",
        help="pairs of node numbers: .npy (E, 2), or text, which may be .gz",
    )  # fmt: skip
    parser.add_argument("--features", required=True, metavar="FILE", help="features (V, F): .npy, or bare numbers")
    parser.add_argument("--raw-features", metavar="F", help="the features are bare numbers, F for each node")
    parser.add_argument(
        "--raw-type", metavar="NAME", help="their type: " + ", ".join(RAW_TYPES) + " (default: float32)"
    )
    parser.add_argument("--labels", metavar="FILE", help="class of each node, -1 where unknown: .npy or text")
    parser.add_argument(
        "--splits", nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="node numbers of the three parts: .npy or text"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the graph")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="most memory for the sort, such as 2GiB (default: 1GiB)"
    )
    parser.add_argument("--quiet", action="store_true", help="no report")
    return parser
