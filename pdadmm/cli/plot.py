"""``pdadmm plot``: draw what other commands wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from pdadmm.cli.common import check_writable
from pdadmm.contest import read_summary
from pdadmm.errors import InputError
from pdadmm.files import file_within
from pdadmm.history import History
from pdadmm.parallel.launch import launched_rank
from pdadmm.plot import AXES, check_picture, plot_convergence
from pdadmm.plot_contest import plot_contest

__all__ = ["run"]

ENDINGS = (".jsonl", ".json")


def run(arguments: list[str]) -> int:
    """Draw histories, or contests, into one picture."""
    given = _parser().parse_args(arguments)
    if given.x is not None and given.x not in AXES:
        raise InputError("x", given.x, "one of " + ", ".join(AXES))
    check_picture("out", given.out)
    if launched_rank() > 0:
        return 0
    check_writable(given, "out")
    files = [Path(file) for file in given.files]
    endings = {file.suffix for file in files}
    if len(endings) > 1 or not endings <= set(ENDINGS):
        inner = next(filter(None, (file_within(file, "history.jsonl") for file in files)), "")
        remedy = inner or "draw histories and contests into pictures of their own"
        raise InputError("FILE", " ".join(given.files), "all histories (.jsonl) or all contests (.json)", remedy)
    names = _names(files)
    if endings == {".jsonl"}:
        histories = {name: History.from_jsonl(file) for name, file in names.items()}
        plot_convergence(histories, given.out, given.x or "iteration")
    else:
        plot_contest({name: read_summary(file) for name, file in names.items()}, given.out, given.x or "seconds")
    print(f"wrote {given.out}")
    return 0


def _names(files: list[Path]) -> dict[str, Path]:
    """Return each file under its stem, or its whole path where two have the same stem."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): file for file in files}


def _parser() -> argparse.ArgumentParser:
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm plot",
        description="Draw histories (FILE.jsonl of pdadmm train --history: objective, residuals, accuracy), or "
        "contests (FILE.json of pdadmm compare --summary: accuracy of each solver).",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="all .jsonl or all .json")
    parser.add_argument("-o", "--out", required=True, metavar="PICTURE", help="a file that ends in .png, .pdf or .svg")
    parser.add_argument(
        "--x", metavar="NAME",
        help=f"horizontal axis: {', '.join(AXES)} (default: iteration for histories, seconds for contests)",
    )  # fmt: skip
    return parser
