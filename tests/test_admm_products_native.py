"""Products done natively: in bf16 on a CPU, in TF32 and in bf16 arrays on a GPU, and torch's settings around them."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in_device import DEVICE, StandIn
from test_admm_products import CPU_SETTING, DIGITS, EPS, drawn

from pdadmm import PDADMMG
from pdadmm.admm import products as formats
from pdadmm.admm import solver as solver_module
from pdadmm.admm.first_layer import gram_matrix
from pdadmm.admm.precision import full_float32, inside
from pdadmm.admm.products import (
    CastProducts,
    Products,
    SetProducts,
    has_tf32,
    make_products,
    multiplies_bf16,
)
from pdadmm.admm.updates import Moments

GPU_SETTING = torch.backends.cuda.matmul
NATIVE = [("bf16", CPU_SETTING), ("bf16x3", CPU_SETTING), ("tf32", GPU_SETTING)]
MANY = settings(max_examples=60, deadline=None)


# Where the processor has bf16, or the GPU TF32: torch is told to use it for these products, and for no other


@pytest.fixture(params=["none", "ieee", "tf32"])
def before(request):
    """What torch was told by whoever trains."""
    held = [(setting, setting.fp32_precision) for setting in (CPU_SETTING, GPU_SETTING)]
    for setting, _ in held:
        setting.fp32_precision = request.param
    yield request.param
    for setting, value in held:
        setting.fp32_precision = value


@pytest.mark.parametrize(("name", "setting"), NATIVE, ids=[name for name, _ in NATIVE])
def test_native_products_ask_torch_for_their_format_and_put_it_back(name, setting, before, monkeypatch):
    asked, real = [], torch.mm
    native = SetProducts(name, setting)

    def mm(*given, **more):
        asked.append(setting.fp32_precision)
        return real(*given, **more)

    monkeypatch.setattr(torch, "mm", mm)
    A, B = drawn(0, 5, 6), drawn(1, 6, 7)
    found = native.mm(A, B)
    size = A.double().abs() @ B.double().abs()
    assert bool(((found - A.double() @ B.double()).abs() <= 2.0**-7 * size).all())
    assert asked == ["tf32" if name == "tf32" else "bf16"]
    assert setting.fp32_precision == before
    for product in (lambda: native.mm(A, A), lambda: native.addmm(A, A, A)):
        with pytest.raises(RuntimeError):
            product()
        assert setting.fp32_precision == before
    Products(name).mm(A, B)
    assert asked[-1] == before


def test_a_setting_goes_on_following_a_wider_one():
    wide, held = torch.backends.fp32_precision, GPU_SETTING.fp32_precision
    try:
        GPU_SETTING.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"
        with inside(GPU_SETTING, "ieee"):
            assert GPU_SETTING.fp32_precision == "ieee"
        assert GPU_SETTING.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert GPU_SETTING.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = wide
        GPU_SETTING.fp32_precision = held


def test_threads_take_turns_at_a_setting():
    """One that came while the setting was another's would put that one's back, for good."""
    value, came, go = GPU_SETTING.fp32_precision, threading.Event(), threading.Event()

    def other():
        came.set()
        with inside(GPU_SETTING, "tf32"):
            go.wait(20)

    thread = threading.Thread(target=other)
    with inside(GPU_SETTING, "tf32"):
        thread.start()
        came.wait(20)
        thread.join(0.2)  # as long as it would take to set its own
    go.set()
    thread.join()
    assert GPU_SETTING.fp32_precision == value


@pytest.mark.parametrize("fails", [False, True])
def test_full_is_full_whatever_torch_was_told(before, fails, monkeypatch):
    """Over a whole training, and no longer."""
    seen, build = [], solver_module.NetworkBuilder.begin

    def begin(*given):
        seen.append((CPU_SETTING.fp32_precision, GPU_SETTING.fp32_precision))
        if fails:
            raise ZeroDivisionError
        return build(*given)

    monkeypatch.setattr(solver_module.NetworkBuilder, "begin", begin)
    solver = PDADMMG(layers=2, hidden=8, iterations=1)
    try:
        solver.fit(DIGITS)
    except ZeroDivisionError:
        assert fails
    assert seen == [(("none" if before == "none" else "ieee"),) * 2]
    assert (CPU_SETTING.fp32_precision, GPU_SETTING.fp32_precision) == (before, before)


def test_full_lasts_until_the_last_training_ends(before):
    """One thread's training may begin within another's, and end after it, and somebody may set torch in between."""
    first, second = full_float32(), full_float32()
    full = "none" if before == "none" else "ieee"
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (CPU_SETTING.fp32_precision, GPU_SETTING.fp32_precision) == (full, full)
    GPU_SETTING.fp32_precision = "tf32"
    with full_float32():
        assert GPU_SETTING.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert CPU_SETTING.fp32_precision == before
    assert GPU_SETTING.fp32_precision == "tf32"


def test_full_float32_leaves_products_their_own():
    with full_float32(), inside(GPU_SETTING, "tf32"):
        assert GPU_SETTING.fp32_precision == "tf32"


@pytest.mark.parametrize("kind", ["amx_bf16", "avx512_bf16"])
def test_a_processor_s_bf16_is_tried(kind, monkeypatch):
    """Torch may leave a product in float32 that it was told to do in bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {kind: True}, raising=False)
    real = torch.mm

    def mm(A, B, out=None):
        assert CPU_SETTING.fp32_precision == "bf16"
        return real(A.bfloat16().float(), B.bfloat16().float(), out=out)

    monkeypatch.setattr(torch, "mm", lambda A, B, out=None: real(A, B, out=out).add_(0.25))  # as float32 would be
    assert not formats.has_bf16()
    monkeypatch.setattr(torch, "mm", mm)
    assert formats.has_bf16()
    assert make_products("bf16").native
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not formats.has_bf16()


# On a device with tensor cores: bf16 arrays, float32 results


@MANY
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20)),
    name=st.sampled_from(["bf16", "bf16x3"]),
    alpha=st.sampled_from([1.0, -0.3]),
    beta=st.sampled_from([1.0, -2.0, 0.0]),
)
def test_cast_products_are_those_of_rounded_float32(seed, shape, name, alpha, beta):
    m, k, n = shape
    A, B, C, row = drawn(seed, m, k), drawn(seed + 1, k, n), drawn(seed + 2, m, n), drawn(seed + 3, n)
    plain, cast = Products(name), CastProducts(name)
    with StandIn():
        here = [x.to(DEVICE) for x in (A, B, C, row)]
        out = torch.empty(m, n, device=DEVICE)
        strided = torch.empty(m, 2 * n, device=DEVICE)[:, :n]
        there = A.mT.contiguous().to(DEVICE).mT
        found = [
            cast.mm(here[0], here[1]),
            cast.mm(there, here[1], out=strided),
            cast.addmm(here[2], here[0], here[1], beta, alpha),
            cast.addmm(here[3], here[0], here[1], beta, alpha, out=out),
            cast.addmm(here[2], here[0], here[1], beta, alpha, out=here[2]),
        ]
        assert found[1] is strided
        assert found[3] is out
        assert found[4] is here[2]
        assert {x.dtype for x in found} == {torch.float32}
        found = [x.cpu() for x in found]
    product, with_row = plain.mm(A, B), plain.addmm(row, A, B, beta, alpha)
    with_C = plain.addmm(C, A, B, beta, alpha)
    size = (A.abs() @ B.abs() + C.abs() + row.abs()) * 4 * (3 * k + 4) * EPS
    for one, due in zip(found, (product, product, with_C, with_row, with_C), strict=True):
        assert bool(((one - due).abs() <= size + 1e-40).all())


def test_a_device_is_tried_once(monkeypatch):
    cpu = torch.device("cpu")
    assert not multiplies_bf16(cpu)  # torch has no such product there
    assert not has_tf32(cpu)
    with StandIn():
        assert isinstance(make_products("bf16", DEVICE), CastProducts)
        assert not make_products("tf32", DEVICE).native
        monkeypatch.setattr(torch, "addmm", lambda C, A, B, **more: more["out"].fill_(0.0))  # wrong sums
        assert not make_products("bf16x3", DEVICE).native

        def full(*given, **more):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(torch, "mm", full)
        with pytest.raises(torch.OutOfMemoryError):
            make_products("bf16", DEVICE)


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tensor_cores_of_a_gpu(capability, has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert has_tf32(gpu) == has
    found = make_products("tf32", gpu)
    assert isinstance(found, SetProducts) == found.native == has
    if not has:
        assert not make_products("bf16", gpu).native
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not has_tf32(gpu)


def test_sums_and_gram_matrix_of_bf16_arrays_are_float32():
    """200 times 5.03, which 8 bits cannot hold."""
    p, z = torch.full((200, 3), 5.03), torch.ones(200, 2)
    with StandIn():
        cast = CastProducts("bf16")
        found = Moments.of(p.to(DEVICE), z.to(DEVICE), cast)
        gram = gram_matrix(cast.operand(p.to(DEVICE)), block=2, products=cast)
        due = Moments.of(p, z, Products("bf16"))
        for name in ("pp", "zp", "p_sum", "z_sum"):
            assert torch.equal(getattr(found, name).cpu(), getattr(due, name)), name
        assert torch.equal(gram.cpu(), due.pp)
