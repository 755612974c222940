"""A device that is not there: arrays in main memory that claim to lie on one, and refuse to be mixed with others.

``with StandIn() as device`` catches what makes arrays on ``device.torch``; each is a DeviceTensor around a CPU tensor.
An operation on arrays of both kinds is an AssertionError, but for copies between them and single numbers, as on a GPU;
so is reading one's memory. ``device.crossings`` are the numbers of elements of every copy from one kind to the other.
With ``StandIn(capacity)`` arrays of more bytes in all are a torch.OutOfMemoryError; ``device.peak`` is the most there
were. The mode holds in the thread that entered it. It has tensor cores for bf16, and none for TF32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "DeviceTensor", "StandIn"]

DEVICE = torch.device("meta")  # needs no start, and indexing works on it
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)


def widened_mm(A: torch.Tensor, B: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """What a GPU's tensor cores do with bf16 arrays: float32 products, float32 sums."""
    assert (A.dtype, B.dtype, dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    return torch.mm(A.float(), B.float(), out=out)


def widened_addmm(
    C: torch.Tensor, A: torch.Tensor, B: torch.Tensor, dtype: torch.dtype, *,
    beta: float = 1.0, alpha: float = 1.0, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The same with a float32 array added."""
    assert (A.dtype, B.dtype, C.dtype, dtype) == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    return torch.addmm(C, A.float(), B.float(), beta=beta, alpha=alpha, out=out)


TENSOR_CORES = {  # what a CPU lacks
    aten.mm.dtype: widened_mm,
    aten.mm.dtype_out: widened_mm,
    aten.addmm.dtype: widened_addmm,
    aten.addmm.dtype_out: widened_addmm,
}


class DeviceTensor(torch.Tensor):
    """A tensor on DEVICE; ``inner`` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        if inner.layout == torch.sparse_csr:  # a wrapper has strides: those of a dense matrix do no harm
            more: dict[str, Any] = {"strides": (inner.shape[1], 1)}
        else:
            more = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), dtype=inner.dtype, device=DEVICE, **more
        )

    def __init__(self, inner: torch.Tensor) -> None:
        assert type(inner) is torch.Tensor
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(function, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner})"

    def data_ptr(self) -> int:
        raise AssertionError("the address of an array on a device was taken")

    def numpy(self, *args: Any, **more: Any) -> Any:
        raise AssertionError("an array on a device was read as numpy's")

    # what torch does in C++ without a dispatch, and would take for the kind of device that has no numbers

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=self.dtype).to(DEVICE)


class StandIn(TorchDispatchMode):
    """While entered, ``torch.empty(2, device=DEVICE)`` and the like work."""

    torch = DEVICE

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and its import takes seconds

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.crossings: list[int] = []
        self.capacity, self.peak = capacity, 0
        self.arrays: list[weakref.ref[DeviceTensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = dispatch(function, args, kwargs or {}, self.crossings)
        if self.capacity is not None and isinstance(result, DeviceTensor):
            self.arrays.append(weakref.ref(result))
            self.peak = max(self.peak, self.held())
            if self.held() > self.capacity:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {self.held()} bytes of {self.capacity}")
        return result

    def held(self) -> int:
        """The bytes of all arrays on the device that are still in use; views of one array are one."""
        self.arrays = [array for array in self.arrays if array() is not None]
        storages = {}
        with no_dispatch():
            for inner in (array().inner for array in self.arrays):  # type: ignore[union-attr]
                parts = [inner]
                if inner.layout == torch.sparse_csr:
                    parts = [inner.crow_indices(), inner.col_indices(), inner.values()]
                storages |= {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in parts}
        return sum(storages.values())


def dispatch(function: Any, args: Any, kwargs: dict[str, Any], crossings: list[int] | None = None) -> Any:
    """Do an operation on the inner tensors; its results lie where its arguments do, or where it asks for."""
    arrays: list[torch.Tensor] = []
    mapped((args, tuple(kwargs.values())), lambda x: arrays.append(x) if isinstance(x, torch.Tensor) else None)
    on_device = [isinstance(x, DeviceTensor) for x in arrays]
    assert all(own or not x.is_meta for x, own in zip(arrays, on_device, strict=True)), "made outside of StandIn"
    wanted = kwargs.get("device")
    if wanted is not None:
        wanted = torch.device(wanted)
        assert wanted in (CPU, DEVICE), wanted
        kwargs = kwargs | {"device": CPU}
    target = any(on_device) if wanted is None else wanted == DEVICE
    if function in COPIES:
        crosses = on_device[0] != (on_device[1] if len(arrays) > 1 else target)
        if crosses and crossings is not None:
            crossings.append(arrays[0].numel())
    elif any(on_device):
        mixed = [tuple(x.shape) for x, own in zip(arrays, on_device, strict=True) if not own and x.dim()]
        assert not mixed, f"{function} of arrays on a device and one of shape {mixed} in main memory"
        assert target, f"{function} takes an array off its device"

    def unwrapped(x: Any) -> Any:
        return x.inner if isinstance(x, DeviceTensor) else x

    done_by = TENSOR_CORES.get(function, function)
    result = done_by(*mapped(args, unwrapped), **{name: mapped(x, unwrapped) for name, x in kwargs.items()})
    known = {id(x.inner): x for x in arrays if isinstance(x, DeviceTensor)}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:  # done in place
            return known[id(x)]
        return DeviceTensor(x) if target else x

    if function is aten.copy_.default:
        return args[0]
    if torch.Tag.inplace_view in function.tags and target:  # a matrix times a vector does that
        with no_dispatch():
            function(*args, **kwargs)
    return mapped(result, wrapped)


def mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    """Return lists and tuples in lists and tuples with every other thing in them changed."""
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(part, change) for part in x])
    return change(x)
