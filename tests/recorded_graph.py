"""CUDA graphs without a GPU: what is done while one is recorded is undone, and done again with each replay.

As on a GPU, an array that is made while recording keeps its place, and holds nothing until the first replay; a replay
sees nothing of Python; and a number that is asked for while recording is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from stand_in_device import DeviceTensor, mapped
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Graph", "recording"]

aten = torch.ops.aten
ASKING = aten._local_scalar_dense.default  # of a number


class Graph:
    """In the place of torch.cuda.CUDAGraph; ``replays`` counts."""

    now: Graph | None = None  # the one that is recorded

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # what arrays held that were there before
        self.made: dict[int, torch.Tensor] = {}
        self.replays = 0

    def replay(self) -> None:
        assert Graph.now is None
        self.replays += 1
        for piece in self.work:
            piece()

    def keep(self, x: torch.Tensor) -> None:
        """Remember what an array holds, once, if it was not made while recording."""
        whole = storage(x)
        if whole.numel() and whole.data_ptr() not in self.made | self.before:
            self.before[whole.data_ptr()] = whole, whole.clone()

    def launch(self, start: Callable, args: tuple) -> None:
        """Record the start of a kernel."""
        mapped(args, lambda x: self.keep(x) if isinstance(x, torch.Tensor) else None)
        self.work.append(lambda: start(*args))

    def undo(self) -> None:
        """Leave arrays as they were, and nothing in those that were made."""
        for whole, held in self.before.values():
            whole.copy_(held)
        for whole in self.made.values():
            whole.fill_(255)  # NaN, of floats


@contextmanager
def recording(graph: Graph):
    assert Graph.now is None
    Graph.now = graph
    try:
        with Recorder(graph):
            yield
    finally:
        Graph.now = None
        graph.undo()


class Recorder(TorchDispatchMode):
    """Does operations, and tells the graph."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors((args, tuple(kwargs.values())))
        for x in given:
            self.graph.keep(x)
        result = function(*args, **kwargs)
        crosses = len({isinstance(x, DeviceTensor) for x in (*given, *tensors(result)) if x.dim()}) > 1
        if function is ASKING or crosses:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore about it")
        places = {storage(x).data_ptr() for x in given}
        fresh = [storage(x).data_ptr() not in places for x in tensors(result)]
        self.graph.made |= {storage(x).data_ptr(): storage(x) for x, own in zip(tensors(result), fresh) if own}

        if torch.Tag.inplace_view in function.tags:  # nothing but shapes, which the views below have kept
            return result
        target, views = mapped(tensors(result), view), mapped(args, view)
        named = {name: mapped(x, view) for name, x in kwargs.items()}

        def again() -> None:
            for x, y, own in zip(target, tensors(function(*views, **named)), fresh, strict=True):
                if own:
                    x.copy_(y)

        self.graph.work.append(again)
        return result


def storage(x: torch.Tensor) -> torch.Tensor:
    """Return all bytes of the memory that an array lies in."""
    inner = x.inner if isinstance(x, DeviceTensor) else x
    return torch.empty(0, dtype=torch.uint8).set_(inner.untyped_storage())


def view(x: Any) -> Any:
    """Return an array as it is now: its own shape may change."""
    if isinstance(x, DeviceTensor):
        return DeviceTensor(view(x.inner))
    return x.as_strided(x.shape, x.stride(), x.storage_offset()) if isinstance(x, torch.Tensor) else x


def tensors(x: Any) -> list[torch.Tensor]:
    """Return the arrays in lists and tuples, in their order."""
    found: list[torch.Tensor] = []
    mapped(x, lambda part: found.append(part) if isinstance(part, torch.Tensor) else None)
    return found
