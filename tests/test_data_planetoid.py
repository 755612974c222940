"""The reader of raw Planetoid files: a tiny set by hand, and pickles that must not run."""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from pdadmm.data import load_dataset, read_planetoid
from pdadmm.errors import InputError

# Six nodes: 0 to 2 in allx (0 trains), test nodes 5 and 3, and 4 described nowhere, as in Citeseer.
TINY = {
    "x": sp.csr_matrix(np.array([[1, 0]], dtype=np.float32)),
    "allx": sp.csr_matrix(np.array([[1, 0], [0, 2], [0, 0]], dtype=np.float32)),
    "tx": sp.csr_matrix(np.array([[5, 5], [3, 0]], dtype=np.float32)),
    "y": np.array([[1, 0]], dtype=np.int32),
    "ally": np.array([[1, 0], [0, 1], [0, 0]], dtype=np.int32),
    "ty": np.array([[0, 1], [1, 0]], dtype=np.int32),
    "graph": defaultdict(list, {0: [1, 1, 0], 1: [0, 2], 2: [1], 3: [5], 4: [], 5: [3]}),
    "test.index": b"5\n3\n",
}


def written(folder, protocol: int = 2, **changes):
    for part, value in (TINY | changes).items():
        raw = value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol)
        (folder / f"ind.tiny.{part}").write_bytes(raw)
    return folder


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_tiny_set_by_hand(tmp_path, protocol):
    if protocol == 5:  # arrays travel through numpy's _frombuffer there, which Planetoid never used
        with pytest.raises(InputError, match="_frombuffer"):
            read_planetoid(written(tmp_path, protocol), "tiny")
        return
    graph = read_planetoid(written(tmp_path, protocol), "tiny")
    assert graph.features.toarray().tolist() == [[1, 0], [0, 2], [0, 0], [3, 0], [0, 0], [5, 5]]
    assert graph.labels.tolist() == [0, 1, -1, 0, -1, 1]
    assert {name: nodes.tolist() for name, nodes in graph.splits.items()} == {
        "train": [0],
        "val": [1],
        "test": [3, 5],
    }
    assert graph.adjacency.nnz == 6
    assert graph.num_edges == 3
    assert graph.own_split == "public"
    assert graph.num_classes == 2


def as_python_2(value) -> bytes:
    """Protocol 2 as Python 2 and old scipy wrote it: byte strings as SHORT_BINSTRING, old module paths."""
    raw = pickle.dumps(value, protocol=2)
    return raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(
        b"scipy.sparse._csr", b"scipy.sparse.csr"
    )


def python_2_array(shape: tuple[int, int], raw: bytes) -> bytes:
    """The pickle of a float32 array, opcode by opcode, with its data as a Python 2 byte string."""
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"U" + bytes([len(raw)]) + raw
    return head + b"(K\x01" + b"K%cK%c\x86" % shape + dtype + b"\x89" + data + b"tb."


def test_python_2_pickles(tmp_path):
    changes = {part: as_python_2(TINY[part]) for part in ("allx", "tx", "graph", "ally")}
    onehot = np.array([[0, 1], [1, 0]], dtype="<f4")
    changes["ty"] = python_2_array((2, 2), onehot.tobytes())
    graph = read_planetoid(written(tmp_path, **changes), "tiny")
    assert graph.labels.tolist() == [0, 1, -1, 0, -1, 1]


@pytest.mark.parametrize("place", ["", "raw", "tiny/raw", "Tiny/raw"])
def test_registry_finds_raw_files(tmp_path, place, monkeypatch):
    from pdadmm.data import registry

    row = registry.Dataset("tiny", "", 6, 3, 2, 2, "public", "", "", ("tiny.npz",))
    monkeypatch.setitem(registry.DATASETS, "tiny", row)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    written(folder)
    assert load_dataset("tiny", tmp_path).num_nodes == 6


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_real_sets_read_alike_from_raw_files(tmp_path, name):
    folder = os.environ.get("PDADMM_DATA", "")
    if not (Path(folder) / f"{name}.npz").is_file():
        pytest.skip(f"PDADMM_DATA holds no {name}.npz")
    graph = load_dataset(name)
    onehot = (graph.labels[:, None] == np.arange(graph.num_classes)).astype(np.int32)
    matrix, test = sp.csr_matrix(graph.features), graph.splits["test"]
    known, shuffled = test.min(), np.random.default_rng(0).permutation(test)
    parts = {"allx": matrix[:known], "ally": onehot[:known], "tx": matrix[shuffled], "ty": onehot[shuffled],
             "y": onehot[: graph.splits["train"].size], "x": matrix[: graph.splits["train"].size],
             "graph": {node: graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist()
                       for node in range(graph.num_nodes)},
             "test.index": "\n".join(map(str, shuffled)).encode()}  # fmt: skip
    written(tmp_path, **parts)
    for path in tmp_path.iterdir():
        path.rename(path.with_name(path.name.replace("tiny", name)))
    own = {part: np.sort(nodes) for part, nodes in graph.splits.items()}
    assert load_dataset(name, tmp_path).fingerprint() == graph.with_splits(own).fingerprint()


class Calls:
    """Pickles to a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


HOSTILE = {
    "system": Calls(os.system, "touch HARM"),
    "eval": Calls(builtins.eval, "open('HARM', 'w')"),
    "exec": Calls(builtins.exec, "open('HARM', 'w')"),
    "open": Calls(builtins.open, "HARM", "w"),
    "getattr": Calls(getattr, "text", "upper"),
    "popen": Calls(subprocess.Popen, ["touch", "HARM"]),
    "rmtree": Calls(shutil.rmtree, "folder"),
    "numpy load": Calls(np.load, "file.npy", None, True),
    "numpy save": Calls(np.save, "HARM", 1),
    "numpy memmap": Calls(np.memmap, "HARM", "uint8", "w+", 0, (4,)),
    "numpy fromfile": Calls(np.fromfile, "HARM"),
    "numpy vectorize": Calls(np.vectorize, len),
    "numpy apply": Calls(np.apply_along_axis, len, 0, [1]),
    "scipy load": Calls(sp.load_npz, "file.npz"),
}


@pytest.mark.parametrize("part", ["graph", "allx", "ty"])
@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, hostile, protocol, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    raw = pickle.dumps({0: [hostile]}, protocol=protocol)
    with pytest.raises(InputError, match=r"which names .*do not trust this file"):
        read_planetoid(written(tmp_path, **{part: raw}), "tiny")
    assert not (tmp_path / "HARM").exists()
    assert (tmp_path / "folder").exists()


BUILDS = {
    "class state": b"\x80\x02cnumpy\nndarray\n}U\x05stateK\x01sb.",
    "class slots": b"\x80\x02cnumpy\nndarray\nN}U\x05arrayK\x01s\x86b.",
    "reconstruct slots": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x07__new__K\x01s\x86b.",
    "dict attribute": b"\x80\x02ccollections\ndefaultdict\n)R}U\x05itemsK\x01sb.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.array\x93.",
    "object dtype": b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "plain object": b"\x80\x02c__builtin__\nobject\n)R.",
    "reconstruct list": b"\x80\x02ccopy_reg\n_reconstructor\nc__builtin__\nlist\n"
    + b"c__builtin__\nobject\nN\x87R.",
    "persistent": b"\x80\x02U\x01aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "memory": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "array without state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
    + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
    "matrix without state": b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81.",
    "number": b"\x80\x02K\x01.",
    "empty": b"",
}


@pytest.mark.parametrize("part", ["graph", "allx", "ty"])
@pytest.mark.parametrize("raw", BUILDS.values(), ids=BUILDS)
def test_odd_pickles_are_refused_and_change_nothing(tmp_path, raw, part):
    with pytest.raises(InputError, match=r"ind\.tiny"):
        read_planetoid(written(tmp_path, **{part: raw}), "tiny")
    assert read_planetoid(written(tmp_path), "tiny").num_nodes == 6


BAD_SETS = {
    "test count": ({"test.index": b"5\n"}, "test.index: must be a file with 2 lines"),
    "test text": ({"test.index": b"5\nx\n"}, "one node number a line"),
    "test low": ({"test.index": b"2\n3\n"}, "distinct node numbers from 3 on"),
    "test twice": ({"test.index": b"3\n3\n"}, "distinct node numbers"),
    "test far": ({"test.index": b"3\n999999999\n"}, "node numbers below 10"),
    "columns": ({"tx": sp.csr_matrix(np.ones((2, 3)))}, "tx: must be a file with 2 columns"),
    "rows": ({"ally": TINY["ally"][:2]}, "ally: must be a file with 3 rows"),
    "classes": ({"ty": np.eye(2, 3)}, "ty: must be a file with 2 columns"),
    "train": ({"y": np.zeros((4, 2))}, "y: must be a file with 1 to 3 rows"),
    "onehot": ({"ty": np.array([[1, 1], [0, 1]])}, "ty: must be a file with one-hot rows"),
    "not csr": ({"allx": TINY["ally"]}, "allx: must be a file with a CSR matrix"),
    "graph list": ({"graph": [1]}, "a dict of node"),
    "graph text": ({"graph": {0: ["a"]}}, "whole node numbers"),
    "graph far": ({"graph": {0: [10**8]}}, "node numbers below 10"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SETS.values(), ids=BAD_SETS)
def test_inconsistent_sets_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_planetoid(written(tmp_path, **changes), "tiny")


def test_broken_csr_is_refused(tmp_path):
    broken = TINY["allx"].copy()
    broken.indices[0] = 9
    with pytest.raises(InputError, match="indices = 9"):
        read_planetoid(written(tmp_path, allx=broken), "tiny")


@pytest.mark.parametrize("part", [part for part in TINY if part != "x"])
def test_a_missing_file_is_named(tmp_path, part):
    (written(tmp_path) / f"ind.tiny.{part}").unlink()
    with pytest.raises(InputError, match=rf"ind\.tiny\.{part}: .*No such file"):
        read_planetoid(tmp_path, "tiny")


@pytest.mark.parametrize("part", ["graph", "allx", "ty"])
def test_damaged_bytes_never_surprise(tmp_path, part):
    whole = (written(tmp_path) / f"ind.tiny.{part}").read_bytes()
    random = np.random.default_rng(0)
    for trial in range(150):
        content = bytearray(whole)
        if trial % 4 == 0:
            del content[random.integers(len(content)) :]
        else:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        (tmp_path / f"ind.tiny.{part}").write_bytes(content)
        with contextlib.suppress(InputError):
            read_planetoid(tmp_path, "tiny")
