"""What of a job is done: a file of JSON for each rank, rewritten whole after every finished unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pdadmm.files import parse_json, replace_file

__all__ = ["Manifest", "forget_units"]


class Manifest:
    """The finished units of a job with their checksums, on all ranks of this run and of those before it.

    A unit is a file under its own name, or a part of one; ``done`` has (checksums) by its name. A rank writes what it
    finished itself into ``manifest-RANK.json``, replaced in one step, so that a kill leaves the old or the new.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"manifest-{rank:04d}.json"
        self.done: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        for path in sorted(folder.glob("manifest-*.json")):
            try:
                units = parse_json(path.read_text("utf-8")).get("done")
            except (OSError, ValueError):  # damaged: what it listed is made again
                continue
            if isinstance(units, dict):
                self.done |= units
                if path == self.path:
                    self.own = units

    def add(self, units: dict[str, Any]) -> None:
        """Record finished units, which are on the disk."""
        self.own |= units
        self.done |= units
        replace_file(self.path, json.dumps({"done": self.own}).encode())


def forget_units(folder: Path, prefix: str) -> None:
    """Take the units whose names begin so out of all manifests, before any is read: their file is gone."""
    for path in sorted(folder.glob("manifest-*.json")):
        manifest = Manifest(folder, int(path.stem.removeprefix("manifest-")))
        manifest.own = {name: sums for name, sums in manifest.own.items() if not name.startswith(prefix)}
        manifest.add({})
