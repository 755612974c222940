"""Every solver of the library on one graph, with its defaults: accuracy, seconds of training, iterations.

Defaults are no fair fight: `pdadmm compare` tunes each solver with the same budget first (docs/contest.md).
This is the short look that tells which ones are worth it. GA-MLPs (pdadmm-g to gd) see the graph through
augmented features; GNNs (gcn to gist) see it while they train. Run time: about 1 minute.

    python examples/compare_solvers.py
    python examples/compare_solvers.py --dataset cora --solvers pdadmm-g,adam,gcn
    python examples/compare_solvers.py --dataset mine.npz --split random:20
"""

from __future__ import annotations

import argparse

from pdadmm.console import human_seconds
from pdadmm.data import load_with_split
from pdadmm.errors import InputError
from pdadmm.solvers import SOLVERS, solver_class


def main() -> None:
    parser = argparse.ArgumentParser(description="All solvers with their defaults.")
    parser.add_argument("--dataset", default="digits", help="a name of `pdadmm datasets` or a FILE.npz")
    parser.add_argument("--split", help="such as random:20 (default: the data set's own)")
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="names, joined by commas")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=None, help="of each stage (default: the solver's own)")
    given = parser.parse_args()

    try:
        graph = load_with_split(given.dataset, split=given.split)
    except InputError as error:
        parser.error(str(error))
    print(graph)
    print("solver       layers  test accuracy  validation  iterations  training")
    for name in given.solvers.split(","):
        more = {} if given.iterations is None else {"iterations": given.iterations}
        run = solver_class(name)(hidden=given.hidden, **more).fit(graph).summary_
        accuracy = f"{run['test_accuracy']:13.4f}  {run['val_accuracy']:10.4f}"
        seconds = human_seconds(run["seconds_training"])
        print(f"{name:11}  {run['layers']:6}  {accuracy}  {run['iterations']:10}  {seconds}")


if __name__ == "__main__":
    main()
