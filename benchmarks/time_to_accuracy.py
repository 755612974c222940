"""Seconds of training to 99 % of tuned Adam's best validation accuracy: Adam and pdADMM-G in turn, seed by seed.

    python benchmarks/time_to_accuracy.py cora.json --seeds 5          (a file of pdadmm compare)

Takes data, split, width, depth and both solvers' tuned settings from the contest, and runs pdADMM-G once more with its
defaults. The target of a seed's runs is 99 % of the mean best validation accuracy of Adam's runs in the contest. The
solvers take turns on the same split and seed, in this process, so that the machine's drift meets them alike. "training"
are the solver's own seconds, of which evaluation and augmentation are no part; "wall" is all of fit. Medians; a
run that never arrives counts as the longest.
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

SOLVERS = ("adam", "pdadmm-g", "pdadmm-g, defaults")


def reached(history, target: float) -> float | None:
    """Return the seconds of training at the first full-depth evaluation at or above the target."""
    depth = history[-1]["layers"]
    hits = (row["seconds"] for row in history if row["layers"] == depth and row.get("val_accuracy", 0) >= target)
    return next(hits, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", help="what pdadmm compare --summary wrote, with adam and pdadmm-g")
    parser.add_argument("--data-dir")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    summary = read_summary(given.summary)
    contest = summary["contest"]
    tuned = {row["solver"]: row for row in summary["rows"] if row["layers"] == given.layers}
    best = [max(value or 0.0 for value in run["history"]["val_accuracy"]) for run in tuned["adam"]["runs"]]
    target = 0.99 * statistics.mean(best)
    print(f"{contest['dataset']}, {contest['split'] or 'its own split'}, {given.layers} layers of {contest['hidden']}: "
          f"validation accuracy {target:.4f}, {given.seeds} seeds\n{machine()}")  # fmt: skip
    rows: dict[str, list[tuple[float | None, float, float]]] = {name: [] for name in SOLVERS}
    for seed in range(given.seeds):
        split_seed = 0 if contest["split_seeds"] == "fixed" else seed
        graph = load_with_split(contest["dataset"], given.data_dir, contest["split"], split_seed)
        for name in SOLVERS:
            solver, _, defaults = name.partition(", ")
            changes = {} if defaults else tuned[solver]["parameters"]
            fixed = {"layers": given.layers, "hidden": contest["hidden"], "seed": seed}
            estimator = solver_class(solver)(**contest["common"], **fixed, **changes)
            start = time.perf_counter()
            estimator.fit(graph)
            wall = time.perf_counter() - start
            rows[name].append((reached(estimator.history_, target), estimator.summary_["seconds_training"], wall))
    print("\n| solver | training s to it | reached | training s | wall s | each |\n|---|---|---|---|---|---|")
    for name, runs in rows.items():
        hits = [math.inf if run[0] is None else run[0] for run in runs]
        middle = f"{statistics.median(hits):.2f}".replace("inf", "never")
        reached_by = sum(map(math.isfinite, hits))
        each = " ".join("-" if run[0] is None else f"{run[0]:.2f}" for run in runs)
        training, wall = (statistics.median(run[k] for run in runs) for k in (1, 2))
        print(f"| {name} | {middle} | {reached_by} of {len(runs)} | {training:.2f} | {wall:.2f} | {each} |")


if __name__ == "__main__":
    main()
