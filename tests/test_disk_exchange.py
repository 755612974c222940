"""Augmentation from disk with a folder for each rank: the bits of Augmenter, whatever the ranks, slices and kills."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from disk_small import AUGMENTATIONS, cut_small, in_memory, least, request_
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec
from strategies import graphs
from thread_transport import ThreadTransport, run_ranks

from pdadmm import Augmenter, Graph, InputError, csbm, make_splits
from pdadmm.cli import main
from pdadmm.disk import blocks, exchange, jobs
from pdadmm.disk.augment import ROWS, Request, augment_folder
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.exchange import EXCHANGE_KINDS
from pdadmm.disk.graph import DiskGraph, write_graph

SETTINGS = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    cut_small(monkeypatch, 1 << 10)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(80, num_features=40, seed=3)


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
    graph = data.draw(graphs(weighted=False)) if data.draw(st.booleans()) else csbm(80, num_features=40, seed=3)
    write_graph(graph, folder / "g")
    parameters = data.draw(AUGMENTATIONS)
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


def test_ranks_beyond_the_slices_have_rows_all_the_same(tmp_path):
    thin = csbm(80, num_features=5)
    write_graph(thin, tmp_path / "g")
    request = request_(rows="all", hops=1)
    found = augment(tmp_path, 3, request)
    expect(tmp_path, thin, request)
    plan, sent, _, _ = found[0]
    assert plan.slices == 1
    assert sent["columns"] == sent["fit"] == 0  # one slice is read from X itself, by the rank that learns
    assert all(traffic.written for *_, traffic in found)


def test_a_graph_whose_labels_are_all_unknown(tmp_path):
    graph = Graph.from_edges([[0, 1], [1, 2]], np.eye(3), [-1, -1, -1])
    write_graph(graph, tmp_path / "g")
    request = request_(rows="all")
    augment(tmp_path, 2, request)
    expect(tmp_path, graph, request)
    with AugmentedFolder(tmp_path / "out") as found:
        assert found.num_classes == 0


def test_x_is_read_once_and_the_bytes_of_the_disk_are_the_plans(tmp_path, monkeypatch):
    cut_small(monkeypatch, 1 << 14)
    write_graph(csbm(1500, num_features=64), tmp_path / "g")
    ranks, found = 2, augment(tmp_path, 2, request_(rows="all", hops=2))
    plan, traffic = found[0][0], [part[3] for part in found]
    x = plan.shape
    again = (ranks - 1) * (x.entries * x.index_bytes + 8 * (x.nodes + 1))  # every rank holds the adjacency
    assert plan.slices == 2
    assert plan.resident
    assert 1 <= sum(each.read for each in traffic) / (plan.read_bytes + again) < 1.05
    assert 1 <= sum(each.written for each in traffic) / plan.written_bytes < 1.05


def test_a_message_is_of_less_bytes_than_mpi_counts(tmp_path, monkeypatch, graph):
    write_graph(graph, tmp_path / "g")
    monkeypatch.setattr(exchange, "LIMIT", 3 * 16 * 4)
    with pytest.raises(InputError, match="ranks = 3, with 192 bytes for a row of each: must be so few that"):
        augment(tmp_path, 3, request_())


# Kills


class Stop(BaseException):
    """Ends a run in this process."""


class Kill:
    """Counts file operations and messages, of all ranks, and ends the rank that is at the n-th."""

    FILES = ((os, "fsync"), (os, "pwritev"), (os, "preadv"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree"))
    MESSAGES = tuple((ThreadTransport, name) for name in ("allgather", "bcast", "alltoall"))

    def __init__(self, monkeypatch) -> None:
        self.count, self.at, self.lock = 0, 0, threading.Lock()
        for owner, name in self.FILES + self.MESSAGES:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, does):
        def call(*arguments, **more):
            with self.lock:
                self.count += 1
                if self.count == self.at:
                    raise Stop
            return does(*arguments, **more)

        return call

    def run(self, at: int, *arguments) -> int:
        """Augment and be killed at the ``at``-th operation, 0 never; return how many there were."""
        self.count, self.at = 0, at
        if at:
            with pytest.raises(Stop):
                augment(*arguments)
            gc.collect()  # ends threads that wait for a run that is no more
        else:
            augment(*arguments)
        return self.count


@pytest.mark.parametrize("ranks", [2, 3])
def test_runs_killed_at_any_operation_go_on_to_the_same_bits(tmp_path, monkeypatch, graph, ranks):
    write_graph(graph, tmp_path / "g")
    request, rng, kill = request_(rows="all", hops=1), random.Random(ranks), Kill(monkeypatch)
    whole = kill.run(0, tmp_path, ranks, request)
    expect(tmp_path, graph, request)
    assert whole > 200
    for share in (0.2, 0.3, 0.3, 0.3):  # one run, killed again and again
        kill.run(rng.randrange(1, int(share * whole)), tmp_path, ranks, request, "again")
    left = kill.run(0, tmp_path, ranks, request, "again")
    expect(tmp_path, graph, request, "again")
    assert left < whole
    kill.run(whole - rng.randrange(2, 30), tmp_path, ranks, request, "late")
    kill.run(0, tmp_path, ranks, request, "late")
    expect(tmp_path, graph, request, "late")


def stopped(folder: Path, step: str, ranks: int = 2, **more) -> None:
    """Begin a run and end it after the first unit of a step."""

    def watch(now: str, done: int, total: int) -> None:
        if now == step and done:
            raise Stop

    with pytest.raises(Stop):
        augment(folder, ranks, request_(rows="all", **more), watch=watch)
    gc.collect()  # ends threads that wait for a run that is no more


@pytest.mark.parametrize("step", ["cutting", "hops", "scaling"])
def test_a_rank_that_lost_its_disk_gets_its_columns_again(tmp_path, graph, step):
    write_graph(graph, tmp_path / "g")
    stopped(tmp_path, step)
    shutil.rmtree(place_of(tmp_path, 1))
    augment(tmp_path, 2, request_(rows="all"))
    expect(tmp_path, graph, request_(rows="all"))


@pytest.mark.parametrize("name", ["slice-0001.bin", "split-000000.bin"])
def test_damage_on_one_rank_ends_all_and_is_made_good(tmp_path, graph, name):
    write_graph(graph, tmp_path / "g")
    stopped(tmp_path, "scaling")
    path = place_of(tmp_path, 1) / "rank-0001" / name
    if name.startswith("split"):  # read again for the slice that is gone
        path.with_name("slice-0001.bin").unlink()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="what its checksum says; run the command again"):
        augment(tmp_path, 2, request_(rows="all"))
    augment(tmp_path, 2, request_(rows="all"))
    expect(tmp_path, graph, request_(rows="all"))


# Refusals, which reach all ranks


def test_only_the_same_ranks_go_on(tmp_path, graph):
    write_graph(graph, tmp_path / "g")
    stopped(tmp_path, "hops")
    request = request_(rows="all")
    with pytest.raises(
        InputError, match=r"ranks = 3: must be 2, as the run in .* began with --local on as many; start"
    ):
        augment(tmp_path, 3, request)
    with pytest.raises(InputError, match=r"ranks = 3: must be 2, as the run in .*rank-0000 began"):
        augment(tmp_path, 3, request, "elsewhere")
    with DiskGraph(tmp_path / "g") as disk, pytest.raises(InputError, match="local = not given: must be given"):
        augment_folder(disk, request, tmp_path / "out")
    with pytest.raises(InputError, match=r"local = .*host0.*must be a new or empty folder, or one that this very"):
        augment(tmp_path, 2, request_(), "another")
    (tmp_path / "shared").mkdir()
    with DiskGraph(tmp_path / "g") as disk, pytest.raises(Stop):
        augment_folder(disk, request, tmp_path / "shared", watch=stop)
    with pytest.raises(InputError, match="local = given: must be left out"):
        augment(tmp_path, 2, request, "shared")
    augment(tmp_path, 2, request)
    expect(tmp_path, graph, request)
    place = place_of(tmp_path, 0) / "rank-0000"
    place.mkdir()
    (place / "letter.txt").write_text("Dear")
    with pytest.raises(InputError, match="a new or empty folder"):
        augment(tmp_path, 2, request, "new")
    assert augment(tmp_path, 2, request)[0][0] is None  # finished before
    assert place.exists()


def stop(step: str, done: int, total: int) -> None:
    raise Stop


def test_a_second_run_and_a_graph_of_its_own_are_refused(tmp_path, graph):
    write_graph(graph, tmp_path / "g")
    write_graph(graph.with_splits(None), tmp_path / "h")

    def work(transport):
        with DiskGraph(tmp_path / "gh"[transport.rank]) as disk:
            augment_folder(disk, request_(), tmp_path / "out", transport, local=tmp_path / "host")

    with pytest.raises(InputError, match=r"dataset = \w+ on rank 0 and \w+ on rank 1: must be the same"):
        run_ranks(2, work)
    place = place_of(tmp_path, 1) / "rank-0001"
    place.mkdir(parents=True)
    with open(place / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"local = .*rank-0001: must be a folder that no other run works in"):
            augment(tmp_path, 2, request_())


def test_a_disk_too_small_for_all_of_its_ranks_is_refused(tmp_path, monkeypatch, graph):
    write_graph(graph, tmp_path / "g")
    request, usage = request_(rows="all", hops=1), shutil.disk_usage(tmp_path)
    X, H = 4 * graph.features.size, 2
    needed = X + 2 * H * X + 4 * H * len(graph.splits["train"]) * graph.num_features  # cut, slices, result, fit rows
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=f"with {needed - 1} bytes free: must be on a disk with {needed} bytes free"):
        augment(tmp_path, 2, request)
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda folder: usage._replace(free=needed))
    augment(tmp_path, 2, request)
    expect(tmp_path, graph, request)


@pytest.mark.parametrize(("value", "match"), [(np.nan, "node 70, column 33"), (3e38, "augmented features")])
def test_what_one_rank_finds_ends_all(tmp_path, graph, value, match):
    """The first is found where X is read, on rank 1; the second, an overflow, by rank 0 as it learns the scaling."""
    write_graph(graph, tmp_path / "g")
    X = np.load(tmp_path / "g" / "features.npy")
    X[70 if np.isnan(value) else slice(None), 33] = value
    header = json.loads((tmp_path / "g" / "graph.json").read_text())
    header["files"]["features"] = blocks.copy_array(X, tmp_path / "g" / "features.npy")
    (tmp_path / "g" / "graph.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=match):
        augment(tmp_path, 2, request_(rows="all", operator="col"))


def test_an_error_of_the_disk_names_the_folder_and_ends_all(tmp_path, monkeypatch, graph):
    """It is that of one block of a slice, not of its last: a file with a gap is not listed as finished."""
    write_graph(graph, tmp_path / "g")
    whole, left = os.pwritev, [1]

    def full(file, views, offset):
        if left and os.readlink(f"/proc/self/fd/{file}").endswith("host1/rank-0001/slice-0001.bin.partial"):
            left.clear()
            raise OSError(28, "No space left on device")
        return whole(file, views, offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(InputError, match=r"local = .*rank-0001: must be a folder on a disk .*No space left"):
        augment(tmp_path, 2, request_(hops=1))
    augment(tmp_path, 2, request_(hops=1))
    expect(tmp_path, graph, request_(hops=1))


# The command line


def test_one_process_takes_a_local_folder_too(tmp_path, capsys):
    words = ["augment", "--dataset", "csbm:150", "--memory", "100MiB", "--hops", "1"]
    more = [*words, "--out", str(tmp_path / "out"), "--local", str(tmp_path / "host")]
    assert main(more) == 0
    assert "sent 0 B between ranks (planned 0 B)" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    names = sorted(path.name for path in (tmp_path / "plain").glob("*.*"))
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes() for name in names)
    assert main([*words, "--out", str(tmp_path / "new"), "--local", "no/such/folder"]) == 2
    assert "local = no/such/folder/rank-0000" in capsys.readouterr().err


@pytest.mark.skipif(any(mark.args[0] for mark in NEEDS_MPI), reason="needs MPI")
def test_mpirun_sends_the_bytes_of_the_plan_and_leaves_the_same_bits(tmp_path):
    graph = csbm(300, num_features=40)
    write_graph(graph, tmp_path / "g")
    words = ["--dataset", tmp_path / "g", "--memory", "100MiB", "--hops", "2", "--rows", "all"]
    done = mpiexec(2, "-m", "pdadmm", "augment", *words, "--out", tmp_path / "out", "--local", tmp_path / "host0")
    assert done.returncode == 0, done.stderr[-3000:]
    sent, planned = re.search(r"sent (.*) between ranks \(planned (.*)\)", done.stdout).groups()
    assert sent == planned != "0 B"
    expect(tmp_path, graph, request_(rows="all", hops=2))
