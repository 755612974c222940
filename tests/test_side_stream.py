"""Messages of devices, beside the work: whatever overlaps, every value arrives whole and no rank waits for ever."""

from __future__ import annotations

import pytest
import torch
from simulated_streams import SimulatedMessage, SimulatedTransport, World
from stand_in_device import DeviceTensor

from pdadmm.admm import link, packet
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.channel import Channel
from pdadmm.admm.layer import FirstLayer, HiddenLayer, Penalties
from pdadmm.admm.link import Link
from pdadmm.admm.network import Network
from pdadmm.admm.packet import DirectPacket, StagedPacket
from pdadmm.parallel.side_stream import REACHED, AtOnce, SideStream, side_stream

NODES, WIDTH = 3, 2
WAYS = ("staged", "direct")
SEEDS = range(30)
PLACEMENTS = ([range(1), range(1, 2)], [range(2), range(2, 4)], [range(1), range(1, 3), range(3, 4)])


def numbers(kind: str, boundary: int, iteration: int) -> torch.Tensor:
    """Return the p or q of an iteration, which no other is like."""
    start = 1000.0 * iteration + 100.0 * boundary + (50.0 if kind == "q" else 0.0)
    return start + torch.arange(NODES * WIDTH, dtype=torch.float32).view(NODES, WIDTH)


class Work:
    """Updates that are asked for in a World's stream, in the place of a layer's."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.iteration = world, 0
        penalties = Penalties(nu=1.0, rho=1.0, mu=0.0, kappa_identity=0.0, prox_W=0.0, prox_z=0.0)
        if index:
            W = DeviceTensor(torch.zeros(WIDTH, WIDTH))
            super().__init__(index, W, W[0], ACTIVATIONS["relu"], penalties, exact=False, identity=False)
        else:
            super().__init__(None, ACTIVATIONS["relu"], penalties)
        self.z = self.r = DeviceTensor(torch.zeros(NODES, WIDTH))

    def check(self, x: torch.Tensor, kind: str, boundary: int, iteration: int) -> None:
        if iteration:
            self.world.check(x, numbers(kind, boundary, iteration), (kind, boundary, iteration))

    def start(self):
        return DeviceTensor(torch.zeros(NODES, WIDTH))

    def prepare_p(self, scratch) -> None:
        self.iteration += 1
        self.check(self.below.own_p, "p", self.index - 1, self.iteration - 1)

    def update_p(self) -> None:
        self.check(self.below.q, "q", self.index - 1, self.iteration - 1)
        self.world.fill(self.below.own_p, numbers("p", self.index - 1, self.iteration))

    def update_W_b(self, scratch) -> None:
        self.iteration += not self.index
        if self.index:
            self.check(self.below.own_p, "p", self.index - 1, self.iteration)
        if self.world.order.random() < 0.3:  # a factorisation looks at its status
            torch.cuda.current_stream(None).record_event().synchronize()

    def update_z(self) -> None:
        if self.above is not None:
            self.check(self.above.own_q, "q", self.index, self.iteration - 1)

    def update_q(self) -> None:
        self.check(self.above.p, "p", self.index, self.iteration)
        self.world.fill(self.above.own_q, numbers("q", self.index, self.iteration))
        super().update_q()

    def measure(self) -> None:
        """What the objective reads, as long after the iteration as may be."""
        for _ in range(5 if self.above is not None else 0):
            self.check(self.above.p, "p", self.index, self.iteration)
            self.check(self.above.q, "q", self.index, self.iteration)


class First(Work, FirstLayer):
    pass


class Hidden(Work, HiddenLayer):
    pass


@pytest.fixture(autouse=True)
def no_sums(monkeypatch):
    """Numbers are filled in, not computed."""
    monkeypatch.setattr(link, "update_u_", lambda *args: None)
    monkeypatch.setattr(link, "update_q_u_", lambda *args: None)


def simulate(patch, seed: int, way: str, iterations: int = 5) -> World:
    """Iterate a network of several ranks, one GPU each, in an order that ``seed`` draws."""
    placement = PLACEMENTS[seed % len(PLACEMENTS)]
    world = World(seed, len(placement))
    patch.setattr(torch.cuda, "Stream", lambda device: world.stream())
    patch.setattr(torch.cuda, "current_stream", lambda device: world.inside[world.turn][-1])
    patch.setattr(torch.cuda, "stream", world.current)
    patch.setattr(SideStream, "_copy", staticmethod(world.copy))
    sides = [SideStream(torch.device("cuda", rank)) for rank in range(len(placement))]
    patch.setattr(packet, "side_stream", lambda device: sides[world.turn])
    saves = world.order.randrange(1, iterations)

    def program(rank: int) -> None:
        layers = [(Hidden if index else First)(world, index) for index in placement[rank]]
        if rank + 1 == len(placement):
            layers[-1].loss = "any"
        network = Network(layers, placement, NODES, SimulatedTransport(world, rank, way == "direct"))
        for iteration in range(iterations):
            network.iterate()
            for layer in layers:
                layer.measure()
            if iteration == saves:
                network.finish()
        network.finish()
        copies = sides[rank].stream
        assert copies.done == len(copies.work), "arrays are given back while they are copied"

    world.run(program)
    return world


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_value_arrives_whole(monkeypatch, seed, way):
    assert simulate(monkeypatch, seed, way).wrong == []


def at_once(channel, wait=True):
    if channel.put_off:
        channel.put_off = False
        channel.message.start()


def copy_now(side, target, source, after):
    with torch.cuda.stream(side.stream):
        side._copy(target, source)
    return side.stream.record_event()


def receive_at_once(channel, wait=True, start=Channel.start):
    (start if channel.sends else at_once)(channel, wait)


BROKEN = {
    "a copy does not wait for the work": ("staged", SideStream, "copy", copy_now),
    "the work does not wait for a copy": ("staged", SideStream, "hold", lambda side, event: None),
    "a message starts before its copy": ("staged", Channel, "start", at_once),
    "a message starts before the work": ("direct", Channel, "start", at_once),
    "the last reader is not waited for, staged": ("staged", StagedPacket, "before_receive", lambda packet: None),
    "the last reader is not waited for, direct": ("direct", DirectPacket, "before_receive", lambda packet: None),
    "a buffer is received to while it is copied": ("staged", Channel, "start", receive_at_once),
    "a message is sent before the last has left": ("staged", Channel, "wait_sent", lambda channel: None),
    "nothing is started before a wait, staged": ("staged", Network, "start_messages", lambda network, wait=True: None),
    "nothing is started before a wait, direct": ("direct", Link, "start_messages", lambda link, wait=True: None),
    "a stage ends while arrays are copied": ("staged", Channel, "settle", lambda channel: None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_left_out_is_noticed(monkeypatch, case):
    way, owner, name, broken = BROKEN[case]
    monkeypatch.setattr(owner, name, broken)
    for seed in SEEDS:
        try:
            if simulate(monkeypatch, seed, way).wrong:
                return
        except AssertionError:
            return
    pytest.fail("noticed in no order")


# What is not waited for


class Never:
    """A side stream that gets nothing done, and must not be waited for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def mark(self):
        return self

    def copy(self, target, source, after):
        self.asked.append("to main memory" if target.is_cpu else "to the device")
        return self

    def hold(self, event) -> None:
        assert event is self
        self.asked.append("hold")

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        raise AssertionError("the program waits for its device")


@pytest.mark.parametrize("way", WAYS)
def test_a_program_does_not_wait_for_its_device_before_it_has_to(monkeypatch, way):
    """Sending and receiving; starting what was put off does."""
    side, world = Never(), World(0, 1)
    monkeypatch.setattr(packet, "side_stream", lambda device: side)
    transport = SimulatedTransport(world, 0, way == "direct")
    sender, receiver = (Channel(DeviceTensor(torch.zeros(NODES, WIDTH)), "p", 0, None, ()) for _ in range(2))
    for channel, sends in ((sender, True), (receiver, False)):
        channel.connect(transport, 0, sends, DeviceTensor(torch.zeros(NODES, WIDTH)))
    sender.send()
    sender.start(wait=False)
    assert sender.put_off
    receiver.post()
    if way == "staged":
        assert not receiver.put_off  # nothing was copied from its buffer yet
        monkeypatch.setattr(receiver, "message", SimulatedMessage([receiver.packet.buffer], world.boxes["any"], True))
        monkeypatch.setattr(receiver, "_read_header", lambda header: (0, b""))
        receiver.take()
        assert side.asked == ["to main memory", "to the device", "hold"]
        receiver.post()
    assert receiver.put_off
    for channel in (sender, receiver):
        with pytest.raises(AssertionError, match="waits for its device"):
            channel.start()


# Where there is no GPU


def test_without_streams_everything_is_done_at_once():
    side = side_stream(torch.device("meta"))
    assert isinstance(side, AtOnce)
    assert side is side_stream(torch.device("meta"))
    target = torch.zeros(3)
    assert side.copy(target, torch.ones(3), after=side.mark()) is REACHED
    assert torch.equal(target, torch.ones(3))
    side.hold(REACHED)
    assert REACHED.query()
