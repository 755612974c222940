"""A graph on the disk as something to train on: its numbers stay there, labels and splits are in memory."""

from __future__ import annotations

import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np

from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.data.splits import make_splits
from pdadmm.disk.graph import DiskGraph
from pdadmm.errors import InputError

__all__ = ["GraphFolder", "splits_of"]


def splits_of(
    graph: DiskGraph, labels: np.ndarray, split: str | None = None, seed: int = 0
) -> dict[str, np.ndarray] | None:
    """Return the split that ``split`` asks for, as in make_splits; None: the folder's own, if it has one."""
    splits = graph.splits()
    if split is None:
        return splits
    known = SimpleNamespace(
        splits=splits, own_split="file", labels=labels, num_classes=graph.num_classes, name=graph.name
    )
    return make_splits(known, split, seed)  # type: ignore[arg-type]


class GraphFolder:
    """A folder that `pdadmm convert` or write_graph made, to train a SampledGNN on from disk.

    ``disk`` (a DiskGraph) has the adjacency and the features; ``labels`` int64 (V,), -1 for unlabelled, ``splits``
    "train", "val", "test" -> nodes, ``num_nodes``, ``num_features``, ``num_classes``, ``name``, ``own_split``.
    ``split`` and ``seed`` as in make_splits; None is the folder's own. Raises InputError for a folder that is no
    graph, and where there is no split.

    >>> SampledGNN().fit(GraphFolder("papers"), memory="4GiB", scratch="run")  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike, split: str | None = None, seed: int = 0) -> None:
        self.disk = DiskGraph(folder)
        try:
            self.labels = self.disk.labels()
            splits = splits_of(self.disk, self.labels, split, seed)
            if splits is None:
                remedy = "add --split random:20 or --split fraction:60/20/20"
                raise InputError("split", "not given", f"given, as {self.disk.name} has none of its own", remedy)
        except BaseException:
            self.disk.close()
            raise
        self.splits: dict[str, np.ndarray] = splits
        self.own_split, self.name = split or "file", self.disk.name
        self.num_nodes, self.num_features = self.disk.num_nodes, self.disk.num_features
        self.num_classes = self.disk.num_classes or int(self.labels.max(initial=-1)) + 1

    def fingerprint(self) -> str:
        """Return a digest of the checksums of all files and of the split: a run that goes on compares it."""
        text = json.dumps([self.disk.header["files"], self.num_classes], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for name in SPLIT_NAMES:
            digest.update(np.ascontiguousarray(self.splits[name], "<i8").tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        self.disk.close()

    def __enter__(self) -> GraphFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
