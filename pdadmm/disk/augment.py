"""Augmentation from disk: the job, its folder, and how it goes on after a kill at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pdadmm.augment import WEIGHTINGS, Augmenter, Scaler, hop_weights
from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.disk.assemble import SlicedRows, finish_rows, unit_name, write_rows
from pdadmm.disk.augmented import AUGMENTED_FORMAT, AUGMENTED_HEADER
from pdadmm.disk.blocks import NewArray, copy_array
from pdadmm.disk.dataset import splits_of
from pdadmm.disk.graph import HEADER, DiskGraph, read_header
from pdadmm.disk.manifest import Manifest, forget_units
from pdadmm.disk.operator import DiskOperator
from pdadmm.disk.plan import Plan, Shape, make_plan
from pdadmm.disk.slices import SliceFiles, chain_slices, split_features
from pdadmm.errors import InputError
from pdadmm.files import replace_file
from pdadmm.parallel.launch import together
from pdadmm.parallel.transport import LocalTransport, Transport

__all__ = ["ROWS", "Request", "augment_folder"]

JOB_FORMAT = "pdadmm-augment-job-1"
ROWS = ("labelled", "all")
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What is asked for: an Augmenter (not fitted), which ``rows``, which split, at most how much ``memory``.

    ``rows`` "labelled": training, validation and test nodes in this order, as training takes them; "all": every node.
    ``split``: as in make_splits, None for the graph's own.
    """

    augmenter: Augmenter
    rows: str
    split: str | None
    split_seed: int
    memory: int


@dataclass(frozen=True)
class Kept:
    """The nodes that are kept (None: all), those that the scaling is learned from, and the rows' labels and parts.

    ``fit_nodes`` None: the first ``fit_count`` of the kept.
    """

    nodes: np.ndarray | None
    fit_nodes: np.ndarray | None
    fit_count: int
    labels: np.ndarray
    splits: dict[str, np.ndarray] | None


def augment_folder(
    graph: DiskGraph,
    request: Request,
    out: str | os.PathLike,
    transport: Transport | None = None,
    watch: Watch = lambda step, done, total: None,
) -> Plan | None:
    """Augment a graph on the disk into the folder ``out``, within ``request.memory``; collective over ranks.

    The same call goes on where a killed one ended, and returns None where the work was done before. The result has the
    bits of Augmenter.fit_transform for every memory limit and number of ranks. All ranks see the folder; a rank takes
    every R-th slice of columns through all hops, then every R-th stretch of rows. ``watch(step, done, total)`` is told
    of this rank's bytes. Raises InputError on all ranks for what cannot be used, and for too little memory or disk.
    """
    transport, folder, augmenter = transport or LocalTransport(), Path(out), request.augmenter
    rank, size, work = transport.rank, transport.size, Path(out) / "work"

    def on_all(step: Callable[[], Any]) -> Any:
        def run() -> Any:
            with _disk_errors(folder):
                return step()

        return together(transport, run)

    def units(step: str, total: int, work: Iterator[int]) -> None:
        done = 0
        for count in work:
            done += count
            watch(step, done, -(-total // size))

    kept, indptr = on_all(lambda: _kept(graph, request)), on_all(graph.indptr)
    shape = _shape(graph, indptr, augmenter, kept)
    with contextlib.ExitStack() as stack:
        plan = on_all(lambda: _open(folder, graph, request, shape, stack) if rank == 0 else None)
        plan = transport.bcast(plan)
        if plan is None:
            return None
        files = SliceFiles(work, graph, plan, np.dtype(augmenter.dtype), Manifest(work, rank), graph.traffic)
        on_all(lambda: units("cutting", shape.feature_total, split_features(files, rank, size)))
        files.manifest = Manifest(work, rank)  # what the other ranks have done
        on_all(lambda: units("hops", plan.result_bytes, _hops(files, request, kept, indptr, rank, size)))
        files.manifest = Manifest(work, rank)
        scaler = Scaler(augmenter.scaling, shape.blocks)
        on_all(lambda: _fit(scaler, files) if rank == 0 else None)
        scaler.shift, scaler.scale = transport.bcast((scaler.shift, scaler.scale))
        path = folder / "features.npy"
        if not transport.bcast(path.exists()):  # else the end of a killed run
            on_all(lambda: NewArray(path, files.result_shape, files.dtype, resume=True).close() if rank == 0 else None)
            on_all(lambda: units("scaling", plan.result_bytes, write_rows(files, scaler, path, rank, size)))
        on_all(lambda: _finish(folder, graph, request, scaler, kept, files) if rank == 0 else None)
        return plan


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("out", str(folder), "a folder on a disk that takes the data", reason) from error


def _kept(graph: DiskGraph, request: Request) -> Kept:
    labels = graph.labels()
    splits = splits_of(graph, labels, request.split, request.split_seed)
    if request.rows == "all":
        if splits is None:
            return Kept(None, None, len(labels), labels, None)
        return Kept(None, splits["train"], len(splits["train"]), labels, splits)
    if splits is None:
        remedy = "add --split random:20 or --split fraction:60/20/20, or --rows all"
        raise InputError("split", "not given", f"given, as {graph.name} has none of its own", remedy)
    nodes = np.concatenate([splits[name] for name in SPLIT_NAMES])
    ends = np.cumsum([0, *(len(splits[name]) for name in SPLIT_NAMES)])
    places = {name: np.arange(a, b) for name, a, b in zip(SPLIT_NAMES, ends, ends[1:])}
    return Kept(nodes, None, len(splits["train"]), labels[nodes], places)


def _shape(graph: DiskGraph, indptr: np.ndarray, augmenter: Augmenter, kept: Kept) -> Shape:
    averaged = WEIGHTINGS[augmenter.weighting] is not None
    step, V = 1 << 20, graph.num_nodes
    return Shape(
        nodes=V,
        entries=graph.num_edges,
        widest=max((int(np.diff(indptr[a : a + step + 1]).max()) for a in range(0, V, step)), default=0),
        index_bytes=graph.indices.dtype.itemsize,
        features=graph.num_features,
        feature_bytes=graph.features.dtype.itemsize,
        hops=augmenter.hops,
        blocks=1 if averaged else augmenter.hops + 1,
        averaged=averaged,
        kept=V if kept.nodes is None else len(kept.nodes),
        fit_rows=kept.fit_count,
        fit_apart=kept.fit_nodes is not None,
        number_bytes=np.dtype(augmenter.dtype).itemsize,
        scaling=augmenter.scaling,
    )


def _open(folder: Path, graph: DiskGraph, request: Request, shape: Shape, stack: contextlib.ExitStack) -> Plan | None:
    """Make the folder, or find it with the same job unfinished, and lock it; None where the job is finished."""
    work, parameters = folder / "work", dict(vars(request.augmenter))
    digest = hashlib.sha256((graph.folder / HEADER).read_bytes()).hexdigest()
    job: dict[str, Any] = {"graph": digest, "parameters": parameters}
    job |= {"rows": request.rows, "split": request.split, "split_seed": request.split_seed}
    other = InputError("out", str(folder), "a new or empty folder, or one that this very command began", "name another")
    if (folder / AUGMENTED_HEADER).exists():
        if read_header(folder, AUGMENTED_HEADER, AUGMENTED_FORMAT).get("job") != job:
            raise other
        shutil.rmtree(work, ignore_errors=True)
        return None
    begun = (work / "job.json").exists()
    own = (work, folder / "graph")  # the second: what the command line wrote a data set to
    if not begun and folder.exists() and any(path not in own for path in folder.iterdir()):
        raise other
    if begun:
        stack.enter_context(_locked(work / "lock"))
        header = read_header(work, "job.json", JOB_FORMAT)
        if header.get("job") != job or not isinstance(header.get("width"), int):
            raise other
        plan = make_plan(shape, request.memory, header["width"])
        if not (folder / "features.npy.partial").exists() and not (folder / "features.npy").exists():
            forget_units(work, unit_name())
        return plan
    plan = make_plan(shape, request.memory)
    folder.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    stack.enter_context(_locked(work / "lock"))
    free = shutil.disk_usage(folder).free
    if free < plan.written_bytes:
        raise InputError("out", f"{folder} with {free} bytes free", f"on a disk with {plan.written_bytes} bytes free")
    header = {"format": JOB_FORMAT, "job": job, "width": plan.width, "files": {}}
    replace_file(work / "job.json", json.dumps(header, indent=1).encode())
    return plan


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """Keep a second run out of the folder; the lock goes with the process."""
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("out", str(path.parent.parent), "a folder that no other run works in") from None
        yield file


def _hops(
    files: SliceFiles, request: Request, kept: Kept, indptr: np.ndarray, rank: int, size: int
) -> Iterator[int]:
    augmenter, plan = request.augmenter, files.plan
    weights = hop_weights(augmenter.weighting, augmenter.hops, augmenter.alpha, augmenter.heat_time)

    def operator() -> DiskOperator | None:  # only where a slice is left to do
        if augmenter.hops == 0:
            return None
        return DiskOperator(files.graph, indptr, augmenter.operator, augmenter.dtype, plan.resident)

    yield from chain_slices(files, operator, weights, kept.nodes, kept.fit_nodes, rank, size)


def _fit(scaler: Scaler, files: SliceFiles) -> None:
    source = SlicedRows(files, fit=True)
    try:
        scaler.fit(source)  # type: ignore[arg-type]
    finally:
        source.close()


def _finish(
    folder: Path, graph: DiskGraph, request: Request, scaler: Scaler, kept: Kept, files: SliceFiles
) -> None:
    """Write what goes with the features, last of all the JSON: with it the folder is whole. Then remove the slices."""
    augmenter = Augmenter(**vars(request.augmenter))
    augmenter.num_features_, augmenter.shift_, augmenter.scale_ = graph.num_features, scaler.shift, scaler.scale
    config, arrays = augmenter.state()
    nodes = np.arange(graph.num_nodes) if kept.nodes is None else kept.nodes
    arrays |= {"nodes": nodes, "labels": kept.labels} | (kept.splits or {})
    entries = {name: copy_array(array, folder / f"{name}.npy", files.traffic) for name, array in arrays.items()}
    entries["features"] = finish_rows(files, folder / "features.npy")
    work = read_header(files.work, "job.json", JOB_FORMAT)
    header = {"format": AUGMENTED_FORMAT, "classes": graph.num_classes, "augmenter": config, "job": work["job"]}
    replace_file(folder / AUGMENTED_HEADER, json.dumps(header | {"files": entries}, indent=1).encode() + b"\n")
    shutil.rmtree(files.work, ignore_errors=True)
