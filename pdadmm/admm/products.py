"""Number formats of the matrix products: that of the state, TF32, bf16, or bf16 in two parts (docs/math.md 14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.precision import inside

__all__ = [
    "FULL",
    "PRODUCTS",
    "CastProducts",
    "Format",
    "Parts",
    "Products",
    "SetProducts",
    "has_bf16",
    "has_tf32",
    "make_products",
    "multiplies_bf16",
    "nearest_tf32",
    "transposed",
]

Parts = tuple[Tensor, ...]
CPU = torch.device("cpu")
CPU_SETTING: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Format:
    """What an operand is the sum of: ``terms`` numbers of ``kind``; 0 terms are the operand as it is."""

    terms: int
    kind: str


PRODUCTS = {"full": Format(0, ""), "tf32": Format(1, "TF32"), "bf16": Format(1, "bf16"), "bf16x3": Format(2, "bf16")}


def nearest_bf16(x: Tensor) -> Tensor:
    """Return x rounded to bf16, 8 significant bits, to nearest and ties to even, as float32."""
    return x.bfloat16().float()


def nearest_tf32(x: Tensor) -> Tensor:
    """Return float32 x rounded to TF32, 11 significant bits, to nearest and ties to even, as float32.

    The exponent is float32's, so subnormal numbers keep multiples of 2^-136; what is nearer to 2^128 becomes infinite.

    >>> nearest_tf32(torch.tensor([1.0 + 2**-11, 1.0 + 3 * 2**-11])).tolist() == [1.0, 1.0 + 2**-9]
    True
    """
    assert x.dtype == torch.float32
    bits = x.view(torch.int32)
    # 13 bits go: half of the last that stays, less one where that is even, carries where it should
    kept = (bits >> 13).bitwise_and_(1).add_(bits).add_((1 << 12) - 1).bitwise_and_(-(1 << 13))
    return kept.view(torch.float32).masked_fill_(x.isnan(), torch.nan)


NEAREST = {"TF32": nearest_tf32, "bf16": nearest_bf16}


class Products:
    """A B with each operand as a sum of ``terms`` numbers of few bits, or as it is where these are 0; sums in float32.

    x = x_1 + x_2 + e with x_1 = bf16(x), x_2 = bf16(x - x_1), |e| <= 2^-16 |x|. One part: A_1 B_1. Two: A_1 B_1 +
    A_1 B_2 + A_2 B_1, near float32 in three products. Here the parts are multiplied in float32, where their products
    are exact; ``native`` forms, SetProducts and CastProducts, find the same but for the order of sums.

    >>> A = torch.tensor([[1.0 + 2**-9]])
    >>> Products("bf16").mm(A, A).item(), Products("bf16x3").mm(A, A).item() == 1 + 2**-8
    (1.0, True)
    """

    native = False

    def __init__(self, name: str = "full") -> None:
        self.terms, self.kind = PRODUCTS[name].terms, PRODUCTS[name].kind

    @property
    def centres(self) -> bool:
        """Whether sums over nodes are of p less a centre; in bf16 they are of p as rounded once (docs/math.md 14)."""
        return self.kind != "bf16"

    def parts(self, x: Tensor) -> Parts:
        """Return what x is the sum of, to take part in several products."""
        if self.terms == 0:
            return (x,)
        first = self._nearest(x)
        return (first,) if self.terms == 1 else (first, self._nearest(x - first))

    def operand(self, x: Tensor) -> Parts:
        """Return the parts of x as products take them: where these round to one part themselves, x itself."""
        return self.parts(x)

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
        return self._add_rest(self._mm(A[0], B[0], out), A, B, 1.0)

    def addmm_parts(
        self, C: Tensor, A: Parts, B: Parts, beta: float = 1.0, alpha: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Return beta C + alpha A B for operands in parts."""
        return self._add_rest(self._addmm(C, A[0], B[0], beta, alpha, out), A, B, alpha)

    def _add_rest(self, out: Tensor, A: Parts, B: Parts, alpha: float) -> Tensor:
        if len(A) == len(B) == 2:
            self._addmm(out, A[0], B[1], 1.0, alpha, out)
            self._addmm(out, A[1], B[0], 1.0, alpha, out)
        return out

    def _nearest(self, x: Tensor) -> Tensor:
        return NEAREST[self.kind](x)

    def _mm(self, A: Tensor, B: Tensor, out: Tensor | None) -> Tensor:
        return torch.mm(A, B, out=out)

    def _addmm(self, C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float, out: Tensor | None) -> Tensor:
        return torch.addmm(C, A, B, beta=beta, alpha=alpha, out=out)


class SetProducts(Products):
    """Products of float32 arrays of which torch is told what they are inside: bf16 on a CPU, TF32 on a GPU.

    ``setting`` is torch.backends.mkldnn.matmul or torch.backends.cuda.matmul.
    """

    native = True

    def __init__(self, name: str, setting: Any) -> None:
        super().__init__(name)
        self.setting = setting

    def operand(self, x: Tensor) -> Parts:
        """Return x itself, which is rounded in the product, or its two parts."""
        return (x,) if self.terms == 1 else self.parts(x)

    def mm_parts(self, A: Parts, B: Parts, out: Tensor | None = None) -> Tensor:
        """Return A B for operands in parts."""
        with inside(self.setting, self.kind.lower()):
            return super().mm_parts(A, B, out)

    def addmm_parts(
        self, C: Tensor, A: Parts, B: Parts, beta: float = 1.0, alpha: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Return beta C + alpha A B for operands in parts."""
        with inside(self.setting, self.kind.lower()):
            return super().addmm_parts(C, A, B, beta, alpha, out)


class CastProducts(Products):
    """Products of bf16 arrays on a GPU's tensor cores, added up and kept in float32; parts take half the memory."""

    native = True

    def _nearest(self, x: Tensor) -> Tensor:
        return x.bfloat16()

    def _mm(self, A: Tensor, B: Tensor, out: Tensor | None) -> Tensor:
        return torch.mm(A, B, out_dtype=torch.float32, out=out)

    def _addmm(self, C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float, out: Tensor | None) -> Tensor:
        out = C.new_empty(len(A), B.shape[1]) if out is None else out
        if out is not C:  # in place: torch, too, would copy C first, and has had errors with one row of it
            out.copy_(C)
        return torch.addmm(out, A, B, out_dtype=torch.float32, beta=beta, alpha=alpha, out=out)


FULL = Products()


def transposed(parts: Sequence[Tensor]) -> Parts:
    """Return the parts of x^T from those of x."""
    return tuple(part.mT for part in parts)


def has_bf16() -> bool:
    """Whether torch multiplies in bf16 on this processor (AMX or AVX512-BF16), where it is told to: one is tried."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(found.get("amx_bf16") or found.get("avx512_bf16")) and rounds_in_products()


def rounds_in_products() -> bool:
    """Whether a product that is to be bf16 inside is: oneDNN leaves some in float32, by the processor."""
    A = torch.full((64, 64), 1.0 + 2.0**-9)  # 1 in bf16
    return bool((SetProducts("bf16", CPU_SETTING).mm(A, A) == 64.0).all())


def has_tf32(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU whose tensor cores take TF32 and bf16: compute capability 8 and above."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 arrays into float32 ones: small products are tried, whose sums are known."""
    if device.type == "cuda" and not has_tf32(device):  # slow there, if it works
        return False
    A = torch.arange(-64.0, 64.0).view(16, 8)
    here, form = A.to(device), CastProducts("bf16")
    try:
        found = [form.mm(here, here.mT), form.addmm(here[0], here.mT, here, alpha=-2.0)]
        form.addmm(found[0], here, here.mT, beta=-1.0, out=found[0])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # there is no such product
        return False
    expected = torch.zeros(16, 16), A[0] - 2.0 * (A.mT @ A)
    return all(torch.equal(x.cpu(), due) for x, due in zip(found, expected, strict=True))


def make_products(name: str, device: torch.device = CPU) -> Products:
    """Return the row ``name`` of PRODUCTS as ``device`` does it: natively where it can."""
    if PRODUCTS[name].terms == 0:
        return FULL
    if PRODUCTS[name].kind == "TF32":
        return SetProducts(name, torch.backends.cuda.matmul) if has_tf32(device) else Products(name)
    if device.type == "cpu":
        return SetProducts(name, CPU_SETTING) if has_bf16() else Products(name)
    return CastProducts(name) if multiplies_bf16(device) else Products(name)
