"""Measures the rates of this machine for the planner: ``python -m pdadmm.planner.calibrate`` is one rank of it."""

from __future__ import annotations

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pdadmm.contest import peak_bytes
from pdadmm.doctor import starter
from pdadmm.errors import InputError
from pdadmm.parallel.launch import cores, launched_size, make_transport
from pdadmm.parallel.transport import LocalTransport
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine, Table, host_facts
from pdadmm.planner.seconds import layer_seconds

__all__ = ["calibrate"]

WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512)
ROWS = 4096
CODED = (1, 2, 4, 8, 16)  # bits
BUDGET = 0.02  # seconds of each measurement in each round
ROUNDS = 5  # a moment in which the machine is slow does not reach the median of the rounds
SWEPT = (1 << 16, 1 << 20, 1 << 22, 1 << 24)  # bytes of one array
COLD = 1 << 26  # bytes that push everything else out of the caches
LIMIT = 120.0  # seconds for a launch
TURNS = 4  # of Work between two barriers: where ranks share cores, a turn ends when the scheduler lets it
MET = 2048, 64, 3  # nodes, width, layers of the work between two meetings: milliseconds, as between a run's own


def median_seconds(run: Callable[[], object], budget: float = BUDGET) -> float:
    """Return the median seconds of ``run``, called for ``budget`` seconds and five times at least.

    The processor's seconds of this thread, so that other programs on the machine do not count.
    """
    run()
    found: list[float] = []
    end = time.thread_time() + budget
    while len(found) < 5 or time.thread_time() < end:
        began = time.thread_time()
        run()
        found.append(time.thread_time() - began)
    return statistics.median(found)


def products() -> Table:
    """Return flop/s by the smallest dimension n of V x n x n products, the three transpositions of an iteration."""
    found = {}
    for n in WIDTHS:
        z, W, out = torch.randn(ROWS, n), torch.randn(n, n), torch.empty(ROWS, n)

        def run(z=z, W=W, out=out) -> None:
            torch.mm(z, W, out=out)
            torch.mm(z, W.mT, out=out)
            torch.mm(z.mT, z)

        found[n] = 6.0 * ROWS * n * n / median_seconds(run)
    return found


def factorisations() -> tuple[Table, Table]:
    """Return flop/s of Cholesky inverses, and of factors with n right sides, by n."""
    from pdadmm.admm.updates import spd_inverse, spd_solve

    inverse, solve = {}, {}
    for n in WIDTHS[1:]:
        A = torch.randn(n, n)
        A = A @ A.mT + n * torch.eye(n)
        inverse[n] = n**3 / median_seconds(partial(spd_inverse, A))
        solve[n] = (7 / 3) * n**3 / median_seconds(partial(spd_solve, A, A))
    return inverse, solve


def sweeps() -> Table:
    """Return bytes/s of the q- and u-update by the bytes of one array; every call takes arrays not touched lately."""
    from pdadmm.admm.activations import get_activation
    from pdadmm.admm.updates import update_q_u_

    found, relu = {}, get_activation("relu")
    for nbytes in SWEPT:
        sets = [torch.rand(4, nbytes // 256, 64) for _ in range(max(2, COLD // (4 * nbytes)))]
        turn = iter(range(1 << 60))

        def run(sets=sets, turn=turn) -> None:
            q, u, p, z = sets[next(turn) % len(sets)]
            update_q_u_(q, u, p, z, relu, 0.3, 0.3)

        found[nbytes] = 6.0 * nbytes / median_seconds(run)
    return found


def newton() -> float:
    """Return seconds an entry of z_L in the Newton steps of an iteration, C = 10."""
    from pdadmm.admm.losses import CrossEntropy

    a, y = torch.randn(ROWS, 10), torch.arange(ROWS) % 10
    loss = CrossEntropy()
    z = loss.minimise(a, y, 0.3, a)
    moved = a + 0.1 * torch.randn(ROWS, 10)
    return median_seconds(lambda: loss.minimise(moved, y, 0.3, z)) / z.numel()


def coding() -> Table:
    """Return numbers/s of encoding by bits; each value differs from the one before it, as p and q do."""
    from pdadmm.quantize import make_coder

    found, values = {}, [torch.randn(ROWS, 128) for _ in range(8)]
    for bits in CODED:
        coder, turn = make_coder(bits), itertools.cycle(values)
        coder.start(torch.zeros_like(values[0]))

        def run(coder=coder, turn=turn) -> None:
            coder.encode(next(turn))

        found[bits] = values[0].numel() / median_seconds(run)
    return found


def sparse_product() -> float:
    """Return seconds a non-zero and column of S h."""
    import scipy.sparse as sp

    from pdadmm.models.gnn import product

    random = np.random.default_rng(0)
    rows, columns = random.integers(0, 20000, (2, 200000), dtype=np.int32)
    S = sp.csr_array((np.ones(200000, dtype=np.float32), (rows, columns)), shape=(20000, 20000))
    h = torch.randn(20000, 64)
    return median_seconds(lambda: product(S, h)) / (S.nnz * 64)


def dropout() -> float:
    """Return seconds an entry of a dropout mask."""
    from pdadmm.baselines.dropout import node_mask

    nodes = np.arange(20000)
    return median_seconds(lambda: node_mask((0, 1, 1), nodes, 64, 0.5, torch.float32)) / (20000 * 64)


def disk(folder: Path) -> tuple[float, float]:
    """Return bytes/s of reading, after the file has left the cache, and of writing with fsync."""
    path, block = folder / "disk", b"x" * (1 << 24)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(8):
            file.write(block)
        os.fsync(file.fileno())
        write = 8 * len(block) / (time.perf_counter() - began)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(len(block)):
            pass
        return 8 * len(block) / (time.perf_counter() - began), write


class Work:
    """A fixed piece of work: iterations of a network, as training mixes products with passes over memory."""

    def __init__(self) -> None:
        self.network, self.job = sample_network(ROWS, 128, 3)

    def __call__(self) -> None:
        self.network.iterate()


def sample_network(V: int, n: int, L: int) -> tuple[Any, Job]:
    """Return a network of L layers of n inputs and neurons on V nodes of random features, and its job."""
    from pdadmm.admm.builder import NetworkBuilder
    from pdadmm.admm.problem import Problem
    from pdadmm.admm.products import FULL
    from pdadmm.admm.settings import ADMMSettings

    parts = {"train": slice(0, V), "val": slice(V, V), "test": slice(V, V)}
    problem = Problem(torch.randn(V, n), torch.arange(V) % 2, n, 2, parts)
    settings = ADMMSettings(layers=L, hidden=n).checked()
    builder = NetworkBuilder(problem, settings, LocalTransport(), torch.device("cpu"), FULL)
    return builder.begin(1, L), Job(V, V, (n, *[n] * (L - 1), 2))


def turn_seconds(transport: Any, run: Callable[[], object]) -> float:
    """Return the seconds of ``run`` called by all ranks at once, TURNS times over, of the rank that ends last."""
    transport.barrier()
    began = time.perf_counter()
    for _ in range(TURNS):
        run()
    return max(transport.allgather(time.perf_counter() - began)) / TURNS


def together(transport: Any, repeat: int = 5) -> float:
    """Return the median seconds of Work done by all ranks at once, of the rank that ends last."""
    work = Work()
    work()
    return statistics.median(turn_seconds(transport, work) for _ in range(repeat))


def meeting(transport: Any, repeat: int = 9) -> float:
    """Return the median seconds that iterations take longer where all ranks sum a few numbers after each.

    Ranks that share cores wait there for those that have none at the moment.
    """
    (network, _), numbers = sample_network(*MET), torch.zeros(4)
    network.iterate()

    def meets() -> None:
        network.iterate()
        transport.sum_(numbers, "control")

    pairs = [(turn_seconds(transport, network.iterate), turn_seconds(transport, meets)) for _ in range(repeat)]
    return max(1e-9, statistics.median(met - alone for alone, met in pairs))


def ping(transport: Any, numbers: int, repeat: int = 30) -> float:
    """Return the least seconds of one message of so many float32 numbers, half a round trip between two ranks."""
    peer, array = 1 - transport.rank, torch.zeros(numbers)
    out, back = transport.sender(array, peer, 1, "control"), transport.receiver(array.clone(), peer, 1, "control")
    found = []
    for _ in range(repeat):
        transport.barrier()
        began = time.perf_counter()
        for message in (out, back) if transport.rank == 0 else (back, out):
            message.start()
            message.wait()
        found.append((time.perf_counter() - began) / 2)
    return min(found)


def rank_main(answer: Path) -> None:
    """What each rank of a launch does; rank 0 writes the answer."""
    transport = make_transport()
    torch.set_num_threads(1)
    told: dict[str, float] = {"work": together(transport, 10), "meeting": meeting(transport)}
    if transport.size == 2:
        told["latency"] = ping(transport, 1)
        told["large"] = ping(transport, 1 << 20)
    if transport.rank == 0:
        answer.write_text(json.dumps(told), encoding="utf-8")


def launched(ranks: int, folder: Path) -> dict[str, float]:
    """Launch so many ranks of this file and return what they measured."""
    answer = folder / f"ranks-{ranks}.json"
    crowd = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
             "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]),
                                                         os.environ.get("PYTHONPATH"))))}  # fmt: skip
    command = [str(starter()), "-n", str(ranks), sys.executable, "-m", "pdadmm.planner.calibrate", str(answer)]
    try:
        done = subprocess.run(command, env=os.environ | crowd, capture_output=True, text=True, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError("calibrate", str(ranks), "ranks that mpiexec can start", str(error)) from None
    if done.returncode or not answer.exists():
        words = done.stderr.strip().splitlines() or ["no word of why"]
        raise InputError("calibrate", str(ranks), "ranks that mpiexec can start", words[-1] + "; run: pdadmm doctor")
    return json.loads(answer.read_text(encoding="utf-8"))


def process_bytes() -> int:
    """Return the peak memory of a process that trained a network on next to nothing."""
    code = (
        "import numpy as np, torch\nfrom pdadmm import PDADMMG\nfrom pdadmm.contest import peak_bytes\n"
        "PDADMMG(layers=3, hidden=4, iterations=2, threads=1).fit(np.eye(6), np.arange(6) % 2)\n"
        "print(peak_bytes() or 0)\n"
    )
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return int(done.stdout) or peak_bytes() or 1


def calibrate() -> Machine:
    """Measure this machine on one thread, in about 20 seconds; nothing else should be running.

    Launches 2 ranks and twice as many ranks as cores, and needs an MPI for that: InputError without one, and
    under mpirun.
    """
    if launched_size() > 1:
        raise InputError("calibrate", f"{launched_size()} ranks", "asked for outside of mpirun")
    if starter() is None:
        raise InputError("calibrate", "no MPI", "asked for where one is installed", "run: pip install mpi4py mpich")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            return measured(Path(name))
    finally:
        torch.set_num_threads(threads)


def measured(folder: Path) -> Machine:
    """Return the machine, with ``folder`` for the files of the measurements."""
    read, write = disk(folder)
    counts = sorted({2, cores(), 2 * cores(), 4 * cores()} - {1})
    ranks = {1: {"work": together(LocalTransport())}} | {count: launched(count, folder) for count in counts}
    work = Work()
    rounds = []
    for _ in range(ROUNDS):
        before, one = median_seconds(work), rates()
        rounds.append((0.5 * (before + median_seconds(work)), one))
    usual = statistics.median(seconds for seconds, _ in rounds)
    found = medians([at_speed(one, usual / seconds) for seconds, one in rounds])
    latency, large = ranks[2]["latency"], ranks[2]["large"]
    machine = Machine(
        cores=cores(),
        **found,
        overhead=0.0,
        work=usual,
        slowdown={count: max(1.0, told["work"] / usual) for count, told in ranks.items()},
        meeting={1: 1e-9} | {count: ranks[count]["meeting"] for count in counts},
        latency=latency,
        bandwidth=(4 << 20) / max(1e-9, large - latency),
        read=read,
        write=write,
        process=process_bytes(),
        facts=host_facts(),
    )
    return dataclasses.replace(machine, overhead=overhead(machine))


def rates() -> dict[str, Any]:
    """Measure every rate once."""
    inverse, solve = factorisations()
    return {
        "product": products(), "factor": inverse, "solve": solve, "sweep": sweeps(), "newton": newton(),
        "code": coding(), "sparse": sparse_product(), "mask": dropout(),
    }  # fmt: skip


def at_speed(found: dict[str, Any], faster: float) -> dict[str, Any]:
    """Return rates (tables, per second) and times (numbers, seconds) as of a machine so many times as fast.

    >>> at_speed({"newton": 2.0, "sweep": {8: 3.0}}, 2.0)
    {'newton': 1.0, 'sweep': {8: 6.0}}
    """
    return {
        name: {size: rate * faster for size, rate in value.items()} if isinstance(value, dict) else value / faster
        for name, value in found.items()
    }


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each rate, size by size, over the rounds.

    >>> medians([{"newton": 1.0, "sweep": {8: 2.0}}, {"newton": 3.0, "sweep": {8: 4.0}}])
    {'newton': 2.0, 'sweep': {8: 3.0}}
    """

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {size: median([one[size] for one in values]) for size in values[0]}
        return statistics.median(values)

    return {name: median([one[name] for one in rounds]) for name in rounds[0]}


def overhead(machine: Machine) -> float:
    """Return the seconds of a call beside its work: what a network of small layers takes beyond the model."""
    network, job = sample_network(64, 16, 10)

    def modelled(overhead: float) -> float:
        assumed = dataclasses.replace(machine, overhead=overhead)
        return sum(layer_seconds(job, layer, job.nodes, assumed).total for layer in range(job.layers))

    without = modelled(0.0)
    return max(1e-9, (median_seconds(network.iterate, 0.2) - without) / (modelled(1.0) - without))


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
