"""``pdadmm.torch.SIGN`` beside the same hops by torch's sparse product, as PyTorch Geometric's T.SIGN computes them.

    OMP_NUM_THREADS=1 python benchmarks/sign.py --nodes 100000 --edges 2000000 --features 128 --hops 3

Both take a Data object's ``x`` and ``edge_index`` and normalise A by D^-1/2 on both sides; they take turns. Memory is
the largest resident set of a process that goes one way once. A few minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import torch
from shared import machine, ratio, table, timed

from pdadmm.console import human_bytes
from pdadmm.contest import peak_bytes
from pdadmm.torch import SIGN


def data_object(nodes: int, edges: int, features: int) -> SimpleNamespace:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, features, generator=random)
    return SimpleNamespace(x=x, edge_index=torch.randint(nodes, (2, edges), generator=random))


def by_torch(data: SimpleNamespace, hops: int) -> list[torch.Tensor]:
    """x1 .. xK by torch.sparse: S in CSR form, then K products of the whole width."""
    V, E = len(data.x), data.edge_index.shape[1]
    A = torch.sparse_coo_tensor(data.edge_index.flip(0), torch.ones(E), (V, V)).coalesce().to_sparse_csr()
    degree = torch.zeros(V).index_add_(0, data.edge_index[1], torch.ones(E))
    root = torch.where(degree > 0, degree**-0.5, 0.0)
    rows = torch.repeat_interleave(torch.arange(V), A.crow_indices().diff())
    values = A.values() * root[rows] * root[A.col_indices()]
    S = torch.sparse_csr_tensor(A.crow_indices(), A.col_indices(), values, (V, V))
    results = [data.x]
    for _ in range(hops):
        results.append(S @ results[-1])
    return results[1:]


def by_pdadmm(data: SimpleNamespace, hops: int) -> list[torch.Tensor]:
    SIGN(hops)(data)
    return [getattr(data, f"x{k}") for k in range(1, hops + 1)]


WAYS = {"data alone": lambda data, hops: None, "torch.sparse": by_torch, "pdadmm.torch.SIGN": by_pdadmm}


def alone(name: str, sizes: list[str]) -> int:
    """Return the peak memory of a process that goes one way only."""
    command = [sys.executable, __file__, *sizes, "--only", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 100_000), ("edges", 2_000_000), ("features", 128), ("hops", 3), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=WAYS, help="go this way once and print the process's peak memory in bytes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # torch calls its CSR form beta
    data = data_object(given.nodes, given.edges, given.features)
    if given.only:
        WAYS[given.only](data, given.hops)
        print(peak_bytes() or 0)
        return
    for one, other in zip(by_torch(data, given.hops), by_pdadmm(data, given.hops)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    runs = {name: partial(way, data, given.hops) for name, way in list(WAYS.items())[1:]}
    seconds = timed(runs, given.repeat)
    sizes = [f"--{name}={getattr(given, name)}" for name in ("nodes", "edges", "features", "hops")]
    peaks = {name: alone(name, sizes) for name in WAYS}
    print(machine(), "\n")
    print(table(seconds))
    print(f"\ntorch.sparse / pdadmm.torch.SIGN: {ratio(*seconds.values()):.2f}")
    print("peak memory: " + ", ".join(f"{name} {human_bytes(n)}" for name, n in peaks.items()), end="")
    print(f"; the results are {human_bytes(4 * given.hops * given.nodes * given.features)}")


if __name__ == "__main__":
    main()
