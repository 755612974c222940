"""Reproduce the paper: Fig. 2 (objective and residual), a row of Table III (accuracy), with its published settings.

`--preset paper` of the command line and `PDADMMG.preset("paper")` here: gradient steps, small nu, rho lowered
when progress stalls, three hops of raw features, 200 iterations a stage; docs/cli.md lists each value.
`--figure 2` draws objective and squared residual of such a run beside one with the library's defaults; `--table
3` prints the mean test accuracy over seeds of both. The paper's own numbers for Cora, Citeseer, PubMed,
Computers and CS stand in docs/benchmarks/accuracy.md. Needs the extra `plot` for the figure: pip install
'.[plot]'. Run time: about 20 seconds for the figure, 1 minute for the table.

    python examples/paper.py --figure 2 --out out/fig2.png
    python examples/paper.py --table 3 --dataset cora --seeds 5     (PDADMM_DATA names the folder of its file)
"""

from __future__ import annotations

import argparse
import statistics

from pdadmm import PDADMMG, Graph, load_dataset


def solvers(given: argparse.Namespace, seed: int) -> dict[str, PDADMMG]:
    """Return the paper's settings and the defaults for one seed."""
    sizes = {"layers": given.layers, "hidden": given.hidden, "seed": seed}
    own = {} if given.iterations is None else {"iterations": given.iterations}
    return {"paper's settings": PDADMMG.preset("paper", **sizes | own), "defaults": PDADMMG(**sizes | own)}


def figure(given: argparse.Namespace, graph: Graph) -> None:
    """Draw the paper's Fig. 2 for both."""
    from pdadmm.plot import plot_convergence

    histories = {name: solver.fit(graph).history_ for name, solver in solvers(given, 0).items()}
    plot_convergence(histories, given.out)
    print(f"wrote {given.out}")


def table(given: argparse.Namespace, graph: Graph) -> None:
    """Print a row of Table III for both: mean and deviation over seeds, at best validation accuracy."""
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        for name, solver in solvers(given, seed).items():
            found.setdefault(name, []).append(solver.fit(graph).summary_["test_accuracy"])
    for name, values in found.items():
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        network = f"{given.layers} layers of {given.hidden}"
        print(f"{name:17} {network}: test {statistics.mean(values):.4f} ± {deviation:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's Fig. 2 or a row of its Table III.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--figure", type=int, choices=(2,))
    what.add_argument("--table", type=int, choices=(3,))
    parser.add_argument("--dataset", default="digits", help="a name of `pdadmm datasets` or a FILE.npz with a split")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=None, help="of each stage (default: as published; 24)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default="out/fig2.png", help="the picture")
    given = parser.parse_args()
    graph = load_dataset(given.dataset)
    if given.figure:
        figure(given, graph)
    else:
        table(given, graph)


if __name__ == "__main__":
    main()
