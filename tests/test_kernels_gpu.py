"""The CUDA kernels on a real GPU: the emulator's cases, and what only a GPU shows (streams, graphs, 64-bit sizes)."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import cases, factor_cases, sum_cases

from pdadmm.admm.updates import cholesky, spd_inverse, spd_solve
from pdadmm.kernels import cpu, gpu, gpu_factor, gpu_launch, gpu_sums
from pdadmm.quantize import Codec, make_grid

WHY = gpu_launch.lacking(torch.device("cuda", 0))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY is not None, reason=f"needs a CUDA GPU and CuPy: {WHY}"),
]


@pytest.mark.parametrize(("check", "args"), [*cases.ALL, *sum_cases.ALL, *factor_cases.ALL])
def test_kernel(monkeypatch, check, args):
    cases.plain_codec(monkeypatch)
    check("cuda", *args)


def wide_inputs(V: int = 3000, n: int = 100) -> list[torch.Tensor]:
    return [cases.random((V, n), torch.float32, seed).cuda() for seed in range(5)]


def one_of_each(arrays: list[torch.Tensor], packed: torch.Tensor) -> None:
    """Start a z-, q-, u- and p-step, a message and its decoding, a Newton solve, and the extrapolations."""
    z, r, a, q, u = arrays
    (V, n), grid = z.shape, make_grid("column", 1)
    gpu.update_z_(z, r, a, q, 0.1)
    gpu.update_q_u_(q, u, a, z, 0.3, 1.0)
    gpu.step_p_(z, r, a, q, 0.3, 1.0)
    gpu.encode(u, r, r, packed, V, n, grid, True, (1, 2), 0)
    gpu.decode(packed, a, True, V, n, grid)
    gpu.softmax_newton_(z, a, torch.zeros(V, dtype=torch.int64, device="cuda"), 0.3)
    gpu.extrapolate_q_(r, q, z, 0.4)
    gpu.extrapolate_z_(z, a, u, 0.4)
    gpu.extrapolate_(q, u, 0.4)


def test_a_graph_captures_the_kernels_and_replays_them():
    """Capture fails on any call that waits for the device or leaves torch's current stream."""
    arrays = wide_inputs()
    packed = torch.zeros(Codec(make_grid("column", 1)).nbytes(arrays[0].shape), dtype=torch.uint8, device="cuda")
    start = [x.clone() for x in arrays]
    one_of_each(arrays, packed)
    expected = [x.clone() for x in arrays]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_of_each(arrays, packed)
    for _ in range(2):
        for x, x_0 in zip(arrays, start):
            x.copy_(x_0)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(arrays, expected))


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_a_graph_captures_inverses_and_solves(dtype):
    """By the functions that the updates call; of one matrix without a factor, too, which no host has to hear of."""
    sizes = (40, factor_cases.LARGEST[dtype])  # less and more shared memory than a kernel has unasked
    systems = [factor_cases.systems(2, m, dtype, 100.0).cuda() for m in sizes]
    given = [(A, factor_cases.rows(2, 50, A.shape[-1], dtype).cuda()) for A in systems]
    assert all(gpu_factor.takes(A, B) for A, B in given)

    def all_of_them() -> list[torch.Tensor]:
        return [x for A, B in given for x in (spd_inverse(A, 0.5, 0.1), spd_solve(A, B), spd_solve(A[0], B[0]))]

    all_of_them()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = all_of_them()
    for bad in (False, True):
        for A, _ in given:
            A[1] *= -1.0 if bad else 2.0
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(found, all_of_them(), strict=True) if not (bad and x.dim() == 3))
        assert all(bool(x[1].isnan().all()) == bad for x in found if x.dim() == 3)


def test_work_goes_to_the_current_stream():
    right, q, u = wide_inputs()[:3]
    expected = right + 2.0 * q - u
    gpu.assemble_p_(right.clone(), q, u, 2.0)  # loads the module
    late = torch.zeros_like(right)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(right)
        gpu.assemble_p_(late, q, u, 2.0)  # on another stream it would come before the copy
    stream.synchronize()
    torch.testing.assert_close(late, expected)


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_sums_of_large_arrays_have_the_same_bits_each_time(dtype):
    """More numbers than the blocks take in one stride; beside another kernel, and for arrays that start elsewhere."""
    count = 3 * gpu_sums.BLOCKS * gpu_launch.THREADS * gpu_sums.PACKS * 4 + 1237
    p, q, u, z = given = [torch.randn(count, dtype=dtype, device="cuda") for _ in range(4)]
    found = sum_cases.found_sums(*given, 0.01)
    expected = sum_cases.expected_sums(*given, 0.01)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(expected))
    moved = [torch.empty(count + 1, dtype=dtype, device="cuda")[1:].copy_(x) for x in given]
    stream, other = torch.cuda.Stream(), torch.zeros(1 << 26, device="cuda")
    torch.cuda.synchronize()
    for arrays in (given, given, moved):
        with torch.cuda.stream(stream):
            for _ in range(20):
                other.add_(1.0)
        assert sum_cases.found_sums(*arrays, 0.01) == found
    assert gpu.link_sums(p, p, u)[:2] == [0.0, 0.0]
    assert gpu.distance(q, q, 1.0) == gpu.movement(z, z, z) == 0.0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch's word on its first use
@pytest.mark.parametrize("batch", [(), (4,)])
def test_a_factor_does_not_wait_for_the_device(batch):
    A = torch.eye(40).repeat(*batch, 1, 1) + 0.1
    A[(0,) * len(batch)][3, 3] = -1.0
    there = A.cuda()
    cholesky(there)  # starts cuSOLVER
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = cholesky(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), cholesky(A), equal_nan=True)


def test_the_message_is_that_of_the_c_codec():
    if not cpu.available():
        pytest.skip("the C kernels are not built")
    x, reference = torch.randn(5000, 512), torch.randn(5000, 512)
    for bits in (1, 2, 4, 8, 16):
        codec = Codec(make_grid("column", bits), "stochastic")
        value = reference.clone()
        sent = codec.encode(x, cases.KEY, reference=value, value=value)
        value_ = reference.cuda()
        packed = torch.empty(sent.numel(), dtype=torch.uint8, device="cuda")
        words = cases.seed_words(cases.KEY)
        status = gpu.encode(x.cuda(), value_, value_, packed, 5000, 512, codec.grid, True, words, 0)
        assert status.item() == 0
        assert torch.equal(packed.cpu(), sent)
        assert torch.equal(value_.cpu(), value)


def test_more_numbers_than_32_bits_count():
    count = 2**31 + 4099
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    u = torch.full((count,), 1.0, device="cuda")
    p = torch.full((count,), 3.0, device="cuda")
    gpu.update_u_(u, p, u, 2.0)
    assert bool((u == 5.0).all())
    assert gpu.square(u) == 25.0 * count
    assert gpu.movement(p, u, p) == 8.0 * count
    grid, columns = make_grid("message", 4), 1
    u[-1] = 20.0
    packed = torch.empty(Codec(grid).nbytes((count,)), dtype=torch.uint8, device="cuda")
    assert gpu.encode(u, None, u, packed, count, columns, grid, False, (0, 0), 0).item() == 0
    p.zero_()
    assert gpu.decode(packed, p, False, count, columns, grid).item() == 0
    assert torch.equal(p, u)
    assert u[-1].item() == 20.0
