"""Where downloaded data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of downloads: ``given``, else PDADMM_CACHE, else ~/.cache/pdadmm. It need not exist.

    >>> str(cache_folder("somewhere"))
    'somewhere'
    """
    folder = given if given is not None else os.environ.get("PDADMM_CACHE") or "~/.cache/pdadmm"
    return Path(os.path.expanduser(folder))
