"""``pdadmm compare``: a contest between solvers, each tuned with the same budget."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pdadmm.cli.common import (
    accepted,
    add_data_flags,
    add_log_flags,
    add_parameter_flags,
    check_writable,
    start_logging,
)
from pdadmm.contest import Contest, common_parameters, compare
from pdadmm.parameters import fraction, one_of, whole
from pdadmm.solvers import SOLVERS
from pdadmm.standings import table, table_of_work

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the contest, print its table and the parameters chosen."""
    given = _parser().parse_args(arguments)
    common = {
        field.name: accepted(field.name, getattr(given, field.name), field.metadata["check"])
        for field in common_parameters()
    }
    contest = Contest(
        given.dataset,
        given.data_dir,
        given.split,
        split_seeds=given.split_seeds,
        hidden=accepted("hidden", given.hidden, whole(1)),
        seeds=accepted("seeds", given.seeds, whole(1)),
        first_seed=accepted("first_seed", given.first_seed, whole(0, 2**62)),
        budget=accepted("budget", given.budget, whole(0)),
        tune_seed=accepted("tune_seed", given.tune_seed, whole(0, 2**63 - 1)),
        tune_seeds=accepted("tune_seeds", given.tune_seeds, whole(1)),
        test=given.test,
        common=common,
    )
    solvers = _listed("solvers", given.solvers, one_of(tuple(SOLVERS)))
    depths = _listed("layers", given.layers, whole(1))
    targets = None if given.targets is None else _listed("targets", given.targets, fraction)
    start_logging(given)
    check_writable(given, "summary")
    entries = [(solver, layers) for layers in depths for solver in solvers]
    summary = compare(contest, entries, given.summary, targets, shlex.join(["pdadmm", "compare", *arguments]))
    print(table(summary["rows"], summary["targets"]), end="\n\n")
    work = table_of_work(summary["rows"])
    if work:
        print(work, end="\n\n")
    for row in summary["rows"]:
        print(f"{row['solver']}, {row['layers']} layers: {_chosen(row)}")
    return 0


def _listed(name: str, text: str, check: Any) -> list[Any]:
    """Return the values of a list with commas, each once."""
    return list(dict.fromkeys(accepted(name, part, check) for part in text.split(",")))


def _chosen(row: dict[str, Any]) -> str:
    if not row["parameters"]:
        return "defaults"
    return ", ".join(f"{name}={value}" for name, value in row["parameters"].items())


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm compare",
        description="Tune every solver with the same budget, train the same seeds, and compare. A summary that "
        "holds a part of the same contest is gone on with.",
    )
    add_data_flags(parser, split_seed=False)
    own = parser.add_argument_group("contest")
    flag = own.add_argument
    every = ",".join(row.name for row in SOLVERS.values() if not row.on_graph)
    flag(
        "--solvers", default=every, metavar="NAME,..",
        help=f"who takes part (default: all on augmented features, {every})",
    )  # fmt: skip
    flag("--layers", default="10", metavar="N,N,..", help="depths, each tuned and run by itself (default: 10)")
    flag("--hidden", default="100", metavar="N", help="neurons of each hidden layer (default: 100)")
    flag("--seeds", default="5", metavar="N", help="how many seeds are reported (default: 5)")
    flag("--first-seed", default="0", metavar="N", help="the first of them (default: 0)")
    flag("--budget", default="10", metavar="TRIALS", help="trials of tuning; 0 takes the defaults (default: 10)")
    flag("--tune-seed", default="1000", metavar="N", help="seed of tuning: weights, draws, split (default: 1000)")
    flag(
        "--tune-seeds", default="1", metavar="N",
        help="seeds from that on, over which a trial's validation accuracy is averaged (default: 1)",
    )  # fmt: skip
    flag(
        "--split-seeds", default="same", metavar="NAME",
        help="a drawn split of seed k: same (split k) or fixed (split 0 for all) (default: same)",
    )  # fmt: skip
    flag(
        "--test", default="curve", metavar="NAME",
        help="when test nodes are judged: curve (at every evaluation), once (the trained network: no curve, less work) "
        "(default: curve)",
    )  # fmt: skip
    flag(
        "--targets", metavar="X,X,..",
        help="validation accuracies to be reached (default: 0.95 and 0.99 of the best mean of backpropagation)",
    )  # fmt: skip
    flag("--summary", required=True, metavar="FILE", help="write the contest here (JSON), and go on with it")
    add_log_flags(own)
    add_parameter_flags(parser, common_parameters(), "common to all solvers")
    return parser
