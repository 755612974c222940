"""Parts of a graph in the forms that other libraries store them: masks, columns of labels, sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import SPLIT_NAMES, as_numbers, check_csr, check_range, whole_numbers
from pdadmm.errors import InputError

__all__ = ["class_numbers", "compressed", "coordinates", "nodes_in_masks", "unlabelled"]


def class_numbers(argument: str, labels: Any) -> np.ndarray:
    """Labels [V] or [V, 1] as whole numbers [V]; NaN, which marks a node without a class in OGB's sets, as -1.

    >>> class_numbers("y", [[2.0], [float("nan")]]).tolist()
    [2, -1]
    """
    array = np.asarray(labels)
    if array.ndim == 2:
        if array.shape[1] != 1:
            remedy = "a node has one class here: choose one column"
            raise InputError(argument, f"an array of shape {array.shape}", "of shape (nodes,) or (nodes, 1)", remedy)
        array = array[:, 0]
    array = as_numbers(argument, array, 1)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
    return whole_numbers(argument, array)


def unlabelled(features: Any) -> np.ndarray:
    """Labels [V] of nodes with ``features`` [V, F] of which no class is known; features without rows are refused later.

    >>> unlabelled([[0.5], [1.5]]).tolist()
    [-1, -1]
    """
    return np.full(next(iter(np.shape(features)), 0), -1, dtype=np.int64)


def nodes_in_masks(masks: Mapping[str, Any], num_nodes: int) -> dict[str, np.ndarray]:
    """Node numbers of each part out of ``masks``, part -> [V] of truth values (0 and 1 will do).

    >>> nodes_in_masks({"train": [True, False], "val": [0, 1], "test": [0, 0]}, 2)["val"].tolist()
    [1]
    """
    found = {}
    for part in SPLIT_NAMES:
        argument = f"{part}_mask"
        mask = np.asarray(masks[part])
        if mask.ndim == 2 and mask.shape[1] > 1:
            remedy = "the file holds several splits: keep one column of each mask"
            raise InputError(argument, f"an array of shape {mask.shape}", f"of shape ({num_nodes},)", remedy)
        mask = mask.reshape(-1)
        if mask.dtype.kind not in "biu" or mask.size != num_nodes or not ((mask == 0) | (mask == 1)).all():
            allowed = f"{num_nodes} truth values, one per node"
            raise InputError(argument, f"an array of {mask.size} {mask.dtype}", allowed)
        found[part] = np.flatnonzero(mask)
    return found


def compressed(
    prefix: str, parts: tuple[Any, Any, Any], shape: tuple[int, int], by_column: bool = False
) -> sp.csr_array:
    """The matrix of shape (rows, columns) with the CSR parts (data, indices, indptr), or CSC's ``by_column``."""
    indices, indptr = whole_numbers(f"{prefix} indices", parts[1]), whole_numbers(f"{prefix} indptr", parts[2])
    long, short = shape[::-1] if by_column else shape
    check_csr(prefix, indptr, indices, long, short)
    data = as_numbers(f"{prefix} data", parts[0], 1)
    if data.shape != indices.shape:
        raise InputError(f"{prefix} data", f"{data.size} values", f"{indices.size}, one per index")
    index = np.int32 if indices.size <= np.iinfo(np.int32).max else np.int64
    kind = sp.csc_array if by_column else sp.csr_array
    matrix = kind((data, indices.astype(index, copy=False), indptr.astype(index, copy=False)), shape=shape)
    return matrix.tocsr()


def coordinates(prefix: str, parts: tuple[Any, Any, Any], shape: tuple[int, int]) -> sp.csr_array:
    """The matrix of shape (rows, columns) with the COO parts (data, row, col); values at one place are added."""
    if max(shape) > np.iinfo(np.int32).max:
        raise InputError(f"{prefix} shape", shape, f"at most {np.iinfo(np.int32).max} rows and columns")
    rows, columns = whole_numbers(f"{prefix} row", parts[1]), whole_numbers(f"{prefix} col", parts[2])
    data = as_numbers(f"{prefix} data", parts[0], 1)
    if not data.shape == rows.shape == columns.shape:
        sizes = f"{data.size}, {rows.size} and {columns.size}"
        raise InputError(f"{prefix} data, row, col", sizes, "of one length")
    check_range(f"{prefix} row", rows, 0, shape[0] - 1, "row numbers")
    check_range(f"{prefix} col", columns, 0, shape[1] - 1, "column numbers")
    return sp.coo_array((data, (rows, columns)), shape=shape).tocsr()
