"""What every kernel must do, whatever runs it: inputs, plain torch's result on the CPU, how near it must be."""

from __future__ import annotations

import random as random_module

import pytest
import torch

from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.admm.losses import softmax_newton
from pdadmm.admm.updates import update_q_
from pdadmm.kernels import cpu, gpu
from pdadmm.quantize import BITS, Codec, make_grid
from pdadmm.quantize.noise import seed_words

from . import guarded, untouched

FLOATS = (torch.float32, torch.float64)
SHAPES = ((1, 1), (3, 7), (5, 100), (130, 16), (1, 4097))
ROW_WIDTHS = ((1, 1), (7, 3), (100, 100), (128, 36), (64, 512), (130, 2), (1024, 8), (2048, 2050), (4104, 12))
SLOPES = (0.0, 0.01, 1.0)
KEY = (0, 3, 1, 0)


def random(shape, dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, some of them zeros of either sign, some rows all zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype) * scale
    x[torch.rand(shape, generator=generator) < 0.1] = 0.0
    x[torch.rand(shape, generator=generator) < 0.05] = -0.0
    if x.dim() == 2 and len(x) > 2:
        x[len(x) // 2] = 0.0
    return x


class Arrays:
    """Copies of arrays on a device, each with a guard around it that ``close`` inspects."""

    def __init__(self, device: str, offset: int = 0) -> None:
        self.device, self.offset, self.kept = device, offset, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        part, whole = guarded(x, self.offset, self.device)
        self.kept.append((part, whole))
        return part

    def close(self) -> None:
        for part, whole in self.kept:
            assert untouched(part, whole), "a kernel wrote beside its array"


def update_z(device: str, dtype, shape, slope: float, offset: int, prox: float = 0.1) -> None:
    z, a, q = (random(shape, dtype, seed) for seed in (1, 2, 3))
    expected = PiecewiseLinear("", slope).minimise(a, q, z, prox)
    arrays = Arrays(device, offset)
    z, r, a_, q_ = arrays(z), arrays(torch.full_like(z, torch.nan)), arrays(a), arrays(q)
    gpu.update_z_(z, r, a_, q_, prox, slope)
    assert torch.equal(z.cpu(), expected)
    assert torch.equal(r.cpu(), expected - a)
    arrays.close()


def update_q_u(device: str, dtype, shape, slope: float, offset: int) -> None:
    u, p, z = (random(shape, dtype, seed) for seed in (4, 5, 6))
    q, nu, rho = torch.empty_like(u), 0.3, 1.3
    arrays = Arrays(device, offset)
    q_, u_, p_, z_ = arrays(torch.full_like(u, torch.nan)), arrays(u), arrays(p), arrays(z)
    old = u.clone()
    update_q_(q, p, u, PiecewiseLinear("", slope)(z), nu, rho)
    u.add_(p - q, alpha=rho)
    gpu.update_q_u_(q_, u_, p_, z_, nu, rho, slope)
    near = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(q_.cpu(), q, rtol=near, atol=near)
    torch.testing.assert_close(u_.cpu(), u, rtol=near, atol=4 * near)
    assert torch.equal(p_.cpu(), p)
    alone = arrays(old)
    gpu.update_u_(alone, p_, q_, rho)
    assert torch.equal(alone, u_)
    arrays.close()


def assemble_p(device: str, dtype, shape, offset: int) -> None:
    right, q, u = (random(shape, dtype, seed) for seed in (7, 8, 9))
    arrays = Arrays(device, offset)
    right_ = arrays(right)
    gpu.assemble_p_(right_, arrays(q), arrays(u), 1.7)
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(right_.cpu(), right.add(q, alpha=1.7).sub(u), rtol=near, atol=4 * near)
    arrays.close()


def step_p(device: str, dtype, V: int, widths: tuple[int, int], offset: int) -> None:
    m, n = widths
    p, g = random((V, m), dtype, 10), random((V, m), dtype, 11)
    r, gW = random((V, n), dtype, 12), random((V, n), dtype, 13)
    g[0] = gW[0] = 0.0  # tau is rho there
    nu, rho, wide = 0.3, 0.9, torch.float64
    squares = (x.to(wide).square().sum(1, keepdim=True) for x in (gW, g))
    tau = rho + nu * next(squares) / next(squares).clamp_min(torch.finfo(dtype).tiny)
    arrays = Arrays(device, offset)
    p_, r_ = arrays(p), arrays(r)
    gpu.step_p_(p_, r_, arrays(g), arrays(gW), nu, rho)
    near = 16 * torch.finfo(dtype).eps
    if dtype == wide:
        near *= 4  # the reference sums in the same precision, in another order
    torch.testing.assert_close(p_.cpu(), (p - g / tau).to(dtype), rtol=near, atol=near)
    torch.testing.assert_close(r_.cpu(), (r + gW / tau).to(dtype), rtol=near, atol=near)
    assert torch.equal(p_.cpu()[0], p[0])
    arrays.close()


def newton(device: str, dtype, V: int, C: int, nu: float, spread: float = 3.0, start: float = 3.0) -> None:
    a, z = random((V, C), dtype, 14, spread), random((V, C), dtype, 15, start)
    y = torch.randint(0, C, (V,), generator=torch.Generator().manual_seed(16))
    expected = softmax_newton(a.double(), y, nu, z.double())
    plain = softmax_newton(a, y, nu, z)
    arrays = Arrays(device)
    z_ = arrays(z)
    assert gpu.softmax_newton_(z_, arrays(a), y.to(device), nu)
    # nu-strongly convex: an error e of the gradient moves the minimiser by at most e / nu
    scale = 1 + nu * float(a.abs().max() + expected.abs().max())
    near = 8 * torch.finfo(dtype).eps * scale * C**0.5 / nu
    assert float((z_.cpu() - expected).abs().max()) <= near
    assert float((plain - expected).abs().max()) <= near
    again = z_.clone()  # a solved node stays, bit for bit
    gpu.softmax_newton_(again, a.to(device), y.to(device), nu)
    if dtype == torch.float64:
        assert torch.equal(again, z_)
    alone = z[:1].to(device)  # and does not see its neighbours, which may need more steps
    gpu.softmax_newton_(alone, a[:1].to(device), y[:1].to(device), nu)
    assert torch.equal(alone, z_[:1])
    arrays.close()


def diverged(device: str) -> None:
    """NaN stays in its own node and element, as in torch."""
    a = torch.zeros(40, 7)
    a[3, 2] = torch.nan
    z, r = torch.zeros(40, 7).to(device), torch.zeros(40, 7).to(device)
    gpu.update_z_(z, r, a.to(device), torch.zeros(40, 7).to(device), 1.0)
    assert torch.equal(z.isnan().cpu(), a.isnan())
    z = torch.zeros(40, 7).to(device)
    gpu.softmax_newton_(z, a.to(device), torch.zeros(40, dtype=torch.int64).to(device), 0.3)
    others = torch.arange(40) != 3
    assert bool(z.cpu()[others].isfinite().all())
    assert bool(z.cpu()[3].isnan().all())
    g = a.clone()
    p, r = torch.ones(40, 7).to(device), torch.ones(40, 7).to(device)
    gpu.step_p_(p, r, g.to(device), torch.ones(40, 7).to(device), 1.0, 1.0)
    assert bool(p.cpu()[3].isnan().all())
    assert bool(p.cpu()[others].isfinite().all())


# Messages


def grid_of(name: str, bits: int):
    return make_grid(name, bits, *((-1.5, 2.5) if name == "linspace" else ()))


def grid_names(bits: int) -> tuple[str, ...]:
    return ("column", "message", "linspace") + (("paper",) if bits >= 5 else ())


def plain_codec(patch) -> None:
    """Let pdadmm.quantize take its plain torch path."""
    patch.setattr(cpu, "_library", None)


def message(device, dtype, shape, bits, name, rounding, with_reference, scale=1.0, first_row=0, offset=0, skip=0):
    """Encode and decode one array with the kernels and with plain torch: every output bit for bit the same."""
    limit = torch.finfo(dtype).max
    x = random(shape, dtype, 17, scale).clamp(-limit, limit)
    reference = x * torch.rand(shape, generator=torch.Generator().manual_seed(18), dtype=dtype)
    reference = reference.roll(1) if with_reference else None
    codec = Codec(grid_of(name, bits), rounding)
    value = torch.empty_like(x)
    sent = codec.encode(x, KEY, first_row, reference=reference, value=value)
    received = torch.zeros_like(x) if reference is None else reference.clone()
    codec.decode(sent, x.shape, dtype, out=received, add=with_reference)

    rows, columns = shape
    arrays = Arrays(device, offset)
    buffer = torch.full((sent.numel() + 16,), 170, dtype=torch.uint8, device=device)
    packed = buffer[skip : skip + sent.numel()]
    x_ = arrays(x)
    value_ = arrays(reference) if with_reference else arrays(torch.full_like(x, torch.nan))
    words, first = seed_words(KEY), first_row * columns
    status = gpu.encode(
        x_, value_ if with_reference else None, value_, packed, rows, columns, codec.grid, rounding == "stochastic",
        words, first,
    )  # fmt: skip
    assert status.item() == 0
    assert torch.equal(packed.cpu(), sent)
    assert bool((buffer[:skip] == 170).all())
    assert bool((buffer[skip + sent.numel() :] == 170).all())
    assert same_bits(value_, value)
    assert same_bits(x_, x)
    out = arrays(reference) if with_reference else arrays(torch.full_like(x, torch.nan))
    assert gpu.decode(packed, out, with_reference, rows, columns, codec.grid).item() == 0
    assert same_bits(out, received)
    arrays.close()


def any_message(device: str, seed: int) -> None:
    """``message`` with everything drawn at random."""
    draw = random_module.Random(seed)
    bits = draw.choice(BITS)
    shape = draw.choice([(draw.randint(1, 60), draw.randint(1, 70)), (draw.randint(1, 700), draw.randint(1, 4))])
    message(
        device, draw.choice(FLOATS), shape, bits, draw.choice(grid_names(bits)[:3]),
        draw.choice(("nearest", "stochastic")), draw.random() < 0.5, 10.0 ** draw.randint(-30, 30),
        draw.choice((0, 1, 2**32 - 3)), draw.choice((0, 0, 1)), draw.choice((0, 0, 1, 8)),
    )  # fmt: skip


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    bits = torch.int32 if x.dtype == torch.float32 else torch.int64
    return torch.equal(x.cpu().contiguous().view(bits), y.contiguous().view(bits))


def not_finite(device: str, dtype, bits: int, name: str, bad: float) -> None:
    """An array that holds NaN or infinity writes nothing and says so; so does a message with such a header."""
    x = torch.ones(37, 11, dtype=dtype)
    x[20, 3] = bad
    grid = grid_of(name, bits)
    packed = torch.full((Codec(grid).nbytes(x.shape, dtype),), 170, dtype=torch.uint8, device=device)
    value = torch.full_like(x, 5.0).to(device)
    status = gpu.encode(x.to(device), None, value, packed, 37, 11, grid, False, (0, 0), 0)
    assert status.item() == 1
    assert bool((packed == 170).all())
    assert bool((value == 5).all())
    if grid.pairs(11):
        header = packed[: 2 * grid.pairs(11) * x.element_size()].cpu()
        header.view(dtype)[-1] = -1.0 if bad > 0 else bad  # a negative step, NaN, minus infinity
        packed[: header.numel()] = header.to(device)
        assert gpu.decode(packed, value, False, 37, 11, grid).item() == 1
        assert bool((value == 5).all())


# S X


def graph(V: int, seed: int, hub: int = 0, m: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A CSR pattern with short, empty and (``hub`` edges) long rows over m columns."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (V,), generator=generator)
    if V > 3:
        lengths[1] = 0
        lengths[2], lengths[V - 1] = hub, hub // 2
    pointers = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    columns = torch.randint(0, m or V, (int(pointers[-1]),), generator=generator)
    return pointers, columns.int()


def spmm(device, V, w, hub, kind, storage, target, index=torch.int32, m=None, limit=256) -> None:
    """The product against float64; ``kind``: "values", "scaled" (D^-1/2 A D^-1/2 without values) or "plain"."""
    pointers, columns = graph(V, 19, hub, m)
    X = random((m or V, w), torch.float32, 20).to(storage)
    generator = torch.Generator().manual_seed(21)
    values = torch.rand(len(columns), generator=generator) if kind == "values" else None
    left = torch.rand(V, generator=generator) if kind == "scaled" else None
    right = torch.rand(m or V, generator=generator) if kind == "scaled" else None
    dense = torch.zeros(V, m or V, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(V), pointers.diff())
    weight = torch.ones(len(columns)) if values is None else values
    dense.index_put_((rows, columns.long()), weight.double(), accumulate=True)
    expected = dense @ (X.double() if right is None else right.double()[:, None] * X.double())
    size = dense.abs() @ X.double().abs()
    expected, size = (x if left is None else left.double()[:, None] * x for x in (expected, size))

    def put(x):
        return None if x is None else x.to(device)

    arrays = Arrays(device)
    plan = gpu.SpmmPlan.of(put(pointers.to(index)), put(columns), put(values), limit=limit)
    out = arrays(torch.full((V, w), torch.nan, dtype=target))
    gpu.spmm(plan, arrays(X), out, put(left), put(right))
    bound = 2e-6 * size + (6e-4 * expected.abs() + 1e-7 if target == torch.float16 else 1e-12)
    assert bool(((out.cpu().double() - expected).abs() <= bound).all())
    again = torch.empty_like(out)
    gpu.spmm(plan, put(X), again, put(left), put(right))
    assert torch.equal(again, out)  # the order of the sum is fixed
    arrays.close()


def ordered_spmm(device, V, hub, limit) -> None:
    """In stored order a column has the same bits in every width, and the terms of a short row are added one by one."""
    pointers, columns = graph(V, 22, hub)
    values = torch.rand(len(columns), generator=torch.Generator().manual_seed(23))
    plan = gpu.SpmmPlan.of(pointers.to(device), columns.to(device), values.to(device), limit=limit)
    X = random((V, 132), torch.float32, 24).to(device)
    full = gpu.spmm(plan, X, torch.empty_like(X), ordered=True)
    for w in (1, 3, 4, 16, 32, 33, 36, 64, 65, 68, 128):
        part = X[:, :w].contiguous()
        assert torch.equal(gpu.spmm(plan, part, torch.empty_like(part), ordered=True), full[:, :w])
    row = 5 if V > 5 else 0
    total = torch.zeros(132, dtype=torch.float32)
    for edge in range(int(pointers[row]), int(pointers[row + 1])):  # float64 holds the product: one rounding, as fmaf
        total = (values[edge].double() * X[int(columns[edge])].cpu().double() + total.double()).float()
    assert torch.equal(full[row].cpu(), total)


def case(function, *args):
    """A row of CASES with a readable name."""
    words = (str(arg).removeprefix("torch.") for arg in args)
    return pytest.param(function, args, id="-".join([function.__name__, *words]).replace(" ", ""))


ELEMENTWISE = [
    *(case(update_z, dtype, shape, slope, 0) for dtype in FLOATS for shape in SHAPES for slope in SLOPES),
    *(case(update_z, dtype, (13, 5), 0.01, 1) for dtype in FLOATS),
    *(case(update_z, torch.float32, (13, 5), 0.0, 0, prox) for prox in (0.0, 1.0)),
    *(case(update_q_u, dtype, shape, 0.0, 0) for dtype in FLOATS for shape in SHAPES),
    *(case(update_q_u, dtype, (13, 5), slope, 1) for dtype in FLOATS for slope in SLOPES),
    *(case(assemble_p, dtype, shape, offset) for dtype in FLOATS for shape in SHAPES for offset in (0, 1)),
    *(case(step_p, dtype, 9, widths, 0) for dtype in FLOATS for widths in ROW_WIDTHS),
    *(case(step_p, dtype, 3, (packs * size, size), offset)
      for dtype, offset, size in ((torch.float32, 0, 4), (torch.float64, 0, 2), (torch.float32, 1, 1),
                                  (torch.float64, 1, 1))
      for packs in (32, 64, 128, 512, 1024, 1030)),
    case(diverged),
]  # fmt: skip
NEWTON = [
    *(case(newton, dtype, 37, C, 0.3) for dtype in FLOATS for C in (1, 2, 7, 9, 16)),
    *(case(newton, dtype, 9, C, 0.3) for dtype in FLOATS for C in (30, 33, 100, 200, 300, 512)),
    *(case(newton, dtype, 100, 10, nu) for dtype in FLOATS for nu in (0.01, 0.1, 3.0)),
    *(case(newton, torch.float64, 40, 10, 1e-4, *far) for far in ((3.0, 300.0), (1000.0, 1000.0))),
]
TABLES = ((1, 1), (1, 5), (300, 3), (7, 100), (140, 8), (33, 31), (5, 1030), (1300, 1))
MESSAGES = [
    *(
        case(message, torch.float32, TABLES[(i + j) % len(TABLES)], bits, name, rounding, with_reference)
        for j, bits in enumerate(BITS) for name in grid_names(bits)
        for i, (rounding, with_reference) in enumerate(
            [("nearest", True), ("stochastic", True), ("nearest", False), ("stochastic", False)]
        )
    ),
    *(case(message, torch.float32, shape, bits, "column", "nearest", True) for shape in TABLES for bits in (1, 4)),
    *(case(message, torch.float64, shape, bits, "column", "stochastic", True)
      for shape, bits in zip(TABLES, (1, 2, 4, 8, 16, 1, 4, 2))),
    *(case(message, torch.float64, (140, 9), bits, "message", "nearest", False) for bits in BITS),
    *(case(message, dtype, (29, 6), bits, grid, "nearest", True, scale)
      for dtype, scales in ((torch.float32, (1e-40, 1e-44, 3e37)), (torch.float64, (1e-310, 3e307)))
      for scale in scales for bits in (1, 4) for grid in ("column", "message")),
    *(case(message, dtype, (29, 6), bits, grid, "nearest", False, scale)  # wider than the largest number
      for dtype, scale in ((torch.float32, 3e38), (torch.float64, 1.5e308))
      for bits in (1, 4, 16) for grid in ("column", "message")),
    *(case(message, torch.float32, (29, 6), 4, "column", "stochastic", True, 1.0, first)
      for first in (1, 2**31, 2**33)),
    *(case(message, torch.float32, (29, 6), bits, "column", "nearest", True, 1.0, 0, 1, 3) for bits in BITS),
    *(case(any_message, seed) for seed in range(60)),
]  # fmt: skip
BROKEN = [
    case(not_finite, dtype, bits, name, bad)
    for dtype, bits, name in (
        (torch.float32, 4, "column"), (torch.float32, 1, "message"), (torch.float64, 8, "column"),
        (torch.float32, 8, "paper"),
    )
    for bad in (float("nan"), float("inf"), float("-inf"))
]  # fmt: skip
SINGLE, HALF = torch.float32, torch.float16
PRODUCTS = [
    *(case(spmm, 23, w, 0, "values", SINGLE, SINGLE) for w in (1, 4, 5, 32, 36, 100, 128, 132)),
    *(case(spmm, 23, w, 600, kind, SINGLE, SINGLE) for w in (3, 8, 64) for kind in ("values", "scaled", "plain")),
    *(case(spmm, 11, w, 70, kind, storage, target, index, 17, 16)
      for w, kind in ((1, "values"), (16, "scaled"), (48, "scaled"), (128, "values"))
      for storage, target in ((SINGLE, SINGLE), (HALF, SINGLE), (HALF, HALF)) for index in (torch.int32, torch.int64)),
    case(spmm, 1, 1, 0, "plain", SINGLE, SINGLE),
    *(case(ordered_spmm, V, hub, limit) for V, hub, limit in ((23, 600, 256), (40, 100, 16), (1, 0, 256))),
]  # fmt: skip
ALL = [*ELEMENTWISE, *NEWTON, *MESSAGES, *BROKEN, *PRODUCTS]
