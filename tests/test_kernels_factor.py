"""The C inverses and solves of small systems against torch.linalg, through the functions that the updates call."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stand_in_device import DEVICE, StandIn
from torch.utils._python_dispatch import TorchDispatchMode

from pdadmm.admm.updates import cholesky, spd_inverse, spd_solve
from pdadmm.kernels import factor

needs_kernels = pytest.mark.skipif(not factor.available(), reason="the C factors are not built")
DTYPES = st.sampled_from([torch.float32, torch.float64])


def system(n: int, dtype: torch.dtype, seed: int, condition: float = 100.0) -> torch.Tensor:
    """Return a symmetric positive definite matrix with eigenvalues between 1 / ``condition`` and 1."""
    random = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64))[0]
    values = condition ** -torch.rand(n, generator=random, dtype=torch.float64)
    A = Q * values @ Q.mT
    return ((A + A.mT) / 2).to(dtype)


@needs_kernels
@settings(deadline=None, max_examples=60)
@example(256, 1, torch.float32, 0)
@example(128, 130, torch.float64, 0)
@given(st.integers(1, 70), st.integers(1, 40), DTYPES, st.integers(0, 1000))
def test_they_equal_the_inverse_and_the_solution(n, m, dtype, seed):
    A = system(n, dtype, seed)
    B = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    assert factor.takes(A, B)
    exact = torch.linalg.inv(A.double())
    tolerance = 100 * torch.finfo(dtype).eps * float(exact.norm()) * n**0.5
    before = A.clone(), B.clone()
    inverse = spd_inverse(A)
    torch.testing.assert_close(inverse.double(), exact, rtol=0, atol=tolerance)
    assert torch.equal(inverse, inverse.mT)
    shifted = torch.linalg.inv(0.3 * A.double() + 0.2 * torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(spd_inverse(A, 0.3, 0.2).double(), shifted, rtol=0, atol=tolerance)
    found = spd_solve(A, B).double()
    torch.testing.assert_close(found, B.double() @ exact, rtol=0, atol=tolerance * float(B.norm()))
    # the solution of a system near A: the residual is small whatever the condition
    torch.testing.assert_close(
        found @ A.double(), B.double(), rtol=0, atol=100 * n * torch.finfo(dtype).eps * float(found.norm())
    )
    assert (torch.equal(A, before[0]), torch.equal(B, before[1])) == (True, True)


@pytest.mark.parametrize("n", [1, 6, 40, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_without_the_library_is_the_same(monkeypatch, n, dtype):
    A, B = system(n, dtype, 3), system(n, dtype, 4)[: n // 2 + 1].contiguous()
    ours = spd_inverse(A, 0.5, 0.1), spd_solve(A, B)
    monkeypatch.setattr(factor, "takes", lambda *_: False)
    for one, other in zip(ours, (spd_inverse(A, 0.5, 0.1), spd_solve(A, B)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("bad", ["negative", "zero", "nan", "infinite"])
@pytest.mark.parametrize("n", [1, 5, 37, 300])
def test_what_has_no_factor_gives_nan(n, bad):
    """NaN shows in the objective, on all ranks at once."""
    A = torch.eye(n)
    A[n // 2, n // 2] = {"negative": -1.0, "zero": 0.0, "nan": torch.nan, "infinite": torch.inf}[bad]
    if bad != "infinite" or factor.takes(A):
        assert spd_inverse(A).isnan().all()
        assert spd_solve(A, torch.ones(2, n)).isnan().all()


@settings(deadline=None, max_examples=40)
@example((0,), 5, 3, torch.float32, 0, None)
@example((2,), 130, 3, torch.float64, 0, 1)  # LAPACK's
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=2), st.integers(1, 20), st.integers(0, 9), DTYPES,
    st.integers(0, 1000), st.none() | st.integers(0, 8),
)  # fmt: skip
def test_each_matrix_of_a_batch_is_as_alone(batch, n, m, dtype, seed, bad):
    count = math.prod(batch)
    A = [system(n, dtype, seed + i) for i in range(count)]
    if bad is not None and bad < count:
        A[bad] -= 3.0 * torch.eye(n, dtype=dtype)
    random = torch.Generator().manual_seed(seed)
    B = [torch.randn(m, n, generator=random, dtype=torch.float64).to(dtype) for _ in range(count)]
    all_A, all_B = (torch.stack(x) if count else torch.empty(0, *shape, dtype=dtype) for x, shape in
                    ((A, (n, n)), (B, (m, n))))  # fmt: skip
    all_A, all_B = all_A.reshape(*batch, n, n), all_B.reshape(*batch, m, n)
    for call in (
        lambda A, B: cholesky(A),
        lambda A, B: spd_inverse(A),
        lambda A, B: spd_inverse(A, 0.3, 0.2),
        lambda A, B: spd_solve(A, B),
    ):
        found = call(all_A, all_B)
        assert found.shape[:-2] == tuple(batch)
        for i, one in enumerate(found.flatten(0, -3)):
            near = 1e4 * torch.finfo(dtype).eps * n
            torch.testing.assert_close(one, call(A[i], B[i]), rtol=near, atol=near, equal_nan=True)
            if i == bad:
                assert one.isnan().all()


def test_one_matrix_solves_for_many_right_sides():
    A = system(6, torch.float64, 1)
    B = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(spd_solve(A, B), B @ torch.linalg.inv(A), rtol=0, atol=1e-11)


class Waits(TorchDispatchMode):
    """Counts the operations that read a number of an array, for which a device must come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_inverses_and_solves_do_not_wait_for_the_device(batch):
    A = torch.eye(5).repeat(*batch, 1, 1) + 0.1
    A[(0,) * len(batch)][2, 2] = -1.0  # one matrix has no factor
    bad = torch.zeros(batch, dtype=torch.bool)
    bad[(0,) * len(batch)] = True
    B = torch.randn(*batch, 4, 5, generator=torch.Generator().manual_seed(0))
    with StandIn() as device, Waits() as waits:
        A_, B_ = A.to(DEVICE), B.to(DEVICE)
        device.crossings.clear()
        found = cholesky(A_), spd_inverse(A_), spd_inverse(A_, 1.0, 0.5), spd_solve(A_, B_)
        assert (waits.count, device.crossings) == (0, [])
        found = [x.cpu() for x in found]
    for x in (found[0], found[1], found[3]):
        assert torch.equal(x.isnan().all(-1).all(-1), bad)
        assert torch.equal(x.isnan().any(-1).any(-1), bad)
    alone = cholesky(A), spd_inverse(A), spd_inverse(A, 1.0, 0.5), spd_solve(A, B)
    for x, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(x, expected, equal_nan=True)


@needs_kernels
def test_they_decline_what_they_cannot_take():
    A = torch.eye(8)
    assert factor.takes(A)
    assert not factor.takes(torch.ones(8, 7).mT)
    assert not factor.takes(A, torch.ones(3, 8, dtype=torch.float64))
    assert not factor.takes(A.half())
    assert not factor.takes(A.int())
    assert factor.takes(torch.eye(256))
    assert not factor.takes(torch.eye(257))
    assert factor.takes(torch.ones(300, 8, 8), torch.ones(300, 2, 8))
    assert not factor.takes(A, torch.ones(3, 2, 8))
    assert not factor.takes(torch.ones(2, 8, 8), torch.ones(3, 2, 8))
    assert not factor.takes(torch.eye(129, dtype=torch.float64))
