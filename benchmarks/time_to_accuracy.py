"""Seconds of training to 99 % of tuned Adam's best validation accuracy: Adam and pdADMM-G in turn, seed by seed.

    python benchmarks/time_to_accuracy.py adam.json pdadmm-g.json --seeds 5          (files of pdadmm compare)

Takes data, split, width, depth and tuned settings from contests on one graph, of which one had Adam and one may
have had pdADMM-G. Beside these run, with one setting for all graphs: pdADMM-G with its defaults; pdADMM-G at full
depth from the labels, W_1 by conjugate gradients; and Adam as it is soonest, identity start and batches of 512. The
target is 99 % of the mean best validation accuracy of Adam's runs in the contest, by the network of full depth. The
solvers take turns on the same split and seed, in this process, so that the machine's drift meets them alike. Seconds
are the solver's own, of which evaluation and augmentation are no part; a run ends where it arrives. Medians; a run that
never arrives counts as the longest.
"""

from __future__ import annotations

import argparse
import math
import statistics

from shared import machine

from pdadmm.contest import read_summary
from pdadmm.data import load_with_split
from pdadmm.solvers import solver_class

QUICK = {
    "adam, soonest": {"initial": "identity", "batch_size": 512, "iterations": 100, "prior_weight": 0.5},
    "pdadmm-g, from labels": {
        "initial": "labels", "first_layer": "cg", "kappa_first": 0.05, "iterations": 32, "prior_weight": 0.5,
    },
}  # fmt: skip


class Arrived(Exception):
    """The target was reached after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


def seconds_to(estimator, graph, target: float) -> float:
    """Return the seconds of training to the first full-depth evaluation at or above the target, inf for never."""

    def watch(row) -> None:
        if row["layers"] == estimator.layers and (row.get("val_accuracy") or 0.0) >= target:
            raise Arrived(row["seconds"])

    try:
        estimator.fit(graph, watch=watch)
    except Arrived as arrived:
        return arrived.seconds
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", nargs="+", help="what pdadmm compare --summary wrote, with adam, and with pdadmm-g")
    parser.add_argument("--data-dir")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    given = parser.parse_args()
    summaries = [read_summary(name) for name in given.summary]
    contest = summaries[0]["contest"]
    for key in ("dataset", "split", "hidden", "common"):
        if any(summary["contest"][key] != contest[key] for summary in summaries):
            parser.error(f"the summaries differ in {key}")
    rows = [row for summary in summaries for row in summary["rows"] if row["layers"] == given.layers]
    tuned = {row["solver"]: row for row in rows if row["solver"] in ("adam", "pdadmm-g")}
    best = [max(value or 0.0 for value in run["history"]["val_accuracy"]) for run in tuned["adam"]["runs"]]
    target = 0.99 * statistics.mean(best)
    print(f"{contest['dataset']}, {contest['split'] or 'its own split'}, {given.layers} layers of {contest['hidden']}: "
          f"validation accuracy {target:.4f}, {given.seeds} seeds\n{machine()}")  # fmt: skip
    settings = {f"{name}, tuned": row["parameters"] for name, row in tuned.items()} | {"pdadmm-g, defaults": {}}
    settings |= {name: more | {"stages": (given.layers,)} for name, more in QUICK.items()}
    found: dict[str, list[float]] = {name: [] for name in settings}
    for seed in range(given.seeds):
        split_seed = 0 if contest["split_seeds"] == "fixed" else seed
        graph = load_with_split(contest["dataset"], given.data_dir, contest["split"], split_seed)
        for name, more in settings.items():
            fixed = {"layers": given.layers, "hidden": contest["hidden"], "seed": seed}
            if (more.get("batch_size") or 0) >= len(graph.splits["train"]):
                more = more | {"batch_size": None}
            estimator = solver_class(name.partition(",")[0])(**contest["common"], **fixed, **more)
            found[name].append(seconds_to(estimator, graph, target))
    print("\n| solver | training s to it | reached | each |\n|---|---|---|---|")
    for name, hits in found.items():
        middle, *each = (f"{x:.2f}".replace("inf", "never") for x in (statistics.median(hits), *hits))
        print(f"| {name} | {middle} | {sum(map(math.isfinite, hits))} of {len(hits)} | {' '.join(each)} |")


if __name__ == "__main__":
    main()
