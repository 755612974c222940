"""Finding the C libraries that setup.py builds beside this file.

``PDADMM_KERNELS=0`` in the environment, read when they are loaded, selects the plain torch paths.
"""

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["fits", "load_library", "pool", "torch_functions", "typed_functions"]


def load_library(name: str, interface_name: str, interface: int) -> ctypes.CDLL | None:
    """Return the library ``name`` where it was built, from today's source and for this machine; else None.

    ``interface_name`` is a function of it that returns its version, which must equal ``interface``.
    """
    if os.environ.get("PDADMM_KERNELS", "1") == "0" or sys.byteorder != "little":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(name + suffix)
        try:
            library = ctypes.CDLL(str(path)) if path.exists() else None
            if library is not None and getattr(library, interface_name)() == interface:
                return library
        except (OSError, AttributeError):  # built for another machine, or by an older source
            continue
    return None


def fits(*arrays: Tensor) -> bool:
    """Whether C functions can read these torch tensors: contiguous, in main memory, all float32 or all float64."""
    # called many times an iteration: `is_cpu` is a tenth of the price of `device.type`
    dtype = arrays[0].dtype
    if dtype.itemsize not in (4, 8) or not dtype.is_floating_point:
        return False
    return all(x.dtype is dtype and x.is_cpu and x.is_contiguous() for x in arrays)


def typed_functions(name: str, interface: int, function: str, argtypes: list[Any], restype: Any) -> dict[np.dtype, Any]:
    """Return the forms ``function``_float32 and _float64 of the library ``name`` by type, {} where it was not built."""
    library = load_library(name, f"pdadmm{name}_interface", interface)
    functions: dict[np.dtype, Any] = {}
    for kind in ("float32", "float64") if library is not None else ():
        functions[np.dtype(kind)] = getattr(library, f"{function}_{kind}")
        functions[np.dtype(kind)].argtypes, functions[np.dtype(kind)].restype = argtypes, restype
    return functions


def torch_functions(name: str, interface: int, function: str, argtypes: list[Any]) -> dict[torch.dtype, Any]:
    """As typed_functions, by torch's types; the functions return an int, or nothing that is looked at."""
    import torch

    found = typed_functions(name, interface, function, argtypes, ctypes.c_int)
    return {getattr(torch, str(dtype)): form for dtype, form in found.items()}


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads that C functions are shared out over; they release the GIL."""
    return ThreadPoolExecutor(threads, thread_name_prefix="pdadmm")
