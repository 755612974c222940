"""The plain form of the codec: one number at a time, Python integers for bits. The other tests compare with it."""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

MASK = 0xFFFFFFFF


def plain_scale(d: np.ndarray, levels: int) -> tuple[np.floating, np.floating]:
    """(lo, step) of all numbers in ``d`` (rows, columns); for one column pass it as (rows, 1)."""
    number = d.dtype.type
    low, high = float(d.min()), float(d.max())
    if low == high:
        return number(low + 0.0), number(0)
    if levels > 2:
        return number(low + 0.0), number((high - low) / (levels - 1))
    count = d.size
    mean = plain_sum(d) / count
    spread = plain_sum(abs(d.astype(np.float64) - mean)) / count
    return number(mean - spread) + number(0), number(2 * spread)


def plain_sum(d: np.ndarray) -> float:
    """128 rows after one another, then the next 128; the columns' sums from left to right."""
    total = 0.0
    for column in d.T:
        sums = 0.0
        for start in range(0, len(column), 128):
            block = 0.0
            for value in column[start : start + 128].tolist():
                block += value
            sums += block
        total += sums
    return total


def plain_code(d, lo, step, levels: int, noise: float | None = None) -> int:
    """Every operation in the dtype of the operands; Python's round goes to the even neighbour."""
    if step == 0:
        return 0
    t = min(max(float((d - lo) / step), 0.0), levels - 1.0)
    if noise is None:
        return round(t)
    return int(t) + (noise < t - int(t))


def plain_noise(key: tuple[int, ...], index: int) -> float:
    digest = blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    word0, word1 = struct.unpack("<II", digest)

    def mix(h: int) -> int:
        h = ((h ^ h >> 16) * 0x7FEB352D) & MASK
        h = ((h ^ h >> 15) * 0x846CA68B) & MASK
        return h ^ h >> 16

    h = mix((index & MASK) ^ word0)
    h = mix((h + word1 + (index >> 32) * 0x9E3779B9) & MASK)
    return (h >> 8) / 2**24


def plain_message(
    x: np.ndarray, bits: int, levels: int, columnwise: bool = True, fixed: tuple[float, float] | None = None,
    key: tuple[int, ...] | None = None, first_row: int = 0,
) -> tuple[bytes, np.ndarray]:
    """The message of ``x`` (rows, columns) and the values it decodes to."""
    if x.size == 0:
        return b"", x.copy()
    rows, columns = x.shape
    number = x.dtype.type
    if fixed is not None:
        pairs = [(number(fixed[0]), number(fixed[1]))]
    elif columnwise:
        pairs = [plain_scale(x[:, [j]], levels) for j in range(columns)]
    else:
        pairs = [plain_scale(x, levels)]
    stream, decoded = 0, np.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            lo, step = pairs[j % len(pairs)]
            noise = None if key is None else plain_noise(key, (first_row + i) * columns + j)
            code = plain_code(x[i, j], lo, step, levels, noise)
            stream |= code << (bits * (i * columns + j))
            decoded[i, j] = lo + step * number(code)
    head = b"" if fixed else b"".join(np.array(part).tobytes() for part in zip(*pairs))
    return head + stream.to_bytes((rows * columns * bits + 7) // 8, "little"), decoded


def test_four_bits_by_hand():
    x = np.array([[0.0], [15.0], [1.0]], dtype=np.float32)
    message, decoded = plain_message(x, 4, 16)
    assert message == struct.pack("<ff", 0.0, 1.0) + bytes([0xF0, 0x01])
    assert (decoded == x).all()


def test_one_bit_by_hand():
    x = np.array([[0.0], [0.0], [0.0], [4.0]], dtype=np.float32)  # mean 1, mean deviation (1 + 1 + 1 + 3) / 4
    message, decoded = plain_message(x, 1, 2)
    assert message == struct.pack("<ff", -0.5, 3.0) + bytes([0b1000])
    assert decoded.ravel().tolist() == [-0.5, -0.5, -0.5, 2.5]
