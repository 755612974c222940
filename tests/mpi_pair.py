"""Two ranks in one launch: the transport, many command lines, then ways not to fit together; what each rank said.

mpiexec -n 2 python tests/mpi_pair.py OUT COMMANDS.json
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from mpi_mismatch import mismatches
from mpi_transport import check_transport

from pdadmm.cli import main
from pdadmm.parallel.launch import make_transport


def run(arguments: list[str]) -> dict:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    transport = make_transport()
    check_transport(transport)
    out, commands = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    found = {name: run(arguments) for name, arguments in commands.items()}
    (out / f"cli.{transport.rank}.json").write_text(json.dumps(found))
    (out / f"mismatch.{transport.rank}.json").write_text(json.dumps(mismatches(transport.rank)))
