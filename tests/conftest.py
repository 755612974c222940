"""What every test shares: one BLAS thread, and where real data sets are."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: bits depend on the thread count

from pathlib import Path

import hypothesis
import pytest

# No test fails for being slow: machines are shared.
hypothesis.settings.register_profile("pdadmm", deadline=None)
hypothesis.settings.load_profile("pdadmm")


@pytest.fixture
def data_dir() -> Path:
    """The folder of the real data sets; tests that need it skip where there is none."""
    folder = os.environ.get("PDADMM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PDADMM_DATA names no folder of data sets")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread():
    """What is trained in this process takes one thread, as its counterpart on ranks does: bits depend on it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    """Tests run in one process, whatever the shell that started them says."""
    for name in ("PMI_SIZE", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_downloads_of_mine(monkeypatch, tmp_path_factory):
    """What a developer has downloaded plays no part in the tests."""
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path_factory.getbasetemp() / "no-cache"))
