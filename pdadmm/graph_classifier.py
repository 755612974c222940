"""What the estimators of GA-MLPs share: augmented features in, a GAMLP out."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch

from pdadmm.admm.problem import Problem
from pdadmm.augment import AUGMENTATION, OPERATORS, SCALINGS, WEIGHTINGS, Augmenter
from pdadmm.data import Graph
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.rows import Centred, FolderRows, is_read_by_rows
from pdadmm.errors import InputError
from pdadmm.estimator import NodeClassifier, real_matrix
from pdadmm.models.gamlp import GAMLP
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import fraction, non_negative, one_of, param, parameters, whole
from pdadmm.prior import class_shares, logit_shift

__all__ = ["GraphClassifier"]

log = logging.getLogger("pdadmm")

MEANS = 1 << 20  # numbers that are in float64 at a time


@dataclass(eq=False, repr=False)
class GraphClassifier(NodeClassifier):
    """A node classifier on augmented features; a solver adds its own settings and ``_train``.

    ``fit(graph)`` trains on the graph's splits: "train" fits, "val" selects, "test" is only reported.
    ``fit(X, y)`` trains on augmented arrays, without selection. Learned: ``model_`` (a GAMLP), ``history_``,
    ``stages_``, ``summary_``, ``classes_``, ``augmenter_`` (None after ``fit(X, y)``), ``n_features_in_``.
    """

    network = "GAMLP"

    hops: int = param(4, whole(0), "hops K of the augmentation [X, SX, .., S^K X]")
    operator: str = param("sym", one_of(tuple(OPERATORS)), "graph operator S")
    weighting: str = param(
        "powers", one_of(tuple(WEIGHTINGS)), "all powers side by side, or their weighted sum"
    )
    alpha: float = param(0.1, fraction, "teleport probability of the weighting ppr", {"weighting": ("ppr",)})
    heat_time: float = param(5.0, non_negative, "time t of the weighting heat", {"weighting": ("heat",)})
    scaling: str = param("hop-std", one_of(tuple(SCALINGS)), "scaling of the augmented features")
    prior: str | Sequence[float] = param(
        "val", class_shares, "class shares of the nodes to classify: those of the validation nodes, or one number each"
    )
    prior_weight: float = param(
        0.0, non_negative, "how far the logits are moved from the training nodes' class shares to the prior"
    )

    def _problem(
        self, settings, graph, y, transport: Transport, on_disk: bool = False
    ) -> tuple[Problem, torch.Tensor | None, float]:
        """Return what the solver trains on, the shift taken off X, and the seconds of augmentation.

        With ``on_disk`` X stays in the folder of augmented features, where such was given.
        """
        if isinstance(graph, (Graph, AugmentedFolder)):
            if y is not None:
                raise InputError("y", "given", "left out with a Graph", "the graph holds its labels")
            rows, labels, parts = self._graph_rows(graph)
            if on_disk:  # in the order of the file, within each part
                rows = np.concatenate([np.sort(rows[part]) for part in parts.values()])
                labels = graph.labels[rows].astype(np.int64)
            self.classes_, self.n_features_in_ = np.arange(graph.num_classes), graph.num_features
        else:
            X, labels = self._checked_arrays(graph, y, getattr(torch, settings.dtype))
            if transport.rank == 0:
                warn_of_idle(settings)
            V = len(labels)
            parts = {"train": slice(0, V), "val": slice(V, V), "test": slice(V, V)}
        self._check_patience(settings, parts)
        if settings.prior_weight and settings.loss != "cross_entropy":
            allowed = f"0 with loss {settings.loss}, whose outputs are no logits"
            raise InputError("prior_weight", settings.prior_weight, allowed)
        moved = logit_shift(settings.prior, settings.prior_weight, labels, parts, len(self.classes_))
        self.augmenter_ = None
        seconds = 0.0
        if isinstance(graph, (Graph, AugmentedFolder)):
            self.augmenter_ = self._augmenter(settings)
            inputs = self.augmenter_.num_outputs(graph.num_features)
            began = time.perf_counter()
            X = self._augmented(settings, graph, rows, parts["train"], transport, on_disk)
            seconds = time.perf_counter() - began
        else:
            inputs = X.shape[1]
        shift = None
        if isinstance(X, Centred):
            shift = X.shift
        elif transport.rank == 0:
            # b_1 takes up the mean: the network is the same, its first factor better conditioned
            shift = column_means(X[parts["train"]])
            X -= shift.to(X.dtype)
        problem = Problem(
            X if transport.rank == 0 else None,
            torch.from_numpy(labels),
            inputs,
            len(self.classes_),
            parts,
            moved,
        )
        return problem, shift, seconds

    def _augmented(
        self, settings, graph: Any, rows: np.ndarray, train: slice, transport: Transport, on_disk: bool
    ) -> Any:
        """Return the augmented features of ``rows``, of which ``train`` are those that the scaling is learned from.

        On rank 0 alone, None on others; with ``on_disk`` they stay in their folder.
        """
        limited = on_disk or getattr(settings, "device_memory", None) is not None
        device = "cpu" if limited else getattr(settings, "device", "cpu")  # a slice of hops knows no limit
        X: Any = None
        assert self.augmenter_ is not None
        self.augmenter_.device = device
        if isinstance(graph, AugmentedFolder):
            self.augmenter_ = copy.copy(graph.same_augmenter(self.augmenter_))
            if on_disk:
                X = Centred(FolderRows(graph, rows), train.stop, getattr(torch, settings.dtype))
            elif transport.rank == 0:
                X = torch.from_numpy(graph.read(rows))
        elif transport.rank == 0:
            X = torch.from_numpy(self.augmenter_.fit_transform(graph, rows[train], rows=rows))
        self.augmenter_.device = "cpu" if device == "cpu" else "auto"  # to predict on any machine
        return X

    @staticmethod
    def _augmenter(settings) -> Augmenter:
        return Augmenter(**{name: getattr(settings, name) for name in (*AUGMENTATION, "dtype")})

    def _checked_arrays(self, X: Any, y: Any, dtype: torch.dtype) -> tuple[Any, np.ndarray]:
        if y is None:
            raise InputError("y", None, "given where the first argument is no Graph")
        on_disk = is_read_by_rows(X)
        if not on_disk:
            X = torch.tensor(real_matrix(X), dtype=dtype)  # a copy: it is shifted in place
        y = np.asarray(y)
        if y.ndim != 1 or len(X.shape) != 2 or X.shape[0] != len(y) or not len(y):
            raise InputError("X, y", f"{tuple(X.shape)} and {y.shape}", "shapes (V, n_0) and (V,), V at least 1")
        if on_disk:
            X = Centred(X, len(y), dtype)
        else:
            check_finite(X)
        self.classes_, labels = numbered_classes(y)
        self.n_features_in_ = X.shape[1]
        return X, labels

    def _adopt(self, outcome, settings, problem, shift, transport: Transport) -> None:
        """Bring the best weights of all ranks together as ``model_``, on every rank."""
        if transport.rank == 0:
            W, b = outcome.weights[0]
            outcome.weights[0] = W, (b.double() - W.double() @ shift).to(b.dtype)
        own = [(layer, W.numpy(), b.numpy()) for layer, (W, b) in outcome.weights.items()]
        parts = transport.allgather(own, "migration")
        arrays = sorted((item for part in parts for item in part), key=lambda item: item[0])
        weights = [(torch.from_numpy(W), torch.from_numpy(b)) for _, W, b in arrays]
        if problem.logit_shift is not None:
            W, b = weights[-1]
            weights[-1] = W, b + problem.logit_shift.to(b.dtype)
        self.model_ = GAMLP.from_weights(weights, settings.activation)
        if self.augmenter_ is not None:
            self.augmenter_ = transport.bcast(self.augmenter_, kind="migration")

    def _logits(self, graph: Graph | Any) -> torch.Tensor:
        if not hasattr(self, "model_"):
            raise self._not_fitted()
        given, X = not isinstance(graph, (Graph, AugmentedFolder)), graph
        if isinstance(graph, Graph):
            if self.augmenter_ is None:
                raise InputError("graph", "a Graph", "an array of augmented features, as in fit(X, y)")
            X = self.augmenter_.transform(graph)
        elif isinstance(graph, AugmentedFolder):
            X = graph.read()
        array = real_matrix(X)
        X = torch.as_tensor(array if array.flags.writeable else array.copy(), dtype=self.model_.layers[0].weight.dtype)
        if X.shape[1] != self.model_.widths[0]:
            remedy = "" if self.augmenter_ is None else "arrays are augmented features: give the graph instead"
            raise InputError("X", f"shape {tuple(X.shape)}", f"of shape (V, {self.model_.widths[0]})", remedy)
        if given:
            check_finite(X)
        with torch.no_grad():
            return self.model_(X)


def warn_of_idle(settings: GraphClassifier) -> None:
    """Warn of hyper-parameters of the augmentation, where the features come augmented."""
    fields = {field.name: field.default for field in parameters(type(settings))}
    idle = [name for name in AUGMENTATION if getattr(settings, name) != fields[name]]
    if idle:
        log.warning("%s: no part in fit(X, y), where X is augmented already: they are of Augmenter", ", ".join(idle))


def numbered_classes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes in ``y`` (V,), sorted, and the number of each row's; InputError for what are no classes.

    >>> numbered_classes(np.array([2.0, 0.0, 2.0]))
    (array([0., 2.]), array([1, 0, 1]))
    """
    unknown = np.flatnonzero([name is None or name != name for name in y] if y.dtype == object else y != y)
    if unknown.size:
        value, remedy = f"{y[unknown[0]]} in row {unknown[0]}", "leave such rows out"
        raise InputError("y", value, "a class for every row", remedy)
    continuous = _not_whole(y)
    if continuous.size:
        value = f"{y[continuous[0]]} in row {continuous[0]}"
        remedy = "this is a classifier: cut continuous targets into classes, with numpy.digitize for one"
        raise InputError("y", value, "whole numbers or names, as classes are", remedy)
    try:
        classes, labels = np.unique(y, return_inverse=True)
    except TypeError:
        allowed = "classes of one type, such as whole numbers or names"
        raise InputError("y", "an array of several types", allowed) from None
    return classes, labels.astype(np.int64)


def _not_whole(y: np.ndarray) -> np.ndarray:
    """Return the rows of ``y`` that hold a number with a fraction, an infinite or a complex one."""
    if y.dtype == object:
        return np.flatnonzero([isinstance(name, Number) and not _is_whole(name) for name in y])
    if y.dtype.kind == "f":
        return np.flatnonzero((y != np.trunc(y)) | np.isinf(y))
    return np.arange(len(y) if y.dtype.kind == "c" else 0)


def _is_whole(number: Any) -> bool:
    """Whether a number of any type is a whole one."""
    try:
        return bool(number == int(number))
    except (TypeError, OverflowError):  # a complex one; an infinite one
        return False


def column_means(X: torch.Tensor) -> torch.Tensor:
    """Return the means (n_0,) of the rows of ``X`` in float64, of which some rows at a time are made a copy."""
    block = max(1, MEANS // max(X.shape[1], 1))
    sums = [rows.double().sum(0) for rows in X.split(block)]
    return torch.stack(sums).sum(0) / len(X)


def check_finite(X: torch.Tensor) -> None:
    """Raise InputError where an array that the user gave is not finite."""
    if not bool(torch.isfinite(X).all()):
        raise InputError("X", "an array with NaN or infinity", "finite")
