"""``pdadmm predict``: the class of every node of a graph, by a model that ``pdadmm train --save`` wrote."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pdadmm.cli.common import add_data_flags, add_log_flags, check_writable, start_logging, tell_graph
from pdadmm.data import load_dataset
from pdadmm.data.registry import check_data_dir
from pdadmm.disk.augmented import AUGMENTED_HEADER
from pdadmm.errors import InputError
from pdadmm.estimator import NodeClassifier
from pdadmm.models.gamlp import load_model
from pdadmm.parallel.launch import launched_rank
from pdadmm.solvers import SOLVERS, solver_class
from pdadmm.torch import logits

__all__ = ["run"]

COLUMNS = ("node", "class", "probability")


def run(arguments: list[str]) -> int:
    """Read model and graph, predict, write the table; on rank 0 alone."""
    given = _parser().parse_args(arguments)
    start_logging(given)
    if launched_rank() > 0:
        return 0
    check_writable(given, "out", inputs=("model", "dataset"))
    if (Path(given.dataset) / AUGMENTED_HEADER).is_file():
        remedy = "the model augments it by itself, as in training"
        raise InputError("dataset", given.dataset, "the graph, not its augmented features", remedy)
    check_data_dir(given.dataset, given.data_dir)
    estimator = _estimator(given.model)
    graph = load_dataset(given.dataset, given.data_dir)
    tell_graph(graph)
    scores = logits(estimator, graph)
    best = scores.argmax(dim=1).numpy()  # as predict has it: two probabilities may round to one
    _write(given.out, estimator.classes_[best], scores.softmax(dim=1).amax(dim=1).numpy())
    print(f"wrote {given.out}: {graph.num_nodes:,} nodes, {np.unique(best).size} of {len(estimator.classes_)} classes")
    return 0


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm predict",
        description="Predict the class of every node of a graph. Hops, operator and scaling are the model's own, those "
        "that it was trained with; the graph needs as many features, and no split or labels.",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that pdadmm train --save wrote, of any solver")
    add_data_flags(parser, split=False, split_seed=False)
    out = parser.add_argument_group("results")
    what = "write a table here (csv): node, class, and the class's probability"
    out.add_argument("-o", "--out", required=True, metavar="FILE", help=what)
    add_log_flags(out)
    return parser


def _estimator(path: str) -> NodeClassifier:
    """Return a fitted estimator of the first solver that has the file's kind of network."""
    model, augmenter, _ = load_model(path)
    if augmenter is None:
        remedy = "predict in Python, with features prepared as for fit(X, y)"
        raise InputError("MODEL", path, "of a training on a graph", remedy)
    kinds: Iterator[type[NodeClassifier]] = map(solver_class, SOLVERS)
    return next(kind for kind in kinds if kind.network == type(model).__name__)().load(path)


def _write(path: str, classes: np.ndarray, probability: np.ndarray) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            rows = zip(classes.tolist(), probability.tolist())
            table.writerows((node, name, f"{share:.6g}") for node, (name, share) in enumerate(rows))
    except OSError as error:
        raise InputError("out", path, "a file that can be written", error.strerror or "") from None
