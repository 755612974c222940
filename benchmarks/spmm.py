"""S X against scipy and against a copy: one hop of the augmentation, the C product and scipy's in one run.

    python benchmarks/spmm.py --nodes 200000 --nonzeros 4200000 --columns 128 --repeat 5          (about 1 min)
    python benchmarks/spmm.py --dataset coauthor_cs --columns 1024
    python benchmarks/spmm.py --lattice 500 --columns 128

Random graph, or one of the data sets, or a square lattice of so many nodes a side whose nodes were shuffled; random
features, float32. "bytes touched" are those that a product without any cache reads and writes: 4 nnz F of X, 8 nnz of S
for each slice of columns, 4 V F of the result; their rate is set beside the rate of a copy (bytes read and written) in
the same run. "whole" multiplies all columns at once, "sliced" goes as `propagate` does, the columns of a slice side by
side in memory. "reordered" is "sliced" with the nodes in reverse Cuthill-McKee order, and how many products it takes to
win back the time of finding that order.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee
from shared import machine, ratio, table, timed

from pdadmm import load_dataset
from pdadmm.augment import propagation_matrix, spmm
from pdadmm.augment.hops import cache_lines, default_slice_columns
from pdadmm.kernels import spmm as kernel


def random_graph(nodes: int, nonzeros: int) -> sp.csr_array:
    """Return S (V, V) with rows of about equal length."""
    random = np.random.default_rng(0)
    rows, columns = (random.integers(0, nodes, nonzeros, dtype=np.int32) for _ in range(2))
    return sp.csr_array(sp.coo_array((random.random(nonzeros, dtype=np.float32), (rows, columns)), (nodes, nodes)))


def lattice(side: int) -> sp.csr_array:
    """Return A + I of a square lattice with its nodes in random order."""
    line = sp.diags_array([np.ones(side - 1), np.ones(side - 1)], offsets=[-1, 1], dtype=np.float32)
    S = sp.csr_array(sp.kronsum(line, line) + sp.eye_array(side**2, dtype=np.float32))
    order = np.random.default_rng(0).permutation(side**2)
    return S[order][:, order].astype(np.float32)


def graph_of(given: argparse.Namespace) -> sp.csr_array:
    if given.lattice:
        return lattice(given.lattice)
    if given.dataset:
        return propagation_matrix(load_dataset(given.dataset, given.data_dir))
    return random_graph(given.nodes, given.nonzeros)


def in_slices(X: np.ndarray, width: int) -> list[np.ndarray]:
    """Return the columns of X in contiguous arrays that begin with a cache line."""
    slices = []
    for a in range(0, X.shape[1], width):
        slices.append(cache_lines(len(X) * min(width, X.shape[1] - a), X.dtype).reshape(len(X), -1))
        slices[-1][:] = X[:, a : a + width]
    return slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200_000)
    parser.add_argument("--nonzeros", type=int, default=4_200_000)
    parser.add_argument("--dataset", help="the graph of this data set instead")
    parser.add_argument("--data-dir")
    parser.add_argument("--lattice", type=int, default=0, help="a shuffled lattice of so many nodes a side instead")
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    S = graph_of(given)
    V, F = S.shape[0], given.columns
    X = np.random.default_rng(1).random((V, F), dtype=np.float32)
    out = np.empty_like(X)
    width = min(F, default_slice_columns(V, X.dtype))
    slices = in_slices(X, width)
    began = time.perf_counter()
    order = reverse_cuthill_mckee(S, symmetric_mode=True)
    ordered = sp.csr_array(S[order][:, order])
    seconds_order = time.perf_counter() - began
    outs = [cache_lines(part.size, X.dtype).reshape(part.shape) for part in slices]
    source, target = (np.ones(max(1 << 20, X.size), np.float32) for _ in range(2))
    runs = {"scipy": lambda: S @ X, "copy": lambda: np.copyto(target, source)}
    if kernel.available():
        runs["whole"] = lambda: spmm(S, X, out)
        runs["sliced"] = lambda: [spmm(S, part, product) for part, product in zip(slices, outs, strict=True)]
        runs["reordered"] = lambda: [spmm(ordered, part, product) for part, product in zip(slices, outs, strict=True)]
    seconds = timed(runs, given.repeat)
    print(f"V = {V}, {S.nnz} non-zeros, F = {F}, slices of {width}, {given.threads} thread(s)")
    print(machine(), table(seconds), sep="\n\n")
    rates = [2 * source.nbytes / s for s in seconds["copy"]]
    print(f"\ncopy: {np.median(rates) / 1e9:.1f} GB/s read and written")
    for name, count in (("whole", 1), ("sliced", len(slices))):
        if name in seconds:
            touched = 4 * S.nnz * F + 8 * S.nnz * count + X.nbytes
            share = ratio([touched / s for s in seconds[name]], rates)
            speed = ratio(seconds["scipy"], seconds[name])
            print(f"{name}: {speed:.2f} times scipy's speed, {share:.2f} of a copy's rate")
    if "reordered" in seconds:
        before, after = np.median(seconds["sliced"]), np.median(seconds["reordered"])
        told = f", and pays after {seconds_order / (before - after):.1f} products" if after < before else ""
        print(f"reordered: {before / after:.2f} times the speed of sliced; the order takes {seconds_order:.2f} s{told}")


if __name__ == "__main__":
    main()
