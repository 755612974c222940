"""Runs the CUDA kernels of pdadmm on the CPU: cuda_emulator.h and a stand-in for gpu_launch.launch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

from pdadmm.kernels import gpu, gpu_launch

HERE = Path(__file__).parent
SHARED = 227 << 10  # bytes of shared memory that a block can have: those of an H100
FLAGS = (
    *("-x", "c++", "-std=c++17", "-Og", "-w", "-fPIC", "-shared", "-fno-gnu-unique"),
    *("-ffp-contract=off", "-fno-strict-aliasing"),
    # a misaligned access ends a kernel on a GPU; here it ends the process (SIGILL)
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"),
)


class Emulator:
    """The kernels of every .cu source, compiled by g++ into ``folder``."""

    def __init__(self, folder: Path) -> None:
        builds = {name: self._build(name, folder) for name in gpu_launch.SOURCES}
        self.libraries = {}
        for name, (process, path) in builds.items():
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            self.libraries[name] = library = ctypes.CDLL(str(path))
            library.emulator_launch.restype = ctypes.c_char_p
        self.launched: list[str] = []  # the kernels started so far

    @staticmethod
    def _build(name: str, folder: Path):
        source, path = folder / f"{name}.cpp", folder / f"{name}.so"
        source.write_text('#include "cuda_emulator.h"\n' + gpu_launch.source(name), "utf-8")
        command = [shutil.which("g++"), *FLAGS, f"-I{HERE}", "-o", str(path), str(source)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True), path

    def launch(self, name, kernel, blocks, threads, args, device, shared=0) -> None:
        """Run a kernel to its end; AssertionError where its threads misuse a barrier or a warp operation."""
        values = [gpu_launch.argument(value) for value in args]
        assert all(value.nbytes == 8 for value in values)
        store = (ctypes.c_uint64 * len(values))(*[int(value.view("u8")) for value in values])
        base = ctypes.addressof(store)
        pointers = (ctypes.c_void_p * len(values))(*[base + 8 * i for i in range(len(values))])
        self.launched.append(kernel)
        failed = self.libraries[name].emulator_launch(
            kernel.encode(), *blocks, threads, shared, len(values), pointers
        )
        assert failed is None, f"{kernel}: {failed.decode()}"

    def kernels(self, name: str) -> list[str]:
        """The names of all kernels of a source."""
        function = self.libraries[name].emulator_kernels
        function.restype = ctypes.c_char_p
        return function().decode().split()

    def install(self, patch) -> None:
        """Let the wrappers of pdadmm.kernels take CPU tensors and launch here."""
        patch.setattr(gpu_launch, "launch", self.launch)
        patch.setattr(gpu_launch, "DEVICE", "cpu")
        patch.setattr(gpu_launch, "multiprocessors", lambda device: 1)
        patch.setattr(gpu_launch, "shared_memory", lambda device: SHARED)
        patch.setattr(gpu, "available", lambda device: True)


def guarded(x: torch.Tensor, offset: int = 0, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of ``x`` between two stretches of 77s, ``offset`` elements off a 16-byte boundary; and all of it."""
    pad = 16 + offset
    whole = torch.full((x.numel() + 2 * pad,), 77, dtype=x.dtype, device=device)
    part = whole[pad : pad + x.numel()].view(x.shape)
    part.copy_(x)
    return part, whole


def untouched(x: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether the 77s around a ``guarded`` array are still there."""
    pad = (whole.numel() - x.numel()) // 2
    return bool((whole[:pad] == 77).all() and (whole[len(whole) - pad :] == 77).all())
