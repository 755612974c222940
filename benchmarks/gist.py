"""GIST against the wide network itself: accuracy at equal epochs and at equal time, bytes, memory in slices.

    python benchmarks/gist.py accuracy --data-dir DIR --rows FILE
    python benchmarks/gist.py bytes
    mpirun -n 4 python benchmarks/gist.py memory --hidden 6144 --limit-mib 900

accuracy: one process works for all m workers of a round in turn, so a worker's time is an m-th of its time. Equal time
is as many epochs as a worker has time for while the wide network (m = 1) trains its own; both are read off one run
by validation accuracy. bytes: a round's bytes by GIST's formula and as sent, on 4 ranks. memory: a model that a process
of limited memory cannot hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
    print("| graph | width | m | equal epochs | equal time | epochs in equal time |\n|" + "---|" * 6, flush=True)
    for name, width, epochs in (part.split(":") for part in given.runs.split(",")):
        graph, own = load_dataset(name, given.data_dir), []
        for seed in range(given.seeds):
            wide = None
            for m in PARTS:
                row = run(graph, m, int(width), int(epochs), seed, wide, given)
                wide = row["seconds"] if m == 1 else wide
                own.append({"graph": name, "width": int(width), "m": m, "seed": seed} | row)
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in [*rows, *own]))
        rows += own
        for m in PARTS:
            mine = [row for row in own if row["m"] == m]
            cells = [spread([row[key] for row in mine]) for key in ("equal_epochs", "equal_time")]
            in_time = statistics.median(row["epochs"] for row in mine)
            print(f"| {name} | {width} | {m} | {cells[0]} | {cells[1]} | {in_time:.0f} |", flush=True)


def run(graph, m: int, width: int, epochs: int, seed: int, wide: float | None, given: argparse.Namespace) -> dict:
    """Train one seed until its workers took the time of the wide network; read both figures off."""
    solver = GIST(
        parts=m, hidden=width, local_steps=given.local_steps, iterations=epochs * m, seed=seed, threads=1,
        eval_every=given.eval_every, max_seconds=None if wide is None else m * wide,
    )  # fmt: skip
    history = solver.fit(graph).history_
    figures = {"equal_epochs": best(history, epochs), "equal_time": best(history, len(history))}
    return {"seconds": history[-1]["seconds"], "epochs": len(history), **figures}


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
