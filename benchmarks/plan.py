"""What the planner predicts beside what runs need: memory, bytes and seconds of an iteration on 1 to 8 ranks.

    python benchmarks/plan.py --repeat 3          (about 10 min)
    python benchmarks/plan.py --alone             (about 1 min)

Calibrates, then starts every configuration under mpiexec. Each run times the calibration's piece of work on all its
ranks at once, before and after training: "seconds" is predicted with the slowdown by company measured then, so that
other programs on the machine meet both sides alike; "as calibrated" is predicted without that. Memory is the peak of
the rank that needs most, above what it had before, in a launch of its own; seconds are the median iteration at full
depth. With --alone one process iterates, and does the piece of work before each iteration; processor seconds are
taken, which no other program adds to but by slowing the processor.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared import full_network, random_problem
from shared import machine as machine_line

import pdadmm
from pdadmm import GCN, MixGCN, csbm
from pdadmm.admm.problem import Problem
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.contest import peak_bytes
from pdadmm.doctor import starter
from pdadmm.parallel.launch import make_transport
from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.calibrate import Work, calibrate, together
from pdadmm.planner.forecast import Setting, forecast_gnn, forecast_grid
from pdadmm.planner.gnn import GNNJob
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine, load_machine, machine_folder
from pdadmm.planner.seconds import layer_seconds
from pdadmm.planner.simulate import Link

CLASSES = 10
GNNS = ("halo", "all-to-all")
COLUMNS = ("kind", "V", "N", "inputs", "hidden", "layers", "ranks", "bits")
ALONE = [
    (2000, 128, 64, 6), (20000, 256, 256, 5), (10000, 128, 128, 8), (140, 3000, 100, 10), (5000, 64, 32, 10),
    (3000, 128, 512, 4), (6000, 200, 80, 12), (1000, 500, 100, 3),
]  # fmt: skip
RUNS = [
    ("pdadmm", 8000, 12000, 64, 64, 10, 1, 32),
    ("pdadmm", 3000, 6000, 128, 128, 6, 1, 32),
    ("pdadmm", 400, 3000, 1000, 100, 10, 1, 32),
    ("pdadmm", 8000, 16000, 64, 64, 8, 1, 4),
    ("pdadmm", 8000, 12000, 64, 64, 10, 2, 32),
    ("pdadmm", 3000, 6000, 128, 128, 6, 2, 8),
    ("pdadmm", 8000, 12000, 64, 64, 8, 4, 32),
    ("pdadmm", 6000, 9000, 100, 80, 12, 4, 16),
    ("pdadmm", 8000, 12000, 64, 64, 16, 8, 32),
    ("pdadmm", 6000, 9000, 64, 64, 16, 8, 4),
    ("pdadmm", 6000, 9000, 64, 64, 16, 8, 1),
    ("pdadmm 2x2", 8000, 12000, 64, 64, 8, 4, 32),
    ("pdadmm 1x2", 8000, 12000, 64, 64, 8, 2, 32),
    ("halo", 6000, 6000, 64, 64, 4, 1, 32),
    ("halo", 6000, 6000, 64, 64, 4, 2, 32),
    ("halo", 6000, 6000, 64, 64, 4, 4, 32),
    ("all-to-all", 6000, 6000, 64, 64, 4, 2, 32),
    ("all-to-all", 6000, 6000, 64, 64, 4, 4, 32),
]


def settings_of(run: dict[str, Any]) -> ADMMSettings:
    quantizer = None if run["bits"] == 32 else Quantizer(bits=run["bits"]).checked()
    grid = run["kind"].partition(" ")[2] or "auto"
    shape = {"layers": run["layers"], "hidden": run["hidden"], "iterations": run["iterations"], "grid": grid}
    return ADMMSettings(**shape, quantizer=quantizer).checked()


def solve(run: dict[str, Any], transport: Any) -> dict[str, Any]:
    """Train pdADMM-G on random features; return seconds and bytes of each iteration at full depth."""
    random = torch.Generator().manual_seed(0)
    V, N = run["V"], run["N"]
    X = torch.randn(N, run["inputs"], generator=random) if transport.rank == 0 else None
    y, half = torch.randint(CLASSES, (N,), generator=random), (V + N) // 2
    parts = {"train": slice(0, V), "val": slice(V, half), "test": slice(half, N)}
    problem = Problem(X, y, run["inputs"], CLASSES, parts)
    del X  # the problem's alone, as in a run of the library
    solver = ADMMSolver(problem, settings_of(run), transport).run()
    solver.close()
    return told(solver.history, run["layers"])


def train_gnn(run: dict[str, Any], graph: pdadmm.Graph) -> dict[str, Any]:
    solver = GCN if run["kind"] == "halo" else MixGCN
    shape = {"layers": run["layers"], "hidden": run["hidden"], "iterations": 4 * run["iterations"]}
    trained = solver(**shape, threads=1, eval_every=8).fit(graph)
    return told(trained.history_, run["layers"]) | {"halo_rows": trained.summary_["halo_rows"]}


def told(history: Any, layers: int) -> dict[str, Any]:
    rows = [row for row in history if row["layers"] == layers]
    steps = [later["seconds"] - earlier["seconds"] for earlier, later in itertools.pairwise(rows)]
    return {"seconds": statistics.median(steps), "sent": rows[-1]["bytes"] - rows[-2]["bytes"]}


def graph_of(run: dict[str, Any], nodes: int) -> pdadmm.Graph:
    return csbm(nodes, num_classes=CLASSES, num_features=run["inputs"], avg_degree=10, seed=0)


def tried(run: dict[str, Any], transport: Any) -> dict[str, Any]:
    """Do one run on all ranks, the calibration's piece of work before and after it."""
    gnn = run["kind"] in GNNS
    graph = graph_of(run, run["V"]) if gnn else None
    before = together(transport)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    base = peak_bytes()
    found = train_gnn(run, graph) if gnn else solve(run, transport)
    memory = max(transport.allgather(peak_bytes() - base))
    nonzeros = graph.indices.size + graph.num_nodes if gnn else 0
    return found | {"memory": memory, "work": [before, together(transport)], "nonzeros": nonzeros}


def rank_main(runs: list[dict[str, Any]], repeat: int, answer: Path) -> None:
    """What each rank does: warm up, then every run, all of them ``repeat`` times over."""
    transport = make_transport()
    torch.set_num_threads(1)
    for run in runs:  # what is loaded on first use is not a run's
        tiny = {**run, "V": 40, "N": 80, "inputs": 6, "hidden": 8, "iterations": 2}
        train_gnn(tiny, graph_of(tiny, 200)) if run["kind"] in GNNS else solve(tiny, transport)
    found: list[list[dict[str, Any]]] = [[] for _ in runs]
    for _ in range(repeat):
        for tries, run in zip(found, runs):
            tries.append(tried(run, transport))
    if transport.rank == 0:
        answer.write_text(json.dumps(found), encoding="utf-8")


def measured(runs: list[dict[str, Any]], repeat: int, folder: Path, tight: bool = False) -> list[list[dict[str, Any]]]:
    """Start the runs of one number of ranks and return what their rank 0 wrote.

    ``tight``: freed arrays go back to the system at once, as holes in the C library's heap are not the library's; that
    costs time, so memory and seconds are of different launches.
    """
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    more = {"OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    if tight:
        more["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, __file__, "--runs", json.dumps(runs), "--repeat", str(repeat), "--answer", str(answer)]
    if runs[0]["ranks"] > 1:
        command = [str(starter()), "-n", str(runs[0]["ranks"]), *command]
    subprocess.run(command, env=os.environ | more, check=True, timeout=900)
    return json.loads(answer.read_text(encoding="utf-8"))


def predicted(run: dict[str, Any], found: dict[str, Any], machine: Machine) -> Any:
    """Return the forecast of a run; memory above the process."""
    ranks = run["ranks"]
    machine = dataclasses.replace(machine, process=0)
    setting = Setting(machine, ranks, ranks, Link(machine.latency, machine.bandwidth))
    widths = (run["inputs"], *[run["hidden"]] * (run["layers"] - 1), CLASSES)
    if "halo_rows" in found:
        job = GNNJob(run["V"], found["nonzeros"], widths, found["halo_rows"])
        return forecast_gnn(job, setting, mixed=run["kind"] == "all-to-all")
    groups, _, shards = (run["kind"].partition(" ")[2] or f"{ranks}x1").partition("x")
    job = Job(run["V"], run["N"], widths, quantizer=settings_of(run).quantizer)
    return forecast_grid(job, RankGrid(int(groups), int(shards)), setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6, help="of a stage")
    parser.add_argument("--share", type=float, default=1.0, help="factor on every V: less than 1 for a short run")
    parser.add_argument("--machine-dir", help="take the rates of this folder, without a calibration")
    parser.add_argument("--alone", action="store_true", help="one process, processor seconds")
    parser.add_argument("--only", type=int, help="so many configurations, from the first")
    parser.add_argument("--runs", help="be a rank of these configurations (JSON)")
    parser.add_argument("--answer", help="where rank 0 of --runs writes")
    given = parser.parse_args()
    if given.runs:
        rank_main(json.loads(given.runs), given.repeat, Path(given.answer))
        return
    torch.set_num_threads(1)
    machine = load_machine(machine_folder(given.machine_dir)) if given.machine_dir else calibrate()
    print(machine_line())
    if given.alone:
        alone(machine)
        return
    print("slowdown by company as calibrated:", {count: round(one, 2) for count, one in machine.slowdown.items()})
    print("\n| run | memory MB | | bytes | | ms | | as calibrated | slowdown | each ms |\n" + "|---" * 10 + "|")
    ratios: dict[str, list[float]] = {"memory": [], "bytes": [], "seconds": []}
    with tempfile.TemporaryDirectory() as name:
        for ranks in sorted({values[6] for values in RUNS[: given.only]}):
            runs = [shaped(values, given) for values in RUNS[: given.only] if values[6] == ranks]
            tight = measured(runs, given.repeat, Path(name), tight=True)
            for run, tries, others in zip(runs, measured(runs, given.repeat, Path(name)), tight):
                report(run, tries, statistics.median(one["memory"] for one in others), machine, ratios)
    print()
    for what, found in ratios.items():
        print(f"{what}: predicted / measured {min(found):.3f} to {max(found):.3f} over {len(found)} runs")


def shaped(values: tuple, given: argparse.Namespace) -> dict[str, Any]:
    """Return a row of RUNS by names, in the size asked for."""
    run = dict(zip(COLUMNS, values)) | {"iterations": given.iterations}
    return run | {name: int(given.share * run[name]) for name in ("V", "N")}


def report(
    run: dict[str, Any], tries: list[dict[str, Any]], needed: float, machine: Machine, ratios: dict[str, list[float]]
) -> None:
    """Print a row, predicted beside measured, and add its ratios."""
    plain = predicted(run, tries[0], machine)
    then = [flat(machine, run["ranks"], one["work"]) for one in tries]
    pairs = [(predicted(run, one, slowed).seconds, one["seconds"]) for one, slowed in zip(tries, then)]
    seconds = statistics.median(told / found for told, found in pairs)
    memory = plain.memory / needed
    sent = plain.sent / tries[0]["sent"] if tries[0]["sent"] else 1.0 + plain.sent
    for what, one in (("memory", memory), ("bytes", sent), ("seconds", seconds)):
        ratios[what].append(one)
    shape = f"{run['kind']}: V {run['V']}, N {run['N']}, n_0 {run['inputs']}, n {run['hidden']}, L {run['layers']}"
    each = " ".join(f"{1e3 * told:.1f}/{1e3 * found:.1f}" for told, found in pairs)
    found = statistics.median(one["seconds"] for one in tries)
    slow = " ".join(f"{slowed.slowdown[run['ranks']]:.2f}" for slowed in then)
    print(
        f"| {shape}, {run['ranks']} ranks, {run['bits']} bits | "
        f"{plain.memory / 1e6:.1f} | {memory:.3f} | {plain.sent} | {sent:.4f} | "
        f"{1e3 * statistics.median(told for told, _ in pairs):.1f} | {seconds:.3f} | "
        f"{plain.seconds / found:.2f} | {slow} | {each} |",
        flush=True,
    )


def alone(machine: Machine) -> None:
    """Print processor seconds of an iteration in one process, predicted beside measured, at the speed of the moment."""
    print("| V | n_0 | n | L | predicted ms | measured ms | ratio | speed |\n" + "|---" * 8 + "|")
    work = Work()
    work()
    for V, n_0, n, L in ALONE:
        _, network = full_network(random_problem(V, n_0, CLASSES), L, n, warm=1)
        job = Job(V, V, (n_0, *[n] * (L - 1), CLASSES))
        seconds = sum(layer_seconds(job, layer, V, machine).total for layer in range(L))
        turns = [(processor_seconds(work), processor_seconds(network.iterate)) for _ in range(7)]
        slowness = statistics.median(one for one, _ in turns) / machine.work
        taken = statistics.median(one for _, one in turns)
        ratio = statistics.median(seconds * one / machine.work / other for one, other in turns)
        told = f"{1e3 * slowness * seconds:.1f} | {1e3 * taken:.1f} | {ratio:.3f} | {1 / slowness:.2f}"
        print(f"| {V} | {n_0} | {n} | {L} | {told} |", flush=True)


def processor_seconds(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


def flat(machine: Machine, ranks: int, work: list[float]) -> Machine:
    """Return the machine with the slowdown of so many ranks as measured beside a run."""
    scale = statistics.mean(work) / machine.work / machine.crowded(ranks)
    return dataclasses.replace(machine, slowdown={count: one * scale for count, one in machine.slowdown.items()}
                               | {ranks: statistics.mean(work) / machine.work})  # fmt: skip


if __name__ == "__main__":
    main()
