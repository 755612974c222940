"""Augmentation from disk in the tests: tiny graphs cut as huge ones are, and what must come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from pdadmm import Augmenter, Graph, InputError
from pdadmm.augment import OPERATORS, SCALINGS, WEIGHTINGS
from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.disk import assemble, blocks, operator, plan, slices
from pdadmm.disk.augment import Request, augment_folder
from pdadmm.disk.graph import DiskGraph

__all__ = ["AUGMENTATIONS", "cut_small", "in_memory", "least", "request_"]


# Hyper-parameters of an Augmenter.
AUGMENTATIONS = st.fixed_dictionaries({
    "hops": st.integers(0, 3), "operator": st.sampled_from(sorted(OPERATORS)),
    "weighting": st.sampled_from(sorted(WEIGHTINGS)), "scaling": st.sampled_from(sorted(SCALINGS)),
    "dtype": st.sampled_from(["float32", "float64"]),
})  # fmt: skip


def cut_small(monkeypatch, block_bytes: int = 1 << 9) -> None:
    """Blocks of a few rows and entries, no allowance for Python."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(slices, "CHUNK_BLOCKS", 2)
    monkeypatch.setattr(assemble, "SYNC_BLOCKS", 2)
    monkeypatch.setattr(plan, "WORK_BYTES", 0)
    for module in (operator, plan):
        monkeypatch.setattr(module, "BLOCK_ENTRIES", 8)
        monkeypatch.setattr(module, "STREAM_ENTRIES", 20)


def in_memory(graph: Graph, augmenter: Augmenter, rows: str, splits) -> np.ndarray:
    """What the folder must hold: the plain form of the fast path."""
    kept = np.concatenate([splits[name] for name in SPLIT_NAMES]) if rows == "labelled" else None
    return augmenter.fit_transform(graph, None if splits is None else splits["train"], kept)


def request_(memory: int = 1 << 30, rows: str = "labelled", split: str | None = None, **parameters) -> Request:
    return Request(Augmenter(**parameters), rows, split, 1, memory)


def least(graph: DiskGraph, request: Request, out: Path) -> int:
    """The least memory, as the refusal says it."""
    with pytest.raises(InputError, match="at least") as refused:
        augment_folder(graph, Request(request.augmenter, request.rows, request.split, 1, 1), out)
    return int(refused.value.allowed.split()[2])
