"""Seconds of training to 99 % of tuned Adam's best validation accuracy: Adam and pdADMM-G in turn, seed by seed.

    python benchmarks/time_to_accuracy.py adam.json pdadmm-g.json --seeds 5          (files of pdadmm compare)

Takes data, split, width, depth and tuned settings from contests on one graph, of which one had Adam and one may
have had pdADMM-G. Beside these run, with one setting for all graphs: pdADMM-G with its defaults; pdADMM-G at full
depth from the labels, W_1 by conjugate gradients; and Adam as it is soonest, identity start and batches of 512. The
target is 99 % of the mean best validation accuracy of Adam's runs in the contest, by the network of full depth. The
solvers take turns on the same split and seed, in this process, so that the machine's drift meets them alike.
"training" are the solver's own seconds, of which evaluation and augmentation are no part; "wall" is all of fit.
Medians; a run that never arrives counts as the longest.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

from shared import machine

from pdadmm.contest import read_summary
from pdadmm.data import load_with_split
from pdadmm.solvers import solver_class

QUICK = {
    "adam, soonest": {"initial": "identity", "batch_size": 512, "iterations": 100, "prior_weight": 0.5},
    "pdadmm-g, from labels": {"initial": "labels", "first_layer": "cg", "iterations": 16, "prior_weight": 0.5},
}


def reached(history, target: float) -> float | None:
    """Return the seconds of training at the first full-depth evaluation at or above the target."""
    depth = history[-1]["layers"]
    hits = (row["seconds"] for row in history if row["layers"] == depth and row.get("val_accuracy", 0) >= target)
    return next(hits, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", nargs="+", help="what pdadmm compare --summary wrote, with adam, and with pdadmm-g")
    parser.add_argument("--data-dir")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
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
    found: dict[str, list[tuple[float | None, float, float]]] = {name: [] for name in settings}
    for seed in range(given.seeds):
        split_seed = 0 if contest["split_seeds"] == "fixed" else seed
        graph = load_with_split(contest["dataset"], given.data_dir, contest["split"], split_seed)
        for name, changes in settings.items():
            fixed = {"layers": given.layers, "hidden": contest["hidden"], "seed": seed}
            more = changes
            if more.get("batch_size") and more["batch_size"] >= len(graph.splits["train"]):
                more = more | {"batch_size": None}
            estimator = solver_class(name.partition(",")[0])(**contest["common"], **fixed, **more)
            start = time.perf_counter()
            estimator.fit(graph)
            wall = time.perf_counter() - start
            found[name].append((reached(estimator.history_, target), estimator.summary_["seconds_training"], wall))
    print("\n| solver | training s to it | reached | training s | wall s | each |\n|---|---|---|---|---|---|")
    for name, runs in found.items():
        hits = [math.inf if run[0] is None else run[0] for run in runs]
        middle = f"{statistics.median(hits):.2f}".replace("inf", "never")
        reached_by = sum(map(math.isfinite, hits))
        each = " ".join("-" if run[0] is None else f"{run[0]:.2f}" for run in runs)
        training, wall = (statistics.median(run[k] for run in runs) for k in (1, 2))
        print(f"| {name} | {middle} | {reached_by} of {len(runs)} | {training:.2f} | {wall:.2f} | {each} |")


if __name__ == "__main__":
    main()
