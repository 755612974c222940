"""Plot objective, residuals and accuracy of one or more runs over iterations, seconds or bytes.

Without files it trains two runs on a graph, the exact subproblems and the gradient steps, and compares
them. With files it plots what `pdadmm train --history FILE` wrote, each run under its file's name.
Needs the extra `plot`: pip install '.[plot]'. Run time: about 15 seconds.

    python examples/convergence.py --out out/convergence.png
    pdadmm train --dataset cora --history cora.jsonl
    python examples/convergence.py cora.jsonl --x seconds --out cora.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pdadmm import PDADMMG, History, load_dataset
from pdadmm.plot import AXES, plot_convergence


def train(dataset: str, layers: int, hidden: int, iterations: int) -> dict[str, History]:
    """Return the histories of two runs that differ in the form of the p- and W-updates."""
    graph, histories = load_dataset(dataset), {}
    for form, name in {"exact": "exact subproblems", "gradient": "gradient steps"}.items():
        solver = PDADMMG(layers=layers, hidden=hidden, iterations=iterations, form=form).fit(graph)
        print(f"{name}: test accuracy {solver.summary_['test_accuracy']:.4f}")
        histories[name] = solver.history_
    return histories


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the convergence of one or more runs.")
    parser.add_argument("files", nargs="*", metavar="FILE.jsonl", help="histories of finished runs")
    parser.add_argument("--out", default="out/convergence.png", help="the picture: .png, .pdf or .svg")
    parser.add_argument("--x", default="iteration", choices=tuple(AXES), help="the horizontal axis")
    parser.add_argument("--dataset", default="digits", help="a name of `pdadmm datasets` or a FILE.npz with a split")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    if given.files:
        histories = {Path(file).stem: History.from_jsonl(file) for file in given.files}
    else:
        histories = train(given.dataset, given.layers, given.hidden, given.iterations)
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    plot_convergence(histories, given.out, given.x)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
