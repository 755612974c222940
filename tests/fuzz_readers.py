"""Feed malformed files to every reader: each must be refused with an InputError, or give a valid result.

    python tests/fuzz_readers.py --count 100000 --seed 0           (about 10 minutes; a table at the end)
    python tests/fuzz_readers.py --count 1 --seed 0 --reader npz --start 4711    (one case again)

Case k of a reader is a function of (seed, reader, k) alone. A valid file is damaged at random: bits, bytes, cuts,
numbers of 4 and 8 bytes, and parts that the format itself knows (arrays of an npz, opcodes of a pickle, values of
JSON, the header of safetensors). A finding is any other exception, a signal, more than SECONDS of work, or
more than BYTES of memory. Batches run in child processes, so that a crash is a finding too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from fuzz_damage import (
    NUMBERS,
    check_graph,
    damage_arrays,
    damage_bytes,
    damage_headers,
    damage_json,
    damage_opcodes,
    dumps,
    npz_bytes,
)
from fuzz_folders import FOLDERS

from pdadmm.contest import read_summary
from pdadmm.data import read_npz, read_planetoid
from pdadmm.errors import InputError
from pdadmm.history import History
from pdadmm.models.gamlp import load_model
from pdadmm.plot import checked, load_matplotlib, plot_convergence
from pdadmm.plot_contest import plot_contest
from pdadmm.standings import standings, table

__all__ = ["READERS", "Finding", "run_cases"]

SECONDS = 20
BYTES = 256 << 20
BATCH = 500
MEMORY = Path("/dev/shm")  # files are opened a million times
DRAWN = 0.005  # share of histories and summaries that are drawn too


class TookTooLongError(BaseException):
    """A reader did not come back in time; no reader may catch it."""


@dataclass
class Finding:
    """A case that ended in neither an InputError nor a valid result."""

    reader: str
    case: int
    what: str


# The readers: a valid file, its own kind of damage, reading, and what a result must be


def own_parts() -> dict:
    return {
        "edge_index": np.array([[0, 1, 1, 2, 4], [1, 0, 2, 2, 3]], dtype=np.int32),
        "edge_weight": np.array([1, 1, 2, 3, 0.5], dtype=np.float32),
        "x_data": np.array([1, 2, 1], dtype=np.uint8), "x_indices": np.array([0, 3, 1], dtype=np.int32),
        "x_indptr": np.array([0, 1, 2, 3, 3, 3], dtype=np.int32), "x_shape": np.array([5, 4]),
        "y": np.array([0, 1, -1, 1, 0], dtype=np.int16), "train_idx": np.array([0, 1], dtype=np.int32),
        "val_idx": np.array([3], dtype=np.int32), "test_idx": np.array([4], dtype=np.int32),
    }  # fmt: skip


def shchur_parts() -> dict:
    own = own_parts()
    adjacency = {
        "adj_data": np.ones(4, "f4"), "adj_indices": np.array([1, 2, 2, 0]), "adj_indptr": np.array([0, 1, 3, 3, 4, 4]),
        "adj_shape": np.array([5, 5]), "labels": np.array([0, 1, 1, 0, 2]),
    }  # fmt: skip
    return adjacency | {"attr" + key[1:]: value for key, value in own.items() if key.startswith("x_")}


def graphbolt_parts() -> dict:
    """By columns, with masks, under the names of GraphBolt and PyTorch Geometric."""
    own = own_parts()
    masks = {f"{part}_mask": np.isin(np.arange(5), own[f"{part}_idx"]) for part in ("train", "val", "test")}
    columns = {"csc_indptr": np.array([0, 1, 3, 3, 4, 4]), "indices": np.array([1, 2, 0, 4], dtype=np.int32)}
    return columns | masks | {"feat": np.linspace(-1, 1, 20).reshape(5, 4), "labels": own["y"][:, None]}


def make_npz(r: random.Random) -> bytes:
    parts = r.choice((own_parts, shchur_parts, graphbolt_parts))()
    if r.random() < 0.3 and "x_data" in parts:
        parts = {key: value for key, value in parts.items() if not key.startswith("x_")}
        parts["x"] = np.linspace(-1, 1, 20).reshape(5, 4)
    if r.random() < 0.7:  # damage to the arrays themselves, in a sound archive
        for _ in range(r.choice((1, 1, 2))):
            with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError):  # of numpy: damaged enough
                damage_arrays(parts, r)
            if not parts:
                return npz_bytes({})
        return damage_headers(npz_bytes(parts), r) if r.random() < 0.3 else npz_bytes(parts)
    return damage_bytes(npz_bytes(parts, r.choice((np.savez, np.savez_compressed))), r)


def read_an_npz(folder: Path, r: random.Random) -> None:
    (folder / "case.npz").write_bytes(make_npz(r))
    check_graph(read_npz(folder / "case.npz"))


def tiny_planetoid() -> dict:
    return {
        "allx": sp.csr_matrix(np.array([[1, 0], [0, 2], [0, 0]], dtype=np.float32)),
        "tx": sp.csr_matrix(np.array([[5, 5], [3, 0]], dtype=np.float32)), "y": np.array([[1, 0]], dtype=np.int32),
        "ally": np.array([[1, 0], [0, 1], [0, 0]], dtype=np.int32), "ty": np.array([[0, 1], [1, 0]], dtype=np.int32),
        "graph": {0: [1, 1, 0], 1: [0, 2], 2: [1], 3: [5], 4: [], 5: [3]},
    }  # fmt: skip


def read_a_planetoid(folder: Path, r: random.Random) -> None:
    protocol = r.choice((0, 1, 2, 2, 3, 4))
    parts = {name: pickle.dumps(value, protocol=protocol) for name, value in tiny_planetoid().items()}
    parts["test.index"] = b"5\n3\n"
    for name in r.sample(list(parts), r.choice((1, 1, 1, 2))):
        damage = damage_bytes if name == "test.index" or r.random() < 0.4 else damage_opcodes
        parts[name] = damage(parts[name], r)
    for name, raw in parts.items():
        (folder / f"ind.case.{name}").write_bytes(raw)
    check_graph(read_planetoid(folder, "case"))


def good_model(folder: Path) -> bytes:
    import torch

    from pdadmm import GAMLP, Augmenter, csbm
    from pdadmm.models.gamlp import save_model

    torch.manual_seed(0)
    augmenter = Augmenter(hops=2)
    augmenter.fit_transform(csbm(30, num_classes=3, num_features=2, avg_degree=4))
    save_model(folder / "good", GAMLP([6, 4, 3]), augmenter, [0, 1, 2])
    return (folder / "good").read_bytes()


def make_model(raw: bytes, r: random.Random) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    head, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    act = r.randrange(4)
    if act == 0:
        return damage_bytes(raw, r)
    if act == 1:
        head = damage_json(head, r)
    elif act == 2:
        described = json.loads(head["__metadata__"]["pdadmm"])
        head["__metadata__"]["pdadmm"] = dumps(damage_json(described, r), r).decode("utf-8", "surrogatepass")
    else:
        body = damage_bytes(body, r)
    text = json.dumps(head).encode()
    claimed = len(text) if r.random() < 0.9 else r.choice(NUMBERS) % 2**64
    return claimed.to_bytes(8, "little") + text + body


def read_a_model(folder: Path, r: random.Random) -> None:
    if not (folder / "good").exists():
        good_model(folder)
    raw = (folder / "good").read_bytes()
    (folder / "case").write_bytes(make_model(raw, r))
    good, augmenter, classes = load_model(folder / "good")
    model, own, names = load_model(folder / "case")
    # there is a digest: what is read at all is what was written
    assert names.tolist() == classes.tolist()
    assert own.state()[0] == augmenter.state()[0]
    assert all(np.array_equal(a, b) for a, b in zip(own.state()[1].values(), augmenter.state()[1].values()))
    assert [x.numpy().tobytes() for x in model.state_dict().values()] == [
        x.numpy().tobytes() for x in good.state_dict().values()
    ]


def rows_of_history() -> list[dict]:
    return [
        {"iteration": k, "stage": k // 3, "layers": 2 + k // 3, "objective": 9.0 / k, "residual_link": 0.1 / k,
         "residual_linear": 0.2, "residual_activation": 0.0, "seconds": 0.1 * k, "bytes": 100 * k, "rho": 0.3,
         "val_accuracy": 0.5 if k % 2 else None, "test_accuracy": 0.4}
        for k in range(1, 6)
    ]  # fmt: skip


def read_a_history(folder: Path, r: random.Random) -> None:
    rows = rows_of_history()
    if r.random() < 0.7:
        rows = damage_json(rows, r)
    raw = b"".join(dumps(row, r) + b"\n" for row in rows)
    (folder / "case.jsonl").write_bytes(raw if r.random() < 0.5 else damage_bytes(raw, r))
    history = History.from_jsonl(folder / "case.jsonl")
    assert all(isinstance(row, dict) for row in history)
    x = r.choice(("iteration", "seconds", "bytes"))
    if r.random() < DRAWN:  # it takes a hundred times as long as reading
        plot_convergence({"case": history}, folder / "case.png", x)
    else:
        checked({"case": history}, x)


def summary_of_contest() -> dict:
    def run(best: float) -> dict:
        accuracies = {name: [0.3, None, best] for name in ("val_accuracy", "test_accuracy")}
        history = {"iteration": [1, 2, 3], "layers": [2, 2, 4], "seconds": [0.1, 0.2, 0.3], "bytes": [10, 20, 30],
                   "objective": [3.0, 2.0, 1.0], **accuracies}  # fmt: skip
        return {"test_accuracy": best, "val_accuracy": best, "train_accuracy": 1.0, "seconds_training": 0.3,
                "iterations": 3, "threads": 1, "bytes": 30, "peak_bytes": 10**8, "history": history}  # fmt: skip

    rows = [
        {"solver": "pdadmm-g", "layers": 4, "parameters": {"nu": 0.1}, "tuning": None, "runs": [run(0.7), run(0.9)]},
        {"solver": "adam", "layers": 4, "parameters": {}, "tuning": {"trials": []},
         "runs": [run(0.6), {"failed": "diverged"}]},
    ]  # fmt: skip
    return {"contest": {"dataset": "cora"}, "commands": ["pdadmm compare"], "targets": [0.5, 0.75], "rows": rows}


def read_a_summary(folder: Path, r: random.Random) -> None:
    summary = summary_of_contest()
    for _ in range(r.choice((1, 1, 2))):
        summary = damage_json(summary, r)
    raw = dumps(summary, r)
    (folder / "case.json").write_bytes(raw if r.random() < 0.6 else damage_bytes(raw, r))
    read = read_summary(folder / "case.json")
    table(read["rows"], standings(read["rows"], read["targets"]))  # as compare goes on with it
    if r.random() < DRAWN:
        plot_contest({"case": read}, folder / "case.png", r.choice(("iteration", "seconds", "bytes")))


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "npz": read_an_npz,
    "planetoid": read_a_planetoid,
    **FOLDERS,
    "model": read_a_model,
    "history": read_a_history,
    "summary": read_a_summary,
}


# Running them


def late(*_) -> None:
    raise TookTooLongError


def run_case(reader: str, seed: int, case: int, folder: Path) -> str:
    """Return "refused", "valid" or a description of what went wrong."""
    r = random.Random(f"{seed} {reader} {case}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work, whatever else this machine does
    signal.alarm(10 * SECONDS)  # of waiting
    try:
        READERS[reader](folder, r)
        outcome = "valid"
    except InputError as error:
        outcome = "refused" if "\n" not in str(error) else f"an error of several lines: {str(error)!r:.200}"
    except (Exception, TookTooLongError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"{type(error).__name__}: {error!s:.200} in {place.filename}:{place.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome if grown < BYTES else f"{grown} bytes of memory, {outcome}"


def run_cases(reader: str, seed: int, cases: range, folder: Path) -> tuple[Counter, list[Finding]]:
    """Run cases in this process; count what they ended in."""
    counts, found = Counter(), []
    known = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        for case in cases:
            outcome = run_case(reader, seed, case, folder)
            counts[outcome if outcome in ("refused", "valid") else "found"] += 1
            if outcome not in ("refused", "valid"):
                found.append(Finding(reader, case, outcome))
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
    return counts, found


def run_batch(reader: str, seed: int, cases: range, folder: Path) -> tuple[Counter, list[Finding]]:
    """Run cases in a child process; one that dies is a finding."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        counts, found = run_cases(reader, seed, cases, folder)
        answer.write_text(json.dumps([counts, [[one.reader, one.case, one.what] for one in found]]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not answer.exists():
        return Counter(found=1), [Finding(reader, cases.start, f"one of {cases} ended with status {status}")]
    counts, found = json.loads(answer.read_text())
    return Counter(counts), [Finding(*one) for one in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="cases over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--reader", choices=READERS, action="append")
    given = parser.parse_args()
    load_matplotlib()  # once, not in every child process
    readers, seen = given.reader or list(READERS), Counter()
    total, everything = Counter(), []
    began = time.monotonic()
    print("| reader | malformed files | refused | valid | found | seconds |\n|---|---|---|---|---|---|", flush=True)
    for reader in readers:
        share, start, counts = -(-given.count // len(readers)), time.monotonic(), Counter()
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
            folder = Path(name)
            if reader == "model":
                good_model(folder)
            for first in range(given.start, given.start + share, BATCH):
                cases = range(first, min(first + BATCH, given.start + share))
                own, found = run_batch(reader, given.seed, cases, folder)
                counts += own
                for one in found:
                    seen[one.what] += 1
                    if seen[one.what] <= 3:
                        print(f"found: {one.reader} case {one.case}: {one.what}", file=sys.stderr, flush=True)
                everything += found
        total += counts
        row = [counts["refused"], counts["valid"], counts["found"]]
        spent = time.monotonic() - start
        print(f"| {reader} | {sum(row):,} | {' | '.join(f'{n:,}' for n in row)} | {spent:.0f} |", flush=True)
    row = [total["refused"], total["valid"], total["found"]]
    print(f"| all | {sum(row):,} | {' | '.join(f'{n:,}' for n in row)} | {time.monotonic() - began:.0f} |")
    return 1 if everything else 0


if __name__ == "__main__":
    sys.exit(main())
