"""What the kernels of factor.cu must do, whatever runs them: inverses and solves beside torch.linalg's in float64."""

from __future__ import annotations

import random as random_module

import pytest
import torch

from pdadmm import InputError
from pdadmm.kernels import gpu_factor

from .cases import FLOATS, Arrays, case

LARGEST = {torch.float32: 304, torch.float64: 208}  # with 227 KiB of shared memory


def systems(K: int, m: int, dtype: torch.dtype, condition: float, seed: int = 30) -> torch.Tensor:
    """Return K symmetric positive definite matrices (K, m, m), eigenvalues from 1 / ``condition`` to 1."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(K, m, m, generator=generator, dtype=torch.float64))[0]
    values = condition ** -torch.rand(K, 1, m, generator=generator, dtype=torch.float64)
    values[..., 0], values[..., -1] = 1 / condition, 1.0
    A = Q * values @ Q.mT
    return ((A + A.mT) / 2).to(dtype)


def rows(K: int, n: int, m: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(K, n, m, generator=torch.Generator().manual_seed(31), dtype=torch.float64).to(dtype)


def norms(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(x.double())


def inverse(device: str, dtype, K: int, m: int, condition: float, offset: int = 0, change=(1.0, 0.0)) -> None:
    """Errors of a Cholesky inverse are some condition * eps of it."""
    A, (scale, shift) = systems(K, m, dtype, condition), change
    exact = torch.linalg.inv(scale * A.double() + shift * torch.eye(m, dtype=torch.float64))
    arrays = Arrays(device, offset)
    A_ = arrays(A)
    found = gpu_factor.inverse(A_, scale, shift)
    assert torch.equal(A_.cpu(), A)
    assert torch.equal(found, found.mT)
    near = 2 * condition * torch.finfo(dtype).eps * norms(exact)
    assert bool((norms(found.cpu().double() - exact) <= near).all())
    upper = A_.triu().contiguous()
    assert torch.equal(gpu_factor.inverse(upper, scale, shift), found)
    alone = gpu_factor.inverse(A_[K - 1].clone(), scale, shift)
    assert torch.equal(alone, found[K - 1])
    arrays.close()


def solve(device: str, dtype, K: int, n: int, m: int, condition: float, offset: int = 0) -> None:
    """Errors of a Cholesky solve are some condition * eps of it; its residual is some eps, whatever the condition."""
    A, B = systems(K, m, dtype, condition), rows(K, n, m, dtype)
    exact, eps = torch.linalg.solve(A.double(), B.double(), left=False), torch.finfo(dtype).eps
    arrays = Arrays(device, offset)
    A_, B_ = arrays(A), arrays(B)
    found = gpu_factor.solve(A_, B_)
    assert (torch.equal(A_.cpu(), A), torch.equal(B_.cpu(), B)) == (True, True)
    x = found.cpu().double()
    assert bool((norms(x - exact) <= 2 * condition * eps * norms(exact)).all())
    assert bool((norms(x @ A.double() - B.double()) <= 4 * eps * (norms(x) + norms(B))).all())  # |A| is 1
    assert torch.equal(gpu_factor.solve(A_.triu().contiguous(), B_), found)
    alone = gpu_factor.solve(A_[K - 1].clone(), B_[K - 1].clone())
    assert torch.equal(alone, found[K - 1])
    row = gpu_factor.solve(A_[0].clone(), B_[0, n - 1 :].clone())  # on its own, whatever tile it was in
    assert torch.equal(row[0], found[0, n - 1])
    arrays.close()


def any_system(device: str, seed: int) -> None:
    """``inverse`` and ``solve`` with everything drawn at random."""
    draw = random_module.Random(seed)
    dtype, m, offset = draw.choice(FLOATS), draw.randint(1, 64), draw.choice((0, 0, 1))
    condition = 10.0 ** draw.uniform(0, 5)
    inverse(device, dtype, draw.randint(1, 5), m, condition, offset)
    solve(device, dtype, draw.randint(1, 3), draw.randint(1, 40), m, condition, offset)


def diagonal(device: str, dtype, m: int) -> None:
    """Powers of 4 over a wide range, where every step is exact."""
    values = 4.0 ** (torch.arange(m, dtype=dtype) * 7 % 31 - 15)
    A = torch.diag(values).to(device)
    assert torch.equal(gpu_factor.inverse(A).cpu(), torch.diag(1 / values))
    B = torch.ones(3, m, dtype=dtype).to(device)
    assert torch.equal(gpu_factor.solve(A, B).cpu(), (1 / values).expand(3, m))


def without_factor(device: str, dtype, m: int, bad: str) -> None:
    """NaN in every number of a matrix that is not positive definite; its neighbours keep their bits."""
    for at in sorted({0, m // 2, m - 1}):
        A, B = systems(3, m, dtype, 10.0), rows(3, 5, m, dtype)
        good = gpu_factor.inverse(A.to(device)), gpu_factor.solve(A.to(device), B.to(device))
        if bad == "indefinite":
            A[1, at, at] = -1e-3
        elif bad == "all zero":
            A[1] = 0.0
        elif bad == "beside the diagonal":
            A[1, at, m - 1 - at] = A[1, m - 1 - at, at] = torch.nan
        else:
            A[1, at, at] = float(bad)
        found = gpu_factor.inverse(A.to(device)), gpu_factor.solve(A.to(device), B.to(device))
        for one, other in zip(found, good):
            assert bool(one[1].isnan().all())
            assert torch.equal(one[::2], other[::2])


def bad_rows(device: str, dtype, m: int) -> None:
    """NaN in B stays in its row."""
    A, B = systems(1, m, dtype, 10.0)[0].to(device), rows(1, 40, m, dtype)[0].to(device)
    good = gpu_factor.solve(A, B)
    B[17, m // 2] = torch.nan
    found, others = gpu_factor.solve(A, B), torch.arange(40) != 17
    assert bool(found[17].isnan().all())
    assert torch.equal(found[others], good[others])


def nothing(device: str, dtype) -> None:
    """No matrices, and no rows."""
    assert gpu_factor.inverse(torch.empty(0, 3, 3, dtype=dtype, device=device)).shape == (0, 3, 3)
    A = torch.eye(3, dtype=dtype, device=device)
    assert gpu_factor.solve(A, torch.empty(0, 3, dtype=dtype, device=device)).shape == (0, 3)


def limits(device: str, dtype) -> None:
    """The largest sizes that are taken, one more, and what does not fit together."""
    m = LARGEST[dtype]
    A, one_more = (torch.eye(size, dtype=dtype, device=device) for size in (m, m + 1))
    B = torch.ones(17, m, dtype=dtype, device=device)
    assert torch.equal(gpu_factor.inverse(A, 2.0, 2.0), A / 4)
    assert torch.equal(gpu_factor.solve(A, B), B)
    assert gpu_factor.takes(A, B)
    assert not gpu_factor.takes(one_more)
    assert not gpu_factor.takes(A, B[:, 1:].contiguous())
    assert not gpu_factor.takes(A[None], B)
    assert not gpu_factor.takes(A[None], B[None].expand(2, -1, -1).contiguous())
    assert not gpu_factor.takes(A[1:])
    assert not gpu_factor.takes(A.half())
    assert not gpu_factor.takes(A.new_empty(0, 0))
    assert not gpu_factor.takes(A[::2, ::2])
    other = torch.float64 if dtype == torch.float32 else torch.float32
    assert not gpu_factor.takes(A, B.to(other))
    with pytest.raises(InputError, match="304" if dtype == torch.float64 else "305"):
        gpu_factor.inverse(torch.eye(305 if dtype == torch.float32 else 304, dtype=dtype, device=device))
    with pytest.raises(InputError, match="A, B"):
        gpu_factor.solve(A, B[:, 1:].contiguous())


BAD = ("indefinite", "all zero", "beside the diagonal", "nan", "inf", "-inf", "0")
SINGLE, DOUBLE = FLOATS
ALL = [
    *(case(inverse, dtype, 1 + m % 2, m, 50.0) for dtype in FLOATS for m in (1, 2, 15, 16, 17, 31, 32, 33, 48, 64)),
    *(case(inverse, SINGLE, K, m, condition) for K, m, condition in ((5, 40, 1e5), (2, 100, 1e5), (1, 129, 1e3))),
    *(case(inverse, DOUBLE, K, m, condition) for K, m, condition in ((4, 40, 1e5), (1, 100, 1e5), (1, 200, 1e3))),
    *(case(inverse, dtype, 2, m, 50.0, 1) for dtype in FLOATS for m in (20, 33)),
    *(case(inverse, dtype, 2, 37, 50.0, 0, (0.3, 0.2)) for dtype in FLOATS),
    *(case(solve, dtype, 2, n, m, 50.0) for dtype in FLOATS
      for n, m in ((1, 1), (7, 1), (1, 33), (16, 16), (17, 31), (32, 48), (33, 17), (70, 64))),
    *(case(solve, SINGLE, K, n, m, 1e5) for K, n, m in ((3, 20, 40), (1, 100, 100), (1, 3, 200))),
    *(case(solve, DOUBLE, K, n, m, 1e5) for K, n, m in ((3, 20, 40), (1, 40, 129))),
    *(case(solve, dtype, 2, 18, m, 50.0, 1) for dtype in FLOATS for m in (20, 33)),
    *(case(diagonal, dtype, m) for dtype in FLOATS for m in (1, 16, 35)),
    *(case(without_factor, dtype, m, bad) for dtype, m in ((SINGLE, 1), (SINGLE, 37), (DOUBLE, 20)) for bad in BAD),
    *(case(bad_rows, dtype, 21) for dtype in FLOATS),
    *(case(nothing, dtype) for dtype in FLOATS),
    *(case(limits, dtype) for dtype in FLOATS),
    *(case(any_system, seed) for seed in range(30)),
]  # fmt: skip
