"""What the ranks of a launch of mpi_run.py wrote, beside what one process did."""

from __future__ import annotations

import json
from pathlib import Path

import mpi_run
import numpy as np

from pdadmm.admm.channel import HEADER_BYTES
from pdadmm.admm.settings import default_stages

__all__ = ["Result", "assert_all_arrived", "assert_equal_results", "assert_ledger_of_p_and_q"]


class Result:
    """What the ranks of one launch wrote about one case."""

    def __init__(self, folder: Path, name: str, ranks: int) -> None:
        self.arrays = [dict(np.load(folder / f"{name}.{rank}.npz")) for rank in range(ranks)]
        self.told = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(ranks)]

    def total(self, what: str, kind: str) -> int:
        return sum(told[what].get(kind, 0) for told in self.told)


def assert_same_arrays(result: Result, alone: Result) -> None:
    expected = alone.arrays[0]
    for rank, arrays in enumerate(result.arrays):
        for name, array in arrays.items():
            assert array.dtype == expected[name].dtype
            same = array.tobytes() == expected[name].tobytes()
            gap = np.abs(array - expected[name]).max()
            assert same, f"{name} on rank {rank} of {len(result.arrays)} differs by up to {gap:.3g}"
    assert set().union(*result.arrays) == set(expected)  # every layer and both sides of every link were seen


def comparable(row: dict) -> dict:
    machine = ("seconds", "bytes", "peak_rss", "ranks", "grid", "threads")
    return {key: value for key, value in row.items() if not key.startswith(machine)}


def assert_equal_results(many: Result, one: Result) -> None:
    """The same bits and the same numbers on every rank as in one process."""
    assert_same_arrays(many, one)
    for told in many.told:
        assert told["classes"] == one.told[0]["classes"]
        theirs, ours = told["history"], one.told[0]["history"]
        assert [comparable(row) for row in theirs] == [comparable(row) for row in ours]
        assert comparable(told["summary"]) == comparable(one.told[0]["summary"])
        assert told["summary"]["ranks"] == len(many.told)


def assert_ledger_of_p_and_q(result: Result, name: str) -> None:
    """Every boundary between two ranks costs two messages an iteration."""
    ranks = len(result.told)
    parameters = mpi_run.CSBM | mpi_run.CASES[name][1]
    rows, stages = result.told[0]["history"], result.told[0]["summary"]["stages"]
    assert [s["layers"] for s in stages] == list(parameters.get("stages", default_stages(10)))
    itemsize = 8 if parameters.get("dtype") == "float64" else 4
    message = HEADER_BYTES + 72 * parameters["hidden"] * itemsize
    boundaries = [min(ranks, row["layers"]) - 1 for row in rows]
    for kind in ("p", "q"):
        assert result.total("sent", kind) == result.total("received", kind) == message * sum(boundaries)
        assert result.total("messages", kind) == sum(boundaries)
    so_far = np.cumsum(boundaries) * 2 * message
    for told in result.told:
        assert [row["bytes"] for row in told["history"]] == so_far.tolist()
        assert told["summary"]["bytes_sent"] == so_far[-1]
        assert (told["summary"]["bytes_other"] > 0) == (ranks > 1)


def assert_all_arrived(result: Result) -> None:
    kinds = {kind for told in result.told for what in ("sent", "received") for kind in told[what]}
    totals = {kind: (result.total("sent", kind), result.total("received", kind)) for kind in kinds}
    assert {kind: sent for kind, (sent, _) in totals.items()} == {kind: got for kind, (_, got) in totals.items()}
