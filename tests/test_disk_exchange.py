"""Augmentation from disk with a folder for each rank: the bits of Augmenter, whatever the ranks, slices and kills."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from disk_small import cut_small, in_memory, least, request_
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec
from strategies import graphs
from thread_transport import ThreadTransport, run_ranks

from pdadmm import Augmenter, Graph, InputError, csbm, make_splits
from pdadmm.augment import OPERATORS, SCALINGS, WEIGHTINGS
from pdadmm.cli import main
from pdadmm.disk import blocks, exchange, jobs
from pdadmm.disk.augment import ROWS, Request, augment_folder
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.exchange import EXCHANGE_KINDS
from pdadmm.disk.graph import DiskGraph, write_graph

SETTINGS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    cut_small(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(120, num_features=40, seed=3)


def place_of(folder: Path, rank: int) -> Path:
    """The disk of a rank's host; no other rank is told of it."""
    return folder / f"host{rank}"


def augment(folder: Path, ranks: int, request: Request, out: str = "out", **more) -> list:
    """Augment ``folder``/g on so many ranks; return each rank's (plan, bytes sent, bytes received, traffic)."""

    def work(transport):
        with DiskGraph(folder / "g") as disk:
            plan = augment_folder(
                disk, request, folder / out, transport, local=place_of(folder, transport.rank), **more
            )
            sent, received = ({kind: side[kind] for kind in EXCHANGE_KINDS} for side in (
                transport.ledger.sent, transport.ledger.received))  # fmt: skip
            return plan, sent, received, disk.traffic

    return run_ranks(ranks, work)


def total(parts: list[dict[str, int]]) -> dict[str, int]:
    return {kind: sum(part[kind] for part in parts) for kind in EXCHANGE_KINDS}


def expect(folder: Path, graph: Graph, request: Request, out: str = "out") -> None:
    """Compare the result, file for file, with Augmenter's bits; nothing else is left anywhere."""
    splits = graph.splits if request.split is None else make_splits(graph, request.split, 1)
    reference = Augmenter(**vars(request.augmenter))
    with AugmentedFolder(folder / out) as found:
        assert found.read().tobytes() == in_memory(graph, reference, request.rows, splits).tobytes()
    assert sorted(path.name for path in (folder / out).iterdir() if path.suffix != ".npy") == ["augmented.json"]
    assert not list(folder.glob("host*/*"))


# The same bits


@given(data=st.data())
@SETTINGS
def test_ranks_that_share_no_folder_give_the_bits_of_the_augmenter(tmp_path_factory, data):
    folder, ranks = tmp_path_factory.mktemp("e"), data.draw(st.integers(1, 3))
    graph = data.draw(graphs(weighted=False)) if data.draw(st.booleans()) else csbm(120, num_features=40, seed=3)
    write_graph(graph, folder / "g")
    parameters = {
        "hops": data.draw(st.integers(0, 3)), "operator": data.draw(st.sampled_from(sorted(OPERATORS))),
        "weighting": data.draw(st.sampled_from(sorted(WEIGHTINGS))),
        "scaling": data.draw(st.sampled_from(sorted(SCALINGS))),
        "dtype": data.draw(st.sampled_from(["float32", "float64"])),
    }  # fmt: skip
    rows = data.draw(st.sampled_from(ROWS)) if graph.splits else "all"
    with DiskGraph(folder / "g") as disk:
        enough = least(disk, request_(rows=rows, **parameters), folder / "out")
    request = request_(data.draw(st.sampled_from([enough, 1 << 30])), rows, **parameters)
    found = augment(folder, ranks, request)
    expect(folder, graph, request)
    plan = found[0][0]
    assert plan.slices >= min(ranks, -(-graph.num_features // 16))
    assert total([sent for _, sent, _, _ in found]) == plan.exchange
    assert total([received for _, _, received, _ in found]) == plan.exchange
    assert sum(plan.exchange.values()) == 0 or ranks > 1
