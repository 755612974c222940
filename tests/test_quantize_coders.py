"""Coders: sender and receiver stay equal bit for bit, whatever the family's row, round after round."""

from __future__ import annotations

import math

import pytest
import torch

from pdadmm.errors import InputError
from pdadmm.quantize import BITS, CODERS, GRIDS, MODES, ROUNDINGS, NotFiniteError, make_coder

ROWS = [
    {"bits": bits, "mode": mode, "grid": grid, "rounding": rounding, "error_feedback": feedback}
    | ({"lo": -1.0, "hi": 1.5} if grid == "linspace" else {})
    for bits in BITS for mode in MODES for grid in GRIDS for rounding in ROUNDINGS for feedback in (False, True)
    if grid != "paper" or (mode == "value" and bits >= 8)
] + [{"bits": 0}, {"bits": 32}]
NAMES = ["-".join(str(part) for part in row.values()) for row in ROWS]


def series(rounds: int, shape=(30, 7), dtype=torch.float32, seed: int = 0):
    """Arrays that move less and less, as activations do while training."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    for i in range(rounds):
        x = x + torch.randn(shape, generator=generator, dtype=dtype) / (i + 1) ** 2
        yield (0, i, 4), x


def pair(shape=(30, 7), dtype=torch.float32, **options):
    sender, receiver = make_coder(**options), make_coder(**options)
    initial = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(9))
    sender.start(initial)
    receiver.start(initial)
    return sender, receiver


@pytest.mark.parametrize("options", ROWS, ids=NAMES)
def test_contract(options):
    for dtype in (torch.float32, torch.float64):
        check_contract(options, dtype)


def check_contract(options, dtype):
    sender, receiver = pair(dtype=dtype, **options)
    assert torch.equal(sender.value, receiver.value)
    storage = sender.value.data_ptr(), receiver.value.data_ptr()
    buffers, sizes = set(), set()
    for key, x in series(6, dtype=dtype):
        before = x.clone()
        buffer = sender.encode(x, key)
        value = receiver.decode(buffer)
        assert value is receiver.value
        assert torch.equal(sender.value, value)
        assert sender.digest() == receiver.digest()
        assert torch.equal(x, before)
        assert value.shape == x.shape
        assert value.dtype == x.dtype
        buffers.add(buffer.data_ptr())
        sizes.add(buffer.numel())
    assert sizes == {sender.nbytes} == {receiver.nbytes}
    assert len(buffers) == 1
    assert storage == (sender.value.data_ptr(), receiver.value.data_ptr())
    assert len(sender.digest()) == 8


@pytest.mark.parametrize("options", ROWS, ids=NAMES)
def test_a_checkpoint_goes_on_with_the_same_bits(options, tmp_path):
    sender, receiver = pair(**options)
    rounds = list(series(6))
    for key, x in rounds[:3]:
        receiver.decode(sender.encode(x, key))
    torch.save([sender.state_dict(), receiver.state_dict()], tmp_path / "state.pt")
    again = make_coder(**options), make_coder(**options)
    for coder, state in zip(again, torch.load(tmp_path / "state.pt")):
        coder.load_state_dict(state)
    for key, x in rounds[3:]:
        message = sender.encode(x, key)
        assert torch.equal(again[0].encode(x, key), message)
        receiver.decode(message)
        again[1].decode(message)
    assert len({coder.digest() for coder in (sender, receiver, *again)}) == 1


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (17,), (), (5, 1), (2, 3, 4), (1, 9)])
@pytest.mark.parametrize("bits", [0, *BITS, 32])
def test_shapes(shape, bits):
    for mode in MODES:
        sender, receiver = pair(shape=shape, bits=bits, mode=mode)
        x = torch.randn(shape)
        assert receiver.decode(sender.encode(x)).shape == x.shape
        assert sender.digest() == receiver.digest()


@pytest.mark.parametrize("options", ROWS, ids=NAMES)
def test_a_non_contiguous_array_and_a_buffer_of_the_caller(options):
    sender, receiver = pair(**options)
    other, _ = pair(**options)
    x = torch.randn(7, 30).T
    buffer = torch.empty(sender.nbytes, dtype=torch.uint8)
    assert sender.encode(x, (1,), out=buffer) is buffer
    assert torch.equal(buffer, other.encode(x.contiguous().requires_grad_(), (1,)))
    assert torch.equal(receiver.decode(buffer), sender.value)
    assert not sender.value.requires_grad


@pytest.mark.parametrize("grid", ["column", "message"])
@pytest.mark.parametrize(("bits", "rate"), [(2, 0.35), (4, 0.08), (8, 0.005)])
def test_differences_reach_a_value_that_stands_still(grid, bits, rate):
    sender, _ = pair(bits=bits, grid=grid)
    x = torch.rand(30, 7, generator=torch.Generator().manual_seed(2))
    sender.encode(x)
    error = (x - sender.value).abs().max()
    for _ in range(3):
        sender.encode(x)
        smaller = (x - sender.value).abs().max()
        assert smaller <= max(rate * error, 1e-6)
        error = smaller


def test_identity_sends_the_bytes_and_frozen_sends_nothing():
    x = torch.randn(5, 3)
    x[0, 0], x[1, 1] = math.nan, -0.0
    sender, receiver = pair(shape=(5, 3), bits=32)
    buffer = sender.encode(x)
    assert buffer.numpy().tobytes() == x.numpy().tobytes()
    assert sender.nbytes == 60
    assert receiver.decode(buffer).numpy().tobytes() == x.numpy().tobytes()
    assert pair(shape=(5, 3), dtype=torch.float64, bits=32)[0].nbytes == 120
    sender, receiver = pair(shape=(5, 3), bits=0)
    initial = sender.value.clone()
    assert sender.encode(x).numel() == 0 == sender.nbytes
    assert torch.equal(receiver.decode(torch.empty(0, dtype=torch.uint8)), initial)
    assert torch.equal(sender.value, initial)


@pytest.mark.parametrize("mode", MODES)
def test_error_feedback_is_what_it_says(mode):
    sender, _ = pair(bits=2, mode=mode, error_feedback=True)
    codec = make_coder(2, mode).codec
    value, error = sender.value.clone(), torch.zeros(30, 7)
    for key, x in series(5):
        y = x + error
        value = value + codec.project(y - value) if mode == "difference" else codec.project(y)
        error = y - value
        sender.encode(x, key)
        assert torch.equal(sender.value, value)
        assert torch.equal(sender.state_dict()["error"], error)


def test_error_feedback_makes_the_mean_of_values_right():
    plain, fed = pair(bits=2, mode="value")[0], pair(bits=2, mode="value", error_feedback=True)[0]
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    errors = []
    for coder in (plain, fed):
        total = torch.zeros_like(x)
        for _ in range(200):
            coder.encode(x)
            total += coder.value
        errors.append((total / 200 - x).abs().max())
    assert errors[1] < 0.05 * errors[0]


@pytest.mark.parametrize("options", [row for row in ROWS if row["bits"] not in (0, 32)][::7])
def test_a_value_that_is_not_finite_changes_nothing(options):
    sender, receiver = pair(**options)
    key, x = next(series(1))
    receiver.decode(sender.encode(x, key))
    before, state = sender.digest(), sender.state_dict()
    bad = x.clone()
    bad[3, 4] = math.inf
    with pytest.raises(NotFiniteError, match=r"x\[3, 4\]"):
        sender.encode(bad, key)
    assert sender.digest() == before == receiver.digest()
    assert all(torch.equal(part, state[name]) for name, part in sender.state_dict().items() if name != "coder")


def test_digest_sees_a_single_bit_and_the_shape():
    coder, other = pair(bits=8)
    assert coder.digest() == other.digest()
    other.value[29, 6] = torch.nextafter(other.value[29, 6], torch.tensor(math.inf))
    assert coder.digest() != other.digest()
    flat = make_coder(8)
    flat.start(coder.value.flatten())
    assert flat.digest() != coder.digest()


def test_a_new_start_keeps_the_storage_of_an_equal_shape():
    coder, _ = pair(bits=4)
    address, value = coder.value.data_ptr(), torch.rand(30, 7)
    coder.start(value)
    assert coder.value.data_ptr() == address
    assert torch.equal(coder.value, value)
    value.zero_()
    assert coder.value.any()
    coder.start(torch.zeros(4, 2))
    assert coder.nbytes == coder.encode(torch.ones(4, 2)).numel() == 16 + 4


def test_rounding_depends_on_the_key_alone():
    one, other = pair(bits=2, rounding="stochastic")
    _, x = next(series(1))
    assert torch.equal(one.encode(x, (0, 1, 2)), other.encode(x, (0, 1, 2)))
    third, _ = pair(bits=2, rounding="stochastic")
    assert not torch.equal(third.encode(x, (0, 1, 3)), one._buffer)
    with pytest.raises(InputError, match="key"):
        third.encode(x)


def test_every_family_row_is_reached():
    built = {make_coder(**row).describe().split("-")[0] for row in ROWS}
    assert built == set(CODERS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 3}, "bits"), ({"bits": 64}, "bits"), ({"bits": False}, "bits"), ({"mode": "delta"}, "mode"),
        ({"grid": "log"}, "grid"), ({"rounding": "up"}, "rounding"), ({"bits": 8, "grid": "paper"}, "grid"),
        ({"bits": 4, "grid": "paper", "mode": "value"}, "bits"), ({"bits": 8, "grid": "linspace"}, "lo, hi"),
        ({"bits": 8, "lo": 0, "hi": 1}, "lo, hi"), ({"bits": 8, "grid": "linspace", "lo": 2, "hi": 1}, "lo, hi"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options, named):
    with pytest.raises(InputError) as caught:
        make_coder(**options)
    assert caught.value.argument == named


def test_wrong_arrays_are_refused():
    with pytest.raises(InputError, match="start"):
        make_coder(4).encode(torch.zeros(3))
    with pytest.raises(InputError, match="initial"):
        make_coder(4).start(torch.zeros(3, dtype=torch.int32))
    for bits in (0, 4, 32):
        sender, receiver = pair(bits=bits)
        buffer = sender.encode(torch.zeros(30, 7))
        for x in (torch.zeros(7, 30), torch.zeros(30, 7).double(), torch.zeros(30, 7, device="meta"), [1.0]):
            with pytest.raises(InputError, match="x ="):
                sender.encode(x)
        for wrong in (torch.zeros(buffer.numel() + 1, dtype=torch.uint8), buffer.float(), None):
            with pytest.raises(InputError, match="buffer"):
                receiver.decode(wrong)
        with pytest.raises(InputError, match="out"):
            sender.encode(torch.zeros(30, 7), out=torch.zeros(buffer.numel() + 1, dtype=torch.uint8))
    state = pair(bits=4)[0].state_dict()
    with pytest.raises(InputError, match="checkpoint"):
        make_coder(8).load_state_dict(state)
