"""The package as it is imported: light, without MPI or a GPU, and every public name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pdadmm


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120,
        cwd=Path(pdadmm.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light():
    heavy = "('torch', 'sklearn', 'mpi4py', 'cupy', 'matplotlib', 'numpy', 'scipy', 'safetensors', 'tqdm')"
    assert in_a_new_process(f"import sys, pdadmm; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_training_needs_no_mpi_and_no_gpu():
    code = (
        "import sys\n"
        "for name in ('mpi4py', 'cupy', 'matplotlib'): sys.modules[name] = None\n"
        "import pdadmm\n"
        "graph = pdadmm.csbm(60, num_classes=2, num_features=3)\n"
        "print(pdadmm.PDADMMG(layers=2, hidden=3, iterations=2).fit(graph).predict(graph).shape)"
    )
    assert in_a_new_process(code).strip() == "(60,)"


def test_public_names_resolve():
    assert set(pdadmm.__all__) <= set(dir(pdadmm))
    assert len(set(pdadmm.__all__)) == len(pdadmm.__all__)
    for name in pdadmm.__all__:
        value = getattr(pdadmm, name)
        assert value is not None
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="koala"):
        pdadmm.koala  # noqa: B018
