"""One self-contained page about a run: what ``pdadmm report`` writes."""

from __future__ import annotations

from pdadmm.report.folder import RunFolder, read_run
from pdadmm.report.page import page

__all__ = ["RunFolder", "page", "read_run"]
