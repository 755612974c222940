"""Training from disk: memory and bytes against their limit and formula, time against a training in memory, kills.

    python benchmarks/disk_training.py --scratch DIR            (all parts; about ten minutes on two slow cores)
    python benchmarks/disk_training.py --parts limit --iterations 2
    python benchmarks/disk_training.py --parts time,agreement --time-nodes 16000
    python benchmarks/disk_training.py --parts kills --kill-nodes 6000

Parts: ``limit`` trains 10 layers of 128 with a state of eight times the memory limit and more; ``time`` compares
iterations in memory, from disk, and of the disk alone; ``agreement`` compares results where both fit; ``kills`` ends
runs by kill -9 at random moments, goes on with each, and compares with one that was never stopped.
Prints markdown tables. Files of a few GB come and go under --scratch, by default a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from shared import machine, ratio, table, timed

from pdadmm import PDADMMG
from pdadmm.admm.streamed import largest_state
from pdadmm.disk import storage as storage_module
from pdadmm.disk.blocks import DiskArray, NewArray
from pdadmm.disk.limits import Limit
from pdadmm.disk.state import Layout
from pdadmm.disk.storage import Storage

MIB = 1 << 20
CLASSES = 10


def settings(given: argparse.Namespace, **more) -> dict:
    """The parameters of every run here."""
    common = {"layers": given.layers, "hidden": given.hidden, "first_layer": "gram", "iterations": given.iterations}
    return common | more


def make_features(path: Path, nodes: int, inputs: int) -> np.ndarray:
    """Write features around one centre a class, in chunks, and return the classes."""
    draw = np.random.default_rng(0)
    y, centres = draw.integers(CLASSES, size=nodes), draw.normal(size=(CLASSES, inputs)) / np.sqrt(inputs)
    file = NewArray(path, (nodes, inputs), "float32")
    for start in range(0, nodes, file.block):
        own = y[start : start + file.block]
        file.write(start, centres[own] + draw.normal(size=(len(own), inputs)) / np.sqrt(inputs))
    file.commit()
    return y


def in_a_process_of_its_own(work, result: Path) -> object:
    """Return ``work()``, done by a child that this process, with nothing but its imports, forks."""
    child = start(work, result)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"the child ended with status {status}")
    return pickle.loads(result.read_bytes())


def start(work, result: Path) -> int:
    """Fork a child that does ``work()`` and leaves what it returns in a file."""
    result.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        partial = result.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(work()))
        partial.rename(result)
        status = 0
    finally:
        os._exit(status)


def markdown(heads: list[str], rows: list[list[object]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def weights_of(run: PDADMMG) -> dict:
    return {name: value.numpy() for name, value in run.model_.state_dict().items()}


# The limit


def limit(given: argparse.Namespace, folder: Path) -> None:
    own = Limit(0)
    y = in_a_process_of_its_own(lambda: make_features(folder / "X.npy", given.nodes, given.inputs), folder / "y")
    with DiskArray(folder / "X.npy") as X:
        run = PDADMMG(**settings(given, eval_every=given.iterations))
        run.fit(X, y, memory=given.memory, scratch=folder / "run")
    taken, found = own.most(), run.summary_
    memory = found["memory_bytes"]
    numbers = 5 * (given.layers - 1) * given.hidden + 2 * CLASSES
    read, written = formula(given, found["block_nodes"])
    seconds = run.history_.column("seconds")
    shape = f"{given.layers} x {given.hidden}, V = {given.nodes}, n_0 = {given.inputs}"
    print(f"\n## {shape}, --memory {memory // MIB}MiB\n")
    rows = [
        ["memory limit", f"{memory / 1e6:.0f} MB"],
        ["peak RSS above the interpreter's", f"{taken / 1e6:.0f} MB"],
        ["state on disk (z, q), one of two files", f"{found['state_bytes'] / 1e6:.0f} MB"],
        ["state / limit", f"{found['state_bytes'] / memory:.2f}"],
        ["state in memory (p, q, u, z, r) / limit", f"{4 * numbers * given.nodes / memory:.2f}"],
        ["nodes in a block", found["block_nodes"]],
        ["read", f"{found['bytes_read'] / 1e6:.0f} MB, {found['bytes_read'] / read:.4f} of the formula"],
        ["written", f"{found['bytes_written'] / 1e6:.0f} MB, {found['bytes_written'] / written:.4f} of the formula"],
        ["last iteration", f"{seconds[-1] - seconds[-2]:.1f} s"],
        ["all of it", f"{seconds[-1]:.0f} s, {len(seconds)} iterations"],
    ]
    print(markdown(["what", "measured"], rows))
    print(f"\nwithin the limit: {'yes' if taken <= memory else 'NO'}")
    (folder / "X.npy").unlink()
    shutil.rmtree(folder / "run")


def formula(given: argparse.Namespace, block: int) -> tuple[int, int]:
    """Bytes read and written without a pass that makes sums anew, as docs/disk-training.md has them."""
    checked = PDADMMG(**settings(given)).checked()
    features, state = 4 * given.nodes * given.inputs, []
    for number, depth in enumerate(checked.stages):
        widths = [given.inputs, *[given.hidden] * (depth - 1), CLASSES]
        layout = Layout(storage_module.state_columns(widths, [], number == 0), torch.float32)
        whole, rest = divmod(given.nodes, block)
        state.append(whole * layout.nbytes(block) + (layout.nbytes(rest) if rest else 0))
    k, stages = given.iterations, len(checked.stages)
    scores = 2 * stages  # at each stage's start and end
    read = features * (1 + scores + stages * (1 + k)) + sum((k - 1) * size for size in state)
    return read, features + sum(k * size for size in state)


# Time


def times(given: argparse.Namespace, folder: Path) -> None:
    """Iterations at full depth, in memory and from disk, and the disk alone: reading and writing without a sum."""
    nodes = given.time_nodes
    y = make_features(folder / "X.npy", nodes, given.inputs)
    with DiskArray(folder / "X.npy") as file:
        X = file.rows(0, nodes)
    length = given.iterations + 1

    def steps(**more) -> list[float]:
        run = PDADMMG(**settings(given, stages=(given.layers,), iterations=length, acceleration="none"))
        run.fit(X, y, **more)
        seconds = run.history_.column("seconds")
        return [later - earlier for earlier, later in itertools.pairwise(seconds)]

    disk, memory = [], []
    for number in range(given.repeat):
        memory += steps()
        disk += steps(memory=given.memory, scratch=folder / f"run{number}")
        shutil.rmtree(folder / f"run{number}")
    alone = disk_alone(given, X, y, folder)
    print(f"\n## An iteration, V = {nodes}\n")
    print(table({"in memory": memory, "from disk": disk, "the disk alone": alone}))
    print(f"\nfrom disk / in memory: {ratio(disk, memory):.2f}; the disk alone / from disk: "
          f"{np.median(alone) / np.median(disk):.2f}")  # fmt: skip
    (folder / "X.npy").unlink()


def disk_alone(given: argparse.Namespace, X: np.ndarray, y: np.ndarray, folder: Path) -> list[float]:
    """Seconds of passes that read and write the same blocks, and compute nothing."""
    checked = PDADMMG(**settings(given, acceleration="none")).checked()
    (folder / "alone").mkdir()
    columns, widths = largest_state(checked, len(y), X.shape[1], CLASSES)
    store = Storage(folder / "alone", given.memory, torch.from_numpy(X), len(y), widths, columns, torch.float32)
    store.begin(0, columns)

    def sweep() -> None:
        for _ in store.sweep(write=True):
            pass
        store.record()

    seconds = timed({"sweep": sweep}, given.iterations)["sweep"]
    store.remove()
    shutil.rmtree(folder / "alone")
    return seconds


# Agreement


def agreement(given: argparse.Namespace, folder: Path) -> None:
    nodes, rows = given.time_nodes // 4, []
    y = make_features(folder / "X.npy", nodes, given.inputs)
    with DiskArray(folder / "X.npy") as file:
        X = file.rows(0, nodes)
    for dtype in ("float64", "float32"):
        for count in (1, given.iterations):
            more = settings(given, dtype=dtype, iterations=count, eval_every=count)
            memory = PDADMMG(**more).fit(X, y)
            disk = PDADMMG(**more).fit(X, y, memory=given.memory, scratch=folder / "agree")
            shutil.rmtree(folder / "agree")
            ours, theirs = weights_of(memory), weights_of(disk)
            scale = {name: np.abs(ours[name.replace("bias", "weight")]).max() for name in ours}
            gap = max(np.abs(ours[name] - theirs[name]).max() / scale[name] for name in ours)
            last = memory.history_[-1]["objective"], disk.history_[-1]["objective"]
            correct = [float((run.predict(X) == y).mean()) for run in (memory, disk)]
            rows.append([dtype, count, f"{gap:.1e}", f"{abs(last[0] - last[1]) / last[0]:.1e}",
                         " / ".join(f"{x:.4f}" for x in correct)])  # fmt: skip
    print(f"\n## Agreement with the run in memory, V = {nodes}\n")
    heads = ["format", "iterations a stage", "largest gap of W, b", "gap of the objective", "training accuracy, both"]
    print(markdown(heads, rows))
    (folder / "X.npy").unlink()


# Kills


def kills(given: argparse.Namespace, folder: Path) -> None:
    y, draw = make_features(folder / "X.npy", given.kill_nodes, given.inputs), random.Random(given.seed)

    def train(scratch: Path) -> tuple:
        with DiskArray(folder / "X.npy") as X:
            run = PDADMMG(**settings(given)).fit(X, y, memory=given.memory, scratch=scratch, resume=True)
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.history_]
        return {name: value.tobytes() for name, value in weights_of(run).items()}, rows

    began = time.perf_counter()
    expected = in_a_process_of_its_own(lambda: train(folder / "whole"), folder / "result")
    length = time.perf_counter() - began
    same, done, runs, moments = True, 0, 0, []
    scratch = folder / "killed"
    while True:
        fresh = not scratch.exists()
        child = start(lambda: train(scratch), folder / "result")
        moment = draw.uniform(0, length) if done < given.kills else None
        took = waited_for(child, moment)
        if took is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            last = max((int(path.name[10:]) for path in scratch.glob("iteration-??????")), default=0)
            done, moments = done + 1, [*moments, f"{moment:.2f} s ({last})"]
            continue
        runs, length = runs + 1, took if fresh else length  # the machine's neighbours come and go
        if not (folder / "result").exists():
            raise SystemExit("a run that went on ended with an error")
        same = same and pickle.loads((folder / "result").read_bytes()) == expected
        shutil.rmtree(scratch)
        if done == given.kills:
            break
    print(f"\n## kill -9, V = {given.kill_nodes}, a run of {length:.1f} s\n")
    print(f"moments after a start, and the iteration that was safe then: {', '.join(moments)}\n")
    print(f"{done} kills, the same result: {'yes' if same else 'NO'} ({runs} runs)")
    (folder / "X.npy").unlink()
    if not same:
        raise SystemExit("a run that was killed and gone on with has another result")


def waited_for(child: int, seconds: float | None) -> float | None:
    """Return how long a child took, None where it is still at it after so many seconds."""
    began = time.perf_counter()
    while os.waitpid(child, 0 if seconds is None else os.WNOHANG) == (0, 0):
        if time.perf_counter() - began >= seconds:
            return None
        time.sleep(0.002)
    return time.perf_counter() - began


PARTS = {"limit": limit, "time": times, "agreement": agreement, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("nodes", 120_000), ("inputs", 256), ("hidden", 128), ("layers", 10), ("iterations", 3),
        ("time-nodes", 40_000), ("kill-nodes", 20_000), ("kills", 20), ("repeat", 3), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", type=int, default=128 * MIB, help="bytes")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        print(machine())
        for name, part in PARTS.items():  # the limit first: the others leave memory behind
            if name in given.parts.split(","):
                part(given, Path(folder))


if __name__ == "__main__":
    main()
