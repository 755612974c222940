"""Augmentation from disk: memory, bytes and time beside a run in memory; kills at random moments.

    python benchmarks/disk.py --folder DIR                          (2 million nodes, 30 million edges; 10 GB of disk)
    python benchmarks/disk.py --folder DIR --nodes 200000 --edges 3000000 --limits 200MiB,160MiB --kills 20

A graph with random edges and features is written in pieces and converted (kept for the next run). Then, in a process
of its own each and in turn: the graph read, augmented and written by Augmenter in memory, and by augment_folder within
each limit; K = 3, every row kept, the scaling learned from a tenth of them. All read the same graph, out of the
system's cache beforehand, and write the same features.npy, with fsync. "read" and "written" are bytes through system
calls as the kernel counts them (/proc/self/io), beside the formula of pdadmm.disk.plan; "peak" is memory beyond that at
the start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pdadmm.augment import Augmenter
from pdadmm.disk.augment import Request, augment_folder
from pdadmm.disk.blocks import NewArray, copy_array, forget
from pdadmm.disk.convert import Sources, convert_graph
from pdadmm.disk.graph import DiskGraph
from pdadmm.files import peak_rss_bytes, resident_bytes
from pdadmm.parameters import memory_size

HOPS, SPLIT, PIECE = 3, "fraction:10/10/80", 1 << 20


def make_graph(folder: Path, nodes: int, edges: int, features: int, limit: int) -> None:
    """Write lists of random edges, features and labels piece by piece, and convert them."""
    rng = np.random.default_rng(0)
    files = {"edges": ((edges, 2), "int32"), "x": ((nodes, features), "float32"), "y": ((nodes,), "int64")}
    for name, (shape, kind) in files.items():
        new = NewArray(folder / f"{name}.npy", shape, kind)
        for start in range(0, shape[0], PIECE):
            rows = (min(PIECE, shape[0] - start), *shape[1:])
            draw = {"edges": lambda size: rng.integers(nodes, size=size), "y": lambda size: rng.integers(10, size=size)}
            new.write(start, draw.get(name, lambda size: rng.standard_normal(size, np.float32))(rows))
        new.commit()
    convert_graph(Sources([folder / "edges.npy"], folder / "x.npy", folder / "y.npy"), folder / "graph", limit)
    for name in files:
        (folder / f"{name}.npy").unlink()


def file_bytes() -> tuple[int, int]:
    """Return the bytes this process has read and written through system calls."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[1]), int(words[3])


def child(folder: Path, limit: str) -> None:
    """Do one run, "memory" or within a limit, and print its figures as JSON."""
    augmenter, out = Augmenter(HOPS), folder / "out"
    before, files, began = resident_bytes(), file_bytes(), time.perf_counter()
    told: dict = {}
    if limit == "memory":
        from pdadmm.data import make_splits

        out.mkdir()
        with DiskGraph(folder / "graph") as disk:
            graph = disk.to_graph()
        X = augmenter.fit_transform(graph, make_splits(graph, SPLIT)["train"])
        copy_array(X, out / "features.npy")
    else:
        with DiskGraph(folder / "graph") as disk:
            plan = augment_folder(disk, Request(augmenter, "all", SPLIT, 0, memory_size.accept(limit)), out)
        if plan is not None:
            told = {"width": plan.width, "resident": plan.resident, "slices": plan.slices}
            told["formula"] = plan.read_bytes, plan.written_bytes
    told["seconds"] = time.perf_counter() - began
    told["files"] = [now - then for now, then in zip(file_bytes(), files)]
    print(json.dumps(told | {"peak": peak_rss_bytes() - before, "limit": limit}))


def command(folder: Path, limit: str) -> list[str]:
    return [sys.executable, __file__, "--folder", str(folder), "--child", limit]


def start_cold(folder: Path) -> None:
    """Remove the last result, and take the graph's files out of the system's cache."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    for path in (folder / "graph").iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        forget(file)
        os.close(file)


def run(folder: Path, limit: str) -> dict:
    """Start a child on cold files and return its figures."""
    start_cold(folder)
    return json.loads(subprocess.run(command(folder, limit), check=True, stdout=subprocess.PIPE, text=True).stdout)


def digest(path: Path) -> str:
    """Return a digest of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def kills(folder: Path, limit: str, count: int) -> Iterator[tuple[float, bool]]:
    """Kill runs at random moments and resume each; yield (second of the kill, whether the files are as without it)."""
    usual = min(run(folder, limit)["seconds"] for _ in range(2))
    expected, rng = digest(folder / "out" / "features.npy"), random.Random(0)
    header = json.loads((folder / "out" / "augmented.json").read_text())
    for _ in range(count):
        shutil.rmtree(folder / "out")
        moment = rng.uniform(0, usual)
        words, pipe = [*command(folder, limit), "--wait"], subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe) as started:
            started.stdout.readline()  # it is about to begin
            started.stdin.write(b"\n")
            started.stdin.flush()
            try:
                started.wait(moment)
            except subprocess.TimeoutExpired:
                started.kill()
        subprocess.run(command(folder, limit), check=True, stdout=subprocess.DEVNULL)
        same = json.loads((folder / "out" / "augmented.json").read_text()) == header
        yield moment, same and digest(folder / "out" / "features.npy") == expected


def table(runs: dict[str, list[dict]]) -> str:
    """Return a table of the runs: medians, and the seconds of each."""
    MB, rows = 1e6, ["| run | slices | adjacency | peak MB | read MB | of formula | written MB | of formula | seconds |"
                     " times in memory | each |", "|" + "---|" * 11]  # fmt: skip
    for name, found in runs.items():
        last = found[-1]
        ratios = [one["seconds"] / base["seconds"] for one, base in zip(found, runs["memory"])]
        each = " ".join(f"{one['seconds']:.1f}" for one in found)
        plan = [str(last["slices"]), "in memory" if last["resident"] else "streamed"] if "slices" in last else ["", ""]
        share = [f"{a / b:.3f}" for a, b in zip(last["files"], last["formula"])] if "formula" in last else ["", ""]
        cells = [name, *plan, f"{max(one['peak'] for one in found) / MB:.0f}", f"{last['files'][0] / MB:.0f}", share[0],
                 f"{last['files'][1] / MB:.0f}", share[1], f"{statistics.median(one['seconds'] for one in found):.1f}",
                 f"{statistics.median(ratios):.2f}", each]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def graph_parser(doc: str | None, nodes: int, edges: int, features: int) -> argparse.ArgumentParser:
    """Return a parser of what the runs of a graph have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    for name, default in (("nodes", nodes), ("edges", edges), ("features", features), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Make the graph, time the runs, kill."""
    parser = graph_parser(__doc__, 2_000_000, 30_000_000, 128)
    parser.add_argument("--limits", default="1GiB,512MiB")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.wait:
        print("ready", flush=True)
        sys.stdin.readline()
    if given.child:
        child(given.folder, given.child)
        return
    from shared import machine  # it brings torch, which no child needs

    limits = given.limits.split(",")
    given.folder.mkdir(exist_ok=True)
    if not (given.folder / "graph" / "graph.json").exists():
        began = time.perf_counter()
        make_graph(given.folder, given.nodes, given.edges, given.features, memory_size.accept(limits[0]))
        print(f"graph made and converted in {time.perf_counter() - began:.0f} s")
    with DiskGraph(given.folder / "graph") as graph:
        print(f"{graph.num_nodes} nodes, {graph.num_edges} stored entries, {graph.num_features} features")
    print(machine() + "\n")
    runs: dict[str, list[dict]] = {"memory": [], **{limit: [] for limit in limits}}
    digests = set()
    for _ in range(given.repeat):
        for name, found in runs.items():
            found.append(run(given.folder, name))
            digests.add(digest(given.folder / "out" / "features.npy"))
    print(table(runs) + "\n")
    print(f"features.npy: {'the same bits in all runs' if len(digests) == 1 else 'DIFFERENT'}\n")
    for limit in limits if given.kills else []:
        found = list(kills(given.folder, limit, given.kills))
        print(f"{limit}: {sum(same for _, same in found)} of {len(found)} killed and resumed runs gave the same files; "
              f"killed after {' '.join(f'{moment:.2f}' for moment, _ in found)} s")  # fmt: skip
    shutil.rmtree(given.folder / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
