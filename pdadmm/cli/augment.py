"""``pdadmm augment``: augmented features of a graph, from disk to disk, within a limit of memory."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from pdadmm import console
from pdadmm.augment import AUGMENTATION, Augmenter
from pdadmm.cli.common import accepted, add_data_flags, add_parameter_flags
from pdadmm.data import DATASETS, load_with_split
from pdadmm.data.registry import check_data_dir
from pdadmm.disk.augment import ROWS, Request, augment_folder
from pdadmm.disk.exchange import EXCHANGE_KINDS
from pdadmm.disk.graph import HEADER, DiskGraph, write_graph
from pdadmm.disk.plan import Plan
from pdadmm.errors import InputError
from pdadmm.files import peak_rss_bytes, resident_bytes
from pdadmm.parallel.launch import make_transport, together
from pdadmm.parameters import memory_size, one_of, parameters, refuse_idle, whole

__all__ = ["run"]

SOURCE = "source.json"  # of what a graph was written that had been no folder


def run(arguments: list[str]) -> int:
    """Augment; collective over the ranks of mpirun."""
    transport = make_transport()
    given = together(transport, lambda: _parser().parse_args(arguments))
    folder = Path(given.dataset)
    own = not (folder / HEADER).is_file()  # no graph on disk yet: it is written to one inside the result's folder
    if own:
        folder = Path(given.out) / "graph"
    request = together(transport, lambda: _request(given, None if own else given.split))
    together(transport, lambda: _write(given, folder, request.split_seed) if own and transport.rank == 0 else None)
    graph = together(transport, lambda: DiskGraph(folder))
    before, began = resident_bytes(), time.perf_counter()
    progress = console.StepProgress(transport.rank == 0 and not given.quiet)
    try:
        with graph:
            plan = augment_folder(graph, request, given.out, transport, progress, given.local)
    finally:
        progress.close()
    traffic = graph.traffic
    sent = sum(transport.ledger.sent[kind] for kind in EXCHANGE_KINDS)
    used = transport.allgather((traffic.read, traffic.written, max(0, peak_rss_bytes() - before), sent))
    if transport.rank == 0 and not given.quiet:
        _report(given.out, plan, request.memory, used, time.perf_counter() - began)
    transport.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm augment",
        description="Augment a graph larger than memory: features seen through powers of a graph operator, scaled, "
        "into a folder that pdadmm train reads. The same command goes on where a killed one ended.",
    )
    add_data_flags(parser)
    add_parameter_flags(parser, _fields(), "augmentation")
    own = parser.add_argument_group("work")
    own.add_argument(
        "--rows", default="labelled", metavar="NAME",
        help="rows to keep: labelled (training, validation, test nodes) or all (default: labelled)",
    )  # fmt: skip
    own.add_argument(
        "--memory", required=True, metavar="SIZE",
        help="most memory of each rank beyond what it has at the start, such as 2GiB",
    )  # fmt: skip
    own.add_argument("--out", required=True, metavar="DIR", help="folder of the result; every rank must see it")
    own.add_argument(
        "--local", metavar="DIR",
        help="folder on each rank's own disk for its slices; the ranks then send each other rows and columns "
        "(default: in the folder of the result)",
    )  # fmt: skip
    own.add_argument("--quiet", action="store_true", help="no progress, no report")
    return parser


def _fields() -> list:
    """The hyper-parameters of the augmentation, as the solvers have them."""
    from pdadmm.admm.estimator import PDADMMG

    return [field for field in parameters(PDADMMG) if field.name in (*AUGMENTATION, "dtype")]


def _request(given: argparse.Namespace, split: str | None) -> Request:
    """Return the checked flags."""
    check_data_dir(given.dataset, given.data_dir)
    memory = accepted("memory", given.memory, memory_size)
    fields = _fields()
    values = {one.name: accepted(one.name, getattr(given, one.name), one.metadata["check"]) for one in fields}
    refuse_idle(fields, values)
    rows, seed = accepted("rows", given.rows, one_of(ROWS)), accepted("split_seed", given.split_seed, whole(0))
    return Request(Augmenter(**values), rows, split, seed, memory)


def _write(given: argparse.Namespace, folder: Path, seed: int) -> None:
    """Write the graph to ``folder``; one that is there already must have come of the same data set and split."""
    named = given.dataset in DATASETS or not os.path.exists(given.dataset)
    dataset = given.dataset if named else os.path.abspath(given.dataset)
    asked = {"dataset": dataset, "split": given.split, "split_seed": seed}
    if (folder / HEADER).is_file():
        told = folder / SOURCE
        before = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else asked
        for name, value in asked.items():
            if before.get(name) != value:
                allowed = "left out" if before.get(name) is None else before[name]
                raise InputError(name, value, f"{allowed}, as {given.out} was begun", "name another folder")
        return
    graph = load_with_split(given.dataset, given.data_dir, given.split, seed)
    _make(Path(given.out))
    try:
        write_graph(graph, folder)
        (folder / SOURCE).write_text(json.dumps(asked) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError("out", given.out, "a folder on a disk that takes the graph", error.strerror or "") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError("out", str(folder), "a folder that can be made", error.strerror or "") from None
    if any(folder.iterdir()):
        raise InputError("out", str(folder), "a new or empty folder", "name another")


def _report(out: str, plan: Plan | None, memory: int, used: list[tuple[int, ...]], seconds: float) -> None:
    if plan is None:
        print(f"{out} was finished before")
        return
    x, size = plan.shape, console.human_bytes
    print(f"{out}: {x.kept} rows of {x.blocks * x.features} augmented features")
    where = "in memory" if plan.resident else "read from disk for every hop"
    print(f"{plan.slices} slice{'' if plan.slices == 1 else 's'} of {plan.width} columns, adjacency {where}")
    read, written, sent = (sum(rank[k] for rank in used) for k in (0, 1, 3))
    planned = size(plan.read_bytes), size(plan.written_bytes)
    print(f"read {size(read)} (planned {planned[0]}), wrote {size(written)} (planned {planned[1]})")
    if plan.exchange:
        print(f"sent {size(sent)} between ranks (planned {size(sum(plan.exchange.values()))})")
    peak = max(rank[2] for rank in used)
    print(f"peak memory {size(peak)} of {size(memory)} allowed, {console.human_seconds(seconds)}")
