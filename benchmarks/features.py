"""Which augmented features serve a graph best, chosen by validation accuracy alone.

    python benchmarks/features.py --data-dir DIR --datasets cora,citeseer --rows FILE

Trains pdADMM-G (10 layers of 100, defaults but for --change) on every row of FEATURES with every seed, takes the row of
the best mean validation accuracy, and prints its test accuracy beside that of the default features. "NAME@SPLIT" draws
a split per seed. Cora takes about 3 min on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from accuracy import run, spread

FEATURES = [
    {},
    *({"hops": hops} for hops in (1, 2, 3, 6, 8, 12)),
    *({"scaling": "hop-loo", "hops": hops} for hops in (4, 6)),
    *({"scaling": "hop-l2", "hops": hops} for hops in (2, 4)),
    *({"weighting": "ppr", "hops": 10, "alpha": alpha} for alpha in (0.05, 0.1, 0.2)),
    *({"weighting": "ppr", "hops": 10, "alpha": alpha, "scaling": "hop-l2"} for alpha in (0.05, 0.1)),
    {"weighting": "ppr", "hops": 3, "alpha": 0.3},
    *({"weighting": "heat", "hops": 10, "heat_time": time} for time in (3.0, 5.0)),
    {"weighting": "heat", "hops": 10, "heat_time": 3.0, "scaling": "hop-l2"},
    *({"operator": "rw", "hops": hops} for hops in (4, 6, 8)),
    *({"operator": "col", "hops": hops} for hops in (4, 6, 8)),
    {"operator": "col", "weighting": "ppr", "hops": 10, "alpha": 0.1},
    {"operator": "col", "weighting": "ppr", "hops": 3, "alpha": 0.3},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="cora,citeseer,pubmed,amazon_computers@random:20")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, e.g. 0,1,2 (2 alone is the seed 2)")
    parser.add_argument("--rows", help="write one JSON object a row of FEATURES here")
    parser.add_argument("--change", type=json.loads, default={}, help="hyper-parameters as JSON, for all rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, rows = [int(seed) for seed in given.seeds.split(",")], []
    for name in given.datasets.split(","):
        found = []
        for features in FEATURES:
            runs = [run(name, given.data_dir, seed, **given.change | features) for seed in seeds]
            val, test = ([summary[key] for summary in runs] for key in ("val_accuracy", "test_accuracy"))
            rows.append({"dataset": name, "features": features, "val_accuracy": val, "test_accuracy": test})
            found.append((statistics.mean(val), features, val, test))
            print(f"{name} {features}: validation {spread(val)}", flush=True)
            if given.rows:
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print("\n| graph | features | validation | test |\n|---|---|---|---|")
        for _, features, val, test in (found[0], max(found, key=lambda row: row[0])):
            said = ", ".join(f"{key} {value}" for key, value in features.items()) or "default"
            print(f"| {name} | {said} | {spread(val)} | {spread(test)} |")
        print(flush=True)


if __name__ == "__main__":
    main()
