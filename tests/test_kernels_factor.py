"""The C inverses and solves of small systems against torch.linalg, through the functions that the updates call."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdadmm.admm.updates import spd_inverse, spd_solve
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
    assert not factor.takes(torch.eye(129, dtype=torch.float64))
