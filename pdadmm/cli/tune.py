"""``pdadmm tune``: search a solver's hyper-parameters by validation accuracy."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from pathlib import Path
from typing import Any

from pdadmm import console
from pdadmm.cli.common import (
    accepted,
    add_data_flags,
    add_log_flags,
    add_parameter_flags,
    add_solver_flag,
    check_writable,
    flags,
    read_graph,
    solver_name,
    start_logging,
    tell_graph,
)
from pdadmm.data import Graph
from pdadmm.errors import DivergenceError, InputError
from pdadmm.parallel.launch import make_transport, together
from pdadmm.parameters import whole
from pdadmm.solvers import solver_class
from pdadmm.tuning import SPACES, best_trial, tune

__all__ = ["run"]

log = logging.getLogger("pdadmm")


def run(arguments: list[str]) -> int:
    """Tune; collective over the ranks of mpirun."""
    transport = make_transport()
    given, name, budget, seed, fixed = together(transport, lambda: _given(arguments))
    graph = together(transport, lambda: _graph(given, transport.rank))
    tell_graph(graph)
    trials = tune(name, graph, budget, fixed, seed, _tell)
    best = best_trial(trials)
    if transport.rank == 0:
        _print(trials, best)
        if best is not None:
            print(f"best: {_training(given, name, fixed | best['parameters'])}")
    summary = {
        "solver": name, "dataset": given.dataset, "split": given.split or graph.own_split or "file",
        "split_seed": int(given.split_seed), "tune_seed": seed, "budget": budget, "fixed": fixed,
        "best": best and {key: best[key] for key in ("trial", "parameters", "val_accuracy")}, "trials": trials,
        "command": shlex.join(["pdadmm", "tune", *arguments]),
    }  # fmt: skip
    together(transport, lambda: _write(given.summary, summary) if transport.rank == 0 else None)
    transport.close()
    if best is None:
        raise DivergenceError(f"all {budget} trials diverged; the first said: {trials[0]['failed']}")
    return 0


def _given(arguments: list[str]) -> tuple[argparse.Namespace, str, int, int, dict[str, Any]]:
    """Return the flags, and out of them the solver's name, budget, seed and the parameters that are fixed."""
    name = solver_name("tune", arguments)
    solver = solver_class(name)
    given = _parser(solver, name).parse_args(arguments)
    budget = accepted("budget", given.budget, whole(1))
    seed = accepted("tune_seed", given.tune_seed, whole(0, 2**63 - 1))
    fixed = {
        field.name: accepted(field.name, getattr(given, field.name), field.metadata["check"])
        for field in flags(solver)
        if hasattr(given, field.name)
    }
    solver(**fixed).checked()
    if not set(SPACES[name]) - set(fixed):
        raise InputError("budget", budget, "left to a parameter that is searched", "all of the space are given")
    start_logging(given)
    return given, name, budget, seed, fixed


def _parser(solver: type, name: str) -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        name,
        prog="pdadmm tune",
        description="Random search by validation accuracy; trial 0 is the defaults. Flags of the solver that are "
        "given are kept fixed, the others of its search space are searched. "
        f"These are the flags with --solver {name}; others have others: pdadmm tune --solver adam --help.",
    )
    add_data_flags(parser)
    add_solver_flag(parser, name)
    search = parser.add_argument_group("search")
    search.add_argument("--budget", default="10", metavar="TRIALS", help="number of trials (default: 10)")
    search.add_argument("--tune-seed", default="0", metavar="N", help="seed of the trials' draws (default: 0)")
    search.add_argument("--summary", metavar="FILE", help="write trials and best parameters here (JSON)")
    add_log_flags(search)
    add_parameter_flags(parser, flags(solver), "solver: fixed where given", only_given=True)
    return parser


def _graph(given: argparse.Namespace, rank: int) -> Graph:
    if rank == 0:
        check_writable(given, "summary")
    graph = read_graph(given)
    if not isinstance(graph, Graph):
        raise InputError("dataset", given.dataset, "a graph", "tuning takes the test nodes out of it")
    assert graph.splits is not None  # read_graph
    if not len(graph.splits["val"]):
        raise InputError("split", given.split or "its own", "one with validation nodes, as they choose")
    return graph


def _tell(trial: dict[str, Any]) -> None:
    log.info("trial %d: %s, %s", trial["trial"], _accuracy(trial), console.human_seconds(trial["seconds"]))


def _accuracy(trial: dict[str, Any]) -> str:
    return "diverged" if "failed" in trial else f"{trial['val_accuracy']:.4f}"


def _print(trials: list[dict[str, Any]], best: dict[str, Any] | None) -> None:
    """Print a line for each trial, the best one marked."""
    print("trial  validation  seconds  parameters")
    for trial in trials:
        mark = "*" if trial is best else " "
        values = ", ".join(f"{name}={value}" for name, value in trial["parameters"].items())
        print(f"{trial['trial']:5}  {_accuracy(trial):>8} {mark}  {trial['seconds']:7.2f}  {values}")


def _training(given: argparse.Namespace, name: str, parameters: dict[str, Any]) -> str:
    """Return the command that trains with these parameters on the graph of the search."""
    seed = given.split_seed if int(given.split_seed) else None
    data = {"dataset": given.dataset, "data_dir": given.data_dir, "split": given.split, "split_seed": seed}
    words = ["pdadmm", "train"]
    for flag, value in {**data, "solver": name, **parameters}.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += ["--" + flag.lower().replace("_", "-"), text]
    return shlex.join(words)


def _write(path: str | None, summary: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError("summary", path, "a file that can be written", error.strerror or "") from None
