"""Augmentation from disk: the job, its folder, and how it goes on after a kill at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.augment import WEIGHTINGS, Augmenter, Scaler, hop_weights
from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.disk.assemble import SlicedRows, finish_rows, write_rows
from pdadmm.disk.augmented import AUGMENTED_FORMAT, AUGMENTED_HEADER
from pdadmm.disk.blocks import NewArray, copy_array
from pdadmm.disk.dataset import splits_of
from pdadmm.disk.exchange import Exchange, OnAll, Tell
from pdadmm.disk.graph import HEADER, DiskGraph
from pdadmm.disk.jobs import check_local, check_room, disk_errors, forget_local, local_folder, open_job, open_local
from pdadmm.disk.manifest import Manifest
from pdadmm.disk.operator import DiskOperator
from pdadmm.disk.plan import Plan, Shape
from pdadmm.disk.slices import SliceFiles, chain_slices, split_features
from pdadmm.errors import InputError
from pdadmm.files import replace_file
from pdadmm.parallel.agreement import require_agreement
from pdadmm.parallel.launch import together
from pdadmm.parallel.transport import LocalTransport, Transport

__all__ = ["ROWS", "Request", "augment_folder"]

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

    @property
    def fit_labels(self) -> np.ndarray:
        """The classes of the nodes that the scaling is learned from."""
        return self.labels[: self.fit_count] if self.fit_nodes is None else self.labels[self.fit_nodes]


def augment_folder(
    graph: DiskGraph,
    request: Request,
    out: str | os.PathLike,
    transport: Transport | None = None,
    watch: Watch = lambda step, done, total: None,
    local: str | os.PathLike | None = None,
) -> Plan | None:
    """Augment a graph on the disk into the folder ``out``, within ``request.memory``; collective over ranks.

    The same call goes on where a killed one ended, and returns None where the work was done before. The result has the
    bits of Augmenter.fit_transform for every memory limit and number of ranks. All ranks read the graph's folder, or
    copies of it, and see ``out``; a rank takes every R-th slice of columns through all hops. Slices stay in ``out``,
    and a rank writes every R-th stretch of rows; or, with ``local``, in rank-RANK in that folder, which no other rank
    need see: then the ranks send each other columns (pdadmm.disk.exchange), and only as many go on after a kill.
    ``watch(step, done, total)`` is told of this rank's bytes. Raises InputError on all ranks for what cannot be used,
    and for too little memory or disk.
    """
    transport, folder, augmenter = transport or LocalTransport(), Path(out), request.augmenter
    rank, size, job = transport.rank, transport.size, _job(graph, request)
    require_agreement(transport, {"dataset": job["graph"], "local": "not given" if local is None else "given"})
    on_all = _on_all(transport, "out", folder)
    kept, indptr = on_all(lambda: _kept(graph, request)), on_all(graph.indptr)
    shape = _shape(graph, indptr, augmenter, kept)

    def tell(step: str, total: int, counts: Iterator[int]) -> None:
        done = 0
        for count in counts:
            done += count
            watch(step, done, -(-total // size))

    with contextlib.ExitStack() as stack:
        steps = _begin(graph, job, shape, request.memory, folder, local, transport, stack)
        if steps is None:
            return None
        files, plan = steps.files, steps.files.plan
        steps.cut(partial(tell, "cutting", shape.feature_total))
        steps.on_all(lambda: tell("hops", plan.result_bytes, _hops(files, request, kept, indptr, rank, size)))
        scaler = Scaler(augmenter.scaling, shape.blocks)
        steps.fit(scaler, kept.fit_labels)
        scaler.shift, scaler.scale = transport.bcast((scaler.shift, scaler.scale))
        path = folder / "features.npy"
        if not transport.bcast(path.exists()):  # else the end of a killed run
            on_all(lambda: NewArray(path, files.result_shape, files.dtype, resume=True).close() if rank == 0 else None)
            steps.write(scaler, path, partial(tell, "scaling", plan.result_bytes))
        on_all(lambda: _finish(folder, graph, request, job, scaler, kept, files) if rank == 0 else None)
        if local is not None:
            forget_local(files.work, job)
        return plan


def _on_all(transport: Transport, argument: str, folder: Path) -> OnAll:
    """Return what does a step on all ranks, and raises on all what the disk of a folder has against it on any."""

    def on_all(step: Callable[[], Any]) -> Any:
        def run() -> Any:
            with disk_errors(argument, folder):
                return step()

        return together(transport, run)

    return on_all


def _begin(
    graph: DiskGraph,
    job: dict[str, Any],
    shape: Shape,
    memory: int,
    folder: Path,
    local: str | os.PathLike | None,
    transport: Transport,
    stack: contextlib.ExitStack,
) -> _Shared | Exchange | None:
    """Open the folders and return the steps of the job; None where it was finished before."""
    rank, size, on_all = transport.rank, transport.size, _on_all(transport, "out", folder)
    ranks, dtype = None if local is None else size, np.dtype(job["parameters"]["dtype"])
    place = local_folder("" if local is None else local, rank)
    in_place = _on_all(transport, "local", place)
    if local is not None and not transport.bcast((folder / AUGMENTED_HEADER).exists()):
        in_place(lambda: check_local(place, job, size))
    plan = on_all(lambda: open_job(folder, job, shape, memory, ranks, stack) if rank == 0 else None)
    plan = transport.bcast(plan)
    if local is None:
        if plan is None:
            return None
        work, own = folder / "work", range(plan.slices)
        files = SliceFiles(work, graph, plan, dtype, Manifest(work, rank), graph.traffic, own)
        return _Shared(files, transport, on_all)
    if plan is None:
        forget_local(place, job)
        return None
    in_place(lambda: open_local(place, job, plan.width, size, stack))
    own = range(rank, plan.slices, size)
    files = SliceFiles(place, graph, plan, dtype, Manifest(place, rank), graph.traffic, own)
    needed = {"local": (place, files.needed_bytes)} | ({} if rank else {"out": (folder, plan.result_bytes)})
    check_room(transport, in_place, needed)
    return Exchange(files, transport, in_place, on_all)


class _Shared:
    """The steps around the hops for slices in a folder that all ranks see; Exchange has them for those in one each."""

    def __init__(self, files: SliceFiles, transport: Transport, on_all: OnAll) -> None:
        self.files, self.transport, self.on_all = files, transport, on_all

    def cut(self, tell: Tell) -> None:
        """Cut every R-th chunk of the features."""
        rank, size = self.transport.rank, self.transport.size
        self.on_all(lambda: tell(split_features(self.files, rank, size)))
        self._look()

    def _look(self) -> None:
        """See what the other ranks have done."""
        self.files.manifest = Manifest(self.files.work, self.transport.rank)

    def fit(self, scaler: Scaler, labels: np.ndarray) -> None:
        """Learn the scaling on rank 0."""
        self._look()
        self.on_all(lambda: None if self.transport.rank else _fit(scaler, self.files, labels))

    def write(self, scaler: Scaler, path: Path, tell: Tell) -> None:
        """Write every R-th stretch of rows."""
        rank, size = self.transport.rank, self.transport.size
        self.on_all(lambda: tell(write_rows(self.files, scaler, path, rank, size)))


def _job(graph: DiskGraph, request: Request) -> dict[str, Any]:
    """What a folder is for: a run goes on in it with the same alone."""
    digest = hashlib.sha256((graph.folder / HEADER).read_bytes()).hexdigest()
    job: dict[str, Any] = {"graph": digest, "parameters": dict(vars(request.augmenter))}
    return job | {"rows": request.rows, "split": request.split, "split_seed": request.split_seed}


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


def _fit(scaler: Scaler, files: SliceFiles, labels: np.ndarray) -> None:
    source = SlicedRows(files, fit=True)
    try:
        scaler.fit(source, labels=labels)  # type: ignore[arg-type]
    finally:
        source.close()


def _finish(
    folder: Path,
    graph: DiskGraph,
    request: Request,
    job: dict[str, Any],
    scaler: Scaler,
    kept: Kept,
    files: SliceFiles,
) -> None:
    """Write what goes with the features, last of all the JSON: with it the folder is whole. Then remove the work."""
    augmenter, work = Augmenter(**vars(request.augmenter)), folder / "work"
    augmenter.num_features_, augmenter.shift_, augmenter.scale_ = graph.num_features, scaler.shift, scaler.scale
    config, arrays = augmenter.state()
    nodes = np.arange(graph.num_nodes) if kept.nodes is None else kept.nodes
    arrays |= {"nodes": nodes, "labels": kept.labels} | (kept.splits or {})
    entries = {name: copy_array(array, folder / f"{name}.npy", files.traffic) for name, array in arrays.items()}
    entries["features"] = finish_rows(files, folder / "features.npy", Manifest(work, 0).done)
    header = {"format": AUGMENTED_FORMAT, "classes": graph.num_classes, "augmenter": config, "job": job}
    replace_file(folder / AUGMENTED_HEADER, json.dumps(header | {"files": entries}, indent=1).encode() + b"\n")
    shutil.rmtree(work, ignore_errors=True)
