"""``pdadmm plan``: predict memory, bytes and seconds of every placement, recommend one, simulate, draw."""

from __future__ import annotations

import argparse
import math
from typing import Any

from pdadmm.cli.common import accepted, check_writable
from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank, launched_size
from pdadmm.parameters import Check, memory_size, non_negative, one_of, positive, whole, whole_of
from pdadmm.plot import check_picture

__all__ = ["run"]

REQUIRED = ("nodes", "edges", "features", "layers", "hidden", "ranks")
BITS = (1, 2, 4, 8, 16, 32)


def _count(least: int) -> Check:
    """A whole number of at least ``least``, also as 3e9."""

    def accept(value: Any) -> int:
        number = float(value)
        if not math.isfinite(number) or number != int(number) or not least <= number <= 1e15:
            raise ValueError
        return int(number)

    return Check(accept, f"a whole number of at least {least} such as 1000 or 3e9", "N")


AT_LEAST_ONE = Check(lambda value: _at_least_one(value), "a number of at least 1", "X")

# Flag -> (what it may be, default or None, help)
FLAGS: dict[str, tuple[Check, Any, str]] = {
    "nodes": (_count(1), None, "nodes of the graph"),
    "edges": (_count(0), None, "edges of the graph, each once"),
    "features": (whole(1), None, "features of a node"),
    "layers": (whole(1), None, "layers L"),
    "hidden": (whole(1), None, "neurons of each hidden layer"),
    "ranks": (whole(1), None, "ranks to plan for"),
    "classes": (whole(2), 10, "classes"),
    "hops": (whole(0), 4, "hops K of the augmentation: n_0 is K + 1 times the features"),
    "train-nodes": (_count(1), None, "training nodes V (default: labelled nodes, else all)"),
    "labelled-nodes": (_count(1), None, "labelled nodes, which evaluation passes through (default: training nodes)"),
    "halo-rows": (_count(0), None, "rows that a GCN's halo moves for a layer one way (default: a cut at random)"),
    "bits": (whole_of(BITS), 32, "bits of each number of p and q in a message"),
    "dtype": (one_of(("float32", "float64")), "float32", "number format"),
    "memory": (memory_size, None, "memory of each rank, such as 24GiB (default: no limit)"),
    "ranks-per-host": (whole(1), None, "ranks that share a host's cores (default: its cores)"),
    "latency": (positive, None, "seconds of an empty message between ranks (default: as calibrated)"),
    "bandwidth": (positive, None, "bytes a second between ranks (default: as calibrated)"),
    "iterations": (whole(1), 20, "iterations to simulate"),
    "straggler": (AT_LEAST_ONE, 1.0, "factor on the work of the rank in the middle"),
    "jitter": (non_negative, 0.0, "deviation of the log of a random factor on every piece of work"),
    "slow-link": (AT_LEAST_ONE, 1.0, "factor on the messages of the boundary in the middle"),
    "seed": (whole(0), 0, "seed of the jitter"),
}
SIMULATED = ("iterations", "straggler", "jitter", "slow-link", "seed")


def _at_least_one(value: Any) -> float:
    number = positive.accept(value)
    if number < 1.0:
        raise ValueError
    return number


def run(arguments: list[str]) -> int:
    """Calibrate, or plan a training; simulate it and draw figures where asked."""
    given = _parser().parse_args(arguments)
    if launched_size() > 1:
        if launched_rank() > 0:
            return 2
        raise InputError("ranks", launched_size(), "1 process", "run pdadmm plan without mpirun")
    from pdadmm.planner.machine import load_machine, machine_folder

    if given.figures:
        check_picture("figures", given.figures)
        check_writable(given, "figures")
    folder = machine_folder(given.machine_dir)
    if given.calibrate:
        _calibrate(folder)
        if given.nodes is None:
            return 0
    values = _values(given)
    _plan(values, load_machine(folder), given)
    return 0


def _calibrate(folder: Any) -> None:
    from pdadmm.planner.calibrate import calibrate
    from pdadmm.planner.machine import save_machine

    machine = calibrate()
    path = save_machine(machine, folder)
    print(f"calibrated {machine.facts['processor']}, {machine.cores} cores: wrote {path}")


def _values(given: argparse.Namespace) -> dict[str, Any]:
    """Return the checked flags by name; those left out have their defaults."""
    missing = [name for name in REQUIRED if getattr(given, name) is None]
    if missing:
        raise InputError("plan", "without --" + ", --".join(missing), "given all of --" + ", --".join(REQUIRED))
    values = {}
    for flag, (check, default, _) in FLAGS.items():
        name = flag.replace("-", "_")
        text = getattr(given, name)
        values[name] = default if text is None else accepted(name, text, check)
        if flag in SIMULATED and text is not None and not (given.simulate or given.figures):
            raise InputError(name, text, "used with --simulate or --figures")
    if given.no_overlap and not (given.simulate or given.figures):
        raise InputError("no_overlap", "given", "used with --simulate or --figures")
    values["train_nodes"] = values["train_nodes"] or values["labelled_nodes"] or values["nodes"]
    values["labelled_nodes"] = values["labelled_nodes"] or values["train_nodes"]
    for small, large in (("train_nodes", "nodes"), ("train_nodes", "labelled_nodes"), ("labelled_nodes", "nodes")):
        if values[small] > values[large]:
            raise InputError(small, values[small], f"at most {large} = {values[large]}")
    pairs = values["nodes"] * (values["nodes"] - 1) // 2
    if values["edges"] > pairs:
        raise InputError("edges", values["edges"], f"at most {pairs}, the pairs of nodes", "give each edge once")
    return values


def _plan(values: dict[str, Any], machine: Any, given: argparse.Namespace) -> None:
    """Print the forecasts, the recommendation, and what was asked for beside."""
    from pdadmm.planner.choose import choose, explain, table
    from pdadmm.planner.forecast import forecasts
    from pdadmm.planner.request import gnn_job, graph_bytes, job_of, launch_line, setting_of

    job, gnn = job_of(values), gnn_job(values)
    setting = setting_of(values, machine, overlap=not given.no_overlap)
    found = forecasts(job, gnn, setting)
    print(table(found))
    print(explain(job, found, setting))
    print(graph_bytes(values))
    best = choose(found)
    if best is not None:
        print(launch_line(values, best))
    if given.simulate:
        from pdadmm.planner.choose import simulated

        grids = [one.grid for one in (best, *found) if one is not None and one.grid is not None]
        if not grids:
            raise InputError("ranks", values["ranks"], "a number that some grid fits, to be simulated", "take fewer")
        print(simulated(job, grids[0], setting, values["iterations"]))
    if given.figures:
        from pdadmm.planner.figures import plot_speedup

        plot_speedup(job, setting, values["iterations"], given.figures)
        print(f"wrote {given.figures}")


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm plan",
        description="Predict memory, bytes and seconds of an iteration for every way to spread a training, and "
        "recommend one. Rates come from a calibration of this machine: run --calibrate once, while nothing else runs.",
    )
    for flag, (check, default, help_) in FLAGS.items():
        note = "" if default is None else f" (default: {default})"
        parser.add_argument("--" + flag, metavar=check.metavar, help=help_ + note)
    parser.add_argument("--no-overlap", action="store_true", help="messages between hosts wait for their receiver")
    parser.add_argument("--simulate", action="store_true", help="simulate the recommended grid, event by event")
    parser.add_argument("--figures", metavar="PICTURE", help="draw the simulated speedup over layers and over ranks")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine and keep its rates")
    parser.add_argument(
        "--machine-dir", metavar="DIR", help="folder of the rates (default: PDADMM_MACHINE, or the user's cache)"
    )  # fmt: skip
    return parser
