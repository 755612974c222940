"""Command lines that train in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pdadmm import csbm
from pdadmm.__main__ import main
from pdadmm.data import write_npz
from pdadmm.parameters import parameters
from pdadmm.solvers import solver_class

__all__ = ["FAST", "TINY", "flags_of", "npz", "refuser", "runner", "tiny"]

FAST = ["--layers", "3", "--hidden", "6", "--hops", "1", "--iterations", "3"]
TINY = ["train", "--dataset", "csbm:120", *FAST]


def tiny(solver: str) -> list[str]:
    """TINY without the flags that a solver does not have."""
    known = {field.name for field in flags_of(solver)} | {"dataset", "data_dir"}
    pairs = zip(TINY[1::2], TINY[2::2])
    return [TINY[0], *(word for flag, value in pairs if flag[2:].replace("-", "_") in known for word in (flag, value))]


def flags_of(solver: str) -> list:
    """The hyper-parameters of a solver that the command line offers."""
    return [field for field in parameters(solver_class(solver)) if field.metadata["check"].flag]


def runner(capsys):
    """A function that runs a command line: its status, and what it wrote to standard output and standard error."""

    def go(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return go


def refuser(run):
    """One for command lines that must end with status 2 and one sentence with these words, alone but for the log."""

    def go(*arguments, words=()) -> str:
        status, out, err = run(*arguments)
        assert status == 2, (out, err)
        assert out == ""
        assert err.endswith("\n")
        *log, err = err.splitlines()
        assert err.startswith("pdadmm: ")
        assert not any(line.startswith(("pdadmm: ", "Traceback")) for line in log)
        assert "must be" in err
        for word in words:
            assert word in err, err
        return err

    return go


def npz(path: Path, **changes) -> Path:
    """Write a small graph with a split, some of its arrays changed, or left out by None."""
    graph = csbm(40, num_classes=2, num_features=3, seed=0)
    write_npz(graph, path)
    with np.load(path) as arrays:
        arrays = dict(arrays) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
