"""Training on a real GPU: the numbers of the CPU, to rounding."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from backprop_small import ESTIMATORS
from direct_transport import DirectThreads
from test_admm_products import EPS, drawn
from test_baselines_device import CASES as BACKPROP_CASES
from test_baselines_device import SMALL as BACKPROP
from test_device import (
    CASES,
    GRAPH,
    RUN,
    assert_near,
    assert_same,
    make_problem,
    problem_of,
    settings_of,
    train_rank,
)
from test_disk_training import close
from thread_transport import ThreadTransport, run_ranks

from pdadmm import PDADMMG, PDADMMGQ, csbm
from pdadmm.admm import replay
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.packet import StagedPacket
from pdadmm.admm.products import PRODUCTS, CastProducts, Products, SetProducts, has_tf32, make_products, nearest_tf32
from pdadmm.admm.solver import ADMMSolver
from pdadmm.admm.stack import SETTING, Stack
from pdadmm.cli import main
from pdadmm.disk.storage import Blocks
from pdadmm.kernels import gpu, gpu_launch
from pdadmm.parallel.pinned import Pinned, whole_pages
from pdadmm.parallel.transport import LocalTransport

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
GPU = torch.device("cuda", 0)
UNQUANTIZED = [case for case in CASES if "quantizer" not in CASES[case] and case != "backoff"]


def tolerance(case: str) -> float:
    return 1e-7 if CASES[case].get("dtype", "float64") == "float64" else 1e-2


def test_cupy_runs_the_kernels_where_it_is_installed():
    assert gpu_launch.lacking(GPU) in (None, "CuPy is not installed")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("case", UNQUANTIZED)
def test_a_gpu_finds_the_numbers_of_the_cpu(monkeypatch, case, plain):
    if plain:
        monkeypatch.setattr(gpu, "available", lambda device: False)
    elif not gpu.available(GPU):
        pytest.skip(gpu_launch.lacking(GPU))
    runs = [train_rank(problem_of(case), settings_of(device, "1x1", CASES[case]), LocalTransport())
            for device in ("cuda", "cpu")]  # fmt: skip
    assert_near(*runs, tolerance(case))


def test_stacked_layers_find_the_numbers_of_one_after_the_other(monkeypatch):
    parameters = {"layers": 6, "stages": (4, 6), "acceleration": "none"}
    runs = []
    for setting in ("1", "0"):
        monkeypatch.setenv(SETTING, setting)
        given = settings_of("cuda", "1x1", parameters)
        runs.append(train_rank(problem_of("default"), given, LocalTransport()))
        network = ADMMSolver(problem_of("default"), given, LocalTransport()).builder.begin(0, 6)
        assert any(isinstance(unit, Stack) for unit in network.units) == (setting == "1")
    assert_near(*runs, tolerance("default"))


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_iterations_repeated_as_a_graph_find_the_numbers_of_launched_ones(monkeypatch, caplog, first_layer):
    if not gpu.available(GPU):
        pytest.skip(gpu_launch.lacking(GPU))
    parameters = {"layers": 6, "stages": (6,), "acceleration": "none", "iterations": 12, "first_layer": first_layer}
    replayed, runs = [], []
    repeat = replay.Replay._replay
    monkeypatch.setattr(replay.Replay, "_replay", lambda own, graph: replayed.append(graph) or repeat(own, graph))
    caplog.set_level(logging.INFO, "pdadmm")
    for setting in ("1", "0"):
        monkeypatch.setenv(replay.SETTING, setting)
        runs.append(train_rank(problem_of("default"), settings_of("cuda", "1x1", parameters), LocalTransport()))
    assert not [told for told in caplog.messages if "CUDA graph" in told]  # that is not made, or not used
    assert len(replayed) == replay.TRIED + 12 - replay.STEADY
    assert len(set(replayed)) == 1
    assert_near(*runs, tolerance("default"))


@pytest.mark.parametrize("case", [case for case in CASES if "quantizer" in CASES[case]])
def test_quantized_messages_train_alike(case):
    """A code may round the other way, and what follows with it."""
    runs = [train_rank(problem_of(case), settings_of(device, "1x1", CASES[case]), LocalTransport())
            for device in ("cuda", "cpu")]  # fmt: skip
    (found, _), (expected, _) = runs
    assert found[0]["objective"] == pytest.approx(expected[0]["objective"], rel=1e-3)
    assert found[-1]["objective"] == pytest.approx(expected[-1]["objective"], rel=0.1)


@pytest.mark.parametrize("grid", ["2x1", "1x2", "2x2"])
@pytest.mark.parametrize("case", ["default", "gradient", "8 bits, stochastic"])
def test_ranks_share_gpus(case, grid):
    """Threads stand for ranks; their messages go through pinned memory."""
    groups, shards = map(int, grid.split("x"))
    given = settings_of("cuda", grid, CASES[case])
    results = run_ranks(groups * shards, lambda transport: train_rank(problem_of(case), given, transport))
    assert all(history == results[0][0] for history, _ in results)
    alone = train_rank(problem_of(case), settings_of("cuda", "1x1", CASES[case]), LocalTransport())
    ours = results[0][0][-1]["objective"]
    assert ours == pytest.approx(alone[0][-1]["objective"], rel=0.1 if "bits" in case else 1e-7)


def without_bytes(results):
    """Return the history, which tells what was sent, without that; and all ranks' weights."""
    history = [{**row, "bytes": 0} for row in results[0][0]]
    return history, {layer: pair for _, own in results for layer, pair in own.items()}


@pytest.mark.parametrize("kind", [ThreadTransport, DirectThreads])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", ["default", "gradient", "8 bits, stochastic"])
def test_ranks_on_gpus_of_one_model_find_the_bits_of_one_process(monkeypatch, case, ranks, kind):
    """With the messages of each on a stream beside its work, staged and direct; layer after layer, in both."""
    monkeypatch.setenv(SETTING, "0")
    given = settings_of("cuda", f"{ranks}x1", CASES[case])
    results = run_ranks(ranks, lambda transport: train_rank(problem_of(case), given, transport), kind)
    alone = train_rank(problem_of(case), settings_of("cuda", "1x1", CASES[case]), LocalTransport())
    assert_same(without_bytes(results), without_bytes([alone]))


def test_copies_wait_for_the_work_and_the_work_for_copies():
    """The program waits for neither until MPI is to have a buffer."""
    filled, found = (torch.zeros(1 << 18, device=GPU) for _ in range(2))
    sent, came = StagedPacket(filled), StagedPacket(found)
    delay, seen = 200_000_000, []  # cycles
    for number in range(1, 5):
        torch.cuda._sleep(delay)
        filled.fill_(number)
        sent.before_send()
        assert not sent.released.query()
        torch.cuda._sleep(delay)
        seen.append(found.clone())  # the last reader
        came.before_receive()
        for packet in (sent, came):
            packet.released.synchronize()
        came.buffer.copy_(sent.buffer)  # MPI's part
        came.after_receive()
        assert not came.released.query()
        seen.append(found.clone())
    assert [x.unique().tolist() for x in seen] == [[n] for number in range(1, 5) for n in (number - 1, number)]


@pytest.mark.parametrize("solver", [PDADMMG, PDADMMGQ])
def test_an_estimator_and_its_checkpoints(solver, tmp_path):
    whole = solver(**RUN, device="cuda").fit(GRAPH)
    assert whole.summary_["device"] == "cuda"
    solver(**RUN, device="cuda").fit(GRAPH, checkpoint=tmp_path, checkpoint_every=4)
    again = solver(**RUN, device="cpu").fit(GRAPH, checkpoint=tmp_path, resume=True)  # its end is all that is left
    assert np.array_equal(again.predict(GRAPH), whole.predict(GRAPH))
    assert solver(**RUN, device="auto").fit(GRAPH).summary_["device"] == "cuda"


# Number formats of products


needs_cores = pytest.mark.skipif(
    not (torch.cuda.is_available() and has_tf32(GPU)), reason="needs a GPU of compute capability 8"
)
SHAPES = [(1, 1, 1), (1, 7, 5), (9, 1, 1), (0, 4, 3), (5, 0, 3), (33, 17, 65), (400, 512, 96), (64, 3000, 64)]


def sums(k: int) -> float:
    """How far k products of a tensor core may add up from the truth, beside the sum of their sizes."""
    return 8 * (k + 8) * EPS


@needs_cores
@pytest.mark.parametrize(("name", "form"), [("tf32", SetProducts), ("bf16", CastProducts), ("bf16x3", CastProducts)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_on_tensor_cores_are_those_of_the_cpu(name, form, shape):
    """TF32 may be rounded to nearest or cut off there: 2^-10 an operand; operands of 11 bits leave no choice."""
    m, k, n = shape
    any_A, any_B, C, row = drawn(0, m, k), drawn(1, k, n), drawn(2, m, n), drawn(3, n)
    native, plain = make_products(name, GPU), Products(name)
    assert type(native) is form
    loose = 2.01 * 2.0**-10 if name == "tf32" else 0.0
    for own, A, B in ((loose, any_A, any_B), (0.0, nearest_tf32(any_A), nearest_tf32(any_B))):
        here = [x.to(GPU) for x in (A, B, C, row)]
        product, size = sum_of(plain, A, B)
        strided, other = torch.empty(2, m, 2 * n, device=GPU)[:, :, :n].unbind()
        for found, due, limit in (
            (native.mm(here[0], here[1]), product, size),
            (native.mm(here[0].mT.contiguous().mT, here[1], out=strided), product, size),
            (native.addmm(here[2], here[0], here[1], -2.0, 0.5), 0.5 * product - 2.0 * C, size + 2 * C.abs()),
            (native.addmm(here[3], here[0], here[1], out=other), product + row, size + row.abs()),
        ):
            assert found.dtype == torch.float32
            assert bool(((found.cpu().double() - due).abs() <= (own + sums(k)) * limit + 1e-37).all())


def sum_of(form: Products, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a format makes of A B, with sums in float64, and the sum of the sizes of the products."""
    P, Q = ([part.double() for part in form.parts(x)] for x in (A, B))
    product = P[0] @ Q[0]
    if len(P) == 2:
        product += P[0] @ Q[1] + P[1] @ Q[0]
    return product, A.double().abs() @ B.double().abs()


@needs_cores
def test_tf32_is_asked_for_and_full_is_not_touched_by_it():
    setting = torch.backends.cuda.matmul
    before, (A, B) = setting.fp32_precision, (drawn(seed, 1024, 1024).to(GPU) for seed in (0, 1))
    try:
        setting.fp32_precision = "ieee"
        full = torch.mm(A, B)
        assert not torch.equal(make_products("tf32", GPU).mm(A, B), full)
        assert torch.equal(torch.mm(A, B), full)
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize("more", [{}, {"form": "gradient", "first_layer": "gradient"}], ids=["exact", "gradient"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_training_in_every_number_format(monkeypatch, name, more):
    """The CPU rounds and multiplies in float32; a sum in another order may round the next operand the other way."""
    monkeypatch.setattr("pdadmm.admm.products.has_bf16", lambda: False)
    own = more | {"products": name, "dtype": "float32"}
    problem = make_problem(3, 24, 10, 5, 3, torch.float32)
    runs = [train_rank(problem, settings_of(device, "1x1", own), LocalTransport()) for device in ("cuda", "cpu")]
    (found, weights), (expected, theirs) = runs
    for row, due in zip(found, expected, strict=True):
        assert row["objective"] == pytest.approx(due["objective"], rel=1e-2)
    for layer, pair in theirs.items():
        torch.testing.assert_close(weights[layer], pair, rtol=1e-2, atol=1e-2)


def test_full_is_full_where_torch_was_told_tf32():
    setting = torch.backends.cuda.matmul
    before, runs = setting.fp32_precision, []
    try:
        for told in ("ieee", "tf32"):
            setting.fp32_precision = told
            runs.append(PDADMMG(**RUN, device="cuda").fit(GRAPH))
            assert setting.fp32_precision == told
    finally:
        setting.fp32_precision = before
    assert runs[0].history_.column("objective") == runs[1].history_.column("objective")


# A limit on device memory


STREAMED = {
    "default": {},
    "gradient": {"form": "gradient", "first_layer": "gradient", "acceleration": "all-stages"},
    "leaky": {"activation": "leaky_relu", "rho_schedule": "stall", "loss": "squared_error"},
}


@pytest.mark.parametrize("block", [1, 7, 60])
@pytest.mark.parametrize("case", STREAMED)
def test_blocks_that_pass_through_a_gpu_find_the_numbers_of_the_cpu(monkeypatch, tmp_path, case, block):
    monkeypatch.setattr(Blocks, "nodes", lambda self, memory: block)
    more = RUN | STREAMED[case] | {"dtype": "float64"}
    expected = PDADMMG(**more | {"first_layer": more.get("first_layer", "gram")}).fit(GRAPH)
    found = PDADMMG(**more, device="cuda", device_memory="1GiB").fit(GRAPH, checkpoint=tmp_path, checkpoint_every=4)
    assert (found.summary_["device"], found.summary_["block_nodes"]) == ("cuda", block)
    close(expected, found, 1e-7)
    again = PDADMMG(**more, device="cuda", device_memory="1GiB").fit(GRAPH, checkpoint=tmp_path, resume=True)
    assert np.array_equal(again.predict(GRAPH), found.predict(GRAPH))


@pytest.mark.parametrize("acceleration", ["none", "all-stages"])
def test_the_limit_holds_where_the_state_is_larger(acceleration):
    graph = csbm(60_000, num_classes=8, num_features=40, avg_degree=4, seed=0)
    more = {"layers": 4, "hidden": 200, "hops": 4, "iterations": 2, "acceleration": acceleration, "eval_every": 2}
    limit, before = 256 << 20, torch.cuda.memory_allocated()
    found = PDADMMG(**more, device="cuda", device_memory=limit).fit(graph)
    told = found.summary_
    assert told["state_bytes"] > 160 << 20
    assert told["block_nodes"] < len(graph.splits["train"]) // 2
    assert 0 < told["device_memory_peak_bytes"] <= limit
    assert torch.cuda.max_memory_allocated() - before <= limit
    whole = PDADMMG(**more, device="cuda", first_layer="gram").fit(graph)
    for ours, theirs in zip(found.history_, whole.history_, strict=True):
        assert ours["objective"] == pytest.approx(theirs["objective"], rel=1e-2)


def test_memory_is_pinned_where_it_lies():
    x = whole_pages(1000, 3, torch.float32)
    pinned = Pinned(torch.device("cuda", 0))
    assert not x.is_pinned()
    pinned.pin(x)
    # is_pinned asks for the storage's first byte, which for x lies on the page before its own
    lies, inside = torch.from_numpy(x.numpy()), torch.from_numpy(x[10:20].numpy())
    assert lies.is_pinned()
    assert inside.is_pinned()
    pinned.release()
    assert not lies.is_pinned()


def test_out_of_memory_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(
        "pdadmm.graph_classifier.GraphClassifier.fit", lambda *args, **more: torch.empty(1 << 50, device="cuda")
    )
    assert main(["train", "--dataset", "csbm:60", "--layers", "2", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "memory = 4194304.00 GiB in one piece" in err
    assert "free of" in err
    assert err.count("\n") == 1


# Backpropagation


@pytest.mark.parametrize("case", ["growth", "batches", "squared error"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda row: row.__name__)
def test_backpropagation_finds_the_numbers_of_the_cpu(estimator, case, tmp_path):
    parameters = BACKPROP | BACKPROP_CASES[case] | {"hops": 1}
    found, expected = (estimator(**parameters, device=device).fit(GRAPH) for device in ("cuda", "cpu"))
    assert found.summary_["device"] == "cuda"
    bound = 1e-3 if parameters["dtype"] == "float32" else 1e-8
    assert found.history_.column("objective") == pytest.approx(expected.history_.column("objective"), rel=bound)
    estimator(**parameters, device="cuda").fit(GRAPH, checkpoint=tmp_path, checkpoint_every=2)
    again = estimator(**parameters, device="cpu").fit(GRAPH, checkpoint=tmp_path, resume=True)
    assert np.array_equal(again.predict(GRAPH), found.predict(GRAPH))
