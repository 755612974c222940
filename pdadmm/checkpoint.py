"""Checkpoints on disk: a folder for each saved iteration, a safetensors file for each layer, a JSON manifest.

A checkpoint is written beside its place, brought to the disk and then renamed, so a folder ``iteration-000020``
is whole, or was damaged later: the manifest has the sha256 of every file and of itself. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pdadmm
from pdadmm.files import flush_folder, write_to_disk

__all__ = [
    "FORMAT",
    "Checkpoint",
    "DamagedError",
    "State",
    "commit",
    "discard",
    "found",
    "partial_folder",
    "prefixed",
    "under",
    "write_part",
]

FORMAT = "pdadmm-checkpoint-1"
MANIFEST = "manifest.json"
KEPT = 2
NAME = re.compile(r"iteration-(\d{6,})")

# What is kept of one layer: tensors, and numbers or words that JSON can hold, by name.
State = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that cannot be used; the message says which file and why."""


def prefixed(prefix: str, state: State) -> State:
    """Return the state with ``prefix`` and a dot before every name.

    >>> prefixed("best", {"W": 1})
    {'best.W': 1}
    """
    return {f"{prefix}.{name}": value for name, value in state.items()}


def under(prefix: str, state: State) -> State:
    """Return what ``prefixed`` was given.

    >>> under("best", {"best.W": 1, "W": 2})
    {'W': 1}
    """
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def partial_folder(folder: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration is written before it is whole."""
    return folder / f"iteration-{iteration:06d}.partial"


def part_name(layer: int) -> str:
    """Return the file of a layer, which users count from 1."""
    return f"layer-{layer + 1:04d}.safetensors"


def write_part(folder: Path, iteration: int, layer: int, state: State) -> str:
    """Write one layer's state into the partial folder and return its sha256; OSError where it does not fit."""
    import torch
    from safetensors.torch import save

    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    # another order in memory would not come back, and sums follow it
    assert all(value.is_contiguous() for value in tensors.values())
    rest = {name: value for name, value in state.items() if name not in tensors}
    content = save(tensors, metadata={"pdadmm": json.dumps({"layer": layer, "iteration": iteration, "state": rest})})
    write_to_disk(partial_folder(folder, iteration) / part_name(layer), content)
    return hashlib.sha256(content).hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def commit(folder: Path, iteration: int, body: dict[str, Any], digests: dict[int, str]) -> None:
    """Write the manifest, put the checkpoint into its place and remove all but the last two."""
    partial, final = partial_folder(folder, iteration), folder / f"iteration-{iteration:06d}"
    files = {part_name(layer): digest for layer, digest in sorted(digests.items())}
    body = {"version": pdadmm.__version__, "iteration": iteration, "files": files, **body}
    manifest = {"format": FORMAT, "sha256": _digest(body), "body": body}
    write_to_disk(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
    flush_folder(partial)
    if final.exists():  # one that was found damaged
        shutil.rmtree(final)
    partial.rename(final)
    flush_folder(folder)
    for older in found(folder)[KEPT:]:
        shutil.rmtree(older, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove what unfinished writes left."""
    for partial in folder.glob("iteration-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first, whole or damaged."""
    named = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, reverse=True)]


@dataclass
class Checkpoint:
    """A checkpoint that is read: ``body`` is its manifest's; ``layer`` gives the state of one layer."""

    path: Path
    body: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the manifest; DamagedError where it is torn, changed, or of another format."""
        try:
            content = (path / MANIFEST).read_bytes()
            manifest = json.loads(content)
            kind = manifest["format"]
            if kind != FORMAT:
                raise DamagedError(f"{MANIFEST} is of the format {str(kind)[:40]!r}, not {FORMAT}")
            if manifest["sha256"] != _digest(manifest["body"]):
                raise DamagedError(f"{MANIFEST} differs from its checksum")
            return cls(path, manifest["body"])
        except OSError as error:
            raise DamagedError(f"{MANIFEST} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DamagedError(f"{MANIFEST} is no manifest of a checkpoint") from None

    def check(self, layer: int) -> bytes:
        """Return the content of a layer's file; DamagedError where it is missing or differs from its checksum."""
        name = part_name(layer)
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != self.body["files"].get(name):
            raise DamagedError(f"{name} differs from its checksum")
        return content

    def layer(self, layer: int) -> State:
        """Return the state of a layer, counted from 0, in memory of its own."""
        from safetensors.torch import load

        content = self.check(layer)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        rest = json.loads(header["__metadata__"]["pdadmm"])["state"]
        # copies lie where torch aligns its own: some products round by alignment
        return rest | {name: tensor.clone() for name, tensor in load(content).items()}

    @property
    def progress(self) -> dict[str, Any]:
        """What the ranks share: the stage, the history, and so on."""
        return self.body["progress"]

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.body["files"])
