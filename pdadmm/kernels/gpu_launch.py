"""Compiles the .cu sources at run time (CuPy, NVRTC) and launches them on torch memory and torch's current stream."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["NVRTC_OPTIONS", "OPTIONS", "SOURCES", "available", "compiled", "lacking", "launch", "source", "try_out"]

SOURCES = ("updates", "sums", "newton", "scale", "codec", "spmm", "factor")
# No contraction to fused multiply-adds, no flush of subnormal numbers: the results are those of plain torch on the CPU.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")
NVRTC_OPTIONS = ("-default-device", *OPTIONS)  # up to CUDA 13.1 it takes functions that say nothing for the host's
DEVICE = "cuda"  # the kind of tensor that launch takes; the tests' emulator takes "cpu"
THREADS = 256  # the most threads of a block; the kernels rely on it
UNASKED = 48 << 10  # bytes of shared memory that any kernel may have
SUFFIX = {torch.float32: "float", torch.float64: "double"}


@cache
def available(device: torch.device) -> bool:
    """Whether ``device`` runs these kernels: one of them was tried there."""
    return lacking(device) is None


@cache
def lacking(device: torch.device) -> str | None:
    """Say why ``device`` does not run these kernels; None where it does. ``PDADMM_KERNELS=0`` asks for none of them.

    A CuPy of another CUDA than torch's, or without NVRTC, can be imported and then fails at the first kernel: so one is
    tried here, before anybody trains.
    """
    if os.environ.get("PDADMM_KERNELS", "1") == "0":
        return "PDADMM_KERNELS=0 asks for plain torch"
    if device.type != "cuda" or not torch.cuda.is_available():
        return "there is no GPU"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        try_out(device)
    except Exception as error:  # of CuPy, NVRTC or the driver, each with classes of its own
        words = str(error).strip().splitlines() or [""]
        return f"CuPy cannot run them: {type(error).__name__}: {words[0]}"
    return None


def try_out(device: torch.device) -> None:
    """Compile a kernel and run it on three numbers; whatever is wrong is raised."""
    u, p, q = (torch.full((1,), value, device=device) for value in (1.0, 3.0, 2.0))
    launch("updates", "update_u_float_1", (1, 1), THREADS, (u, p, q, 1, 0.5), device)
    if float(u) != 1.5:
        raise RuntimeError(f"update_u returned {float(u)} for 1.5")


def source(name: str) -> str:
    """The text of ``name``.cu with its own headers put in place: what the compiler sees, and what a cache goes by."""
    folder, text = Path(__file__).parent, f'#include "{name}.cu"'
    include = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
    while include.search(text):
        text = include.sub(lambda found: (folder / found[1]).read_text("utf-8"), text)
    return text


def launch(
    name: str, kernel: str, blocks: tuple[int, int], threads: int, args: tuple, device: torch.device, shared: int = 0
) -> None:
    """Start ``kernel`` of ``name``.cu on torch's current stream of ``device``, without waiting for it.

    ``blocks`` (x, y), one row of ``threads`` each, with ``shared`` bytes of memory, shared_memory(device) at most.
    ``args``: tensors (passed by address), None, int or float, 8 bytes each; the tensors must live until the stream has
    used them, as for any torch operation.
    """
    import cupy

    stream = _Stream.of(torch.cuda.current_stream(device).cuda_stream, device.index)
    with cupy.cuda.Device(device.index), stream:
        function = _kernel(name, kernel, _architecture(device.index))
        if shared > UNASKED and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        function(blocks, (threads,), tuple(map(argument, args)), shared_mem=shared)


@dataclass(frozen=True)
class _Stream:
    """A stream of torch's, as CuPy wants to see it."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    @staticmethod
    @cache
    def of(handle: int, device: int):
        import cupy

        with cupy.cuda.Device(device):
            return cupy.cuda.Stream.from_external(_Stream(handle))


@cache
def _architecture(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def _kernel(name: str, kernel: str, architecture: str):
    return _module(name, architecture).get_function(kernel)


@cache
def _module(name: str, architecture: str):
    import cupy

    return cupy.RawModule(path=str(compiled(name, architecture)))


def compiled(name: str, architecture: str) -> Path:
    """The machine code of ``name``.cu, compiled by NVRTC or from CuPy's folder of compiled kernels.

    RawModule(code=...) would not do: CuPy adds -ftz=true, which takes subnormal numbers for 0, and then messages
    are not those of the CPU.
    """
    from cupy.cuda import nvrtc

    text, options = source(name), (f"-arch={architecture}", *NVRTC_OPTIONS)
    key = hashlib.sha256(repr((text, options, nvrtc.getVersion())).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    path = folder / f"pdadmm-{name}-{architecture}-{key}.cubin"
    if path.exists():
        return path
    code = _compile(text, f"{name}.cu", options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _written(code, path)
    except OSError:  # a home that cannot be written
        return _written(code, Path(tempfile.mkdtemp(prefix="pdadmm-")) / path.name)


def _written(code: bytes, path: Path) -> Path:
    """Write a file of its own first: others may compile the same at the same time."""
    file, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    with os.fdopen(file, "wb") as part:
        part.write(code)
    return Path(name).replace(path)


def _compile(text: str, name: str, options: tuple[str, ...]) -> bytes:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, name, (), ())
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program) + b"\0"  # it drops the last byte, as if of a string; a file misses it
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{name} does not compile for {options[0]}:\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def argument(value) -> np.generic:
    """One kernel argument of 8 bytes."""
    if isinstance(value, Tensor):
        return np.uint64(value.data_ptr())
    if value is None:
        return np.uint64(0)
    return np.float64(value) if isinstance(value, float) else np.int64(value)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has: the grids of persistent kernels follow it, their results do not."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_memory(device: torch.device) -> int:
    """How many bytes of shared memory a block may ask for on the device."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", UNASKED)


def divide_up(count: int, size: int) -> int:
    """The number of pieces of ``size`` that ``count`` takes."""
    return -(-count // size)


def aligned(*tensors: Tensor | None) -> bool:
    """Whether every array starts at a multiple of 16 bytes; a row slice of a larger array may not."""
    return all(x is None or x.data_ptr() % 16 == 0 for x in tensors)


def check(like: Tensor, **tensors: Tensor) -> None:
    """Refuse what a kernel would misread: another dtype, device or shape than ``like``, or not contiguous."""
    for name, x in tensors.items():
        if x.shape != like.shape or x.dtype != like.dtype or x.device != like.device or not x.is_contiguous():
            given = f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
            raise InputError(name, given, f"contiguous {like.dtype} of shape {tuple(like.shape)} on {like.device}")
    if like.device.type != DEVICE or like.dtype not in SUFFIX or not like.is_contiguous():
        given = f"{like.dtype} on {like.device}"
        raise InputError("array", given, f"contiguous float32 or float64 on a {DEVICE} device")
