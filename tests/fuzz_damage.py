"""Random damage to files for the fuzzer, of the kinds that any file and that some formats can take."""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import random
import zipfile
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from pdadmm.data import Graph

NUMBERS = (0, 1, -1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
VALUES = (
    None, True, False, 0, -1, 1, 2.5, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x", "$\\frac{",
    "\ud800", [], [1], [None], {}, {"a": 1}, [[]], "../../escape", "pdadmm-gamlp-2",
)  # fmt: skip
CLAIMS = (b"(9,)", b"(2147483648,)", b"(-1,)", b"(1e3,)", b"(None,)", b"((((", b"(0,)", b"(4294967296,4294967296)")
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
DATA = (
    lambda n: np.arange(n), lambda n: -np.arange(n), lambda n: np.full(n, np.nan), lambda n: np.full(n, np.inf),
    lambda n: np.zeros(n, bool), lambda n: np.array(["a"] * n), lambda n: np.array([{}] * n, dtype=object),
    lambda n: np.zeros((n, n)), lambda n: np.array(3), lambda n: np.full(n, 2**40), lambda n: np.zeros(n, "c8"),
    lambda n: np.zeros(n, "M8[s]"), lambda n: np.full(n, 2**63 - 1), lambda n: np.zeros((n, 0)),
    lambda n: np.full(n, 2**64 - 1, dtype="u8"), lambda n: np.zeros(n, "i4,f4"), lambda n: np.ones(n, "f2"),
    lambda n: np.arange(n)[::-1].astype(">i8"),
)  # fmt: skip
OPCODES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"ccollections\ndefaultdict\n", b"c_codecs\nencode\n",
    b"2", b"0", b"(", b"t", b"R", b"b", b"\x81", b"s", b"u", b"a", b"e", b"d", b"}", b"]", b")", b"N", b"\x88",
    b"K\x07", b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00", b"h\x01", b"r\xff\xff\xff\x7f", b"j\x01\x00\x00\x00",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"L" + b"9" * 500 + b"\n", b"X\x03\x00\x00\x00abc", b"U\x03abc",
    b"B\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", b"\x96\x00\x00\x00\x00\x01\x00\x00\x00",
    b"\x95\xff\xff\xff\xff\x00\x00\x00\x00", b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94", b"Pid\n", b"Q", b"\x82\x01",
    b".", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"I01\n", b"\x80\x05", b"o", b"ios\nsystem\n", b"\x92",
)  # fmt: skip


def damage_bytes(raw: bytes, r: random.Random) -> bytes:
    """Flip, set, cut, double, move or overwrite a few bytes."""
    out = bytearray(raw)
    for _ in range(r.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            return bytes(out)
        at, length = r.randrange(len(out)), r.choice((1, 1, 2, 4, 8, 16, 64, 500))
        act = r.randrange(8)
        if act == 0:
            out[at] ^= 1 << r.randrange(8)
        elif act == 1:
            out[at] = r.choice((0, 255, 127, 128, 10, 46, r.randrange(256)))
        elif act == 2:
            del out[at:]
        elif act == 3:
            del out[at : at + length]
        elif act == 4:
            out[at:at] = out[at : at + length]
        elif act == 5:
            other = r.randrange(len(out))
            out[at : at + length] = out[other : other + length]
        elif act == 6:
            size = r.choice((4, 8))
            out[at : at + size] = (r.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, r.choice(("little", "big")))
        else:
            out[at:at] = r.randbytes(length)
    return bytes(out)


def damage_json(value, r: random.Random):
    """Replace, drop, double or nest one part of a tree of dicts and lists."""
    places: list[tuple] = []

    def walk(node) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(value)
    if not places:
        return value
    node, key = r.choice(places)
    act = r.randrange(6)
    if act == 0:
        del node[key]
    elif act == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif act == 2 and isinstance(node[key], (int, float)):
        node[key] = node[key] * r.choice((-1, 0, 2, 10**6, 1e300)) + r.choice((0, 1, 0.5))
    elif act == 3:
        other, place = r.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    else:
        node[key] = r.choice(VALUES)
    return value


def dumps(value, r: random.Random) -> bytes:
    """JSON text, now and then nested deep somewhere."""
    text = json.dumps(value)
    if r.random() < 0.02:
        text = text.replace("null", "[" * r.choice((50, 5000, 200000)), 1)
    return text.encode("utf-8", "surrogatepass")


def damage_opcodes(raw: bytes, r: random.Random) -> bytes:
    """Drop, double, swap or insert whole opcodes of a pickle."""
    try:
        starts = [place for _, _, place in pickletools.genops(raw)]
    except Exception:  # damaged before
        return damage_bytes(raw, r)
    parts = [raw[a:b] for a, b in zip(starts, [*starts[1:], len(raw)])]
    for _ in range(r.choice((1, 1, 2, 4))):
        at = r.randrange(len(parts))
        act = r.randrange(4)
        if act == 0:
            del parts[at]
        elif act == 1:
            parts[at:at] = [parts[at]] * r.choice((1, 1, 30))
        elif act == 2:
            other = r.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts.insert(at, r.choice(OPCODES))
        if not parts:
            break
    return b"".join(parts)


def npz_bytes(parts: dict, save: Callable = np.savez_compressed) -> bytes:
    stream = io.BytesIO()
    save(stream, **parts)
    return stream.getvalue()


def damage_arrays(parts: dict, r: random.Random) -> None:
    """Drop, replace, alter, convert, double or rename one array."""
    key = r.choice(list(parts))
    array, act = parts[key], r.randrange(6)
    if act == 0:
        parts.pop(key)
    elif act == 1:
        parts[key] = r.choice(DATA)(r.choice((0, 1, array.size, array.size + 1)))
    elif act == 2 and array.size:
        array = array.astype(r.choice(("i8", "f8", "f4", "i2")))
        array.reshape(-1)[r.randrange(array.size)] = r.choice((0, -1, 2, 5, 9, 30000))
        parts[key] = array
    elif act == 3:
        parts[key] = array.astype(r.choice(("f8", ">i4", "u1", "?", "S3", "u8")))
    elif act == 4:
        parts[key] = np.concatenate([array, array])
    else:
        parts["../" + key] = parts.pop(key) if r.random() < 0.5 else array


def damage_headers(raw: bytes, r: random.Random) -> bytes:
    """Write one member anew with another header text, or another size in the archive's directory."""
    members = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for name in archive.namelist():
            members[name] = archive.read(name)
    name = r.choice(list(members))
    content = members[name]
    if r.random() < 0.6:
        at = content.find(b"(", 10)
        content = content[:at] + r.choice(CLAIMS) + content[content.find(b")", at) + 1 :]
    else:
        content = damage_bytes(content, r)
    members[name] = content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", r.choice(PACKINGS)) as archive:
        for member, value in members.items():
            archive.writestr(member, value)
        if r.random() < 0.1:
            with contextlib.suppress(UserWarning):
                archive.writestr("zeros.npy", bytes(1 << 22))
    return stream.getvalue()


def check_graph(graph: Graph) -> None:
    """A graph that keeps every promise of its class."""
    V = graph.num_nodes
    again = Graph(graph.indptr, graph.indices, graph.weights, graph.features, graph.labels, graph.splits,
                  num_classes=graph.num_classes)  # fmt: skip
    assert again.fingerprint() == graph.fingerprint()
    assert (graph.adjacency != graph.adjacency.T).nnz == 0
    assert graph.adjacency.diagonal().sum() == 0
    assert graph.features.shape[0] == graph.labels.size == V
    assert graph.labels.min() >= -1
    assert graph.labels.max() < graph.num_classes
    data = graph.features.data if sp.issparse(graph.features) else graph.features
    assert np.isfinite(np.asarray(data)).all()
