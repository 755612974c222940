"""Speed on a GPU: kernels against a copy of the same bytes, S X against cuSPARSE, an iteration against its products.

    python benchmarks/gpu.py --repeat 9 --json gpu.json      (needs 25 GB of GPU memory; 125 GB for the iteration)
    python benchmarks/gpu.py --layers 5                      (an iteration in 75 GB)
    python benchmarks/gpu.py --products full tf32            (two of the four number formats)

The hops of the augmentation as a whole start and end in main memory; what crosses the bus is counted, once.

One iteration is of Cora's shape, where launching a kernel takes longer than the kernel.
The other is that of a network of ``--layers`` of ``--width`` on ``--nodes``, all but the products in float32, once
for each of ``--products``. Its limit are the products in that format, inverses and solves alone, on arrays of the same
shapes, and the traffic: every state array (p, z, q, u, r of each layer) read and written once, at the time of a copy.
GB/s count what must move: every array read and every array written, once each, and for an encode what it reads twice.
Times are those of CUDA events around one call. Every kernel's result is compared with plain torch before it is timed;
the iteration's are compared in tests/test_device_gpu.py. A part that fails says so, and the others go on; the file of
all figures is written after each part.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import sys
import time
import traceback
from unittest import mock

import numpy as np
import scipy.sparse as sp
import torch
from iteration import adam_epoch
from iteration import products as products_alone
from shared import full_network, random_problem

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.losses import softmax_newton
from pdadmm.admm.products import PRODUCTS
from pdadmm.admm.replay import SETTING as GRAPHS
from pdadmm.admm.replay import STEADY
from pdadmm.admm.stack import SETTING as STACKS
from pdadmm.augment import propagate
from pdadmm.augment.device import propagate_on
from pdadmm.kernels import gpu, gpu_factor, gpu_launch
from pdadmm.quantize import Codec, make_grid

NU, RHO, PROX, BETA = 0.3, 1.0, 0.1, 0.43
DEVICE = torch.device("cuda", 0)
SYSTEMS = ((1, 100), (8, 100), (1, 256), (8, 256))  # how many, of how many columns
SMALL = (140, 100, 10)  # nodes, width and layers of Cora


def milliseconds(call, repeat: int) -> list[float]:
    """Time on the device of each of ``repeat`` calls, after three that warm up."""
    for _ in range(3):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)]
    torch.cuda.synchronize()
    for start, stop in events:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]


class Table:
    """Rows of figures: printed as they come, kept for the JSON file at ``path``, beside what they are ``about``."""

    def __init__(self, repeat: int, path: str | None = None, about: dict | None = None) -> None:
        self.repeat, self.rows, self.copy, self.failed = repeat, [], 0.0, []
        self.path, self.about = path, about

    def part(self, function, *given) -> None:
        """Add the rows of one part, and write all so far: whatever ends it must not cost the other parts' figures."""
        gc.collect()
        torch.cuda.empty_cache()  # what a part before this one held
        try:
            function(self, *given)
        except Exception as error:  # of torch, CuPy or CUDA, each with classes of its own
            traceback.print_exc()
            self.failed.append(f"{function.__name__}{given}")
            reason = (str(error).splitlines() or [""])[0]
            print(f"| {self.failed[-1]} failed: {type(error).__name__}: {reason} | | | | |", flush=True)
        if self.path:
            with open(self.path, "w", encoding="utf-8") as file:
                json.dump({"about": self.about, "rows": self.rows, "failed": self.failed}, file, indent=1)

    def add(self, what: str, call, size: float, unit: str = "GB/s") -> float:
        """Time ``call``, which moves ``size`` bytes (or does that many of something); returns the median in ms."""
        times = milliseconds(call, self.repeat)
        median = statistics.median(times)
        rates = [size / t / 1e6 for t in times]
        self.copy = self.copy or statistics.median(rates)
        share = f"{100 * statistics.median(rates) / self.copy:.0f} %" if unit == "GB/s" else ""
        self.rows.append({"what": what, "ms": times, "rate": rates, "unit": unit, "percent_of_copy": share})
        print(f"| {what} | {median:.3f} | {statistics.median(rates):.0f} {unit} | {share} | "
              f"{' '.join(f'{t:.3f}' for t in times)} |", flush=True)  # fmt: skip
        return median


def near(x: torch.Tensor, y: torch.Tensor, bound: float = 1e-5) -> None:
    error = float(torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(y))
    if not error <= bound:
        raise ArithmeticError(f"wrong result: relative error {error:g}")


def updates(table: Table, V: int, n: int) -> None:
    """The fused updates on arrays of V x n, float32."""
    z, r, a, q, u, p = (torch.randn(V, n, device=DEVICE) for _ in range(6))
    size = 4.0 * V * n
    relu = ACTIVATIONS["relu"]
    table.add("copy", lambda: r.copy_(z), 2 * size)
    expected = relu.minimise(a, q, z, PROX)
    gpu.update_z_(z, r, a, q, PROX)
    near(z, expected)
    del expected
    table.add("update_z_", lambda: gpu.update_z_(z, r, a, q, PROX), 5 * size)
    gpu.update_q_u_(q, u, p, z, NU, RHO)
    near(u, NU * (q - relu(z)), 1e-4)  # what u is after such a step
    table.add("update_q_u_", lambda: gpu.update_q_u_(q, u, p, z, NU, RHO), 5 * size)
    table.add("update_u_", lambda: gpu.update_u_(u, p, q, RHO), 4 * size)
    table.add("assemble_p_", lambda: gpu.assemble_p_(r, q, u, RHO), 4 * size)
    before, tau = p.clone(), RHO + NU * q.square().sum(1, keepdim=True) / a.square().sum(1, keepdim=True)
    gpu.step_p_(p, r, a, q, NU, RHO)
    near(p, before.sub_(a / tau))
    del before
    table.add("step_p_", lambda: gpu.step_p_(p, r, a, q, NU, RHO), 6 * size)
    sums(table, (p, q, u, z), size)
    extrapolation(table, (q, u, z, r, p), size)
    table.add("update_z in plain torch", lambda: torch.sub(relu.minimise(a, q, z, PROX), a, out=r), 5 * size)


def sums(table: Table, arrays: tuple[torch.Tensor, ...], size: float) -> None:
    """The sums of the objective and of the extrapolation; their numbers come over, so a call waits for the device."""
    p, q, u, z = few = [x[:1000] for x in arrays]
    found = [gpu.square(q), gpu.distance(q, z, 0.0), *gpu.link_sums(p, q, u), gpu.movement(p, q, z)]
    p, q, u, z = (x.double() for x in few)
    gap, active = p - q, q - ACTIVATIONS["relu"](z)
    terms = (q * q, active * active, gap * gap, u * gap, q * q, gap * gap + (q - z).square())
    near(torch.tensor(found, dtype=q.dtype), torch.stack([x.sum() for x in terms]).cpu(), 1e-10)
    p, q, u, z = arrays
    table.add("square", lambda: gpu.square(q), size)
    table.add("distance", lambda: gpu.distance(q, z, 0.0), 2 * size)
    table.add("link_sums", lambda: gpu.link_sums(p, q, u), 3 * size)
    table.add("movement", lambda: gpu.movement(p, q, z), 3 * size)


def extrapolation(table: Table, arrays: tuple[torch.Tensor, ...], size: float) -> None:
    """The extrapolation of q, of u and of z with r."""
    q, u, z, r, last = arrays
    expected = (q - last).mul_(BETA).add_(q)
    gpu.extrapolate_q_(r, q, last.clone(), BETA)
    near(r, expected)
    q_ = q.clone()
    gpu.extrapolate_(q_, last.clone(), BETA)
    near(q_, expected)
    gpu.extrapolate_z_(q_.copy_(q), last.clone(), r.zero_(), BETA)
    near(q_.sub_(q), r)
    near(q.add(r), expected)
    del expected, q_
    table.add("extrapolate_q_", lambda: gpu.extrapolate_q_(r, q, last, BETA), 4 * size)
    table.add("extrapolate_", lambda: gpu.extrapolate_(u, last, BETA), 4 * size)
    table.add("extrapolate_z_", lambda: gpu.extrapolate_z_(z, last, r, BETA), 6 * size)


def newton(table: Table, V: int, C: int) -> None:
    """Newton for z_L from z = a, V nodes of C classes."""
    a = torch.randn(V, C, device=DEVICE) * 3
    y = torch.randint(0, C, (V,), device=DEVICE)
    z = a.clone()
    gpu.softmax_newton_(z, a, y, NU)
    near(z[:1000].cpu(), softmax_newton(a[:1000].cpu().double(), y[:1000].cpu(), NU, a[:1000].cpu().double()))

    def call() -> None:
        z.copy_(a)
        gpu.softmax_newton_(z, a, y, NU)

    table.add(f"softmax_newton_, {C} classes (with a copy)", call, 1e3 * V, "million nodes/s")


def messages(table: Table, V: int, n: int, bits: int) -> None:
    """A difference-coded message with one pair per column: encode, decode, both."""
    grid = make_grid("column", bits)
    x = torch.randn(V, n, device=DEVICE)
    value, received = torch.zeros_like(x), torch.zeros_like(x)
    size, packed = 4.0 * V * n, torch.empty(Codec(grid).nbytes((V, n)), dtype=torch.uint8, device=DEVICE)

    def encode() -> None:
        gpu.encode(x, value, value, packed, V, n, grid, False, (0, 0), 0)

    def decode() -> None:
        gpu.decode(packed, received, True, V, n, grid)

    def both() -> None:
        encode()
        decode()

    both()
    if not torch.equal(value, received):
        raise ArithmeticError("the two ends of a message differ")
    reads = 8 if bits == 1 else 4  # x and the reference: range, two sums for 1 bit, codes
    table.add(f"encode, {bits} bits", encode, (reads + 1) * size + packed.numel())
    table.add(f"decode, {bits} bits", decode, 2 * size + packed.numel())
    table.add(f"encode and decode, {bits} bits", both, (reads + 3) * size + 2 * packed.numel())


def factors(table: Table, K: int, m: int) -> None:
    """A^-1 and B A^-1 of K matrices m x m, float32: ours, and torch's (cuSOLVER)."""
    X = torch.randn(K, 4 * m, m, device=DEVICE)
    A, B = X.mT @ X / (4 * m), torch.randn(K, m, m, device=DEVICE)
    near(gpu_factor.inverse(A), torch.cholesky_inverse(torch.linalg.cholesky(A.double())).float())
    near(gpu_factor.solve(A, B), torch.linalg.solve(A.double(), B.double(), left=False).float())

    def inverse_by_torch() -> None:
        torch.cholesky_inverse(torch.linalg.cholesky_ex(A)[0])

    def solve_by_torch() -> None:
        torch.cholesky_solve(B.mT, torch.linalg.cholesky_ex(A)[0]).mT.contiguous()

    flops, name = float(K * m**3), f"{K} of {m} columns"
    table.add(f"inverse, {name}", lambda: gpu_factor.inverse(A), flops, "GFLOP/s")
    table.add(f"inverse, {name}, torch", inverse_by_torch, flops, "GFLOP/s")
    table.add(f"solve, {name}", lambda: gpu_factor.solve(A, B), flops * 7 / 3, "GFLOP/s")
    table.add(f"solve, {name}, torch", solve_by_torch, flops * 7 / 3, "GFLOP/s")


def random_graph(V: int, E: int, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """CSR of a random graph: out- and in-degrees proportional to rank^-power; 0 makes all rows equally long."""
    weight = torch.arange(10, V + 10, device=DEVICE, dtype=torch.float64) ** -power
    weight = weight[torch.randperm(V, device=DEVICE)]
    degrees = (weight * (E / weight.sum()) + 0.5).long().clamp_min_(1)
    ends = weight.cumsum(0) / weight.sum()
    columns = torch.searchsorted(ends, torch.rand(int(degrees.sum()), device=DEVICE, dtype=torch.float64))
    rows = torch.repeat_interleave(torch.arange(V, device=DEVICE), degrees)
    key = (rows * V + columns.clamp_max_(V - 1)).sort().values
    pointers = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    return pointers.int(), (key % V).int()


def products(table: Table, name: str, V: int, E: int, w: int, power: float) -> None:
    """S X for V nodes, E edges and w columns: ours with values, without, in float16; cuSPARSE through torch."""
    pointers, columns = random_graph(V, E, power)
    lengths = pointers.diff()
    scale = lengths.float().rsqrt()
    rows = torch.repeat_interleave(torch.arange(V, device=DEVICE), lengths)
    values = scale[rows] * scale[columns.long()]
    del rows
    X, Y = torch.randn(V, w, device=DEVICE), torch.empty(V, w, device=DEVICE)
    S = torch.sparse_csr_tensor(pointers, columns, values, (V, V))
    plan, free = gpu.SpmmPlan.of(pointers, columns, values), gpu.SpmmPlan.of(pointers, columns)
    expected, edges = S @ X, len(columns)
    near(gpu.spmm(plan, X, Y), expected)
    near(gpu.spmm(free, X, Y, scale, scale), expected)
    X_half, Y_half = X.half(), Y.half()
    near(gpu.spmm(free, X_half, Y_half, scale, scale).float(), expected, 2e-3)
    del expected
    print(f"| **{name}**: {edges} edges, longest row {int(lengths.max())}, {w} columns | | | | |")
    traffic = 4.0 * w * (edges + V) + 8.0 * edges  # every neighbour's row counted: caches can beat it
    unit = "GB/s gathered"
    table.add(f"{name}: cuSPARSE", lambda: S @ X, traffic, unit)
    table.add(f"{name}: ours", lambda: gpu.spmm(plan, X, Y), traffic, unit)
    table.add(f"{name}: ours, no values", lambda: gpu.spmm(free, X, Y, scale, scale), traffic, unit)
    try:
        S_half = torch.sparse_csr_tensor(pointers, columns, values.half(), (V, V))
        table.add(f"{name}: cuSPARSE, float16", lambda: S_half @ X_half, traffic / 2, unit)
    except RuntimeError as error:
        print(f"| {name}: cuSPARSE, float16 | {str(error).splitlines()[0]} | | | |")
    table.add(f"{name}: ours, no values, float16", lambda: gpu.spmm(free, X_half, Y_half, scale, scale),
              traffic / 2, unit)  # fmt: skip


def augmentation(table: Table, V: int, E: int, F: int, hops: int = 4) -> None:
    """All hops of F columns, in and out of main memory: by each product on the device, and once without it."""
    pointers, columns = (x.cpu().numpy() for x in random_graph(V, E, 0.8))
    values = np.repeat(1.0 / np.diff(pointers), np.diff(pointers)).astype(np.float32)
    S, X = sp.csr_array((values, columns, pointers), shape=(V, V)), torch.randn(V, F).numpy()
    began = time.perf_counter()
    expected = torch.from_numpy(propagate(S, X, hops))
    print(f"| augmentation, {hops} hops of {F} columns, main memory, {torch.get_num_threads()} threads "
          f"| {1e3 * (time.perf_counter() - began):.0f}, once | | | |")  # fmt: skip
    size, there = 4.0 * V * F * (hops + 2) + 8.0 * len(columns), DEVICE
    for name, ours in (("cuSPARSE", False), ("ours", True)):
        with mock.patch("pdadmm.augment.device.takes_kernel", lambda dtype, device, ours=ours: ours):
            near(torch.from_numpy(propagate_on(there, S, X, hops)), expected)
            table.add(f"augmentation, {hops} hops of {F} columns, {name}", lambda: propagate_on(there, S, X, hops),
                      size, "GB/s over the bus")  # fmt: skip


def iteration(table: Table, V: int, n: int, layers: int, inputs: int, kind: str, classes: int = 10) -> None:
    """An iteration of the whole network on the device, beside its products in the same format and its traffic."""
    needed, (free, _) = 4.0 * V * (n * (5 * layers + 10) + inputs), torch.cuda.mem_get_info()
    if needed > free:
        told = f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free: --layers N has fewer"
        print(f"| iteration, {layers} layers of {n}, products {kind}: {told} | | | | |")
        return
    problem = random_problem(V, inputs, classes)
    solver, network = full_network(problem, layers, n, products=kind, device=DEVICE.type)
    form = solver.builder.products
    with DEVICE:
        alone = products_alone(problem, solver.builder.first, layers, n, form=form)
        source, target = torch.ones(V, n), torch.empty(V, n)
    arrays = 5 * (layers - 1)

    def traffic() -> None:
        for _ in range(arrays):
            target.copy_(source)

    name = f"{layers} layers of {n}, products {kind}" + ("" if form.native or kind == "full" else ", emulated")
    flops = 2.0 * V * n * (n * (5 * (layers - 2) + 2) + 3 * classes + 2 * inputs)
    whole = table.add(f"iteration, {name}", network.iterate, flops / 1e3, "TFLOP/s of products")
    limit = [
        table.add(f"its products, inverses and solves, {name}", alone, flops / 1e3, "TFLOP/s of products"),
        table.add(f"its traffic, {arrays} arrays", traffic, 8.0 * V * n * arrays),
    ]
    table.add(f"objective and residuals, {name}", network.terms, 4.0 * V * n * arrays)
    print(f"| iteration / (products + traffic), products {kind}: {whole / sum(limit):.2f} | | | | |")


def small(table: Table, V: int, n: int, layers: int, inputs: int = 1433, classes: int = 7) -> None:
    """An iteration of Cora's shape: launched kernel by kernel, equal layers stacked, as a graph; and Adam's epoch."""
    problem = random_problem(V, inputs, classes)
    ways = {
        "launched one by one": {STACKS: "0", GRAPHS: "0"},
        "equal layers stacked": {STACKS: "1", GRAPHS: "0"},
        "stacked, as a graph": {STACKS: "1", GRAPHS: "1"},
    }
    for way, settings in ways.items():
        with mock.patch.dict(os.environ, settings):
            _, network = full_network(dataclasses.replace(problem), layers, n, warm=STEADY + 1, device=DEVICE.type)
        name = f"{layers} layers of {n}, {V} nodes, {way}"
        if way == "stacked, as a graph" and (network.replay is None or network.replay.graph is None):
            name += ": no graph, launched"
        table.add(f"iteration, {name}", network.iterate, 1e9, "iterations/s")
        table.add(f"objective and residuals, {name}", network.terms, 1e9, "iterations/s")
    with DEVICE:
        epoch = adam_epoch(problem.on(DEVICE), layers, n)
    table.add(f"epoch of Adam, {layers} layers of {n}, {V} nodes", epoch, 1e9, "iterations/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=10, help="of the network that iterates")
    parser.add_argument("--inputs", type=int, default=512, help="columns of its X")
    parser.add_argument("--products", nargs="*", default=list(PRODUCTS), choices=PRODUCTS,
                        help="number formats of its products, an iteration each")  # fmt: skip
    parser.add_argument("--graph-nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=16_000_000)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", help="file for all figures")
    args = parser.parse_args()
    if (why := gpu_launch.lacking(DEVICE)) is not None:
        sys.exit(f"benchmarks/gpu.py needs a CUDA GPU, torch with CUDA and CuPy: {why}")
    import cupy

    torch.manual_seed(0)
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # but within products that ask for TF32
    about = {
        "device": torch.cuda.get_device_name(), "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "cupy": cupy.__version__, **vars(args),
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None), "\n")
    print("| what | median ms | rate | of copy | ms, every repeat |\n|---|---|---|---|---|")
    table = Table(args.repeat, args.json, about)
    table.part(updates, args.nodes, args.width)
    for C in (10, 47):
        table.part(newton, args.nodes, C)
    for bits in (16, 8, 4, 2, 1):
        table.part(messages, args.nodes, args.width, bits)
    for K, m in SYSTEMS:
        table.part(factors, K, m)
    table.part(products, "regular", args.graph_nodes, args.edges, args.columns, 0.0)
    table.part(products, "power law", args.graph_nodes, args.edges, args.columns, 0.8)
    table.part(small, *SMALL)
    for kind in args.products:
        table.part(iteration, args.nodes, args.width, args.layers, args.inputs, kind)
    table.part(augmentation, args.graph_nodes, args.edges, args.columns)  # last: by far the longest
    if table.failed:
        sys.exit(f"failed: {', '.join(table.failed)}")


if __name__ == "__main__":
    main()
