"""Main memory that a GPU copies from and to by itself: pages pinned where they lie."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

__all__ = ["PinError", "Pinned", "whole_pages"]

PAGE = mmap.PAGESIZE


class PinError(Exception):
    """CUDA does not pin the memory."""


def whole_pages(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return memory to be filled (rows, columns), in pages that it shares with nothing else.

    >>> whole_pages(3, 2, torch.float64).data_ptr() % PAGE
    0
    """
    size = rows * columns * dtype.itemsize
    memory = torch.empty((-(-size // PAGE) + 1) * PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % PAGE
    return memory[start : start + size].view(dtype).view(rows, columns)


class Pinned:
    """The arrays of main memory that are pinned for a device; none where that is no GPU.

    They are pinned where they lie, not copied: torch's own pinned memory comes in powers of two. The arrays must live
    until ``release``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.addresses: list[int] = []

    def pin(self, x: Tensor) -> Tensor:
        """Pin a contiguous array and return it; raises PinError."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                runtime = torch.cuda.cudart()
                error = runtime.cudaHostRegister(x.data_ptr(), x.numel() * x.element_size(), 0)
            if error != runtime.cudaError.success:
                raise PinError(runtime.cudaGetErrorString(error))
            self.addresses.append(x.data_ptr())
        return x

    def release(self) -> None:
        """Unpin all of them, once no copy is under way."""
        while self.addresses:
            torch.cuda.cudart().cudaHostUnregister(self.addresses.pop())

    def __del__(self) -> None:
        self.release()
