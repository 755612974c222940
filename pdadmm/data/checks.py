"""Checks of arrays a user gave, shared by Graph and the readers; each failure is one InputError."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from pdadmm.errors import InputError

SPLIT_NAMES = ("train", "val", "test")
_LARGEST_INDEX = np.iinfo(np.int32).max
_CHUNK = 1 << 22  # array elements looked at together, so that masks stay small beside the data


def as_numbers(argument: str, value: object, ndim: int) -> np.ndarray:
    """``value`` as an array of real numbers with ``ndim`` axes, not copied where it already is one."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise InputError(argument, f"a {type(value).__name__}", "a rectangular array of numbers") from None
    if array.dtype.kind not in "biuf":
        raise InputError(argument, f"an array of {array.dtype}", "an array of real numbers")
    if array.ndim != ndim:
        raise InputError(argument, f"an array of shape {array.shape}", f"an array with {ndim} axes")
    return array


def whole_numbers(argument: str, value: object, ndim: int = 1) -> np.ndarray:
    """``value`` as an integer array; floats pass when every one is whole, masks do not."""
    array = as_numbers(argument, value, ndim)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        remedy = "turn a mask into indices with numpy.flatnonzero, truth values into classes with astype(int)"
        raise InputError(argument, "an array of bool", "whole numbers", remedy)
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):  # 2^53 is infinite in float16
            whole = (np.trunc(array) == array) & (np.abs(array) < 2**53)
        if not whole.all():
            first = tuple(int(axis[0]) for axis in np.nonzero(~whole))
            value = f"{array[first]} at position {', '.join(map(str, first))}"
            raise InputError(argument, value, "whole numbers", "round or remove the other values")
        return array.astype(np.int64)
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise InputError(argument, int(array.max()), "whole numbers below 2**63")
    return array.astype(np.int64) if array.dtype == np.uint64 else array  # mixed with int64 it would become float


def check_range(
    argument: str, array: np.ndarray, low: int, high: int, meaning: str, remedy: str = ""
) -> None:
    """Every value of ``array`` is in ``low`` .. ``high``; else name the first that is not."""
    if array.size == 0 or (array.min() >= low and array.max() <= high):
        return
    outside = np.flatnonzero((array < low).ravel() | (array > high).ravel())
    value = f"{array.ravel()[outside[0]]} (position {outside[0]}, {outside.size} such values)"
    raise InputError(argument, value, f"{meaning}, {low} to {high}", remedy)


def check_csr(argument: str, indptr: np.ndarray, indices: np.ndarray, rows: int, columns: int) -> None:
    """``indptr`` and ``indices`` describe a CSR matrix of ``rows`` x ``columns``; nothing else is assumed."""
    if columns > _LARGEST_INDEX:
        raise InputError(f"{argument} columns", columns, f"at most {_LARGEST_INDEX}")
    if indptr.shape != (rows + 1,):
        raise InputError(f"{argument} indptr", f"an array of shape {indptr.shape}", f"of shape ({rows + 1},)")
    if indptr[0] != 0 or indptr[-1] != indices.size:
        ends = f"an array from {indptr[0]} to {indptr[-1]}"
        raise InputError(f"{argument} indptr", ends, f"an array from 0 to {indices.size}, the stored entries")
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if falls.size:
        place = f"{indptr[falls[0]]} then {indptr[falls[0] + 1]} at row {falls[0]}"
        raise InputError(f"{argument} indptr", place, "never decreasing")
    check_range(f"{argument} indices", indices, 0, columns - 1, "column numbers")


def check_adjacency(indptr: np.ndarray, indices: np.ndarray, num_nodes: int) -> None:
    """Valid square CSR whose columns rise strictly in each row (so no duplicates) and miss the diagonal."""
    check_csr("adjacency", indptr, indices, num_nodes, num_nodes)
    remedy = "Graph.from_edges sorts, and drops duplicates and self-loops"
    rises = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < indices.size)] - 1] = True
    if not rises.all():
        first = int(np.argmin(rises)) + 1
        row = int(np.searchsorted(indptr, first, side="right")) - 1
        raise InputError("adjacency indices", f"{indices[first]} after {indices[first - 1]} in row {row}",
                         "sorted and distinct in each row", remedy)  # fmt: skip
    bounds = np.searchsorted(indptr, np.arange(0, indices.size, _CHUNK), side="right") - 1
    for begin, end in zip(bounds, np.append(bounds[1:], num_nodes)):
        rows = np.repeat(np.arange(begin, end, dtype=np.int32), np.diff(indptr[begin : end + 1]))
        start = indptr[begin]
        loops = np.flatnonzero(rows == indices[start : start + rows.size])
        if loops.size:
            node = indices[start + loops[0]]
            raise InputError("adjacency indices", f"a self-loop at node {node}", "without self-loops", remedy)


def check_weights(weights: object, count: int, argument: str = "weights") -> np.ndarray:
    """``weights`` as float32 [count], all finite and above zero."""
    array = as_numbers(argument, weights, 1)
    if array.shape != (count,):
        raise InputError(argument, f"an array of shape {array.shape}", f"of shape ({count},), one per edge")
    with np.errstate(over="ignore", under="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = np.flatnonzero(~((array > 0) & (array < np.inf)))
    if bad.size:
        value = f"{array[bad[0]]} (position {bad[0]}, {bad.size} such values)"
        raise InputError(argument, value, "finite float32 numbers above 0", "leave out edges of weight 0")
    return array


def check_features(features: object) -> np.ndarray | sp.csr_array:
    """``features`` as finite float32: C-contiguous dense [V, F], or canonical csr_array [V, F]."""
    if sp.issparse(features):
        return _check_sparse_features(features)
    dense = as_numbers("features", features, 2)
    _check_feature_shape(dense.shape)
    with np.errstate(over="ignore", under="ignore"):
        dense = np.ascontiguousarray(dense, dtype=np.float32)
    step = max(1, _CHUNK // dense.shape[1])
    bad, first = 0, None
    for start in range(0, dense.shape[0], step):
        wrong = ~np.isfinite(dense[start : start + step])
        count = int(np.count_nonzero(wrong))
        if count and first is None:
            row, column = (int(axis[0]) for axis in np.nonzero(wrong))
            first = (start + row, column)
        bad += count
    _refuse_bad_features(bad, first)
    return dense


def _check_sparse_features(features) -> sp.csr_array:
    if features.ndim != 2:
        raise InputError("features", f"an array of shape {features.shape}", "an array with 2 axes")
    _check_feature_shape(features.shape)
    if features.dtype.kind not in "biuf":
        raise InputError("features", f"an array of {features.dtype}", "an array of real numbers")
    with np.errstate(over="ignore", under="ignore"):
        matrix = sp.csr_array(features).astype(np.float32, copy=False)
    check_csr("features", matrix.indptr, matrix.indices, *matrix.shape)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if matrix.nnz <= _LARGEST_INDEX:
        # One index type for equal contents: fingerprints and compiled kernels see no other.
        indices, indptr = (part.astype(np.int32, copy=False) for part in (matrix.indices, matrix.indptr))
        matrix = sp.csr_array((matrix.data, indices, indptr), shape=matrix.shape)
    bad = np.flatnonzero(~np.isfinite(matrix.data))
    if bad.size:
        row = int(np.searchsorted(matrix.indptr, bad[0], side="right")) - 1
        _refuse_bad_features(bad.size, (row, int(matrix.indices[bad[0]])))
    return matrix


def _check_feature_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise InputError("features", f"an array of shape {shape}", "of shape (nodes, features), both above 0")
    if shape[0] > _LARGEST_INDEX:
        raise InputError("features", f"{shape[0]} rows", f"at most {_LARGEST_INDEX} nodes")


def _refuse_bad_features(count: int, first: tuple[int, int] | None) -> None:
    if first is not None:
        value = f"{count} values that are NaN or infinite (first: node {first[0]}, column {first[1]})"
        raise InputError("features", value, "finite in float32", "replace or remove these values")


def _without_names(labels: object) -> object:
    """``labels``; InputError with the cure where they are names, or NaN stands for a class that is not known."""
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError, RuntimeError):  # told by whole_numbers
        return labels
    if array.ndim == 2 and array.dtype.kind in "biuf" and array.size:
        remedy = "labels.ravel()" if array.shape[1] == 1 else "labels.argmax(1), where a row has a 1 at its class"
        raise InputError("labels", f"an array of shape {array.shape}", "of shape (nodes,), a class number each", remedy)
    allowed = "class numbers, 0 and up, or -1 where the class is not known"
    if array.dtype.kind in "USO" and array.ndim == 1 and array.size:
        remedy = "number them: names, labels = numpy.unique(labels, return_inverse=True)"
        raise InputError("labels", f"{array[0]} and other names", allowed, remedy)
    if array.dtype.kind == "f" and array.ndim == 1 and np.isnan(array).any():
        nodes = np.flatnonzero(np.isnan(array))
        remedy = "numpy.where(numpy.isnan(labels), -1, labels)"
        raise InputError("labels", f"nan at node {nodes[0]} ({nodes.size} such nodes)", allowed, remedy)
    return array


def check_labels(labels: object, num_nodes: int, num_classes: int | None) -> tuple[np.ndarray, int]:
    """``labels`` as int64 [V] and the number of classes (one more than the largest label unless given)."""
    array = whole_numbers("labels", _without_names(labels))
    if array.shape != (num_nodes,):
        raise InputError("labels", f"{array.size} labels", f"one per node, {num_nodes}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    if num_classes is None:
        # A far larger number is an identifier, not a class, and would size a network's last layer.
        high, remedy = max(num_nodes, 1000) - 1, "number the classes from 0, or pass num_classes"
        check_range("labels", array, -1, high, "class numbers or -1 for unlabelled", remedy)
        return array, int(array.max()) + 1
    fewest = int(array.max() >= 0)  # none is a fair number where no class is known: graphs are copied and reread
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < fewest:
        raise InputError("num_classes", num_classes, f"a whole number of at least {fewest}")
    remedy = "number the classes from 0, or raise num_classes"
    check_range("labels", array, -1, int(num_classes) - 1, "class numbers or -1 for unlabelled", remedy)
    return array, int(num_classes)


def _without_mask(argument: str, part: object, num_nodes: int) -> object:
    """The node numbers of a part given as truth values [V]; any other as it is."""
    try:
        mask = np.asarray(part)
    except (ValueError, TypeError, RuntimeError):  # told by whole_numbers
        return part
    if mask.dtype.kind != "b" or mask.ndim != 1:
        return part
    if mask.size != num_nodes:
        raise InputError(argument, f"a mask of {mask.size} truth values", f"of {num_nodes}, one per node")
    return np.flatnonzero(mask)


def check_splits(splits: object, labels: np.ndarray) -> dict[str, np.ndarray] | None:
    """``splits`` as {"train", "val", "test"} -> int64 indices (or masks) of labelled nodes, disjoint; or None."""
    if splits is None:
        return None
    if not isinstance(splits, dict) or set(splits) != set(SPLIT_NAMES):
        given = sorted(map(str, splits)) if isinstance(splits, dict) else f"a {type(splits).__name__}"
        raise InputError("splits", given, "None or a dict with the keys train, val and test")
    taken = np.zeros(labels.size, dtype=np.int8)  # 0: free, else 1 + position of the split that has the node
    checked = {}
    for number, name in enumerate(SPLIT_NAMES):
        argument = f"splits[{name!r}]"
        nodes = whole_numbers(argument, _without_mask(argument, splits[name], labels.size))
        check_range(argument, nodes, 0, labels.size - 1, "node numbers")
        nodes = np.ascontiguousarray(nodes, dtype=np.int64)
        distinct, counts = np.unique(nodes, return_counts=True)
        if distinct.size < nodes.size:
            node = distinct[np.argmax(counts > 1)]
            raise InputError(argument, f"node {node} more than once", "distinct nodes", "list each node once")
        shared = nodes[taken[nodes] > 0]
        if shared.size:
            other = SPLIT_NAMES[taken[shared[0]] - 1]
            value = f"{shared.size} nodes of {other} (first: node {shared[0]})"
            raise InputError(argument, value, f"disjoint from {other}", "give each node to one split")
        bare = nodes[labels[nodes] < 0]
        if bare.size:
            value = f"{bare.size} unlabelled nodes (first: node {bare[0]})"
            raise InputError(argument, value, "labelled nodes", "leave out the nodes whose label is -1")
        taken[nodes] = number + 1
        checked[name] = nodes
    if checked["train"].size == 0:
        raise InputError("splits['train']", "no nodes", "at least one labelled node")
    return checked
