"""Number formats of the matrix products: that of the state, bf16, or bf16 in two parts (docs/math.md 14)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["FULL", "PRODUCTS", "Parts", "Products", "has_bf16", "make_products", "transposed"]

# Name -> parts of each operand, 0 for operands as they are.
PRODUCTS = {"full": 0, "bf16": 1, "bf16x3": 2}

Parts = tuple[Tensor, ...]


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16 (AMX or AVX512-BF16)."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def rounded(x: Tensor) -> Tensor:
    """Return x rounded to bf16, 8 significant bits, to nearest and ties to even, as float32."""
    return x.bfloat16().float()


@contextmanager
def bf16_inside() -> Iterator[None]:
    """Let products of float32 arrays be done in bf16, with sums in float32, where the processor can."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class Products:
    """A B with each operand as a sum of ``terms`` bf16 numbers, or as it is where ``terms`` is 0; sums in float32.

    x = x_1 + x_2 + e with x_1 = bf16(x), x_2 = bf16(x - x_1), |e| <= 2^-16 |x|. One part: A_1 B_1. Two: A_1 B_1 +
    A_1 B_2 + A_2 B_1, near float32 in three products. ``native`` says that the processor has bf16; elsewhere the parts
    are multiplied in float32, where their products are exact: the same result but for the order of sums.

    >>> A = torch.tensor([[1.0 + 2**-9]])
    >>> Products(1).mm(A, A).item(), Products(2).mm(A, A).item() == 1 + 2**-8
    (1.0, True)
    """

    def __init__(self, terms: int = 0, native: bool = False) -> None:
        self.terms, self.native = terms, native

    def parts(self, x: Tensor) -> Parts:
        """Return what x is the sum of, to take part in several products."""
        if self.terms == 0:
            return (x,)
        first = rounded(x)
        return (first,) if self.terms == 1 else (first, rounded(x - first))

    def mm(self, A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
        """Return A B, in ``out`` where it is given."""
        return self.mm_parts(self.operand(A), self.operand(B), out)

    def addmm(
        self, C: Tensor, A: Tensor, B: Tensor, beta: float = 1.0, alpha: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Return beta C + alpha A B, in ``out`` where it is given."""
        return self.addmm_parts(C, self.operand(A), self.operand(B), beta, alpha, out)

    def mm_parts(self, A: Parts, B: Parts, out: Tensor | None = None) -> Tensor:
        """Return A B for operands in parts."""
        with self._inside():
            out = torch.mm(A[0], B[0], out=out)
            return self._add_rest(out, A, B, 1.0)

    def addmm_parts(
        self, C: Tensor, A: Parts, B: Parts, beta: float = 1.0, alpha: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Return beta C + alpha A B for operands in parts."""
        with self._inside():
            out = torch.addmm(C, A[0], B[0], beta=beta, alpha=alpha, out=out)
            return self._add_rest(out, A, B, alpha)

    def operand(self, x: Tensor) -> Parts:
        """Return the parts of x as products take them: where the processor rounds to one part, x itself."""
        return (x,) if self.native and self.terms == 1 else self.parts(x)

    def _add_rest(self, out: Tensor, A: Parts, B: Parts, alpha: float) -> Tensor:
        if len(A) == len(B) == 2:
            out.addmm_(A[0], B[1], alpha=alpha).addmm_(A[1], B[0], alpha=alpha)
        return out

    def _inside(self) -> AbstractContextManager[None]:
        return bf16_inside() if self.native and self.terms else nullcontext()


FULL = Products()


def transposed(parts: Sequence[Tensor]) -> Parts:
    """Return the parts of x^T from those of x."""
    return tuple(part.mT for part in parts)


def make_products(name: str, device: str = "cpu") -> Products:
    """Return the row ``name`` of PRODUCTS for this processor, or for a device: bf16 of its own is not used there."""
    return Products(PRODUCTS[name], device == "cpu" and has_bf16()) if PRODUCTS[name] else FULL
