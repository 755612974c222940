"""The whole augmentation: operator, hops, scaling; fitted on one graph, applied to any."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import scipy.sparse as sp

from pdadmm.augment.hops import WEIGHTINGS, hop_weights, propagate
from pdadmm.augment.operators import OPERATORS, propagation_matrix
from pdadmm.augment.scaling import SCALINGS, Scaler
from pdadmm.console import human_bytes
from pdadmm.errors import InputError
from pdadmm.files import memory_bytes, resident_bytes

__all__ = ["AUGMENTATION", "Augmenter"]

# What decides the augmented features, but for their number format.
AUGMENTATION = ("hops", "operator", "weighting", "alpha", "heat_time", "scaling")
_PARAMETERS = (*AUGMENTATION, "dtype", "slice_columns")


class Augmenter:
    """The input p_1 of a graph-augmented MLP: features seen through powers of a graph operator, then scaled.

        p_1 = scale([X, S X, .., S^K X])   "powers"          p_1 = scale(sum_k w_k S^k X)   "ppr", "heat"

    Source: pdADMM-G (Wang et al. 2022), SIGN (Frasca et al. 2020); see propagation_matrix for S, hop_weights
    for w, Scaler for scale.

    Parameters: ``hops`` K >= 0; ``operator`` "sym", "rw", "col"; ``weighting`` "powers", "ppr", "heat";
    ``alpha`` in [0, 1], the PPR teleport probability; ``heat_time`` >= 0, the heat kernel's t; ``scaling``
    "hop-std", "hop-loo", "hop-l2", "row-l2", "standard", "none"; ``dtype`` "float32" or "float64", of work and result;
    ``slice_columns``, columns that travel together (default: 8 MiB a slice; the result is the same for all);
    ``device`` "cpu", "cuda" (hops on this process's GPU, the rest in main memory; equal to rounding) or "auto"
    ("cuda" where there is a GPU), which may be set anew at any time and is no part of ``state``.

    Memory: the result, two slices [V, slice_columns], S (8 bytes per non-zero) and a copy of a sparse X; that of a GPU
    and the slices there: pdadmm.augment.device.propagate_on.
    Learned: ``num_features_`` F, ``shift_`` and ``scale_`` [n0]. Raises InputError for a parameter out of
    range.

    >>> import types, numpy as np, scipy.sparse as sp
    >>> pair = types.SimpleNamespace(
    ...     adjacency=sp.csr_array([[0.0, 1.0], [1.0, 0.0]]), features=np.array([[2.0], [4.0]])
    ... )
    >>> Augmenter(hops=1, scaling="none").fit_transform(pair, fit_rows=[0]).tolist()
    [[2.0, 3.0], [4.0, 3.0]]
    """

    # Where hops run says nothing about the result: device is left out of vars(), by which augmentations are compared.
    __slots__ = ("__dict__", "__weakref__", "device")

    def __init__(
        self,
        hops: int = 4,
        operator: str = "sym",
        weighting: str = "powers",
        alpha: float = 0.1,
        heat_time: float = 5.0,
        scaling: str = "hop-std",
        dtype: str = "float32",
        slice_columns: int | None = None,
        device: str = "cpu",
    ) -> None:
        _whole("hops", hops, 0)
        _one_of("operator", operator, OPERATORS)
        _one_of("weighting", weighting, WEIGHTINGS)
        _number("alpha", alpha, 1.0, "a number from 0 to 1")
        _number("heat_time", heat_time, math.inf, "a finite number of at least 0")
        _one_of("scaling", scaling, SCALINGS)
        _one_of("dtype", dtype, ("float32", "float64"))
        if slice_columns is not None:
            _whole("slice_columns", slice_columns, 1)
        _one_of("device", device, ("cpu", "cuda", "auto"))
        self.hops, self.operator, self.weighting = hops, operator, weighting
        self.alpha, self.heat_time, self.scaling = alpha, heat_time, scaling
        self.dtype, self.slice_columns, self.device = dtype, slice_columns, device

    def num_outputs(self, num_features: int) -> int:
        """The width n0 of p_1: (K + 1) F for "powers", F for an averaged block."""
        return num_features * self._blocks

    def fit_transform(self, graph, fit_rows=None, rows=None) -> np.ndarray:
        """Augment ``graph`` and learn the scaling from the nodes ``fit_rows``.

        ``graph`` has ``adjacency`` (scipy sparse [V, V]) and ``features`` (array or scipy sparse [V, F]), for the
        scaling "hop-loo" also ``labels`` (integers [V], -1 for unknown);
        ``rows``: the nodes to keep, node numbers or a mask (default: all V); ``fit_rows``: likewise, out of
        these (default: all of these; give the training nodes to leave the rest out). Returns p_1
        [len(rows) or V, n0], C-contiguous. Raises InputError for an unusable graph, row or feature, for a
        result that this machine's memory does not hold, and for a GPU that is not there or too small.
        """
        kept, raw = self._augment(graph, rows)
        fitted = _positions(fit_rows, kept, graph.features.shape[0])
        labels = self._labels(graph, fit_rows, kept)
        scaler = Scaler(self.scaling, self._blocks).fit(raw, fitted, labels)
        self.num_features_ = graph.features.shape[1]
        self.shift_, self.scale_ = scaler.shift, scaler.scale
        return scaler.transform(raw)

    def transform(self, graph, rows=None) -> np.ndarray:
        """Augment ``graph``, which may be another one with the same F features, with the learned scaling.

        ``rows`` as in fit_transform. Returns p_1 [len(rows) or V, n0], C-contiguous. Raises InputError before
        fit_transform and for a graph with another number of features.
        """
        if not hasattr(self, "shift_"):
            raise InputError("augmenter", "unfitted", "fitted", "call fit_transform first")
        features = _checked_features(graph)
        if features.shape[1] != self.num_features_:
            raise InputError(
                "graph.features",
                f"{features.shape[1]} columns",
                f"{self.num_features_} columns wide, as in the graph the augmenter was fitted on",
            )
        _, raw = self._augment(graph, rows)
        return self._scaler().transform(raw)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Everything needed to augment a new graph: a dict fit for JSON, and arrays shift and scale [n0]."""
        if not hasattr(self, "shift_"):
            raise InputError("augmenter", "unfitted", "fitted", "call fit_transform first")
        parameters = {name: _plain(getattr(self, name)) for name in _PARAMETERS}
        config = {"parameters": parameters, "num_features": int(self.num_features_)}
        return config, {"shift": self.shift_.copy(), "scale": self.scale_.copy()}

    @classmethod
    def from_state(cls, config: dict, arrays: dict[str, np.ndarray]) -> Augmenter:
        """The augmenter that ``state`` described. Raises InputError where its two parts do not fit."""
        augmenter = cls(**config["parameters"])
        _whole("num_features", config["num_features"], 1)
        n0 = augmenter.num_outputs(config["num_features"])
        for name in ("shift", "scale"):
            array = np.array(arrays[name], dtype=augmenter.dtype)
            if array.shape != (n0,):
                raise InputError(f"arrays[{name!r}]", f"shape {array.shape}", f"of shape ({n0},)")
            setattr(augmenter, name + "_", array)
        augmenter.num_features_ = config["num_features"]
        return augmenter

    @property
    def _blocks(self) -> int:
        return self.hops + 1 if WEIGHTINGS[self.weighting] is None else 1

    def _labels(self, graph, fit_rows, kept: np.ndarray | None) -> np.ndarray | None:
        """The labels of the fitting nodes, where the scaling asks for them."""
        if not SCALINGS[self.scaling].labelled or getattr(graph, "labels", None) is None:
            return None
        nodes = kept if fit_rows is None else _node_numbers("fit_rows", fit_rows, len(graph.labels))
        return graph.labels if nodes is None else graph.labels[nodes]

    def _scaler(self) -> Scaler:
        scaler = Scaler(self.scaling, self._blocks)
        scaler.shift, scaler.scale = self.shift_, self.scale_
        return scaler

    def _augment(self, graph, rows) -> tuple[np.ndarray | None, np.ndarray]:
        propagate = self._propagation()
        X = _checked_features(graph)
        kept = None if rows is None else _node_numbers("rows", rows, X.shape[0])
        self._check_memory(X.shape[0] if kept is None else len(kept), X.shape[1])
        S = propagation_matrix(graph, self.operator, self.dtype)
        if S.shape[0] != X.shape[0]:
            raise InputError("graph.features", f"{X.shape[0]} rows", f"{S.shape[0]} rows, one per node")
        weights = hop_weights(self.weighting, self.hops, self.alpha, self.heat_time)
        return kept, propagate(S, X, self.hops, weights, kept, self.slice_columns)

    def _propagation(self) -> Callable[..., np.ndarray]:
        """Return ``propagate``, of main memory or of a GPU."""
        if self.device == "cpu":
            return propagate
        from pdadmm.augment.device import propagate_on  # with torch, which main memory does without
        from pdadmm.parallel.device import own_device

        device = own_device(self.device)
        return propagate if device.type == "cpu" else functools.partial(propagate_on, device)

    def _check_memory(self, rows: int, features: int) -> None:
        needed = rows * self.num_outputs(features) * np.dtype(self.dtype).itemsize
        free = memory_bytes() - resident_bytes()
        if needed <= free:
            return
        value = f"{self.hops}, for which {rows:,} nodes need {human_bytes(needed)} of augmented features"
        remedy = "lower it, take the weighting ppr, which keeps one block, or work from disk with pdadmm augment"
        raise InputError("hops", value, f"small enough for {human_bytes(free)} of memory", remedy)

    def __repr__(self) -> str:
        return f"Augmenter({', '.join(f'{name}={getattr(self, name)!r}' for name in (*_PARAMETERS, 'device'))})"


def _checked_features(graph):
    X = graph.features
    if X is None:
        raise InputError("graph.features", None, "given", "a graph without features cannot be augmented")
    if not (sp.issparse(X) or isinstance(X, np.ndarray)) or X.ndim != 2 or X.dtype.kind not in "fiub":
        got = f"{type(X).__name__} of shape {getattr(X, 'shape', None)} and type {getattr(X, 'dtype', None)}"
        raise InputError("graph.features", got, "a real matrix [V, F], numpy or scipy sparse")
    return X


def _node_numbers(name: str, rows, V: int) -> np.ndarray:
    """Node numbers or a mask as an int64 array."""
    rows = np.asarray(rows)
    if rows.dtype == bool and rows.shape == (V,):
        return np.flatnonzero(rows)
    if rows.size == 0 and rows.ndim == 1:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        got = f"array of shape {rows.shape} and type {rows.dtype}"
        raise InputError(name, got, f"a list of node numbers, or a mask of length {V}")
    if rows.min() < 0 or rows.max() >= V:
        bad = rows[(rows < 0) | (rows >= V)][0]
        raise InputError(name, bad.item(), f"node numbers from 0 to {V - 1}")
    return rows.astype(np.int64)


def _positions(fit_rows, kept: np.ndarray | None, V: int) -> np.ndarray | None:
    """Where the fitting nodes stand among the kept rows."""
    if fit_rows is None:
        return None
    fit_rows = _node_numbers("fit_rows", fit_rows, V)
    if kept is None:
        return fit_rows
    where = np.full(V, -1, np.int64)
    where[kept] = np.arange(len(kept))
    found = where[fit_rows]
    if (found < 0).any():
        missing = int(fit_rows[found < 0][0])
        raise InputError("fit_rows", f"node {missing}", "among rows", "keep the fitting nodes, or drop rows=")
    return found


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(name, value, f"a whole number of at least {least}")


def _number(name: str, value: object, most: float, allowed: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or value < 0 or not value <= most or math.isinf(value):
        raise InputError(name, value, allowed)


def _one_of(name: str, value: object, allowed) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(name, value, "one of " + ", ".join(allowed))


def _plain(value):
    """A numpy scalar as the Python number that JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value
