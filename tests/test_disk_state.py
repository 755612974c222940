"""The state on disk: what a pass writes the next one reads, damage is noticed, the plan keeps to its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdadmm import InputError
from pdadmm.checkpoint import DamagedError
from pdadmm.disk import storage
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.rows import Centred, by_rows
from pdadmm.disk.state import ALIGNMENT, Layout, StateFiles
from pdadmm.disk.storage import Storage, fixed_bytes, state_columns

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COLUMNS = st.dictionaries(st.sampled_from(["z0", "q0", "p1", "z1", "last_z0"]), st.integers(1, 9), min_size=1)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@MANY
@given(columns=COLUMNS, dtype=DTYPES, rows=st.integers(1, 50))
def test_a_blocks_arrays_lie_apart_and_aligned(columns, dtype, rows):
    layout = Layout(columns, dtype)
    buffer = torch.zeros(layout.nbytes(rows), dtype=torch.uint8)
    arrays = layout.arrays(buffer, rows)
    for number, (name, x) in enumerate(arrays.items(), 1):
        assert x.shape == (rows, columns[name])
        assert x.data_ptr() % ALIGNMENT == 0
        assert x.data_ptr() > buffer.data_ptr()  # the header is before
        x.fill_(number)
    assert all(bool((x == number).all()) for number, x in enumerate(arrays.values(), 1))


def values(nodes: range, name: str, columns: int, number: int) -> torch.Tensor:
    """What the test writes for these nodes in a pass."""
    own = torch.arange(nodes.start, nodes.stop).unsqueeze(1) + 1000.0 * number + 0.01 * ord(name[0])
    return own.double().expand(-1, columns)


@MANY
@given(nodes=st.integers(1, 40), block=st.integers(1, 45), columns=COLUMNS, passes=st.integers(1, 4))
def test_a_pass_reads_what_the_last_one_wrote(tmp_path_factory, nodes, block, columns, passes):
    traffic = Traffic()
    files = StateFiles(tmp_path_factory.mktemp("state"), nodes, block, b"r" * 16, traffic)
    files.open(Layout(columns, torch.float64), new=True)
    for number in range(1, passes + 1):
        source = None if number == 1 else number % 2
        seen = 0
        for own, state in files.sweep(source, 1 - number % 2, number):
            assert (own.start, len(own)) == (seen, min(block, nodes - seen))
            seen = own.stop
            for name, x in state.items():
                if source is not None:
                    assert torch.equal(x, values(own, name, columns[name], number - 1))
                x.copy_(values(own, name, columns[name], number))
        assert seen == nodes
    files.check(1 - passes % 2, passes)
    assert (traffic.written, traffic.read) == (passes * files.nbytes, (passes - 1) * files.nbytes)
    files.close()


@pytest.fixture
def written(tmp_path):
    """Files with pass 1 in file 0 and half of pass 2 in file 1."""
    files = StateFiles(tmp_path, 20, 3, b"r" * 16, Traffic())
    files.open(Layout({"z0": 4, "q0": 4}, torch.float32), new=True)
    for nodes, state in files.sweep(None, 0, 1):
        state["z0"].fill_(nodes.start)
    sweep = files.sweep(0, 1, 2)
    for _ in range(4):
        next(sweep)
    sweep.close()
    yield files
    files.close()


def test_a_pass_that_was_cut_off_leaves_the_last_one_whole(written):
    written.check(0, 1)
    with pytest.raises(DamagedError, match=r"block \d of state-1 is not what pass 2 of this run wrote"):
        written.check(1, 2)
    for nodes, state in written.sweep(0, None, 2):
        assert bool((state["z0"] == nodes.start).all())
    with pytest.raises(DamagedError):
        list(written.sweep(1, None, 3))


def test_foreign_and_cut_files_are_noticed(written, tmp_path):
    written.run = b"s" * 16
    with pytest.raises(DamagedError, match="block 0 of state-0"):
        written.check(0, 1)
    written.run = b"r" * 16
    with open(tmp_path / "state-0", "r+b") as file:
        file.truncate(100)
    with pytest.raises(DamagedError, match="state-0 has 100 bytes and not"):
        written.check(0, 1)


def test_rows_are_centred_and_checked(tmp_path):
    X = torch.randn(50, 3, dtype=torch.float64).numpy()
    X[30:] += 5
    for source in (by_rows(X), by_rows(X.astype("float32"))):
        centred = Centred(source, 30, torch.float64)
        parts = torch.cat([rows for _, rows in centred.blocks()])
        torch.testing.assert_close(centred.shift, torch.tensor(X[:30].mean(0)), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(parts, torch.tensor(X - X[:30].mean(0)), rtol=1e-6, atol=1e-6)
    X[40, 2] = float("nan")
    with pytest.raises(InputError, match="X = NaN or infinity in rows 0 to 49: must be finite"):
        Centred(by_rows(X), 30, torch.float32)


# The plan

WIDTHS = [30, 16, 16, 4]


def plan(folder, memory: int, nodes: int = 5000) -> Storage:
    X = torch.zeros(nodes, WIDTHS[0])
    return Storage(folder, memory, X, nodes, WIDTHS, state_columns(WIDTHS, [], False), torch.float32)


def test_the_least_memory_that_is_named_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ALLOWANCE", 0)  # what is left is small beside a block
    monkeypatch.setattr(storage, "MIB", 1)
    with pytest.raises(InputError, match=r"memory = 100MiB: must be at least (\d+)MiB") as caught:
        plan(tmp_path, 100)
    least = int(caught.value.allowed.split()[2].removesuffix("MiB"))
    assert plan(tmp_path, least).block == storage.LEAST_BLOCK
    with pytest.raises(InputError, match="memory"):
        plan(tmp_path, least - 1)
    assert plan(tmp_path, least + 100_000).block > storage.LEAST_BLOCK
    assert plan(tmp_path, least, nodes=10).block == 10
    assert fixed_bytes(5000, WIDTHS, 4) < least


def test_a_block_is_as_large_as_the_memory_lets_it_and_no_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ALLOWANCE", 0)
    state = 4 * sum(state_columns(WIDTHS, [], False).values())
    for memory in (600_000, 700_000, 900_000):
        block = plan(tmp_path, memory).block
        buffers = 3 * block * state + block * (4 * (16 * 16 + 16 * 4 + 30) + 128)
        each = buffers / block
        assert buffers + fixed_bytes(5000, WIDTHS, 4) <= memory < buffers + fixed_bytes(5000, WIDTHS, 4) + 1.1 * each
    monkeypatch.setattr(storage, "LARGEST_BLOCK", 200 * state)
    assert 190 <= plan(tmp_path, 1 << 30).block <= 200


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    free = type("usage", (), {"free": 2_000_000})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(InputError, match=r"scratch = .*: must be on a disk with 3\.3 MB free for X and two states"):
        plan(tmp_path, 1 << 30)
    free.free = 3_400_000
    assert plan(tmp_path, 1 << 30).state_bytes == pytest.approx(5000 * 4 * (4 * 16 + 4), rel=0.01)


def test_X_comes_back_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LARGEST_BLOCK", 50_000)
    X = torch.randn(5000, 30)
    held = Storage(tmp_path, 1 << 30, X, 4000, WIDTHS, state_columns(WIDTHS, [], False), torch.float32)
    parts = [(nodes, rows.clone()) for nodes, rows in held.X(4000)]
    assert len(parts) > 10
    assert [nodes.start for nodes, _ in parts] == list(range(0, 4000, held.block))
    assert torch.equal(torch.cat([rows for _, rows in parts]), X[:4000])
    with DiskArray(tmp_path / "features.npy") as file:
        assert file.shape == (5000, 30)
    held.remove()
    assert list(tmp_path.iterdir()) == []
