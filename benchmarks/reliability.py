"""What the library survives: runs cut off and gone on with, damaged files, full disks, NaN, repeated runs.

    python benchmarks/reliability.py --rows FILE            (all parts; about half an hour on two cores)
    python benchmarks/reliability.py --parts cuts,kills     (some of them)

Parts: ``cuts`` ends runs of random settings in one process at random iterations and goes on with them; ``kills`` does
so to `pdadmm train` on 1 to 3 ranks, by kill -9 of a random rank or by SIGTERM or SIGINT to the job, at random
moments, start-up included, and goes on with another number of ranks; ``damage`` changes files of the newest checkpoint;
``disk`` lets files of a checkpoint grow to a random size only; ``nan`` puts a NaN into a random variable;
``repeats`` trains the same seed in new processes. Every run that is gone on with is compared with one that was never
cut off, bit for bit: weights, history (but for seconds) and stages. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pdadmm import DivergenceError, csbm
from pdadmm.admm.network import Network
from pdadmm.checkpoint import Checkpoint, DamagedError, found
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.solvers import SOLVERS, solver_class

SMALL = {"layers": 4, "hidden": 6, "hops": 1, "iterations": 6}
SMALL_GNN = {"layers": 3, "hidden": 6, "iterations": 12}
GRAPH = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)


class CutOff(Exception):
    """Ends a run in one process without warning."""


def gnn_settings(name: str, draw: random.Random) -> dict:
    """Random settings of a solver whose network sees the graph, without sizes."""
    common = {
        "seed": draw.randrange(100),
        "dtype": draw.choice(["float32", "float64"]),
        "eval_every": draw.choice([1, 2, 3]),
        "architecture": draw.choice(["gcn", "sage"]),
        "dropout": draw.choice([0.0, 0.3]),
    }
    own = {
        "gcn": {"halo": draw.choice(["exact", "pipelined", "sampled", "quantized", "mix"])},
        "mixgcn": {"chunks": draw.choice([1, 2])},
        "sage": draw.choice([{"sampler": "cluster"}, *(
            {"sampler": sampler, "batch_size": size} for sampler in ("neighbour", "walk") for size in (None, 7)
        )]),
        "gist": {"parts": draw.choice([2, 3]), "local_steps": draw.choice([1, 3, 5])},
    }
    return common | own[name]


def settings_of(name: str, draw: random.Random) -> dict:
    """Random settings of a solver, without sizes."""
    if not issubclass(solver_class(name), GraphClassifier):
        return gnn_settings(name, draw)
    common = {
        "seed": draw.randrange(100),
        "dtype": draw.choice(["float32", "float64"]),
        "activation": draw.choice(["relu", "leaky_relu", "identity"]),
        "eval_every": draw.choice([1, 2, 3]),
        "stages": draw.choice([(2, 4), (2, 3, 4), (4,)]),
    }
    if not name.startswith("pdadmm"):
        return common | {"dropout": draw.choice([0.0, 0.3]), "batch_size": draw.choice([None, 7, 20])}
    common |= {
        "form": draw.choice(["exact", "gradient"]),
        "first_layer": draw.choice(["gram", "kernel", "gradient"]),
        "acceleration": draw.choice(["none", "first-stage", "all-stages"]),
        "rho_schedule": draw.choice(["fixed", "stall"]),
        "rho": draw.choice([0.01, 0.3]),
    }
    if name == "pdadmm-g":
        return common
    common |= {"bits": draw.choice([2, 4, 8]), "coding": draw.choice(["difference", "value"])}
    return common | {"rounding": draw.choice(["nearest", "stochastic"]), "error_feedback": draw.choice([True, False])}


def outcome(trained) -> tuple:
    machine = ("seconds", "bytes", "peak_rss")
    rows = [{key: value for key, value in row.items() if not key.startswith(machine)} for row in trained.history_]
    weights = {name: value.numpy().tobytes() for name, value in trained.model_.state_dict().items()}
    return weights, json.dumps(rows), json.dumps(trained.stages_)


def make(draw: random.Random, names: list[str]):
    name = draw.choice(names)
    small = SMALL if issubclass(solver_class(name), GraphClassifier) else SMALL_GNN
    return solver_class(name)(**small | settings_of(name, draw))


def cut(solver, folder: Path, at: int, every: int) -> None:
    """Fit, and end without warning in the iteration after ``at``."""

    def watch(row) -> None:
        if row["iteration"] > at:
            raise CutOff

    with contextlib.suppress(CutOff):
        solver.fit(GRAPH, checkpoint=folder, checkpoint_every=every, watch=watch, resume=True)


def cuts(count: int, folder: Path, draw: random.Random) -> dict:
    """Cut runs off up to three times each, at random iterations."""
    equal = cut_off = 0
    for number in range(count):
        solver, here = make(draw, list(SOLVERS)), folder / str(number)
        expected = solver.fit(GRAPH)
        length = len(expected.history_)
        wanted = outcome(expected)
        for _ in range(draw.randint(1, 3)):
            cut(solver, here, draw.randrange(length), draw.randint(1, 5))
            cut_off += 1
        equal += outcome(solver.fit(GRAPH, checkpoint=here, resume=True)) == wanted
        shutil.rmtree(here)
    return {"runs": count, "cut off": cut_off, "equal": equal}


# Jobs of the command line


def command(ranks: int, flags: list[str]) -> list[str]:
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, "-m", "pdadmm", "train", *flags]


def start(ranks: int, flags: list[str], said: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    with open(said, "w") as file:
        return subprocess.Popen(command(ranks, flags), stdout=file, stderr=file, env=environment)


def ranks_of(job: subprocess.Popen) -> dict[int, int]:
    """Rank -> process, as far as they have started."""
    pids = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"pdadmm"] and _ancestor(int(path.name), job.pid):
                    found_rank = re.search(rb"\0PMI_RANK=(\d+)", (path / "environ").read_bytes())
                    pids[int(found_rank[1]) if found_rank else 0] = int(path.name)
    return pids


def _ancestor(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def kills(count: int, folder: Path, draw: random.Random) -> dict:
    """Cut jobs off three times each; the last start goes to the end."""
    told = {"jobs": count, "kill -9": 0, "of these ranks in training": 0, "named": 0, "SIGTERM": 0, "SIGINT": 0}
    told |= {"signals in training": 0, "left well": 0, "gone on with other ranks": 0, "equal": 0, "seconds to end": 0.0}
    for number in range(count):
        here = folder / str(number)
        here.mkdir()
        name = draw.choice(["pdadmm-g", "pdadmm-g", "pdadmm-g-q"])
        flags = ["--dataset", "csbm:400", "--layers", "4", "--hidden", "16", "--hops", "1", "--iterations", "400"]
        flags += ["--solver", name, "--threads", "1"]
        for key, value in settings_of(name, draw).items():
            word = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flags += ["--" + key.replace("_", "-"), word]
        results = {w: ["--save", f"{here / w}.safetensors", "--history", f"{here / w}.jsonl"] for w in ("whole", "on")}
        finish(start(1, flags + results["whole"], here / "said.txt"), here)
        resumed = [*flags, "--checkpoint", str(here / "run"), "--every", "10", "--resume"]
        last = 0
        for _ in range(3):
            ranks = draw.randint(1, 3)
            told["gone on with other ranks"] += ranks != last and bool(list(here.glob("run/iteration-*")))
            last = ranks
            if interrupt(start(ranks, resumed, here / "said.txt"), ranks, here, draw, told):
                break
        finish(start(draw.randint(1, 3), resumed + results["on"], here / "said.txt"), here)
        same = (here / "whole.safetensors").read_bytes() == (here / "on.safetensors").read_bytes()
        told["equal"] += same and rows(here / "whole.jsonl") == rows(here / "on.jsonl")
        print(json.dumps(told), flush=True)
    return told


def finish(job: subprocess.Popen, here: Path) -> None:
    if job.wait() != 0:
        raise RuntimeError((here / "said.txt").read_text())


def rows(path: Path) -> list[dict]:
    machine = ("seconds", "bytes")
    return [{k: v for k, v in json.loads(line).items() if k not in machine} for line in path.read_text().splitlines()]


def interrupt(job: subprocess.Popen, ranks: int, here: Path, draw: random.Random, told: dict) -> bool:
    """End a job at a random moment; whether it had ended by itself."""
    run, before, starting = here / "run", set(here.glob("run/iteration-*")), draw.random() < 0.2
    if starting:
        until = time.monotonic() + draw.uniform(0.5, 4)
    else:
        while job.poll() is None and set(run.glob("iteration-*")) <= before:
            time.sleep(0.02)
        until = time.monotonic() + draw.uniform(0, 3)
    while time.monotonic() < until and job.poll() is None:
        time.sleep(0.005)
    pids = ranks_of(job)
    if job.poll() is not None or not pids:
        job.wait()
        return job.returncode == 0
    how = draw.choice(["kill -9", "kill -9", "SIGTERM", "SIGINT"])
    rank, began = draw.choice(list(pids)), time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        if how == "kill -9":
            os.kill(pids[rank], signal.SIGKILL)
        else:
            os.kill(job.pid, getattr(signal, how))
    status = job.wait(timeout=120)
    said = (here / "said.txt").read_text()
    if status == 0:
        return True
    told[how] += 1
    told["seconds to end"] = max(told["seconds to end"], round(time.monotonic() - began, 2))
    if how != "kill -9":
        told["signals in training"] += not starting
        told["left well"] += not starting and status in (130, 143) and "stopped by" in said
    elif ranks > 1 and not starting:
        told["of these ranks in training"] += 1
        told["named"] += f"pdadmm: rank {rank} (process {pids[rank]} " in said and "died" in said
    return False


# Files, disks, numbers


def damage(count: int, folder: Path, draw: random.Random) -> dict:
    """Change a random file of the newest checkpoint: it must be noticed, and the one before used."""
    solver = solver_class("pdadmm-g")(**SMALL)
    cut(solver, folder / "whole", 7, 3)
    wanted = outcome(solver.fit(GRAPH))
    told = {"files damaged": 0, "noticed": 0, "without effect": 0, "gone on, equal": 0}
    for number in range(count):
        here = shutil.copytree(folder / "whole", folder / "damaged")
        newest = found(here)[0]
        before = Checkpoint.open(newest)
        path = draw.choice(sorted(newest.iterdir()))
        content = bytearray(path.read_bytes())
        where = draw.randrange(len(content))
        how = draw.choice(["bit", "byte", "cut", "swap", "foreign"])
        if how == "bit":
            content[where] ^= 1 << draw.randrange(8)
        elif how == "byte":
            content[where] = (content[where] + draw.randint(1, 255)) % 256
        elif how == "cut":
            del content[where:]
        elif how == "swap":
            content = bytearray(draw.choice([p for p in newest.iterdir() if p != path]).read_bytes())
        else:
            content = bytearray(draw.randbytes(draw.randrange(5000)))
        path.write_bytes(content)
        told["files damaged"] += 1
        try:
            saved = Checkpoint.open(newest)
            for layer in range(saved.layers):
                saved.layer(layer)
            told["without effect"] += saved.body == before.body
        except DamagedError:
            told["noticed"] += 1
        if number < count // 10:
            told["gone on, equal"] += outcome(solver.fit(GRAPH, checkpoint=here, resume=True)) == wanted
        shutil.rmtree(here)
    return told | {"gone on": count // 10}


def disk(count: int, folder: Path, draw: random.Random) -> dict:
    """Writing fails at a random size of a file, in the middle of a run that goes on from a checkpoint."""
    solver = solver_class("pdadmm-g")(**SMALL)
    cut(solver, folder / "whole", 4, 3)
    wanted = outcome(solver.fit(GRAPH))
    told = {"runs": count, "equal": 0, "a checkpoint whole": 0, "gone on, equal": 0}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(count):
        here = shutil.copytree(folder / "whole", folder / "full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (draw.randrange(1, 12000), hard))
        try:
            trained = solver.fit(GRAPH, checkpoint=here, checkpoint_every=2, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        told["equal"] += outcome(trained) == wanted
        newest = Checkpoint.open(found(here)[0])
        told["a checkpoint whole"] += all(bool(newest.layer(layer)) for layer in range(newest.layers))
        told["gone on, equal"] += outcome(solver.fit(GRAPH, checkpoint=here, resume=True)) == wanted
        shutil.rmtree(here)
    return told


def nan(count: int, folder: Path, draw: random.Random) -> dict:
    """Put a NaN into z of a random layer before a random iteration: the next p, or W of layer 1, has it first."""
    told, iterate = {"runs": count, "named": 0, "last good state kept": 0}, Network.iterate
    for number in range(count):
        name = draw.choice(["pdadmm-g", "pdadmm-g-q"])
        solver = solver_class(name)(**SMALL | settings_of(name, draw) | {"stages": (4,)})
        at, layer, calls = draw.randint(2, 6), draw.randrange(4), [0]

        def damaging(network, at=at, layer=layer, calls=calls) -> None:
            calls[0] += 1
            if calls[0] == at:
                for array in (network.layers[layer].z, network.layers[layer].r):
                    array.view(-1)[draw.randrange(array.numel())] = torch.nan
            iterate(network)

        Network.iterate = damaging
        try:
            solver.fit(GRAPH, checkpoint=folder / str(number), checkpoint_every=1)
        except DivergenceError as error:
            told["named"] += f"iteration {at}: layer {layer + 1} of 4" in str(error)
            told["last good state kept"] += found(folder / str(number))[0].name == f"iteration-{at - 1:06d}"
        finally:
            Network.iterate = iterate
    return told


def repeats(count: int, folder: Path, draw: random.Random) -> dict:
    """Train the same seed in ``count`` new processes for each solver: equal files."""
    equal = 0
    for name in SOLVERS:
        flags = ["--dataset", "digits", "--layers", "4", "--iterations", "10", "--solver", name, "--threads", "1"]
        for number in range(count):
            file = folder / f"{name}.{number}"
            assert start(1, [*flags, "--save", str(file)], folder / "said.txt").wait() == 0
        equal += len({(folder / f"{name}.{number}").read_bytes() for number in range(count)}) == 1
    return {"solvers": len(SOLVERS), "processes each": count, "equal": equal}


PARTS = {"cuts": (300, cuts), "kills": (12, kills), "damage": (2000, damage), "disk": (100, disk), "nan": (200, nan)}
PARTS["repeats"] = 3, repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of runs")
    parser.add_argument("--rows", help="write the counts here, JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pdadmm").setLevel("ERROR")
    table = {}
    for name in given.parts.split(","):
        count, part = PARTS[name]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = part(max(1, round(count * given.share)), Path(folder), random.Random(given.seed))
        table[name] = counts | {"minutes": round((time.perf_counter() - began) / 60, 1)}
        print(f"| {name} | {', '.join(f'{key} {value}' for key, value in table[name].items())} |", flush=True)
    if given.rows:
        Path(given.rows).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
