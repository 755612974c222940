"""``pdadmm datasets``: the data sets known by name, facts about one, and downloads."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from pdadmm.console import SECONDS_BETWEEN_LINES, human_bytes
from pdadmm.data import DATASETS, READERS, Dataset
from pdadmm.data.cache import cache_folder
from pdadmm.data.download import LARGEST_READ, download_dataset
from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank

__all__ = ["run"]

COLUMNS = ("name", "nodes", "edges", "features", "classes", "split", "description")


def run(arguments: list[str]) -> int:
    """Print the registry as a table, the facts of one data set, or download some (130 where SIGINT ended that)."""
    given = _parser().parse_args(arguments)
    if given.about is not None and given.download is not None:
        raise InputError("about", given.about, "left out with --download", "call the command twice")
    if given.cache is not None and given.download is None:
        raise InputError("cache", given.cache, "given with --download", "elsewhere PDADMM_CACHE or --data-dir names it")
    if launched_rank() > 0:
        return 0
    if given.about is not None:
        _about(given.about)
    elif given.download is not None:
        try:
            for name in given.download.split(","):
                _download(name, given.cache)
        except KeyboardInterrupt:
            print("pdadmm: stopped; the same command goes on from here", file=sys.stderr)
            return 130
    else:
        _list()
    return 0


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm datasets",
        description="List the data sets known by name; tell about one, or download some.",
    )
    parser.add_argument("--about", metavar="NAME", help="print citation, licence, addresses and checksums of one")
    parser.add_argument("--download", metavar="NAME,..", help="fetch the files of these into the cache")
    parser.add_argument(
        "--cache", metavar="DIR", help="folder of downloads (default: PDADMM_CACHE, else ~/.cache/pdadmm)"
    )
    return parser


def _list() -> None:
    rows = [COLUMNS, *(tuple(str(getattr(row, name)) for name in COLUMNS) for row in DATASETS.values())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("\nsplit: the one that comes with the data; edges are undirected, of ogbn sets as published.")
    print("Files are looked for in --data-dir or the folder that PDADMM_DATA names, then in the cache of --download.")
    print("--dataset takes a path too:")
    for reader in READERS.values():
        print(f"  {reader.name:10}  {reader.description}")


def _about(name: str) -> None:
    row = DATASETS.get(name)
    if row is None:
        raise InputError("about", name, f"one of {', '.join(DATASETS)}")
    for key in ("name", "description", "nodes", "edges", "features", "classes", "split", "citation", "licence", "page"):
        print(f"{key + ':':12} {getattr(row, key) or 'none'}")
    if row.files:
        print(f"{'files:':12} {', '.join(row.files)}")
    for remote in row.remotes:
        digest = remote.sha256 or "none known; that of the first download is kept"
        print(f"{'url:':12} {remote.url} (at most {human_bytes(remote.limit)}; SHA-256: {digest})")
    if row.files and not row.remotes:
        print(f"{'url:':12} none: fetch the files by hand from the page")


def _download(name: str, cache: str | None) -> None:
    progress = _Transfer()
    try:
        folder, files = download_dataset(name, cache, watch=progress)
    finally:
        progress.close()
    for one in files:
        print(f"{one.file}  SHA-256 {one.sha256}  {'fetched' if one.new else 'there already'}, {_trust(one.trusted)}")
    print(f"{name} lies in {folder}{_checked(DATASETS[name])}")
    found = cache_folder().absolute() == cache_folder(cache).absolute()
    print(f"pdadmm train --dataset {name}{'' if found else f' --data-dir {folder}'}")


def _trust(trusted: str) -> str:
    if trusted == "first use":
        return "trusted on first use (no checksum of it is known here): recorded, and compared from now on"
    return f"as {trusted}"


def _checked(row: Dataset) -> str:
    return "; nodes, features and classes are as expected" if row.nodes <= LARGEST_READ else "; it was not read yet"


class _Transfer:
    """Progress of a download: a bar at a terminal, elsewhere a line at most every five seconds."""

    def __init__(self) -> None:
        self.file, self.last = "", time.monotonic()
        self.bar: Any = None

    def __call__(self, file: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            self._draw(file, done, total)
        elif time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            of = "" if total is None else f" of {human_bytes(total)}"
            print(f"{file}: {human_bytes(done)}{of}", file=sys.stderr, flush=True)

    def _draw(self, file: str, done: int, total: int | None) -> None:
        from tqdm import tqdm

        if self.bar is None or file != self.file:
            self.close()
            self.file, self.bar = file, tqdm(total=total, unit="B", unit_scale=True, desc=file, leave=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
