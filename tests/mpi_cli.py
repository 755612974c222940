"""Run many command lines one after another on every rank and write what each rank said.

mpiexec -n 2 python tests/mpi_cli.py OUT COMMANDS.json
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from pdadmm.cli import main
from pdadmm.parallel.launch import launched_rank


def run(arguments: list[str]) -> dict:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    commands = json.loads(Path(sys.argv[2]).read_text())
    found = {name: run(arguments) for name, arguments in commands.items()}
    (Path(sys.argv[1]) / f"cli.{launched_rank()}.json").write_text(json.dumps(found))
