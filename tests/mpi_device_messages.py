"""Train with messages as MPI's answer has them, staged, and direct: one JSON object of what was chosen, from rank 0.

mpiexec -n 4 python tests/mpi_device_messages.py [gpu]

Without a GPU the device is the stand-in, whose memory any MPI can read and write; its messages start, and its copies
are done, when they are waited for and not before. All runs must have the bits of the CPU's, and of p, q and moments the
same bytes; on a GPU, with "gpu", the numbers of the staged run.
"""

from __future__ import annotations

import json
import logging
import os
import sys

os.environ["PDADMM_KERNELS"] = "0"  # the device has plain torch, so must the CPU

from direct_transport import Late
from mpi4py import MPI
from stand_in_device import DEVICE, DeviceTensor, StandIn
from test_device import CASES, CPU, assert_near, assert_same, problem_of, settings_of, train_rank

from pdadmm.admm import packet, solver
from pdadmm.parallel import mpi
from pdadmm.parallel.gpu_aware import SETTING, support
from pdadmm.parallel.launch import make_transport
from pdadmm.parallel.ledger import PAYLOAD_KINDS, Ledger

GPU = "gpu" in sys.argv
RUNS = {"auto": "auto", "forbidden": "0"} | ({} if GPU else {"told to": "1"})


def stand_in() -> None:
    """Let "cuda" be the stand-in, and let MPI have its memory."""
    solver.choose_device = lambda name, transport: DEVICE if name == "cuda" else CPU

    def address_of(buffer):
        assert isinstance(buffer, DeviceTensor)
        return buffer.inner.data_ptr()

    mpi.address_of, packet.side_stream = address_of, lambda device: Late()


def chosen() -> list[str]:
    """Return how messages went in the run that was logged last, and what MPI said."""
    (told,) = LOGGED
    LOGGED.clear()
    way, rank, answer = told.args
    assert rank == 0
    return [way, str(answer)]


LOGGED: list[logging.LogRecord] = []


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "p and q go" in record.msg:
            LOGGED.append(record)


def payload(ledger: Ledger) -> list[dict[str, int]]:
    return [{kind: n for kind, n in counts.items() if kind in PAYLOAD_KINDS} for counts in ledger.state().values()]


def main() -> None:
    logging.getLogger("pdadmm").setLevel("INFO")
    logging.getLogger("pdadmm").addHandler(Listener())
    if not GPU:
        stand_in()
    transport, told = make_transport(), {}
    found = support(MPI)
    ranks = transport.size
    for case, grid in (("default", f"{ranks // 2}x2"), ("4 bits", f"{ranks}x1"), ("gradient", f"{ranks}x1")):
        results, ledgers = {}, {}
        for name, given in RUNS.items() if GPU else (*RUNS.items(), ("cpu", "auto")):
            os.environ[SETTING] = given
            transport.ledger = ledgers[name] = Ledger()
            device = "cpu" if name == "cpu" else "cuda"
            more = settings_of(device, grid, CASES[case] | {"loss": "squared_error"})
            if GPU:
                results[name] = train_rank(problem_of(case), more, transport)
            else:
                with StandIn():
                    results[name] = train_rank(problem_of(case), more, transport)
            if name != "cpu" and transport.rank == 0:
                told[name] = chosen()
        for one in results.values():
            assert_near(one, results["forbidden"], 1e-9) if GPU else assert_same(one, results["cpu"])
        assert all(payload(ledger) == payload(ledgers["forbidden"]) for ledger in ledgers.values())
    if transport.rank == 0:
        print(json.dumps(told | {"takes": bool(found.takes), "support": str(found)}))


if __name__ == "__main__":
    main()
