"""S X against scipy and against a copy: one hop of the augmentation, the C product and scipy's in one run.

    python benchmarks/spmm.py --nodes 200000 --nonzeros 4200000 --columns 128 --repeat 5          (about 1 min)

Random graph, random features, float32. "bytes touched" are those that a product without any cache reads and writes:
4 nnz F of X, 8 nnz of S for each slice of columns, 4 V F of the result; their rate is set beside the rate of a copy
(bytes read and written) in the same run. "whole" multiplies all columns at once, "sliced" goes as `propagate` does, the
columns of a slice side by side in memory.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.sparse as sp
import torch
from shared import machine, ratio, table, timed

from pdadmm.augment import spmm
from pdadmm.augment.hops import cache_lines, default_slice_columns
from pdadmm.kernels import spmm as kernel


def random_graph(nodes: int, nonzeros: int) -> sp.csr_array:
    """Return S (V, V) with rows of about equal length."""
    random = np.random.default_rng(0)
    rows, columns = (random.integers(0, nodes, nonzeros, dtype=np.int32) for _ in range(2))
    return sp.csr_array(sp.coo_array((random.random(nonzeros, dtype=np.float32), (rows, columns)), (nodes, nodes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200_000)
    parser.add_argument("--nonzeros", type=int, default=4_200_000)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    S = random_graph(given.nodes, given.nonzeros)
    V, F = given.nodes, given.columns
    X = np.random.default_rng(1).random((V, F), dtype=np.float32)
    out = np.empty_like(X)
    width = min(F, default_slice_columns(V, X.dtype))
    slices = []
    for a in range(0, F, width):
        slices.append(cache_lines(V * min(width, F - a), X.dtype).reshape(V, -1))
        slices[-1][:] = X[:, a : a + width]
    outs = [cache_lines(part.size, X.dtype).reshape(part.shape) for part in slices]
    source, target = (np.ones(max(1 << 20, X.size), np.float32) for _ in range(2))
    runs = {"scipy": lambda: S @ X, "copy": lambda: np.copyto(target, source)}
    if kernel.available():
        runs["whole"] = lambda: spmm(S, X, out)
        runs["sliced"] = lambda: [spmm(S, part, product) for part, product in zip(slices, outs, strict=True)]
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


if __name__ == "__main__":
    main()
