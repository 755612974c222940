"""Fit a list of small cases on this job's ranks and write each rank's final state, history and ledger.

mpiexec -n 3 python tests/mpi_run.py OUT
mpiexec -n 1 python tests/mpi_run.py OUT
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from mpi_state import state_of
from mpi_transport import check_transport

from pdadmm import csbm
from pdadmm.admm.network import Network
from pdadmm.solvers import solver_class

__all__ = ["CASES", "CSBM", "DAMAGED", "run_cases"]

ITERATIONS = 4
CSBM = {"layers": 10, "hidden": 8, "hops": 2, "iterations": ITERATIONS}
ACCELERATED = {"acceleration": "all-stages", "iterations": 9}  # long enough to start again

# name -> (data, hyper-parameters)
CASES = {
    "exact-gram-32": ("csbm", {"form": "exact", "first_layer": "gram", "dtype": "float32"}),
    "exact-kernel-64": ("csbm", {"form": "exact", "first_layer": "kernel", "dtype": "float64"}),
    "gradient-kernel-32": ("csbm", {"form": "gradient", "first_layer": "kernel", "dtype": "float32"}),
    "gradient-gradient-64": ("csbm", {"form": "gradient", "first_layer": "gradient", "dtype": "float64"}),
    "leaky": ("csbm", {"activation": "leaky_relu", "dtype": "float64"}),
    "schedule": ("csbm", {"rho": 0.01, "rho_schedule": "stall", "dtype": "float64", "iterations": 12}),
    "patience": ("csbm", {"iterations": 9, "patience": 2, "eval_every": 2, "stages": (2, 3, 10)}),
    "prior": ("csbm", {"prior_weight": 0.5}),
    "labels": ("csbm", {"initial": "labels", "first_layer": "cg"}),
    "labels-at-once": ("csbm", {"initial": "labels", "stages": (10,), "activation": "leaky_relu", "dtype": "float64"}),
    "bf16": ("csbm", {"products": "bf16", "form": "exact"}),
    "squared": ("csbm", {"loss": "squared_error", "activation": "identity", "mu": 0.01}),
    "arrays": ("arrays", {}),
    "large": ("large", {"hidden": 20}),
    "quantized": ("csbm", {"solver": "pdadmm-g-q", "bits": 4, "rounding": "stochastic"}),
    "constrained": ("csbm", {"solver": "pdadmm-g-q", "bits": 8, "coding": "constrained"}),
    "plain": ("csbm", {"acceleration": "none"}),
    "accelerated": ("csbm", ACCELERATED | {"form": "exact"}),
    "accelerated-gradient-64": ("csbm", ACCELERATED | {"form": "gradient", "dtype": "float64"}),
    "accelerated-schedule": ("csbm", ACCELERATED | {"rho": 0.01, "rho_schedule": "stall"}),
    "accelerated-8": ("csbm", ACCELERATED | {"solver": "pdadmm-g-q", "bits": 8}),
    "accelerated-2": ("csbm", ACCELERATED | {"solver": "pdadmm-g-q", "bits": 2, "form": "gradient"}),
    "accelerated-constrained": (
        "csbm",
        ACCELERATED | {"solver": "pdadmm-g-q", "bits": 8, "q_bits": 4, "coding": "constrained"},
    ),
}
# Runs on three ranks in which rank 1's copy of what it receives is damaged twice: name -> (kind, hyper-parameters).
DAMAGED = {
    f"damaged-{kind}-{bits}": (
        kind,
        {"solver": "pdadmm-g-q", "bits": bits, "layers": 3, "stages": (3,), "acceleration": "all-stages"}
        | {"iterations": 36},
    )
    for kind in "pq"
    for bits in (2, 8)
}
DAMAGED_AFTER = (3, 25)  # iterations; a hash finds out at the 16th and 32nd message


def data_of(name: str) -> tuple:
    """What ``fit`` is given."""
    if name == "large":
        return (csbm(1800, num_classes=10, num_features=64, avg_degree=10, seed=2),)
    if name == "arrays":
        random = np.random.default_rng(0)
        return random.normal(size=(40, 6)), np.array(["red", "green", "blue"])[random.integers(3, size=40)]
    return (csbm(120, num_classes=3, num_features=6, avg_degree=6, seed=2),)


@contextlib.contextmanager
def final_state():
    """Collect what the layers of this rank hold when a stage has ended, and its transport."""
    found, finish = {}, Network.finish

    def collecting(network):
        finish(network)
        found.update(state=state_of(network), ledger=network.transport.ledger)

    Network.finish = collecting
    try:
        yield found
    finally:
        Network.finish = finish


def run_case(name: str, out: Path, rank: int, comm=None) -> None:
    """Fit one case and write ``NAME.RANK.npz`` and ``NAME.RANK.json``."""
    data, parameters = CASES[name] if name in CASES else ("csbm", DAMAGED[name][1])
    with final_state() as found:
        solver = solver_class(parameters.get("solver", "pdadmm-g"))
        given = {name: value for name, value in (CSBM | parameters).items() if name != "solver"}
        trained = solver(**given).fit(*data_of(data), comm=comm)
    model = {f"model.{key}": value.numpy() for key, value in trained.model_.state_dict().items()}
    np.savez(out / f"{name}.{rank}.npz", **found["state"], **model)
    ledger = found["ledger"]
    described = {
        "history": trained.history_, "summary": trained.summary_, "classes": trained.classes_.tolist(),
        "sent": ledger.sent, "received": ledger.received, "messages": ledger.messages,
    }  # fmt: skip
    (out / f"{name}.{rank}.json").write_text(json.dumps(described))


def run_cases(out: Path, rank: int, comm=None) -> None:
    """Fit every case on the world's ranks, or those of a communicator."""
    for name in CASES:
        run_case(name, out, rank, comm)


def damaged_case(name: str, out: Path, rank: int) -> None:
    """Fit one case of DAMAGED; ``NAME.RANK.resent.json`` tells how often each link of the rank was brought together."""
    kind, iterate = DAMAGED[name][0], Network.iterate
    count, resent = 0, {}

    def damaging(network):
        nonlocal count
        iterate(network)
        count += 1
        (layer,) = network.layers
        resent.update({f"{layer.index}.{side}": getattr(layer, side) for side in ("below", "above")})
        if rank == 1 and count in DAMAGED_AFTER:
            channel = layer.above.p_channel if kind == "p" else layer.below.q_channel
            channel.value[5, 2] += 0.25

    Network.iterate = damaging
    try:
        run_case(name, out, rank)
    finally:
        Network.iterate = iterate
    told = {side: [link.resent, link.momentum.t] for side, link in resent.items() if link is not None}
    (out / f"{name}.{rank}.resent.json").write_text(json.dumps(told))


def split_cases(out: Path) -> None:
    """Ranks 1 and up fit on a communicator of their own while rank 0 fits alone."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    part = world.Split(color=int(world.rank > 0), key=world.rank)
    folder = folder_of(out, part.size)
    world.Barrier()
    run_cases(folder, part.rank, part)


def folder_of(out: Path, ranks: int) -> Path:
    """Where so many ranks write."""
    folder = out / str(ranks)
    folder.mkdir(exist_ok=True)
    return folder


def main() -> None:
    from pdadmm.parallel.launch import launched_rank, launched_size, make_transport

    out = Path(sys.argv[1])
    transport = make_transport()
    assert (transport.rank, transport.size) == (launched_rank(), launched_size())
    check_transport(transport)
    folder = folder_of(out, transport.size)
    if transport.size == 1:
        run_case("exact-gram-32", folder, 0)
        return
    run_cases(folder, transport.rank)
    for name in DAMAGED:
        damaged_case(name, folder, transport.rank)
    split_cases(out)


if __name__ == "__main__":
    main()
