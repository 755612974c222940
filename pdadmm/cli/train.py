"""``pdadmm train``: read a graph, train a solver on it, report and save."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pdadmm import console
from pdadmm.cli import run_folder
from pdadmm.cli.common import (
    accepted,
    add_data_flags,
    add_log_flags,
    add_parameter_flags,
    add_preset_flag,
    add_solver_flag,
    check_writable,
    flags,
    preset_name,
    read_graph,
    solver_name,
    start_logging,
    tell_graph,
)
from pdadmm.cli.config import Config
from pdadmm.cli.parser import Parser
from pdadmm.confusion import confusion_matrix
from pdadmm.data import Graph
from pdadmm.data.registry import uses_data_dir
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.dataset import GraphFolder
from pdadmm.errors import InputError
from pdadmm.files import resident_bytes
from pdadmm.history import History, bytes_of_iteration
from pdadmm.kept import CHECKPOINT_EVERY, Kept
from pdadmm.parallel.launch import make_transport, together
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import whole
from pdadmm.planner.report import predict_run, sentence, warm
from pdadmm.solvers import solver_class
from pdadmm.trace import Trace

__all__ = ["run"]

EVERY = str(CHECKPOINT_EVERY)


def run(arguments: list[str]) -> int:
    """Train; collective over the ranks of mpirun."""
    transport = make_transport()
    given, estimator = together(transport, lambda: _given(arguments))
    graph = together(transport, lambda: _graph(given, transport, estimator))
    tell_graph(graph)
    progress = console.Progress(_expected_iterations(estimator), transport.rank == 0 and not given.quiet)

    def watch(row: dict[str, Any]) -> None:
        given.record()
        progress(row)

    trace = Trace() if given.trace else None
    warm(estimator.checked())
    base = resident_bytes()
    try:
        estimator.fit(graph, watch=watch, trace=trace, **vars(given.kept))
    finally:
        progress.close()
    summary = _summary(given, graph, estimator.summary_)
    streamed = getattr(given, "memory", None) is not None
    foreseen = transport.rank == 0
    summary["predicted"] = predict_run(estimator.checked(), graph, summary, base) if foreseen else None
    if given.run and transport.rank == 0:
        told = confusion_matrix(estimator, graph) if isinstance(graph, Graph) and not streamed else None
        summary["confusion"] = told
    if transport.rank == 0:
        _report(summary)
        _compare(summary, estimator.history_)
    together(transport, lambda: _write(given, estimator, summary, trace) if transport.rank == 0 else None)
    return 0


def _given(arguments: list[str]) -> tuple[argparse.Namespace, Any]:
    """Return the flags, those of a configuration among them, and the solver's estimator."""
    config = Config("train", arguments)
    name = solver_name("train", config.early())
    solver = solver_class(name)
    preset = None if not hasattr(solver, "preset") else solver.preset_parameters(preset_name("train", config.early()))
    config.check_preset(preset or {})
    parser = _parser(solver, name, preset)
    given = parser.parse_args(config.words(parser))
    if given.dataset != config.values.get("dataset") and not uses_data_dir(given.dataset):
        # the folder that goes with the file's data set, and cannot be unset on the command line
        given.data_dir = None if given.data_dir == config.values.get("data-dir") else given.data_dir
    run_folder.place(given)
    given.kept = _kept(given, config)
    start_logging(given)
    checks = {field.name: field.metadata["check"] for field in flags(solver)}
    estimator = solver(**{name: accepted(name, getattr(given, name), check) for name, check in checks.items()})
    config.tell_versions()
    return given, estimator


def _parser(solver: type[Any], name: str, preset: dict[str, Any] | None) -> Parser:
    """Return the parser of ``train``; a solver's own flags come from its hyper-parameters.

    ``preset`` holds the defaults that a preset changes; None for a solver without presets.
    """
    parser = Parser(
        name,
        prog="pdadmm train",
        description="Train a network on a graph. Under mpirun the layers, or the nodes, are spread over the ranks. "
        f"These are the flags with --solver {name}; others have others: pdadmm train --solver adam --help.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="flags from this file (TOML), as --run writes it; the command line's win"
    )
    add_data_flags(parser)
    add_solver_flag(parser, name)
    if preset is not None:
        add_preset_flag(parser)
    add_parameter_flags(parser, flags(solver), preset=preset)
    if solver.streams:
        disk = parser.add_argument_group("training from disk")
        disk.add_argument("--memory", metavar="SIZE", help="limit on memory beyond the graph's, such as 2GiB")
        disk.add_argument("--scratch", metavar="DIR", help="folder for what does not fit, and for checkpoints")
    out = parser.add_argument_group("results")
    files = ", ".join([run_folder.CONFIG, *run_folder.FILES.values()])
    out.add_argument("--run", metavar="DIR", help=f"write all of a run into this folder: {files}")
    out.add_argument("--summary", metavar="FILE", help="write the run's figures here (JSON)")
    out.add_argument("--history", metavar="FILE", help="write every iteration here (JSON lines)")
    out.add_argument("--save", metavar="FILE", help="write the trained model here (safetensors)")
    out.add_argument(
        "--trace", metavar="FILE", nargs="?", const="",
        help="write every rank's timeline here (JSON, Chrome's trace format); with --run give no FILE",
    )  # fmt: skip
    out.add_argument("--checkpoint", metavar="DIR", help="write checkpoints into this folder")
    out.add_argument("--every", default=EVERY, metavar="N", help=f"iterations between checkpoints (default: {EVERY})")
    out.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add_log_flags(out)
    return parser


def _kept(given: argparse.Namespace, config: Config) -> Kept:
    """Return what ``fit`` is told of checkpoints and of training from disk; InputError for what lacks its fellow."""
    every = accepted("every", given.every, whole(1))
    if not given.checkpoint and given.every == str(config.values.get("every")):
        every = int(EVERY)  # a configuration has it whether or not there are checkpoints
    disk = getattr(given, "memory", None), getattr(given, "scratch", None)
    kept = Kept(given.checkpoint, every, given.resume, *disk)
    kept.check("every")
    return kept


def _graph(given: argparse.Namespace, transport: Transport, estimator: Any) -> Graph | AugmentedFolder | GraphFolder:
    """Read the graph and its split; check early that the results can be written."""
    if given.save and str(getattr(given, "ultra_wide", False)).lower() in ("true", "yes"):
        raise InputError("save", given.save, "left out with --ultra-wide", "the slices stay on the ranks")
    on_disk = estimator.network == "GNN" and getattr(given, "memory", None) is not None
    graph = read_graph(given, on_disk)
    estimator.checked()  # before the folder of a run is made
    if transport.rank == 0:
        inputs = {"dataset": given.dataset, "config": given.config}
        check_writable(argparse.Namespace(**given.copies, **inputs), *given.copies, inputs=tuple(inputs))
        run_folder.begin(given, flags(type(estimator)))
        check_writable(given, "summary", "history", "save", "trace", inputs=tuple(inputs))
    return graph


def _expected_iterations(estimator: Any) -> int:
    settings = estimator.checked()
    return settings.iterations * len(settings.stages)


def _summary(
    given: argparse.Namespace, graph: Graph | AugmentedFolder | GraphFolder, learned: dict[str, Any]
) -> dict[str, Any]:
    assert graph.splits is not None  # read_graph
    return {
        "solver": given.solver,
        **({"preset": given.preset} if hasattr(given, "preset") else {}),
        "dataset": given.dataset,
        "split": given.split or graph.own_split or "file",
        "split_seed": int(given.split_seed),
        "nodes": graph.num_nodes,
        "train_nodes": len(graph.splits["train"]),
        **learned,
    }


def _write_history(history: History, path: str) -> None:
    (history.to_csv if path.endswith(".csv") else history.to_jsonl)(path)


def _write(given: argparse.Namespace, estimator: Any, summary: dict[str, Any], trace: Trace | None) -> None:
    """Write the results, each to its place; InputError for those that cannot be written, after the others."""
    text = json.dumps(summary, indent=1) + "\n"
    jobs: list[tuple[str, Any, Callable[[Any], Any]]] = [
        ("summary", given.summary, lambda path: Path(path).write_text(text, encoding="utf-8")),
        ("history", given.history, partial(_write_history, estimator.history_)),
        ("save", given.save, estimator.save),
    ]
    for flag, path in given.copies.items():
        copy = partial(shutil.copyfile, getattr(given, flag))
        jobs.append((flag, path, partial(_write_history, estimator.history_) if flag == "history" else copy))
    if trace is not None:
        jobs.append(("trace", given.trace, trace.write))
    failed = []
    for flag, path, write in jobs:
        try:
            if path:
                write(path)
        except OSError as error:
            failed.append((flag, path, error.strerror or ""))
    if failed:
        flags, paths, reasons = (", ".join(dict.fromkeys(column)) for column in zip(*failed))
        allowed = "a file that can be written" if len(failed) == 1 else "files that can be written"
        raise InputError(flags, paths, allowed, reasons)


def _compare(summary: dict[str, Any], history: History) -> None:
    """Print predicted beside measured, where there is a model of the solver."""
    line = sentence(summary, bytes_of_iteration(summary["solver"], history.column("bytes")))
    if line is not None:
        print(line)


def _report(summary: dict[str, Any]) -> None:
    """Print the result as a short table."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{value:.4f}"

    print(f"{summary['solver']} on {summary['dataset']} ({summary['split']} split, seed {summary['seed']})")
    print("layers  iterations  validation  test    test when grown")
    for stage in summary["stages"]:
        grown = percent(stage["start_test_accuracy"])
        accuracy = f"{percent(stage['val_accuracy']):10}  {percent(stage['test_accuracy']):6}"
        print(f"{stage['layers']:6}  {stage['iterations']:10}  {accuracy}  {grown}")
    print(
        f"training {console.human_seconds(summary['seconds_training'])}"
        f" ({console.human_seconds(summary['seconds_per_iteration'])} an iteration of all layers)"
        f" on {summary['ranks']} rank{'s' if summary['ranks'] > 1 else ''}"
        f", augmentation {console.human_seconds(summary['seconds_augmentation'])}"
        f", messages {console.human_bytes(summary['bytes_sent'])}"
    )
    print(f"test accuracy of the {summary['layers']}-layer network: {percent(summary['test_accuracy'])}")
