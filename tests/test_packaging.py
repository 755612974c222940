"""What is shipped: pins, ranges, sdist and wheel, the make and CI commands, and a command line that starts fast."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pdadmm

ROOT = Path(__file__).parent.parent
MODULES = {str(path.relative_to(ROOT)) for path in (ROOT / "pdadmm").rglob("*.py")}
ENDS = ("c", "h", "cu", "css")
BESIDE = {str(path.relative_to(ROOT)) for end in ENDS for path in (ROOT / "pdadmm").rglob(f"*.{end}")}
SHIPPED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "requirements.txt",
           "Makefile", "pdadmm", "docs", "examples", "tests")  # fmt: skip


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in found), "requirements.txt holds exact pins only"
    named = {canonicalize_name(name): version for name, version in (line.split("==") for line in found)}
    assert len(named) == len(found), "a package is pinned twice"
    return named


@pytest.fixture(scope="module")
def setup_arguments() -> dict:
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    seen, real, here = {}, setuptools.setup, Path.cwd()
    setuptools.setup = lambda **arguments: seen.update(arguments)
    try:
        os.chdir(ROOT)
        runpy.run_path("setup.py")
    finally:
        setuptools.setup = real
        os.chdir(here)
    return seen


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Versions


def test_the_pins_lie_in_the_ranges(setup_arguments):
    extras = setup_arguments["extras_require"]
    assert set(extras) == {"mpi", "gpu", "gpu12", "plot", "partition", "docs", "test"}
    needed = [*setup_arguments["install_requires"], *extras["mpi"], *extras["plot"], *extras["test"]]
    for requirement in map(Requirement, needed):
        assert requirement.specifier, f"{requirement} has no bound"
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement


def test_the_first_pin_is_torch():
    assert pins()["torch"] == "2.13.0"
    assert next(iter(pins())) == "torch"


def test_one_version_everywhere(setup_arguments):
    assert setup_arguments["version"] == pdadmm.__version__
    assert f"## {pdadmm.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert run(sys.executable, "-m", "pdadmm", "--version").strip() == f"pdadmm {pdadmm.__version__}"


def test_every_package_is_found(setup_arguments):
    assert set(setup_arguments["packages"]) == {str(Path(module).parent).replace("/", ".") for module in MODULES}


# Archives


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """A source archive, made in a copy so that this folder stays as it is."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, copy / name)
    (copy / "pdadmm/kernels/stale.so").touch()
    return build("sdist", copy)


def build(kind: str, folder: Path) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    return folder / "dist" / run(sys.executable, "-c", code, cwd=folder).splitlines()[-1]


def test_the_source_archive_is_complete(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in BESIDE if name.endswith(".c")]
    assert BESIDE | MODULES | {"LICENSE", "README.md", "requirements.txt", "docs/math.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_a_wheel_comes_out_of_the_source_archive(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    with zipfile.ZipFile(build("wheel", next(tmp_path.iterdir()))) as wheel:
        names = set(wheel.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "pdadmm = pdadmm.__main__:main" in wheel.read(points).decode()
    assert names >= MODULES | {name for name in BESIDE if not name.endswith(".c")}
    if shutil.which("cc") or shutil.which("gcc"):
        assert any(name.startswith("pdadmm/kernels/_codec") for name in names)
    assert {name.partition("/")[0] for name in names} == {"pdadmm", f"pdadmm-{pdadmm.__version__}.dist-info"}


# Commands


def test_make_train_is_the_main_job():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    ours = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "RANKS", "TRAIN_FLAGS", "PYTEST_FLAGS", "COVERAGE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    plan = run("make", "--dry-run", "--always-make", "train", cwd=ROOT, env=environment)
    assert "-m venv .venv" in plan
    assert "install --quiet --disable-pip-version-check -r requirements.txt -e ." in plan
    assert "mpirun -n 4 .venv/bin/python -m pdadmm train --dataset digits --layers 10" in plan
    plan = run("make", "--dry-run", "--always-make", "test", cwd=ROOT, env=environment)
    assert plan.rstrip().endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")


def test_ci_runs_the_command_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text("utf-8"), ROOT / ".ci/run"
    if not ci.exists():
        pytest.skip("not in a source archive")
    assert "    make train " in readme
    assert "    make test " in readme
    assert os.access(ci, os.X_OK)
    assert ci.read_text("utf-8").rstrip().endswith("\nmake -j2 lint docs\nmake test COVERAGE=1\nmake test-openmpi")
    run("bash", "-n", str(ci))


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, pdadmm.cli; assert pdadmm.cli.main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'scipy', 'sklearn', 'mpi4py', 'matplotlib'} & set(sys.modules)"
    )
    assert "commands:" in run(sys.executable, "-c", code)
