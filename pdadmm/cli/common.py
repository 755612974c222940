"""What the commands share: flags of data and solvers, reading the graph, places to write to."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm import console
from pdadmm.admm.presets import PRESETS
from pdadmm.data import Graph, load_with_split
from pdadmm.data.registry import check_data_dir
from pdadmm.disk.augmented import AUGMENTED_HEADER, AugmentedFolder
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.graph import HEADER
from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank
from pdadmm.parameters import Check, parameters
from pdadmm.solvers import SOLVERS

__all__ = [
    "accepted",
    "add_data_flags",
    "add_log_flags",
    "add_parameter_flags",
    "add_preset_flag",
    "add_solver_flag",
    "check_writable",
    "early_flags",
    "flags",
    "preset_name",
    "read_graph",
    "solver_name",
    "start_logging",
    "tell_graph",
]

DRAWN = ("random:", "fraction:")  # splits that have a seed

log = logging.getLogger("pdadmm")


def flags(solver: type) -> list[dataclasses.Field]:
    """Return the hyper-parameters of a solver that have a flag."""
    return [field for field in parameters(solver) if field.metadata["check"].flag]


def early_flags(command: str, arguments: list[str], *names: str) -> argparse.Namespace:
    """Read a few flags ahead of the others, whose names and defaults depend on them."""
    from pdadmm.cli import Parser

    first = Parser(prog=f"pdadmm {command}", add_help=False)
    for name in names:
        first.add_argument("--" + name)
    return first.parse_known_args(arguments)[0]


def solver_name(command: str, arguments: list[str]) -> str:
    """Return the solver that the arguments name: its flags are known only then."""
    early = early_flags(command, arguments, "solver", "bits")
    return early.solver or ("pdadmm-g" if early.bits is None else "pdadmm-g-q")


def preset_name(command: str, arguments: list[str]) -> str:
    """Return the preset that the arguments name: the solver's defaults are known only then."""
    name = early_flags(command, arguments, "preset").preset
    return "default" if name is None else name


def add_solver_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """Add --solver, whose default is ``name``."""
    parser.add_argument(
        "--solver", default=name, metavar="NAME",
        help="one of " + ", ".join(SOLVERS) + " (default: pdadmm-g, with --bits pdadmm-g-q)",
    )  # fmt: skip


def add_preset_flag(parser: argparse.ArgumentParser) -> None:
    """Add --preset; the parser's other defaults are of the preset already."""
    rows = "; ".join(f"{row.name}, {row.description}" for row in PRESETS.values())
    parser.add_argument("--preset", default="default", metavar="NAME", help=f"{rows} (default: default)")


def add_data_flags(parser: argparse.ArgumentParser, split_seed: bool = True, split: bool = True) -> None:
    """Add what names a graph and, with ``split``, its split."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", required=True, metavar="NAME",
        help="a name of `pdadmm datasets`, or the path of a file or folder in one of its formats",
    )  # fmt: skip
    data.add_argument("--data-dir", metavar="DIR", help="folder of the data files (default: PDADMM_DATA)")
    if split:
        data.add_argument(
            "--split", metavar="SPLIT",
            help="public, file, random:20 (20 nodes per class) or fraction:60/20/20 (default: the data set's own)",
        )  # fmt: skip
    if split_seed:
        data.add_argument("--split-seed", default="0", metavar="N", help="seed of a drawn split (default: 0)")


def add_log_flags(parser: Any) -> None:
    """Add what decides how much is told of the work under way, and how."""
    parser.add_argument("--quiet", action="store_true", help="no progress")
    levels, forms = ", ".join(console.LEVELS), ", ".join(console.FORMATS)
    parser.add_argument("--log-level", default="info", metavar="LEVEL", help=f"one of {levels} (default: info)")
    parser.add_argument(
        "--log-format", default="text", metavar="NAME",
        help=f"form of the log on standard error: {forms} (default: text); json is one object a line",
    )  # fmt: skip


def start_logging(given: argparse.Namespace) -> None:
    """Log as the flags of ``add_log_flags`` say; InputError for a level or a form that is not one."""
    if given.log_level not in console.LEVELS:
        raise InputError("log_level", given.log_level, "one of " + ", ".join(console.LEVELS))
    if given.log_format not in console.FORMATS:
        raise InputError("log_format", given.log_format, "one of " + ", ".join(console.FORMATS))
    console.start_logging("warning" if given.quiet else given.log_level, launched_rank(), given.log_format)


def add_parameter_flags(
    parser: argparse.ArgumentParser,
    fields: list[dataclasses.Field],
    title: str = "solver",
    only_given: bool = False,
    preset: dict[str, Any] | None = None,
) -> None:
    """Add a flag for each hyper-parameter; with ``only_given`` what is not given stays out of the result.

    ``preset`` holds the defaults that differ from the hyper-parameters' own.
    """
    own = parser.add_argument_group(title)
    for field in fields:
        check, default = field.metadata["check"], (preset or {}).get(field.name, field.default)
        note = "" if default is None else f" (default: {default})"
        allowed = f": {', '.join(check.choices)}" if check.choices else ""
        own.add_argument(
            "--" + field.name.lower().replace("_", "-"),
            dest=field.name, default=argparse.SUPPRESS if only_given else default, metavar=check.metavar,
            help=(field.metadata["help"] + allowed + note).replace("%", "%%"),
        )  # fmt: skip


def accepted(name: str, value: Any, check: Check) -> Any:
    """Return a value of the command line converted by ``check``; InputError where it is refused."""
    try:
        return check.accept(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise InputError(name, value, check.allowed) from None


def check_writable(given: argparse.Namespace, *names: str, inputs: Sequence[str] = ()) -> None:
    """Raise InputError where a file that a flag names cannot be written, before the work that fills it.

    A file may not be named twice, nor be one that a flag of ``inputs`` names.
    """
    named = [(name, getattr(given, name, None)) for name in inputs]
    taken = {Path(path).resolve(): name for name, path in named if path and Path(path).is_file()}
    for name in names:
        if not getattr(given, name):
            continue
        path = Path(getattr(given, name)).resolve()
        if path in taken:
            raise InputError(name, getattr(given, name), f"another file than that of {taken[path]}")
        taken[path] = name
        if not path.parent.is_dir():
            raise InputError(name, getattr(given, name), "in a folder that exists", "make the folder first")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(name, getattr(given, name), "a file that can be written")


def read_graph(given: argparse.Namespace, from_disk: bool = False) -> Graph | AugmentedFolder | GraphFolder:
    """Read the graph with its split, as the data flags say; or open what `pdadmm augment` made of one.

    ``from_disk``: a graph on the disk is opened, and not read.
    """
    check_data_dir(given.dataset, given.data_dir)
    if not given.split_seed.isascii() or not given.split_seed.isdigit():
        raise InputError("split_seed", given.split_seed, "a whole number of at least 0")
    if int(given.split_seed) and not (given.split or "").startswith(DRAWN):
        remedy = "splits random:N and fraction:A/B/C are drawn"
        raise InputError("split_seed", given.split_seed, "left out with a split that is not drawn", remedy)
    if (Path(given.dataset) / AUGMENTED_HEADER).is_file():
        folder = AugmentedFolder(given.dataset)
        if given.split not in (None, "file") or folder.splits is None:
            remedy = "give --split to pdadmm augment: the scaling is learned from the training nodes"
            raise InputError("split", given.split, "the one that the folder was augmented with", remedy)
        return folder
    if from_disk and (Path(given.dataset) / HEADER).is_file():
        return GraphFolder(given.dataset, given.split, int(given.split_seed))
    return load_with_split(given.dataset, given.data_dir, given.split, int(given.split_seed))


def tell_graph(graph: Graph | AugmentedFolder | GraphFolder) -> None:
    """Log what was read: sizes and labelled nodes."""
    if launched_rank() > 0:
        return
    classes = int(graph.num_classes or 0)
    labelled = int(np.count_nonzero(graph.labels >= 0))
    edges = ""
    if isinstance(graph, Graph):
        edges = f" {graph.num_edges:,} {'' if graph.weights is None else 'weighted '}edges,"
    fields = {"nodes": graph.num_nodes, "features": graph.num_features, "classes": classes}
    log.info(
        "%s: %s nodes,%s %s features, %d classes, %s labelled nodes",
        graph.name, f"{graph.num_nodes:,}", edges, f"{graph.num_features:,}", classes, f"{labelled:,}",
        extra={"fields": fields | {"labelled": labelled}},
    )  # fmt: skip
