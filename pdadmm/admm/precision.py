"""Torch's setting of what a product of float32 arrays is: float32, or inside TF32 or bf16. It is the process's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_float32", "inside"]

_turns = threading.RLock()  # two threads that set it and put it back by turns would leave it set
_changed: list[tuple[Any, str]] = []  # what full_float32 found, in the order of its changes
_under_way = 0  # how many threads, or callers in one, are inside full_float32


@contextmanager
def inside(setting: Any, value: str) -> Iterator[None]:
    """Let ``setting``, torch.backends.mkldnn.matmul or torch.backends.cuda.matmul, be ``value``; one thread at a time.

    It is put back at the end, also after an exception. A GPU's product has been chosen when its call returns.
    """
    with _turns:
        before = setting.fp32_precision
        setting.fp32_precision = value
        try:
            yield
        finally:
            _put_back(setting, before)


@contextmanager
def full_float32() -> Iterator[None]:
    """Let products of float32 arrays be float32's on the CPU and on a GPU, whatever torch was told before.

    It is put back when the last of those who asked for it ends: until then the others rely on it.
    """
    global _under_way
    with _turns:
        _under_way += 1
        for setting in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul):  # type: ignore[attr-defined]
            before = setting.fp32_precision
            if before not in ("ieee", "none"):
                _changed.append((setting, before))
                setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _turns:
            _under_way -= 1
            while _changed and not _under_way:
                _put_back(*_changed.pop())


def _put_back(setting: Any, before: str) -> None:
    """Let a setting read as ``before``, and follow torch.backends.fp32_precision where it reads so by following."""
    setting.fp32_precision = "none"
    if setting.fp32_precision != before:
        setting.fp32_precision = before
