"""GIST against the wide network itself: accuracy at equal epochs and at equal time, bytes, memory in slices.

    python benchmarks/gist.py accuracy --data-dir DIR --rows FILE
    python benchmarks/gist.py samplers --data-dir DIR
    mpirun -n 4 python benchmarks/gist.py bytes
    mpirun -n 4 python benchmarks/gist.py memory

accuracy: one process works for all m workers of a round in turn, so a worker's time is an m-th of its processor time
("ms", of an epoch). Equal time is as many epochs as a worker has time for while the wide network (m = 1) trains its
own; both are read off one run by validation accuracy. samplers: sample-based training against the whole graph.
bytes: a round's bytes by the paper's formula, by ours and as sent. memory: a network whose weights and Adam state do
not fit into the memory that a rank may take.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from pdadmm import GCN, GIST, SampledGNN, csbm, load_dataset
from pdadmm.estimator import peak_rss_bytes
from pdadmm.parallel.launch import launched_rank, launched_size
from pdadmm.sampling.estimator import SAMPLERS

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
        own = []
        for seed in range(given.seeds):
            for m in PARTS:
                in_time = round(int(epochs) * seconds[1] / seconds[m])
                history = solvers[m](seed=seed, iterations=max(int(epochs), in_time)).fit(graph).history_
                figures = {"equal_epochs": best(history, int(epochs)), "equal_time": best(history, in_time)}
                own.append({"graph": name, "width": int(width), "m": m, "seed": seed, "in_time": in_time} | figures)
                Path(given.rows).write_text("".join(json.dumps(row) + "\n" for row in [*rows, *own]))
        rows += own
        for m in PARTS:
            mine = [row for row in own if row["m"] == m]
            cells = [spread([row[key] for row in mine]) for key in ("equal_epochs", "equal_time")]
            cells = [name, width, m, f"{1e3 * seconds[m]:.1f}", *cells, mine[0]["in_time"]]
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

    return statistics.median((spent(8) - spent(2)) / 6 for _ in range(3))


def samplers(given: argparse.Namespace) -> None:
    """Print the test accuracy of the whole graph and of every sampler, the same network, epochs and seeds."""
    kinds = {"whole graph": GCN, **{name: partial(SampledGNN, sampler=name, architecture="gcn") for name in SAMPLERS}}
    print("| graph | trained on | test |\n|" + "---|" * 3, flush=True)
    for name, width, epochs in (part.split(":") for part in given.runs.split(",")):
        graph = load_dataset(name, given.data_dir)
        for kind, make in kinds.items():
            own = {"hidden": int(width), "iterations": int(epochs), "eval_every": given.eval_every, "threads": 1}
            found = [make(seed=seed, **own).fit(graph).summary_["test_accuracy"] for seed in range(given.seeds)]
            print(f"| {name} | {kind} | {spread(found)} |", flush=True)


def traffic(given: argparse.Namespace) -> None:
    """Print, for a few networks, a round's bytes by GIST's paper and by ours, and as the ledger has them."""
    ranks = launched_size()
    tell("| architecture | L | d | paper, all workers, both ways | ours, mean of draws | these draws | sent |")
    tell("|" + "---|" * 7)
    graph = csbm(300, num_classes=4, num_features=64, seed=0)
    for architecture, layers, d in (("gcn", 2, 256), ("sage", 2, 256), ("gcn", 3, 256), ("sage", 4, 256)):
        own = GIST(
            architecture=architecture, layers=layers, hidden=d, parts=ranks, local_steps=1, iterations=20, eval_every=20
        ).fit(graph)  # fmt: skip
        c, m, told = 1 + (architecture == "sage"), ranks, own.summary_
        words = c * (64 * d / m + (layers - 2) * (d / m) ** 2 + 4 * d / m) + (layers - 1) * d / m + 4
        cells = [architecture, layers, d, round(2 * m * 4 * words), told["bytes_per_iteration"]]
        cells += [round(told[key] / told["rounds"]) for key in ("bytes_predicted", "bytes_sent")]
        tell("| " + " | ".join(map(str, cells)) + " |")


def memory(given: argparse.Namespace) -> None:
    """Train a network under a limit of a process's memory beyond what torch and the graph take; say what was used."""
    graph = csbm(300, num_classes=4, num_features=16, seed=0)
    GIST(hidden=8, layers=3, iterations=1).fit(graph)  # what is imported late is in
    before, peak = status("VmData"), peak_rss_bytes()
    limit = before + (given.limit_mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    d, state = given.hidden, 4 * given.hidden**2 * 4 / 2**20
    try:
        own = GIST(hidden=d, layers=3, iterations=2, local_steps=1, ultra_wide=True).fit(graph)
    except (MemoryError, RuntimeError) as error:
        print(f"{launched_size()} ranks: {state:.0f} MiB of weights and Adam state do not fit: {error}"[:150])
        raise SystemExit(1) from None
    used = (peak_rss_bytes() - peak) / 2**20
    held = sum(array.nbytes for array in own.model_.state_dict().values()) / 2**20
    print(
        f"rank {launched_rank()} of {launched_size()}: {state:.0f} MiB of weights and Adam state in all, limit "
        f"{given.limit_mib} MiB, used {used:.0f} MiB, holds {held:.0f} MiB of weights, loss "
        f"{own.history_[0]['objective']:.3f} then {own.history_[-1]['objective']:.3f}", flush=True,
    )  # fmt: skip


def status(key: str) -> int:
    """Return a size of /proc/self/status in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(key + ":")[2].split()[0])


def tell(line: str) -> None:
    if launched_rank() == 0:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("accuracy")
    own.add_argument("--runs", default="cora:128:100,citeseer:128:40,pubmed:64:15", help="GRAPH:WIDTH:EPOCHS,..")
    own.add_argument("--data-dir")
    own.add_argument("--local-steps", type=int, default=5)
    own.add_argument("--eval-every", type=int, default=5)
    own.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    own.add_argument("--rows", required=True, help="write one JSON object a run here")
    own = commands.add_parser("samplers")
    own.add_argument("--runs", default="cora:64:60,citeseer:64:60", help="GRAPH:WIDTH:EPOCHS,..")
    own.add_argument("--data-dir")
    own.add_argument("--eval-every", type=int, default=3)
    own.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    commands.add_parser("bytes")
    own = commands.add_parser("memory")
    own.add_argument("--hidden", type=int, default=4096)
    own.add_argument("--limit-mib", type=int, default=220)
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"accuracy": accuracy, "samplers": samplers, "bytes": traffic, "memory": memory}[given.command](given)


if __name__ == "__main__":
    main()
