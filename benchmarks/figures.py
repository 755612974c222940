"""Convergence as in Fig. 2 of Wang et al. 2022, and the o(1/k) of its Theorem 4, with the paper's form of the solver.

    python benchmarks/figures.py --out convergence.png     (PDADMM_DATA names the data; about 5 min on one core)

10 layers of 1000 from random weights, no growth, 100 iterations, nu = 0.01, rho = 1, gradient steps, float32, on the
public splits of Cora, Citeseer and PubMed. Theorem 4: with step_k^2 the sum over l of |p_l^{k+1} - p_l^k|^2 and the
same of W_l, b_l, z_l and q_l, the best squared step so far, c_k = min over i <= k of step_i^2, is o(1/k): k c_k goes
to 0. c_k takes copies of the state, so the seconds are no measure of the solver's speed.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from collections.abc import Iterator

import torch

from pdadmm import PDADMMG, load_dataset
from pdadmm.admm.layer import FirstLayer
from pdadmm.admm.network import Network
from pdadmm.admm.updates import squared_norm

MARKS = (10, 50, 100)


def state_of(network: Network) -> list[torch.Tensor]:
    """Return copies of p, W, b, z and q of every layer; p_1 is fixed, so it is left out."""
    arrays = []
    for layer in network.layers:
        holder = layer.solver if isinstance(layer, FirstLayer) else layer
        arrays += [holder.W, holder.b, layer.z]
        arrays += [] if layer.above is None else [layer.above.p, layer.above.q]
    return [array.clone() for array in arrays]


@contextlib.contextmanager
def steps_watched() -> Iterator[list[float]]:
    """Collect the squared step of every iteration while the context lasts."""
    steps: list[float] = []
    plain = Network.iterate

    def iterate(network: Network) -> None:
        before = state_of(network)
        plain(network)
        steps.append(sum(squared_norm(new - old) for new, old in zip(state_of(network), before)))

    Network.iterate = iterate
    try:
        yield steps
    finally:
        Network.iterate = plain


def train(dataset: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """Train one network and return its curves, one number an iteration."""
    graph = load_dataset(dataset, given.data_dir)
    solver = PDADMMG.preset(
        "paper", nu=0.01, rho=1.0, rho_schedule="fixed",
        layers=given.layers, hidden=given.hidden, stages=(given.layers,), iterations=given.iterations,
        eval_every=given.iterations, dtype=given.dtype, first_scale=given.first_scale,
    )  # fmt: skip
    with steps_watched() as steps:
        solver.fit(graph)
    best = [min(steps[: k + 1]) for k in range(len(steps))]
    curves = {name: solver.history_.column(name) for name in ("objective", "lagrangian", "residual_link")}
    return curves | {"c": best, "kc": [k * c for k, c in enumerate(best, 1)]}


def row(name: str, curves: dict[str, list[float]], seconds: float) -> str:
    """Return a row of the table: objective at both ends, residual, c_k and k c_k at MARKS."""
    own, last = [k for k in MARKS if k <= len(curves["c"])], len(curves["c"])
    rises = max((b - a for a, b in zip(curves["lagrangian"], curves["lagrangian"][1:])), default=0.0)
    cells = [f"{curves['objective'][0]:.4g}", f"{curves['objective'][-1]:.4g}", f"{max(rises, 0.0):.1e}"]
    cells += [f"{max(curves['residual_link']):.1e}", f"{curves['residual_link'][last - 1]:.1e}"]
    cells += [", ".join(f"{curves[key][k - 1]:.1e}" for k in own) for key in ("c", "kc")]
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def draw(runs: dict[str, dict[str, list[float]]], path: str) -> None:
    """Draw objective, residual and k c_k over iterations, a line for each data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.4), layout="constrained", dpi=90)
    titles = {"objective": "objective", "residual_link": r"$\sum|p_{l+1} - q_l|^2$", "kc": r"$k\,c_k$ (Theorem 4)"}
    for panel, (key, title) in zip(figure.subplots(1, 3), titles.items()):
        for name, curves in runs.items():
            panel.plot(range(1, len(curves[key]) + 1), curves[key], label=name, linewidth=1.3)
        panel.set(title=title, xlabel="iteration", yscale="log")
        panel.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="cora,citeseer,pubmed")
    parser.add_argument("--data-dir")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--first-scale", type=float, default=1.0, help="deviation of z_1 at the start")
    parser.add_argument("--out", metavar="PICTURE", help="a file that ends in .png, .pdf or .svg")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {given.layers} layers of {given.hidden}\n")
    marks = ", ".join(map(str, MARKS))
    print(
        "| graph | objective, first | last | largest rise of the Lagrangian | largest residual | last residual |"
        f" c_k at k = {marks} | k c_k at k = {marks} | seconds |\n|" + "---|" * 9
    )
    runs = {}
    for dataset in given.datasets.split(","):
        began = time.perf_counter()
        runs[dataset] = train(dataset, given)
        print(row(dataset, runs[dataset], time.perf_counter() - began), flush=True)
    if given.out:
        draw(runs, given.out)


if __name__ == "__main__":
    main()
