"""Before a run starts: do all ranks have the same library, the same settings and the same data?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from pdadmm import __version__
from pdadmm.errors import InputError
from pdadmm.parallel.envelope import checksums
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import parameters

__all__ = ["data_digest", "environment", "require_agreement", "settings_of"]


def require_agreement(transport: Transport, facts: Mapping[str, str]) -> None:
    """Compare ``facts`` of all ranks, collectively; InputError on every rank for the first that differs."""
    told = transport.allgather(dict(facts))
    for name in dict.fromkeys(name for part in told for name in part):
        values = [part.get(name, "unknown") for part in told]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            value = f"{values[0]} on rank 0 and {values[other]} on rank {other}"
            remedy = "start all ranks with one program, one installation and the same data"
            raise InputError(name, value, "the same on every rank", remedy)


def environment() -> dict[str, str]:
    """Return what must be equal in the processes themselves: versions, byte order, compiled updates, checksums."""
    import torch

    from pdadmm.kernels import updates

    return {
        "pdadmm version": __version__,
        "torch version": torch.__version__,
        "byte order": sys.byteorder,
        "compiled updates": str(updates.available()),  # plain torch rounds otherwise, and u never travels
        "checksums": str(checksums()),
    }


def settings_of(holder: Any) -> dict[str, str]:
    """Return every hyper-parameter of ``holder`` as text."""
    return {field.name: repr(getattr(holder, field.name)) for field in parameters(type(holder))}


def data_digest(graph: Any, y: Any) -> str:
    """Return a digest of what ``fit`` is given: its own, or that of plain arrays; the type of anything else."""
    if hasattr(graph, "fingerprint"):  # a Graph, or a folder of augmented features
        return graph.fingerprint()
    digest = blake2b(digest_size=16)
    for value in (graph, y):
        try:
            array = np.ascontiguousarray(value)
        except ValueError:  # ragged: the checks of fit say so
            return type(graph).__name__
        if array.dtype.kind not in "fiubUS":
            return type(graph).__name__
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
