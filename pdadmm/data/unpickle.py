"""Unpickling of files that nobody vouches for: arrays, CSR matrices, dicts, lists and numbers, nothing else.

Every name in a pickle is looked up in a table of stand-ins that only keep what they are given.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any, ClassVar, Literal

import numpy as np

__all__ = ["Array", "Csr", "InertUnpickler", "RefusedError"]


class RefusedError(Exception):
    """A pickle names something outside the table of stand-ins."""


class Inert:
    """Base of the stand-ins. Pickle's BUILD finds __setstate__ on classes and objects alike, so that no
    attribute of either can be set by a file."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("unexpected state")


class Dtype(Inert):
    """numpy.dtype: keeps a code such as f4 and a byte order; numbers only."""

    __slots__ = ("code", "order")
    code: str
    order: Literal["<", ">", "="]

    def __new__(cls, code: str, *flags: object) -> Dtype:
        self = object.__new__(cls)
        if not isinstance(code, str) or not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise ValueError(f"an array of {str(code)[:20]}, not of plain numbers")
        self.code, self.order = code, "="
        return self

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError("an unknown byte order")
        self.order = state[1].replace("|", "=")


class Array(Inert):
    """numpy.ndarray: keeps shape, type, order and bytes."""

    __slots__ = ("state",)

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 strings
        if not isinstance(raw, bytes) or not isinstance(dtype, Dtype):
            raise ValueError("not an array of plain numbers")
        if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise ValueError("not a shape")
        kind = np.dtype(dtype.code).newbyteorder(dtype.order)
        if math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError("the bytes do not fit the shape")
        flat = np.frombuffer(raw, dtype=kind).astype(kind.newbyteorder("="))
        return flat.reshape(shape, order="F" if fortran else "C")


class Scalar(Inert):
    """numpy's scalar: becomes a Python number at once."""

    def __new__(cls, dtype: Dtype, raw: bytes | str) -> Any:
        whole = Array()
        whole.__setstate__((1, (), dtype, False, raw))
        return whole.array().item()


class Csr(Inert):
    """scipy.sparse.csr_matrix: keeps its attributes as a dict."""

    __slots__ = ("state",)

    def __setstate__(self, state: dict) -> None:
        if not isinstance(state, dict):
            raise ValueError("a CSR matrix without attributes")
        self.state = state


class Reconstruct(Inert):
    """numpy's _reconstruct and copyreg's _reconstructor: an empty array or matrix, filled by its state."""

    def __new__(cls, kind: Any, *rest: object) -> Any:
        if kind not in (Array, Csr):
            raise ValueError("an object that is neither array nor matrix")
        return object.__new__(kind)


class Encode(Inert):
    """_codecs.encode, by which Python 3 writes bytes for Python 2: the text stays text until an array needs it."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes in an unknown encoding")
        return text


class Named(Inert):
    """object and list, which old pickles name and never make."""

    def __new__(cls, *rest: object) -> Any:
        raise ValueError("a plain object")


class DefaultDict(Inert):
    """collections.defaultdict: a plain dict, to be filled."""

    def __new__(cls, *rest: object) -> Any:
        return {}


STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("numpy.core.multiarray", "_reconstruct"): Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): Reconstruct,
    ("numpy.core.multiarray", "scalar"): Scalar,
    ("numpy._core.multiarray", "scalar"): Scalar,
    ("scipy.sparse.csr", "csr_matrix"): Csr,
    ("scipy.sparse._csr", "csr_matrix"): Csr,
    ("scipy.sparse._csr", "csr_array"): Csr,
    ("copy_reg", "_reconstructor"): Reconstruct,
    ("copyreg", "_reconstructor"): Reconstruct,
    ("_codecs", "encode"): Encode,
    ("__builtin__", "bytes"): Encode,
    ("collections", "defaultdict"): DefaultDict,
    ("__builtin__", "list"): Named,
    ("builtins", "list"): Named,
    ("__builtin__", "object"): Named,
    ("builtins", "object"): Named,
}

# Opcodes that no Planetoid file has: sets, buffers outside the file, memory set aside by a number in the file.
REFUSED_OPCODES = (
    pickle.DUP, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER, pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4,
)  # fmt: skip


class InertUnpickler(pickle._Unpickler):
    """Python's own unpickler, the form in Python: its memo is a dict, so that a number in the file sizes nothing.

    Keys of dicts are text or whole numbers below 2^31: the hash of nested tuples can take for ever.
    """

    stack: list[Any]
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> type:
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise RefusedError(f"{module}.{name}") from None

    def refuse(self) -> None:
        raise ValueError("an opcode that plain data has no use for")

    def load_setitem(self) -> None:
        check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]  # typeshed leaves out the opcodes' methods

    def load_setitems(self) -> None:
        check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch.update(dict.fromkeys((opcode[0] for opcode in REFUSED_OPCODES), refuse))


def check_keys(keys: list) -> None:
    """Raise ValueError for keys of a dict that are neither text nor small whole numbers."""
    if not all(type(key) is str or (type(key) is int and 0 <= key < 2**31) for key in keys):
        raise ValueError("a dict with keys that are neither names nor node numbers")
