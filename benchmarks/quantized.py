"""What quantized messages cost in accuracy and save in bytes: pdADMM-G-Q against 32 bits, paired by seed.

    python benchmarks/quantized.py --data-dir DIR --datasets cora,amazon_computers --seeds 0,1,2,3,4 --rows FILE
    python benchmarks/quantized.py --tables FILE..           (tables from the rows of several such runs)

Every row trains the full network (default settings, 10 layers of 100) on the data set's own split with the same
seeds; "difference" is the mean over seeds of this row's test accuracy less the 32-bit run's of the same seed, in
points. 0 bits is the control: messages frozen after each stage's start. "x less" sets p and q messages of an
iteration, headers included, against p, q and u in 32 bits. One seed of Cora takes about 10 s, of Amazon Computers
5 min, of Coauthor CS 10 min on one core. The first layer's factor is shared by the runs of a data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
from pathlib import Path

import torch

from pdadmm import PDADMMG, Quantizer, load_dataset
from pdadmm.admm.solver import ADMMSolver
from pdadmm.parallel.transport import LocalTransport

WIDTHS = (32, 8, 4, 2, 1, 0)


def runs(dataset: str, data_dir: str | None, seeds: list[int], options: dict) -> list[dict]:
    """Train every width with every seed on one data set and return a dict per run."""
    graph, transport = load_dataset(dataset, data_dir), LocalTransport()
    estimator = PDADMMG(**options)
    problem, _, _ = estimator._problem(estimator.checked(), graph, None, transport)
    first, rows = None, []
    for seed in seeds:
        for bits in WIDTHS:
            quantizer = None if bits == 32 else Quantizer(bits=bits)
            settings = dataclasses.replace(estimator, seed=seed, quantizer=quantizer).checked()
            solver = ADMMSolver(problem, settings, transport, settings.eval_every, first=first).run()
            first, summary = solver.builder.first, solver.summary()
            names = ("val_accuracy", "test_accuracy", "bytes_per_iteration")
            row = {"dataset": dataset, "seed": seed, "bits": bits, **{name: summary[name] for name in names}}
            row["float_bytes"] = 3 * 4 * problem.nodes * settings.hidden * (settings.layers - 1)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Return the markdown table of one data set."""
    head = "| bits | validation | test | difference (points) | per seed | bytes an iteration | x less |"
    lines = [head, "|" + "---|" * 7]
    plain = {row["seed"]: row["test_accuracy"] for row in rows if row["bits"] == 32}
    for bits in WIDTHS:
        own = [row for row in rows if row["bits"] == bits]
        val, test = (
            f"{statistics.mean(x):.4f} +- {statistics.pstdev(x):.4f}"
            for x in ([row[name] for row in own] for name in ("val_accuracy", "test_accuracy"))
        )
        gaps = [100 * (row["test_accuracy"] - plain[row["seed"]]) for row in own]
        each = " ".join(f"{gap:+.2f}" for gap in gaps)
        size, less = own[0]["bytes_per_iteration"], own[0]["float_bytes"] / own[0]["bytes_per_iteration"]
        lines.append(f"| {bits} | {val} | {test} | {statistics.mean(gaps):+.2f} | {each} | {size:,} | {less:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="cora,citeseer,pubmed,amazon_computers,coauthor_cs")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, e.g. 0,1,2 (2 alone is the seed 2)")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--eval-every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", help="write one JSON object a run here")
    parser.add_argument("--tables", nargs="+", metavar="FILE", help="print the tables of these files of rows")
    given = parser.parse_args()
    if given.tables:
        rows = [json.loads(line) for file in given.tables for line in Path(file).read_text().splitlines()]
        rows.sort(key=lambda row: row["seed"])
    else:
        torch.set_num_threads(given.threads)
        options = {"layers": given.layers, "hidden": given.hidden, "iterations": given.iterations}
        options["eval_every"] = given.eval_every
        seeds, rows = [int(seed) for seed in given.seeds.split(",")], []
        for dataset in given.datasets.split(","):
            rows += runs(dataset, given.data_dir, seeds, options)
            if given.rows:
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"torch {torch.__version__}, Python {platform.python_version()}")
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        print(f"\n## {dataset}\n\n" + table([row for row in rows if row["dataset"] == dataset]))


if __name__ == "__main__":
    main()
