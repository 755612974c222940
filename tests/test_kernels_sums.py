"""The sums of the objective and the extrapolation, fused: CUDA kernels on the emulator and C, against plain torch."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from admm_layer import FUNCTIONS
from cuda_emulator import Emulator, guarded
from cuda_emulator.cases import FLOATS, random, same_bits
from cuda_emulator.sum_cases import expected_sums, found_sums
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_in_device import DEVICE, DeviceTensor, StandIn

from pdadmm import InputError
from pdadmm.admm.acceleration import Momentum, extrapolate_, extrapolate_q_, extrapolate_z_, movement
from pdadmm.admm.layer import link_sums, squared_distance
from pdadmm.admm.updates import squared_norm
from pdadmm.kernels import gpu, gpu_launch, gpu_sums, updates

RELAXED = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SHAPES = st.tuples(st.integers(0, 60), st.integers(1, 90))
needs_kernels = pytest.mark.skipif(not updates.available(), reason="the C updates are not built")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the kernels for the CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_launch, "SOURCES", ("updates", "sums"))
        return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def emulated(emulator, monkeypatch) -> Emulator:
    emulator.install(monkeypatch)
    return emulator


@pytest.fixture
def on_device(emulated, monkeypatch) -> Emulator:
    """Let the functions of pdadmm.admm take the kernels for the stand-in's arrays."""
    monkeypatch.setattr(gpu_launch, "DEVICE", DEVICE.type)
    monkeypatch.setattr(gpu, "available", lambda device: True)
    monkeypatch.setattr(DeviceTensor, "data_ptr", lambda x: x.inner.data_ptr())
    return emulated


@pytest.fixture
def plain(monkeypatch):
    """Call a function with neither C nor CUDA."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(updates, "_functions", {})
            return function(*args)

    return call


@RELAXED
@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), seed=st.integers(0, 999), offset=st.integers(0, 3),
       slope=st.sampled_from([0.0, 0.01, 1.0, -1.0]), power=st.integers(-30, 30))  # fmt: skip
def test_the_kernels_sums_are_those_of_plain_torch(emulated, shape, dtype, seed, offset, slope, power):
    given = [random(shape, dtype, seed + i, 10.0**power) for i in range(4)]
    expected = expected_sums(*given, slope)
    found = found_sums(*(guarded(x, offset)[0] for x in given), slope)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(expected))
    assert found_sums(*given, slope) == found  # from a 16-byte boundary: the same bits


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_few_blocks_take_many_numbers(emulated, monkeypatch, dtype, blocks):
    """As on arrays of many million numbers, where each block goes over them in strides."""
    monkeypatch.setattr(gpu_sums, "BLOCKS", blocks)
    given = [random((97, 331), dtype, seed) for seed in range(4)]
    expected = expected_sums(*given, 0.01)
    found = found_sums(*given, 0.01)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(expected))
    assert found_sums(*(guarded(x, 1)[0] for x in given), 0.01) == found


def test_the_grid_does_not_follow_the_gpu(emulated, monkeypatch):
    x, found, started = random((300, 301), torch.float32, 1), [], []
    held = gpu_launch.launch
    monkeypatch.setattr(gpu_launch, "launch", lambda *args: (started.append(args[1:4]), held(*args)))
    for count in (1, 132, 144):
        monkeypatch.setattr(gpu_launch, "multiprocessors", lambda device, count=count: count)
        found.append((gpu.square(x), *started))
        started.clear()
    assert found[0] == found[1] == found[2]


def test_arrays_that_differ_are_refused(emulated):
    x = torch.zeros(4, 3)
    for other in (torch.zeros(3, 4), x.double(), torch.zeros(3, 4).mT):
        for call in (
            lambda y: gpu.distance(x, y, 0.0),
            lambda y: gpu.link_sums(x, x, y),
            lambda y: gpu.movement(x, y, x),
            lambda y: gpu.extrapolate_(x, y, 0.5),
            lambda y: gpu.extrapolate_q_(x, x, y, 0.5),
            lambda y: gpu.extrapolate_z_(x, x, y, 0.5),
        ):
            with pytest.raises(InputError):
                call(other)
    with pytest.raises(InputError):
        gpu.square(x.half())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_kernels", [True, False])
def test_the_sums_of_a_device_come_over_as_one_copy(on_device, monkeypatch, dtype, with_kernels):
    if not with_kernels:
        monkeypatch.setattr(gpu, "available", lambda device: False)
    given, f = [random((33, 41), dtype, seed) for seed in range(4)], FUNCTIONS["leaky_relu"]
    expected, before = expected_sums(*given, f.negative_slope), len(on_device.launched)
    with StandIn() as device:
        p, q, u, z = (x.to(DEVICE) for x in given)
        device.crossings.clear()
        found = [squared_norm(q), f.squared_distance(q, z), *link_sums(p, q, u), movement(p, q, z)]
        assert max(device.crossings) <= 3
        assert squared_distance(p, q) == pytest.approx(found[2], rel=1e-12)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(expected))
    assert (len(on_device.launched) > before) == with_kernels


@needs_kernels
@RELAXED
@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), seed=st.integers(0, 999), beta=st.sampled_from([0.0, 0.28, 0.93]))
def test_the_c_extrapolation_has_the_bits_of_plain_torch(plain, shape, dtype, seed, beta):
    x, last, r = (random(shape, dtype, seed + i) for i in range(3))
    used = torch.full_like(x, math.nan)
    forms = (extrapolate_, (x, last)), (extrapolate_q_, (used, x, last)), (extrapolate_z_, (x, last, r))
    for function, arrays in forms:
        ours, theirs = [y.clone() for y in arrays], [y.clone() for y in arrays]
        function(*ours, beta)
        plain(function, *theirs, beta)
        assert all(same_bits(one, other) for one, other in zip(ours, theirs, strict=True))
        assert not ours[0].isnan().any()


@needs_kernels
@RELAXED
@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), seed=st.integers(0, 999), power=st.integers(-30, 30))
def test_the_c_movement_is_that_of_plain_torch(plain, shape, dtype, seed, power):
    p, q, used = (random(shape, dtype, seed + i, 10.0**power) for i in range(3))
    assert movement(p, q, used) == pytest.approx(plain(movement, p, q, used), rel=1e-12)
    if q.numel():
        q[-1, -1] = math.nan
        assert math.isnan(movement(p, q, used))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("coded", [False, True])
def test_every_form_of_a_boundary_moves_alike(on_device, plain, dtype, coded):
    """In plain torch, in C and with the kernels: the same bits of all arrays while the betas are the same."""

    def run(device: str) -> tuple[list[float], list[torch.Tensor]]:
        h = random((19, 13), dtype, 1).to(device)
        momentum, betas = Momentum(h, coded), []
        for number in range(8):
            size = 0.7 ** (number % 5)  # the measure falls for a while, then rises
            p, q, own_q, u, z, r = (random((19, 13), dtype, 10 * number + i, size).to(device) for i in range(6))
            momentum.step(p, q, u)
            momentum.step_lower(own_q if coded else q, q, z, r)
            betas.append(momentum.beta)
        state = momentum.state()
        kept = [x for x in state.values() if isinstance(x, torch.Tensor)]
        return betas, [x.cpu() for x in (*kept, u, z, r)]

    before = len(on_device.launched)
    with StandIn():
        device = run(DEVICE)
    names = {"_".join(name.split("_")[:-2]) for name in on_device.launched[before:]}
    assert {"extrapolate", "extrapolate_q", "extrapolate_z", "movement"} <= names
    for betas, arrays in (run("cpu"), plain(run, "cpu")):
        assert betas == device[0]
        assert len(set(betas)) > 2
        assert all(same_bits(one, other) for one, other in zip(arrays, device[1], strict=True))
