"""A folder of augmented features: what `pdadmm augment` writes, and what training reads instead of augmenting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.augment import Augmenter
from pdadmm.data.checks import SPLIT_NAMES, check_labels, check_splits
from pdadmm.disk.blocks import DiskArray, Traffic, checked_blocks
from pdadmm.disk.graph import open_listed, read_header
from pdadmm.errors import InputError

__all__ = ["AUGMENTED_FORMAT", "AUGMENTED_HEADER", "AugmentedFolder"]

AUGMENTED_FORMAT = "pdadmm-augmented-1"
AUGMENTED_HEADER = "augmented.json"


class AugmentedFolder:
    """Augmented, scaled features of the nodes of a graph, in a folder; opened for reading.

    ``features`` (rows, n_0), an array read by ``rows(start, stop)``; ``labels`` int64 (rows,), -1 for unlabelled;
    ``nodes`` int64 (rows,), the graph's node of each row; ``splits`` "train", "val", "test" -> rows, int64, or None;
    ``num_classes``, ``num_features`` F of the graph, ``augmenter()`` with the scaling that was learned.
    Raises InputError for a folder that is none.
    """

    def __init__(self, folder: str | os.PathLike, traffic: Traffic | None = None) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder, AUGMENTED_HEADER, AUGMENTED_FORMAT)
        self.name, traffic = self.folder.resolve().name, traffic or Traffic()
        self._arrays: dict[str, DiskArray] = {}
        try:
            config = self._read_config()
            for name in ("features", "nodes", "labels", "shift", "scale"):
                self._arrays[name] = open_listed(self.folder, name, self.header, traffic)
            arrays = {name: self._whole(name) for name in ("shift", "scale")}
            self._augmenter = Augmenter.from_state(config, arrays)
            n0 = self._augmenter.num_outputs(config["num_features"])
            if len(self.features.shape) != 2 or self.features.shape[1] != n0:
                value = f"{self.features.path} of shape {self.features.shape}"
                raise InputError("dataset", value, f"{n0} columns wide")
            self.labels, self.num_classes = check_labels(self._whole("labels"), len(self), self.header["classes"])
            self.splits = None
            if any(name in self.header["files"] for name in SPLIT_NAMES):
                for name in SPLIT_NAMES:
                    self._arrays[name] = open_listed(self.folder, name, self.header, traffic)
                self.splits = check_splits({name: self._whole(name) for name in SPLIT_NAMES}, self.labels)
        except BaseException:
            self.close()
            raise
        self.num_features = config["num_features"]
        self.own_split = str(self.header["job"]["split"] or "file")

    def _read_config(self) -> dict[str, Any]:
        config, classes = self.header.get("augmenter", {}), self.header.get("classes")
        usable = isinstance(config, dict) and isinstance(config.get("parameters"), dict)
        usable &= isinstance(self.header.get("job"), dict) and "split" in self.header["job"]
        if not usable or not isinstance(config.get("num_features"), int) or not isinstance(classes, int):
            raise InputError("dataset", str(self.folder / AUGMENTED_HEADER), "as pdadmm augment writes it")
        try:
            Augmenter(**config["parameters"])
        except TypeError as error:
            value = f"{self.folder / AUGMENTED_HEADER} ({error})"
            raise InputError("dataset", value, "as this version writes it") from None
        return config

    def _whole(self, name: str) -> np.ndarray:
        array, entry = self._arrays[name], self.header["files"][name]
        out = np.empty(array.shape, array.dtype)
        for start, stop, rows in checked_blocks(array, entry):
            out[start:stop] = rows
        return out

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def num_nodes(self) -> int:
        """How many nodes the features are of."""
        return len(self)

    @property
    def features(self) -> DiskArray:
        """The features (rows, n_0)."""
        return self._arrays["features"]

    @property
    def nodes(self) -> np.ndarray:
        """The graph's node of each row."""
        return self._whole("nodes")

    def same_augmenter(self, wanted: Augmenter) -> Augmenter:
        """Return the augmenter that made the folder, scaling and all; InputError where another was asked for."""
        made = self.header["augmenter"]["parameters"]
        for name, value in vars(wanted).items():
            if name != "slice_columns" and value != made[name]:
                value = f"{value}, and {made[name]} in the folder {self.folder}"
                remedy = f"give --{name.replace('_', '-')} {made[name]}"
                raise InputError(name, value, "what the folder was augmented with", remedy)
        return self._augmenter

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return these rows of the features, or all, in memory; every block is compared with its checksum."""
        out = np.empty((len(self) if rows is None else len(rows), self.features.shape[1]), self.features.dtype)
        places = np.arange(len(self)) if rows is None else np.argsort(rows, kind="stable")
        ordered = places if rows is None else rows[places]
        for start, stop, block in checked_blocks(self.features, self.header["files"]["features"]):
            first, last = np.searchsorted(ordered, (start, stop))
            out[places[first:last]] = block[ordered[first:last] - start]
        return out

    def fingerprint(self) -> str:
        """Return a digest of the checksums of all files: ranks compare it."""
        import hashlib
        import json

        text = json.dumps([self.header["files"], self.header["augmenter"], self.header["classes"]], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def close(self) -> None:
        """Close the files."""
        for array in self._arrays.values():
            array.close()

    def __enter__(self) -> AugmentedFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
