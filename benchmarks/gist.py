"""GIST against the wide network itself: accuracy at equal epochs and at equal time, bytes, memory in slices.

    python benchmarks/gist.py accuracy --data-dir DIR --rows FILE
    python benchmarks/gist.py bytes
    mpirun -n 4 python benchmarks/gist.py memory --hidden 6144 --limit-mib 900

accuracy: one process works for all m workers of a round in turn, so a worker's time is an m-th of its processor time
("ms", of an epoch). Equal time is as many epochs as a worker has time for while the wide network (m = 1) trains its
own; both are read off one run by validation accuracy. bytes: a round's bytes by the paper's formula, by ours and as
sent. memory: a network whose weights and Adam state do not fit into the memory that a rank may take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from pdadmm import GIST, load_dataset

PARTS = (1, 2, 4)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def best(history: list[dict], epochs: int) -> float:
    """Return the test accuracy of the epoch of best validation accuracy among the first ``epochs``."""
    rows = [row for row in history if row["iteration"] <= epochs and "val_accuracy" in row]
    return max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))["test_accuracy"]


def accuracy(given: argparse.Namespace) -> None:
    rows = []
    print("| graph | width | m | ms | equal epochs | equal time | epochs in equal time |\n|" + "---|" * 7, flush=True)
    for name, width, epochs in (part.split(":") for part in given.runs.split(",")):
        graph = load_dataset(name, given.data_dir)
        solvers = {m: partial(solver, m, int(width), given) for m in PARTS}
        seconds = {m: epoch_seconds(graph, solvers[m]) / m for m in PARTS}
        for m in PARTS:
            own = []
            for seed in range(given.seeds):
                in_time = round(int(epochs) * seconds[1] / seconds[m])
                history = solvers[m](seed=seed, iterations=max(int(epochs), in_time)).fit(graph).history_
                figures = {"equal_epochs": best(history, int(epochs)), "equal_time": best(history, in_time)}
                own.append({"graph": name, "width": int(width), "m": m, "seed": seed, "in_time": in_time} | figures)
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in [*rows, *own]))
            rows += own
            cells = [spread([row[key] for row in own]) for key in ("equal_epochs", "equal_time")]
            cells = [name, width, m, f"{1e3 * seconds[m]:.1f}", *cells, in_time]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def solver(m: int, width: int, given: argparse.Namespace, **more) -> GIST:
    own = {"local_steps": given.local_steps, "eval_every": given.eval_every, "threads": 1} | more
    return GIST(parts=m, hidden=width, **own)


def epoch_seconds(graph, make) -> float:
    """Return the processor seconds of an epoch of all workers: of more epochs less those of few, median of three."""

    def spent(iterations: int) -> float:
        began = time.process_time()
        make(iterations=iterations, eval_every=1000).fit(graph)
        return time.process_time() - began

    return statistics.median((spent(25) - spent(5)) / 20 for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("accuracy")
    own.add_argument("--runs", default="cora:128:100,citeseer:128:100,pubmed:64:50", help="GRAPH:WIDTH:EPOCHS,..")
    own.add_argument("--data-dir")
    own.add_argument("--local-steps", type=int, default=5)
    own.add_argument("--eval-every", type=int, default=5)
    own.add_argument("--seeds", type=int, default=5)
    own.add_argument("--rows", required=True, help="write one JSON object a run here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"accuracy": accuracy}[given.command](given)


if __name__ == "__main__":
    main()
