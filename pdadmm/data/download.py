"""Downloading a data set of the catalogue into the cache, with checksums kept from the first time on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdadmm.data.archive import unpack
from pdadmm.data.cache import cache_folder
from pdadmm.data.catalogue import DATASETS, Dataset, Remote
from pdadmm.data.graph import Graph
from pdadmm.data.registry import read_files
from pdadmm.data.transfer import Watch, file_sha256, transfer
from pdadmm.errors import InputError, reason_of
from pdadmm.files import parse_json

__all__ = ["LARGEST_READ", "Fetched", "check_statistics", "download_dataset"]

_RECORD = "download.json"
LARGEST_READ = 1_000_000  # nodes of a data set that is read at once, to check its statistics


@dataclass(frozen=True)
class Fetched:
    """A file of a data set after a download: its SHA-256, and whether it was ``new``, or there already.

    ``trusted`` says what the digest was compared with: "published", "recorded" (by an earlier download), or
    "first use", where there was nothing to compare with.
    """

    file: str
    sha256: str
    new: bool
    trusted: str


def download_dataset(
    name: str, cache: str | Path | None = None, watch: Watch | None = None, allow_local_http: bool = False
) -> tuple[Path, list[Fetched]]:
    """Fetch the files of data set ``name`` into a folder of that name in ``cache``; return it and the files.

    Files that are there already are checked against their recorded checksums, not fetched. A file without a
    published checksum is trusted on first use: its SHA-256 is recorded in ``download.json`` beside it, and any
    later download must have the same. Zip archives are unpacked and removed. A data set of at most a million nodes
    is then read, and its statistics compared with the catalogue's. ``watch(file, bytes, total)`` sees the progress.

    Raises InputError where the data set has no address, or its files cannot be had or are not as recorded.

    >>> download_dataset("cora")  # doctest: +SKIP
    """
    row = DATASETS.get(name)
    if row is None or not row.remotes:
        known = ", ".join(row.name for row in DATASETS.values() if row.remotes)
        remedy = f"its files are at {row.page}: fetch them by hand; docs/data.md says where they go" if row else ""
        if row is not None and row.builder is not None:
            remedy = "it needs no files"
        raise InputError("download", name, f"one of {known}", remedy)
    folder = cache_folder(cache) / row.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError("cache", str(folder), "a folder that can be made", problem.strerror or "") from None
    fetched = [_fetch(remote, folder, watch, allow_local_http) for remote in row.remotes]
    if row.nodes <= LARGEST_READ:
        graph = read_files(row, folder)
        if graph is None:
            raise InputError("download", name, "a data set whose files are where they are looked for")
        check_statistics(row, graph)
    return folder, fetched


def _fetch(remote: Remote, folder: Path, watch: Watch | None, local: bool) -> Fetched:
    """Fetch, record and unpack one file, unless it is there. Whatever ends it, the next call goes on from there."""
    record = _read_record(folder / _RECORD)
    target, recorded = folder / remote.file, record.get(remote.file, "")
    expected = remote.sha256 or recorded
    trusted = "published" if remote.sha256 else "recorded" if recorded else "first use"
    if remote.unpacked is not None and recorded and (folder / remote.unpacked[0]).is_dir():
        target.unlink(missing_ok=True)
        return Fetched(remote.file, recorded, False, "recorded")
    new = not target.is_file()
    if new:
        try:
            digest = transfer(remote.url, target, remote.limit, expected, watch, local)
        except InputError as problem:
            if expected and problem.allowed == expected and not remote.sha256:
                remedy = f"{problem.remedy}; to trust the new file remove {folder / _RECORD}"
                raise InputError("download", problem.value, f"{expected}, as recorded", remedy) from None
            raise
    else:
        digest = file_sha256(target)
        if expected and digest != expected:
            remedy = "the file was changed since it was fetched: remove it and download again"
            raise InputError("download", f"{target} with the SHA-256 {digest}", expected, remedy)
    if digest != recorded:
        _write_record(folder / _RECORD, record | {remote.file: digest})
    if remote.unpacked is not None:
        unpack(target, folder, *remote.unpacked)
        target.unlink()
    return Fetched(remote.file, digest, new, trusted)


def check_statistics(row: Dataset, graph: Graph) -> None:
    """Raise InputError where ``graph`` has other numbers of nodes, features or classes than the catalogue's row."""
    for what in ("nodes", "features", "classes"):
        found = getattr(graph, f"num_{what}")
        if found != getattr(row, what):
            value = f"{row.name} with {found} {what}"
            remedy = "the files are not those of this data set: remove their folder"
            raise InputError("download", value, f"{getattr(row, what)} {what}", remedy)


def _read_record(path: Path) -> dict[str, str]:
    """Checksums by file, out of download.json; {} where there is none."""
    try:
        files: Any = parse_json(path.read_text("utf-8")).get("sha256")
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise ValueError("no checksums")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        remedy = "remove it to trust the next download as the first"
        raise InputError("cache", f"{path} ({reason_of(problem)})", "a record of checksums", remedy) from None
    return files


def _write_record(path: Path, record: dict[str, str]) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps({"sha256": record}, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
