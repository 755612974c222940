"""Accuracy of pdADMM-G with its defaults or with some of them changed, a row for every depth that it grows through.

    python benchmarks/accuracy.py --data-dir DIR --datasets cora,amazon_computers@random:20 --hidden 100,500 --rows FILE
    python benchmarks/accuracy.py --hidden 100 --change '{"prior_weight": 0.5}'
    python benchmarks/accuracy.py --hidden 100 --solver pdadmm-g-q --change '{"bits": 8}'

"NAME@SPLIT" draws a split for each seed. Each row is the network of that depth at its best validation accuracy; mean
and standard deviation (n - 1) over the seeds. The small splits take 1 s a seed at width 100 and 10 s at 500; 60/20/20
splits of Amazon Computers and Coauthor CS 30 s and 3 min on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from pdadmm import load_dataset, make_splits
from pdadmm.solvers import solver_class

DATASETS = "cora,citeseer,pubmed,amazon_computers@random:20,coauthor_cs@random:20"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def run(name: str, data_dir: str | None, seed: int, solver: str = "pdadmm-g", **parameters) -> dict:
    """Train one seed and return its summary."""
    name, _, split = name.partition("@")
    graph = load_dataset(name, data_dir)
    if split:
        graph = graph.with_splits(make_splits(graph, split, seed))
    return solver_class(solver)(seed=seed, threads=1, **parameters).fit(graph).summary_


def table(name: str, hidden: int, summaries: list[dict]) -> list[str]:
    """Return the rows of one data set and width."""
    lines = []
    for stages in zip(*(summary["stages"] for summary in summaries)):
        val, test = (spread([stage[key] for stage in stages]) for key in ("val_accuracy", "test_accuracy"))
        grown = [stage["start_test_accuracy"] for stage in stages]
        before = "" if stages[0] is summaries[0]["stages"][0] else f"{statistics.mean(grown):.4f}"
        lines.append(f"| {name} | {hidden} | {stages[0]['layers']} | {val} | {test} | {before} | |")
    training = statistics.median(summary["seconds_training"] for summary in summaries)
    lines[-1] = lines[-1].removesuffix(" |") + f" {training:.3g} |"
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default=DATASETS)
    parser.add_argument("--data-dir")
    parser.add_argument("--hidden", default="100")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, e.g. 0,1,2 (2 alone is the seed 2)")
    parser.add_argument("--eval-every", type=int, default=1)
    parser.add_argument("--solver", default="pdadmm-g")
    parser.add_argument("--change", type=json.loads, default={}, help="hyper-parameters as JSON")
    parser.add_argument("--rows", help="write one JSON object a run here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| graph | width | layers | validation | test | test as grown | training s |\n|" + "---|" * 7, flush=True)
    rows = []
    for hidden in map(int, given.hidden.split(",")):
        for name in given.datasets.split(","):
            seeds = map(int, given.seeds.split(","))
            more = {"solver": given.solver, "hidden": hidden, "eval_every": given.eval_every} | given.change
            summaries = [run(name, given.data_dir, seed, **more) for seed in seeds]
            rows += [{"dataset": name} | summary for summary in summaries]
            print("\n".join(table(name, hidden, summaries)), flush=True)
            if given.rows:
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
