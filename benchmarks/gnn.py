"""GCN and MixGCN: accuracy of every halo, equality with one process, bytes against formulas, where the seconds go.

    python benchmarks/gnn.py accuracy
    mpirun -n 4 python benchmarks/gnn.py accuracy
    mpirun -n 4 python benchmarks/gnn.py equal
    mpirun -n 4 python benchmarks/gnn.py time
    python benchmarks/gnn.py table

"NAME@SPLIT" draws a split for each seed. Rows of JSON are appended; what a file holds already is not run again. One row
of accuracy takes 10 s (Cora) to 2 min (PubMed) on two cores, equality 1 min, times 5 min.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from pdadmm import GCN, MixGCN, load_dataset, make_splits
from pdadmm.parallel.launch import launched_rank, launched_size, make_transport

HALOS = {
    "one process": None,
    "exact": {},
    "pipelined": {"halo": "pipelined"},
    "pipelined, gamma 0.95": {"halo": "pipelined", "gamma": 0.95},
    "sampled, p 0.1": {"halo": "sampled", "boundary_share": 0.1},
    "sampled, p 0.5": {"halo": "sampled", "boundary_share": 0.5},
    "quantized, 4 bits": {"halo": "quantized", "bits": 4},
    "broadcast": {"halo": "broadcast"},
    "mixgcn, K 1": {"chunks": 1},
    "mixgcn, K 4": {"chunks": 4},
}
APPROXIMATE = [name for name in HALOS if name.split(",")[0] in ("exact", "pipelined", "sampled", "quantized")]
ACCURACY = "cora,citeseer,pubmed,amazon_computers@random:20"


def graph_of(name: str, data_dir: str | None, seed: int):
    name, _, split = name.partition("@")
    graph = load_dataset(name, data_dir)
    return graph.with_splits(make_splits(graph, split, seed)) if split else graph


def fit(halo: str, graph, **parameters):
    """Train on all ranks, or on each alone where ``halo`` is "one process"."""
    solver, comm = (MixGCN if halo.startswith("mixgcn") else GCN), None
    if HALOS[halo] is None and launched_size() > 1:
        from mpi4py import MPI

        comm = MPI.COMM_SELF
    return solver(threads=1, **(HALOS[halo] or {}) | parameters).fit(graph, comm=comm)


def run(given: argparse.Namespace, halos: list[str], parameters: dict) -> None:
    """Append a row for each data set, halo and seed that the file does not hold yet."""
    path, transport = Path(given.rows), make_transport()
    text = transport.bcast(path.read_text() if path.exists() else "")  # what rank 0 found, before it writes
    done = [json.loads(line) for line in text.splitlines()]
    known = {(row["task"], row["dataset"], row["how"], row["seed"]) for row in done}
    for name in given.datasets.split(","):
        for halo in halos:
            for seed in map(int, given.seeds.split(",")):
                if (given.task, name, halo, seed) in known:
                    continue
                alone = HALOS[halo] is None
                if alone and launched_rank():
                    continue  # rank 0 does it, the others wait for it in the next run
                trained = fit(halo, graph_of(name, given.data_dir, seed), seed=seed, **parameters)
                if launched_rank() == 0:
                    row = {"task": given.task, "dataset": name, "how": halo} | trained.summary_
                    del row["stages"]
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def equal(given: argparse.Namespace) -> None:
    """Print how far weights after 50 epochs are from those of one process, in float64 with dropout."""
    settings = {"iterations": 50, "eval_every": 50, "dtype": "float64", "hidden": 16, "layers": 3}
    for name in given.datasets.split(","):
        graph = graph_of(name, given.data_dir, 0)
        for architecture in ("gcn", "sage"):
            one = fit("one process", graph, architecture=architecture, **settings).model_.state_dict()
            for halo in ("exact", "broadcast", "mixgcn, K 1", "mixgcn, K 4"):
                trained = fit(halo, graph, architecture=architecture, **settings)
                gap = max(float((value - one[key]).abs().max()) for key, value in trained.model_.state_dict().items())
                s = trained.summary_
                if launched_rank() == 0:
                    moved = f"{s['bytes_sent']:,} | {s['bytes_per_iteration'] * s['iterations']:,}"
                    print(f"| {name} | {architecture} | {halo} | {s['ranks']} | {gap:.1e} | {moved} |", flush=True)


def table(given: argparse.Namespace) -> None:
    """Print the rows of a file as tables."""
    rows = [json.loads(line) for line in Path(given.rows).read_text().splitlines()]
    groups: dict = {}
    for row in rows:
        groups.setdefault((row["task"], row["dataset"], row["how"], row["ranks"]), []).append(row)

    def spread(runs: list[dict], key: str) -> str:
        values = [run[key] for run in runs]
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"

    for (task, *names), runs in groups.items():
        print(task, "|", *(f"{name} |" for name in names), end=" ")
        if task == "accuracy":
            moved = statistics.median(run["bytes_per_iteration"] for run in runs) / 1e6
            print(spread(runs, "val_accuracy"), "|", spread(runs, "test_accuracy"), f"| {moved:.3f} | {len(runs)} |")
        else:
            kinds = ("sparse", "dense", "communication", "waiting", "sampling")
            total = [statistics.median(run["seconds_per_iteration"] for run in runs)]
            per = [statistics.median(run[f"seconds_{kind}"] / run["iterations"] for run in runs) for kind in kinds]
            print(*(f"{1e3 * cell:.1f} |" for cell in total + per), f"{runs[0]['bytes_per_iteration'] / 1e6:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("accuracy", "equal", "time", "table"))
    parser.add_argument("--datasets", help="data sets, separated by commas")
    parser.add_argument("--data-dir")
    parser.add_argument("--halos", help="names of HALOS, separated by semicolons")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, e.g. 0,1,2 (2 alone is the seed 2)")
    parser.add_argument("--rows", default="gnn.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    usual = {"accuracy": ACCURACY, "time": "amazon_computers@random:20"}
    given.datasets = given.datasets or usual.get(given.task, "cora")
    halos = given.halos.split(";") if given.halos else None
    if given.task == "accuracy":
        halos = halos or (APPROXIMATE if launched_size() > 1 else ["one process"])
        run(given, halos, {"hidden": given.hidden, "eval_every": 2})
    elif given.task == "time":
        run(given, halos or list(HALOS), {"hidden": given.hidden, "iterations": 30, "eval_every": 30})
    else:
        {"equal": equal, "table": table}[given.task](given)


if __name__ == "__main__":
    main()
