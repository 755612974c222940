"""The folders of an augmentation from disk: begun, found again after a kill, locked, refused where they are others'."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pdadmm.disk.assemble import unit_name
from pdadmm.disk.augmented import AUGMENTED_FORMAT, AUGMENTED_HEADER
from pdadmm.disk.graph import read_header
from pdadmm.disk.manifest import forget_units
from pdadmm.disk.plan import Plan, Shape, make_plan
from pdadmm.errors import InputError
from pdadmm.files import replace_file
from pdadmm.parallel.transport import Transport

__all__ = ["check_local", "check_room", "disk_errors", "forget_local", "local_folder", "open_job", "open_local"]

JOB_FORMAT = "pdadmm-augment-job-1"
ALLOWED = "a new or empty folder, or one that this very command began"


@contextlib.contextmanager
def disk_errors(argument: str, folder: Path) -> Iterator[None]:
    """Turn what the system says of a folder's disk into an InputError of the argument that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(argument, str(folder), "a folder on a disk that takes the data", reason) from error


def open_job(
    folder: Path, job: dict[str, Any], shape: Shape, memory: int, ranks: int | None, stack: contextlib.ExitStack
) -> Plan | None:
    """Make the folder, or find it with the same job unfinished, and lock it; None where the job is finished.

    ``ranks``: how many have a folder to themselves; None where they share this one.
    """
    work = folder / "work"
    if (folder / AUGMENTED_HEADER).exists():
        if read_header(folder, AUGMENTED_HEADER, AUGMENTED_FORMAT).get("job") != job:
            raise InputError("out", str(folder), ALLOWED, "name another")
        shutil.rmtree(work, ignore_errors=True)
        return None
    begun = (work / "job.json").exists()
    own = (work, folder / "graph")  # the second: what the command line wrote a data set to
    if not begun and folder.exists() and any(path not in own for path in folder.iterdir()):
        raise InputError("out", str(folder), ALLOWED, "name another")
    if begun:
        stack.enter_context(_locked(work / "lock", "out"))
        header = read_header(work, "job.json", JOB_FORMAT)
        if header.get("job") != job or not isinstance(header.get("width"), int):
            raise InputError("out", str(folder), ALLOWED, "name another")
        _check_ranks(folder, header.get("ranks"), ranks)
        plan = make_plan(shape, memory, header["width"])
        if not (folder / "features.npy.partial").exists() and not (folder / "features.npy").exists():
            forget_units(work, unit_name())
        return plan
    plan = make_plan(shape, memory, slices=ranks or 1)
    folder.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    stack.enter_context(_locked(work / "lock", "out"))
    free = shutil.disk_usage(folder).free
    if ranks is None and free < plan.written_bytes:
        raise InputError("out", f"{folder} with {free} bytes free", f"on a disk with {plan.written_bytes} bytes free")
    replace_file(work / "job.json", json.dumps(_header(job, plan.width, ranks), indent=1).encode())
    return plan


def _header(job: dict[str, Any], width: int, ranks: int | None) -> dict[str, Any]:
    header = {"format": JOB_FORMAT, "job": job, "width": width, "files": {}}
    return header if ranks is None else header | {"ranks": ranks}


def _check_ranks(folder: Path, begun: Any, ranks: int | None) -> None:
    """Refuse to go on with other ranks than a run began with: each has slices that no other sees."""
    if begun == ranks:
        return
    if begun is None:
        raise InputError("local", "given", f"left out, as the run in {folder} began without it")
    if ranks is None:
        raise InputError("local", "not given", f"given, as the run in {folder} began with it")
    remedy = "start as many, or name other folders"
    raise InputError("ranks", ranks, f"{begun}, as the run in {folder} began with --local on as many", remedy)


@contextlib.contextmanager
def _locked(path: Path, argument: str) -> Iterator[TextIO]:
    """Keep a second run out of the folder; the lock goes with the process."""
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder = path.parent.parent if argument == "out" else path.parent
            raise InputError(argument, str(folder), "a folder that no other run works in") from None
        yield file


# A folder for each rank


def local_folder(local: str | os.PathLike, rank: int) -> Path:
    """Return where a rank keeps its slices: ranks of one host may be given the same ``local``."""
    return Path(local) / f"rank-{rank:04d}"


def check_local(folder: Path, job: dict[str, Any], ranks: int) -> None:
    """Raise InputError where a rank's folder is another job's, or no job's; nothing is made yet."""
    other = InputError("local", str(folder), ALLOWED, "remove it, or name another")
    if (folder / "job.json").exists():
        found = read_header(folder, "job.json", JOB_FORMAT)
        if found.get("job") != job:
            raise other
        _check_ranks(folder, found.get("ranks"), ranks)
    elif folder.exists() and any(path.name not in ("lock", "job.json.partial") for path in folder.iterdir()):
        raise other


def open_local(folder: Path, job: dict[str, Any], width: int, ranks: int, stack: contextlib.ExitStack) -> None:
    """Make a rank's folder, or find it with slices of the same width, and lock it; check_local went before."""
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    stack.enter_context(_locked(folder / "lock", "local"))
    header = _header(job, width, ranks)
    if (folder / "job.json").exists():
        if read_header(folder, "job.json", JOB_FORMAT) != header:
            raise InputError("local", str(folder), ALLOWED, "remove it, or name another")
        return
    replace_file(folder / "job.json", json.dumps(header, indent=1).encode())


def forget_local(folder: Path, job: dict[str, Any]) -> None:
    """Remove a rank's folder once the job is finished; one of another job, or of none, stays."""
    try:
        found = read_header(folder, "job.json", JOB_FORMAT)
    except InputError:
        return
    if found.get("job") == job:
        shutil.rmtree(folder, ignore_errors=True)


def check_room(transport: Transport, on_all: Callable, needed: dict[str, tuple[Path, int]]) -> None:
    """Raise InputError on all ranks where a disk is too small for what they, together, will write into folders of it.

    ``needed``: argument -> this rank's folder and the bytes it will hold in the end. Collective.
    """

    def claim(folder: Path, bytes_: int) -> tuple[str, int, int]:
        begun = [path for path in folder.iterdir() if path.suffix in (".bin", ".npy", ".partial")]  # by a killed run
        held = sum(512 * path.stat().st_blocks for path in begun)
        return platform.node(), os.stat(folder).st_dev, max(0, bytes_ - held)

    own = on_all(lambda: {argument: claim(*each) for argument, each in needed.items()})
    told = [claim for claims in transport.allgather(own) for claim in claims.values()]

    def check() -> None:
        for argument, (host, device, _) in own.items():
            folder, total = needed[argument][0], sum(claim[2] for claim in told if claim[:2] == (host, device))
            free = shutil.disk_usage(folder).free
            if free < total:
                value = f"{folder} with {free} bytes free"
                raise InputError(argument, value, f"on a disk with {total} bytes free, for all ranks that write to it")

    on_all(check)
