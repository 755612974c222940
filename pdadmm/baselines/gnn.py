"""What every solver of a GNN shares: the settings, what it trains on, and the estimator around it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.augment import SCALINGS, Augmenter
from pdadmm.data import Graph
from pdadmm.errors import InputError
from pdadmm.estimator import NodeClassifier
from pdadmm.models.gnn import ARCHITECTURES, GNN, Aggregation, infer, operator_of
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import below_one, non_negative, one_of, optional, param, positive, validate, whole

__all__ = ["GNNClassifier", "GNNSettings", "GraphProblem"]


@dataclass
class GraphProblem:
    """What a GNN trains on: the operator S (V, V) and labels y (V,), -1 unlabelled, on every rank.

    X (V, n_0), the scaled features, is on rank 0 and None elsewhere. ``parts`` maps "train", "val", "test" to their
    nodes; all but "train" may be empty.
    """

    S: sp.csr_array
    X: np.ndarray | None
    y: torch.Tensor
    inputs: int
    classes: int
    parts: dict[str, np.ndarray]

    @property
    def nodes(self) -> int:
        """V, all nodes of the graph."""
        return self.S.shape[0]


@dataclass(eq=False, repr=False)
class GNNSettings:
    """What every solver of a GNN can be told; names as in the other solvers where the thing is the same."""

    architecture: str = param("gcn", one_of(tuple(ARCHITECTURES)), "kind of layer")
    layers: int = param(2, whole(1), "number of layers L")
    hidden: int = param(64, whole(1), "neurons of each hidden layer")
    activation: str = param("relu", one_of(ACTIVATIONS), "activation of the hidden layers")
    scaling: str = param("row-l2", one_of(tuple(SCALINGS)), "scaling of the features, without hops")
    iterations: int = param(200, whole(1), "epochs")
    learning_rate: float = param(0.01, positive, "learning rate of Adam")
    weight_decay: float = param(5e-4, non_negative, "L2 penalty of all weights and biases, in the gradient")
    dropout: float = param(0.5, below_one, "share of every layer's input set to 0 while training")
    patience: int | None = param(
        None, optional(whole(1)), "end after this many epochs without a better validation accuracy"
    )
    max_seconds: float | None = param(None, optional(positive), "end training after this many seconds of it")
    seed: int = param(0, whole(0, 2**63 - 1), "seed of the initial weights, the dropout and the draws")
    dtype: str = param("float32", one_of(("float32", "float64")), "number format of weights and features")

    @property
    def stages(self) -> tuple[int, ...]:
        """The depths that the network has while it trains: its full one from the start."""
        return (self.layers,)

    def checked(self) -> Self:
        """Return a copy with every value checked."""
        return type(self)(**validate(self))


@dataclass(eq=False, repr=False)
class GNNClassifier(NodeClassifier, GNNSettings):
    """A GNN that sees the graph while it trains; a solver adds its own settings and ``_train``.

    ``fit(graph)`` trains on the graph's splits: "train" fits, "val" selects, "test" is only reported. ``predict`` takes
    any graph with the same features and infers layer after layer with all neighbours. Learned: ``model_`` (a
    pdadmm.models.gnn.GNN), ``history_``, ``stages_``, ``summary_``, ``classes_``, ``augmenter_`` (the features'
    scaling), ``n_features_in_``.
    """

    network = "GNN"
    @property
    def bound_to_ranks(self) -> bool:
        """Whether a checkpoint is of use to as many ranks alone."""
        return False

    def _checked(self, transport: Transport) -> Self:
        settings = self.checked()
        # torch imports its compiler, for seconds, when it makes its first optimiser: that is no training
        settings.optimizer([torch.zeros(1)])
        return settings

    def optimizer(self, weights: list[torch.Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser of these weights; the settings are checked ones."""
        return torch.optim.Adam(weights, self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def _problem(self, settings, graph, y, transport: Transport) -> tuple[GraphProblem, None, float]:
        self._check_graph("X", graph)
        if y is not None:
            raise InputError("y", "given", "left out with a Graph", "the graph holds its labels")
        rows, parts = self._labelled(settings, graph)
        self.augmenter_ = Augmenter(hops=0, scaling=settings.scaling, dtype=settings.dtype)
        X, began = None, time.perf_counter()
        if transport.rank == 0:
            X = self.augmenter_.fit_transform(graph, rows[parts["train"]])
        problem = GraphProblem(
            operator_of(graph, settings.architecture, settings.dtype),
            X,
            torch.from_numpy(graph.labels),
            graph.num_features,
            graph.num_classes,
            {part: rows[own] for part, own in parts.items()},
        )
        return problem, None, time.perf_counter() - began

    def _labelled(self, settings, graph: Any) -> tuple[np.ndarray, dict[str, slice]]:
        """Return a graph's labelled nodes (train, val, test) and the parts' rows, and note its sizes."""
        rows, _, parts = self._graph_rows(graph)
        self._check_patience(settings, parts)
        self.classes_, self.n_features_in_ = np.arange(graph.num_classes), graph.num_features
        return rows, parts

    @staticmethod
    def _check_graph(argument: str, graph: Any) -> None:
        if not isinstance(graph, Graph):
            remedy = "a GNN aggregates over the edges: give a pdadmm.Graph, or use a solver on augmented features"
            raise InputError(argument, type(graph).__name__, "a Graph", remedy)

    def _adopt(self, outcome, settings, problem, shift: None, transport: Transport) -> None:
        """Take the best weights, which every rank holds, as ``model_``."""
        weights = [outcome.weights[layer] for layer in range(settings.layers)]
        self.model_: GNN = GNN.from_weights(settings.architecture, weights, settings.activation)
        self.augmenter_ = transport.bcast(self.augmenter_, kind="migration")

    def _logits(self, graph: Graph) -> torch.Tensor:
        if not hasattr(self, "model_"):
            raise self._not_fitted()
        self._check_graph("graph", graph)
        model = self.model_
        S = operator_of(graph, model.architecture, self.augmenter_.dtype)
        X = torch.from_numpy(self.augmenter_.transform(graph))
        return infer(model.architecture, Aggregation(S), X, model.weights(), model.activation_name)
