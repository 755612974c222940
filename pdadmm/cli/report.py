"""``pdadmm report``: one page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pdadmm.cli.common import check_writable
from pdadmm.cli.run_folder import CONFIG, FILES
from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank
from pdadmm.report import page, read_run

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Write the page of a run folder."""
    from pdadmm.cli import Parser

    parser = Parser(
        prog="pdadmm report",
        description="Write one page of HTML about a run folder (of pdadmm train --run): curves, accuracy, confusion "
        "matrix, messages, timeline of the ranks, configuration. It loads nothing from elsewhere.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a folder that pdadmm train --run wrote")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the page here (default: report.html in RUN_DIR)")
    given = parser.parse_args(arguments)
    if launched_rank() > 0:
        return 0
    found = read_run(given.run_dir)
    given.out = given.out or str(Path(given.run_dir) / "report.html")
    own = {name: str(Path(given.run_dir) / name) for name in (CONFIG, *FILES.values())}
    check_writable(argparse.Namespace(out=given.out, **own), "out", inputs=tuple(own))
    try:
        Path(given.out).write_text(page(found), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError("out", given.out, "a file that can be written", error.strerror or "") from None
    print(f"wrote {given.out}")
    return 0
