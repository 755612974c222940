"""Unpacking of zip archives that nobody vouches for: what they may contain, and how much."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from pdadmm.errors import InputError, reason_of

__all__ = ["unpack"]

_MOST_MEMBERS = 10_000
_LARGEST_RATIO = 1040  # deflate cannot shrink data further than about 1032 to 1
_DEEPEST = 16


def unpack(archive: Path, folder: Path, root: str, limit: int) -> Path:
    """Unpack the folder ``root`` of a zip archive into ``folder``, whole or not at all; return where it lies.

    Before anything is written each member is checked: plain files and folders below ``root`` alone, no path that
    leaves it, no name twice, no link or device, and together at most ``limit`` bytes, none packed tighter than
    deflate can. While it is written a member ends at the size it claims.

    Raises InputError, with nothing left behind.
    """
    if (folder / root).exists():
        raise InputError("download", f"{archive} with the folder {root}", f"absent from {folder}", "remove that folder")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked(opened, archive, root, limit)
            need = sum(member.file_size for member in members)
            free = shutil.disk_usage(folder).free
            if need > free:
                raise InputError("download", f"{archive} of {need} bytes unpacked", f"at most the {free} that are free")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as place:
                for member in members:
                    _write(opened, member, Path(place, member.filename))
                Path(place, root).mkdir(exist_ok=True)
                os.replace(Path(place, root), folder / root)
    except InputError:
        raise
    except Exception as problem:
        # A damaged zip surfaces as any of a dozen types.
        value = f"{archive} ({reason_of(problem)})"
        raise InputError("download", value, "a complete zip archive", "remove it and fetch it again") from None
    return folder / root


def _checked(opened: zipfile.ZipFile, archive: Path, root: str, limit: int) -> list[zipfile.ZipInfo]:
    """The members that are files, every one of them fit to be written."""
    members = opened.infolist()
    if len(members) > _MOST_MEMBERS:
        raise InputError("download", f"{archive} with {len(members)} members", f"at most {_MOST_MEMBERS}")
    seen: set[str] = set()
    total = 0
    for member in members:
        fault = _fault(member, root)
        path = member.filename.rstrip("/").casefold()  # two names may be one on disk
        if not fault and path in seen:
            fault = "a name that comes twice"
        seen.add(path)
        total += member.file_size
        if fault:
            value = f"{archive} with the member {member.filename!r}, {fault}"
            raise InputError("download", value, f"plain files below {root}/", "do not trust this archive")
    if total > limit:
        raise InputError("download", f"{archive} of {total} bytes unpacked", f"at most {limit} bytes")
    return [member for member in members if not member.is_dir()]


def _fault(member: zipfile.ZipInfo, root: str) -> str:
    """What forbids this member, or ""."""
    parts = PurePosixPath(member.filename).parts
    if not re.fullmatch(r"[\w .+/-]+", member.filename, re.ASCII) or member.orig_filename != member.filename:
        return "a name with odd characters"
    if member.filename.startswith("/") or ".." in parts or not parts or parts[0] != root:
        return f"a path outside {root}"
    if len(parts) > _DEEPEST or len(member.filename) > 1000 or (len(parts) == 1 and not member.is_dir()):
        return "a path that is too deep or too long, or no path"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
        return "not a plain file"
    if member.flag_bits & 0x1:
        return "encrypted"
    if member.is_dir() and member.file_size:
        return "a folder with contents"
    if member.file_size > _LARGEST_RATIO * member.compress_size + 1024:
        return f"{member.file_size} bytes out of {member.compress_size}"
    return ""


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(member) as source, path.open("xb") as target:
        while piece := source.read(1 << 20):  # reading to the end checks the checksum too
            written += len(piece)
            if written > member.file_size:
                raise ValueError(f"{member.filename}: more than the {member.file_size} bytes it claims")
            target.write(piece)
    if written != member.file_size:
        raise ValueError(f"{member.filename}: {written} bytes of {member.file_size}")
