"""Streams, events and messages without a GPU or MPI: work that is done in any order that events and messages allow."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from direct_transport import raw

from pdadmm.trace import NO_TRACE

__all__ = ["Event", "SimulatedTransport", "Stream", "World"]


class Event:
    """So many pieces of a stream are done."""

    def __init__(self, stream: Stream, pieces: int) -> None:
        self.stream, self.pieces = stream, pieces

    def query(self) -> bool:
        return self.stream.done >= self.pieces

    def synchronize(self) -> None:
        self.stream.until(self.query)


class Stream:
    """Work that is done in its order, each piece at some time after it was asked for.

    A piece is a function, or waits for something with ``query``. ``until`` lets time pass.
    """

    def __init__(self, until: Callable[[Callable[[], bool]], None] | None = None) -> None:
        self.work: list[Any] = []
        self.done, self.until = 0, until

    def record_event(self) -> Event:
        return Event(self, len(self.work))

    def wait_event(self, event: Any) -> None:
        self.work.append(event)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def step(self) -> bool:
        """Do the next piece; False where there is none, or it waits."""
        if self.done == len(self.work):
            return False
        piece = self.work[self.done]
        if not hasattr(piece, "query"):
            piece()
        elif not piece.query():
            return False
        self.done += 1
        return True


class World:
    """Programs of several ranks, a stream for each rank's work and what else is a stream, in a random order.

    The programs are threads of which one runs at a time: the next is drawn whenever one asks for something. Streams
    differ in speed. ``wrong`` are the names of the arrays that had other numbers than they should have had.
    """

    def __init__(self, seed: int, ranks: int) -> None:
        self.order = random.Random(seed)
        self.streams: list[tuple[Stream, float]] = []
        self.inside = [[self.stream()] for _ in range(ranks)]  # the current stream of each rank, last
        self.eager = self.order.random() < 0.5  # messages leave before anybody is ready for them
        self.boxes: dict[Any, Box] = defaultdict(lambda: Box(self))
        self.turn, self.live, self.idle = 0, list(range(ranks)), 0
        self.batons = [threading.Semaphore(0) for _ in range(ranks)]
        self.wrong, self.errors = list[Any](), list[BaseException]()

    def stream(self) -> Stream:
        made = Stream(self.until)
        self.streams.append((made, self.order.choice([0.03, 0.2, 1.0])))
        return made

    @contextmanager
    def current(self, stream: Stream):
        """What torch.cuda.stream is."""
        own = self.inside[self.turn]
        own.append(stream)
        yield
        own.pop()

    # Time

    def run(self, program: Callable[[int], None]) -> None:
        """Run ``program(rank)`` of every rank to its end; the first error of any is raised."""
        threads = [threading.Thread(target=self._run, args=(program, rank)) for rank in self.live]
        for thread in threads:
            thread.start()
        self.batons[self.turn].release()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        while any(stream.step() for stream, _ in self.streams):
            pass

    def _run(self, program: Callable[[int], None], rank: int) -> None:
        self.batons[rank].acquire()
        try:
            if not self.errors:
                program(rank)
        except BaseException as error:
            self.errors.append(error)
        self.live.remove(rank)
        if self.live:
            self.turn = self.order.choice(self.live)
            self.batons[self.turn].release()

    def pause(self) -> None:
        """Let streams do some of their work, and another rank go on."""
        for _ in range(self.order.randrange(4)):
            stream, speed = self.order.choice(self.streams)
            if self.order.random() < speed and stream.step():
                self.idle = 0
        rank = self.turn
        if self.order.random() < 0.3:
            self.turn = self.order.choice(self.live)
        if self.turn != rank:
            self.batons[self.turn].release()
            self.batons[rank].acquire()
        if self.errors:
            raise RuntimeError("another rank failed")

    def until(self, reached: Callable[[], bool]) -> None:
        """Return once ``reached()``; an error where nothing moves any more."""
        self.pause()
        while not reached():
            self.idle += 1
            assert self.idle < 3000, "the ranks wait for each other"
            self.pause()
        self.idle = 0

    # Work

    def work(self, piece: Callable[[], None]) -> None:
        """Ask for a piece of work in the current stream."""
        self.inside[self.turn][-1].work.append(piece)
        self.pause()

    def fill(self, x: torch.Tensor, value: torch.Tensor) -> None:
        """Ask for ``value`` to be written to ``x``, in two pieces."""
        for part in halves(raw(x)):
            self.work(lambda part=part: raw(x)[part].copy_(raw(value)[part]))

    def check(self, x: torch.Tensor, value: torch.Tensor, name: Any) -> None:
        """Ask whether ``x`` is ``value``, in two pieces."""
        for part in halves(raw(x)):
            self.work(
                lambda part=part: None if torch.equal(raw(x)[part], raw(value)[part]) else self.wrong.append(name)
            )

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """What takes the place of SideStream's."""
        self.fill(target, source)


def halves(x: torch.Tensor) -> tuple[slice, slice]:
    return slice(0, len(x) // 2), slice(len(x) // 2, None)


class Box:
    """What one rank sends another under one tag: a stream that reads buffers, and one that writes them."""

    def __init__(self, world: World) -> None:
        self.world, self.reads, self.writes = world, world.stream(), world.stream()
        self.read: list[Event] = []  # by message: all of it was read
        self.parcels: list[list[torch.Tensor]] = []
        self.posted = 0


class Posted:
    """The receiver was ready for so many messages."""

    def __init__(self, box: Box, number: int) -> None:
        self.box, self.number = box, number

    def query(self) -> bool:
        return self.box.posted >= self.number


class Came(Posted):
    """So many messages were read where they were sent."""

    def query(self) -> bool:
        return len(self.box.read) >= self.number and self.box.read[self.number - 1].query()


class SimulatedMessage:
    """A repeated message. MPI may read, spoil and write buffers from the start to the wait, and does."""

    def __init__(self, buffers: list[torch.Tensor], box: Box, receives: bool) -> None:
        self.buffers, self.box, self.receives = buffers, box, receives
        self.number, self.last = 0, None

    def start(self) -> None:
        assert self.last is None, "started before it was waited for"
        box, self.number = self.box, self.number + 1
        if self.receives:
            box.posted = self.number
            for buffer in self.buffers:
                raw(buffer).fill_(255)  # NaN
            box.writes.work.append(Came(box, self.number))
            for n, buffer in enumerate(self.buffers):
                for part in halves(raw(buffer)):
                    box.writes.work.append(lambda n=n, part=part: self._write(n, part))
            self.last = box.writes.record_event()
        else:
            if not box.world.eager:
                box.reads.work.append(Posted(box, self.number))
            parcel = [torch.zeros_like(raw(buffer)) for buffer in self.buffers]
            box.parcels.append(parcel)
            for buffer, taken in zip(self.buffers, parcel, strict=True):
                for part in halves(taken):
                    box.reads.work.append(lambda b=buffer, t=taken, part=part: t[part].copy_(raw(b)[part]))
            self.last = box.reads.record_event()
            box.read.append(self.last)
        box.world.pause()

    def _write(self, n: int, part: slice) -> None:
        raw(self.buffers[n])[part] = self.box.parcels[self.number - 1][n][part]

    def wait(self) -> None:
        if self.last is not None:
            self.last.synchronize()
            self.last = None


class SimulatedTransport:
    """One rank of a World; its single arrays are all the same."""

    def __init__(self, world: World, rank: int, direct: bool) -> None:
        self.world, self.rank, self.direct, self.trace = world, rank, direct, NO_TRACE

    def sender(self, buffer, peer, tag, kind, header=None):
        return self._message(buffer, header, self.world.boxes[self.rank, peer, tag], False)

    def receiver(self, buffer, peer, tag, kind, header=None):
        return self._message(buffer, header, self.world.boxes[peer, self.rank, tag], True)

    def _message(self, buffer, header, box, receives):
        assert (header is not None) == (not buffer.is_cpu) == self.direct
        return SimulatedMessage([part for part in (header, buffer) if part is not None], box, receives)

    def send(self, array, peer, kind):
        return None

    def receive(self, array, peer, kind):
        return array.zero_()
