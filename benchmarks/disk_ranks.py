"""Augmentation from disk over ranks: all slices in one folder that every rank sees, or each rank's in its own.

    python benchmarks/disk_ranks.py --folder DIR           (200,000 nodes, 3 million edges, 64 features, K = 3, 2 ranks)

A graph with random edges and features is written and converted (kept for the next run). Then, in turn, on files out of
the system's cache: `mpiexec -n R` of augment_folder, without and with a folder for each rank, every row kept. "read"
and "written" are bytes of files of all ranks, "sent" those between ranks as the ledger counts them, beside the formulas
of pdadmm.disk.plan and pdadmm.disk.exchange, the adjacency once for each rank. "peak" is the largest rank's memory
beyond that at the start.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from disk import HOPS, SPLIT, digest, graph_parser, make_graph, start_cold

from pdadmm.augment import Augmenter
from pdadmm.disk.augment import Request, augment_folder
from pdadmm.disk.exchange import EXCHANGE_KINDS
from pdadmm.disk.graph import DiskGraph
from pdadmm.files import peak_rss_bytes, resident_bytes
from pdadmm.parallel.launch import make_transport
from pdadmm.parameters import memory_size


def child(folder: Path, limit: int, own: bool) -> None:
    """Do one run as a rank of several; rank 0 prints the figures of all as JSON."""
    transport = make_transport()
    before, local = resident_bytes(), folder / "local" if own else None
    transport.barrier()
    began, steps = time.perf_counter(), {}

    def watch(step: str, done: int, total: int) -> None:
        steps[step] = time.perf_counter() - began  # when its last unit was done

    with DiskGraph(folder / "graph") as graph:
        request = Request(Augmenter(HOPS), "all", SPLIT, 0, limit)
        plan = augment_folder(graph, request, folder / "out", transport, watch, local)
        transport.barrier()
        seconds, sent = time.perf_counter() - began, sum(transport.ledger.sent[kind] for kind in EXCHANGE_KINDS)
        parts = transport.allgather((graph.traffic.read, graph.traffic.written, sent, peak_rss_bytes() - before))
        again = (transport.size - 1) * (graph.num_edges * graph.indices.dtype.itemsize + 8 * (graph.num_nodes + 1))
    if transport.rank == 0 and plan is not None:
        read, written, sent = (sum(part[k] for part in parts) for k in range(3))
        formula = plan.read_bytes + again, plan.written_bytes, sum(plan.exchange.values())
        print(json.dumps({
            "seconds": seconds, "steps": steps, "bytes": [read, written, sent], "formula": formula,
            "peak": max(part[3] for part in parts), "slices": plan.slices,
        }))  # fmt: skip
    transport.close()


def run(folder: Path, ranks: int, memory: str, own: bool) -> dict:
    """Start the ranks on cold files and return their figures."""
    start_cold(folder)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    words = [mpiexec, "-n", ranks, sys.executable, __file__, "--folder", folder, "--memory", memory, "--child"]
    words += ["local"] if own else ["shared"]
    done = subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | {"digest": digest(folder / "out" / "features.npy")}


def table(runs: dict[str, list[dict]]) -> str:
    """Return a table of the runs: bytes of the last, medians and single values of the seconds."""
    rows = ["| run | slices | peak MB | read MB | of formula | written MB | of formula | sent MB | of formula |"
            " cut, hops, rows s | seconds | each |", "|" + "---|" * 12]  # fmt: skip
    for name, found in runs.items():
        last, cells = found[-1], []
        for count, formula in zip(last["bytes"], last["formula"]):
            cells += [f"{count / 1e6:.1f}", f"{count / formula:.3f}" if formula else ""]
        ends = [0.0, *(last["steps"][step] for step in ("cutting", "hops", "scaling"))]
        steps = ", ".join(f"{after - before:.1f}" for before, after in itertools.pairwise(ends))
        each = [one["seconds"] for one in found]
        cells = [name, str(last["slices"]), f"{max(one['peak'] for one in found) / 1e6:.0f}", *cells, steps,
                 f"{statistics.median(each):.1f}", " ".join(f"{one:.1f}" for one in each)]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Make the graph, time the runs in turn."""
    parser = graph_parser(__doc__, 200_000, 3_000_000, 64)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--memory", default="160MiB")
    given = parser.parse_args()
    limit = memory_size.accept(given.memory)
    if given.child:
        child(given.folder, limit, given.child == "local")
        return
    from shared import machine

    given.folder.mkdir(exist_ok=True)
    if not (given.folder / "graph" / "graph.json").exists():
        make_graph(given.folder, given.nodes, given.edges, given.features, 1 << 28)
    print(machine() + "\n")
    names = {"one folder": False, "a folder each": True}
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(given.repeat):
        for name, own in names.items():
            runs[name].append(run(given.folder, given.ranks, given.memory, own))
    print(table(runs) + "\n")
    same = len({one["digest"] for found in runs.values() for one in found}) == 1
    print(f"features.npy: {'the same bits in all runs' if same else 'DIFFERENT'}")
    shutil.rmtree(given.folder / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
