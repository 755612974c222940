"""Training on a device: the stand-in finds the CPU's numbers, and nothing lies in the wrong memory."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi_launch import NEEDS_MPI, mpiexec
from stand_in_device import DEVICE, StandIn
from test_grid import make_problem
from thread_transport import going_astray, run_ranks

from pdadmm import PDADMMG, PDADMMGQ, InputError, Quantizer, csbm
from pdadmm.admm import solver as solver_module
from pdadmm.admm.problem import Problem
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.cli import main
from pdadmm.kernels import cpu, factor, fused, updates
from pdadmm.parallel import device as device_module
from pdadmm.parallel.transport import LocalTransport

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = {"layers": 4, "hidden": 6, "iterations": 2, "stages": (2, 4), "dtype": "float64"}
CASES = {
    "default": {},
    "float32": {"dtype": "float32", "mu": 1e-3},
    "gradient": {"form": "gradient", "first_layer": "gradient", "acceleration": "all-stages"},
    "kernel": {"first_layer": "kernel", "activation": "leaky_relu", "acceleration": "none"},
    "labels": {"initial": "labels", "first_layer": "cg", "acceleration": "all-stages"},
    "labels, gram": {"initial": "labels", "first_layer": "gram", "dtype": "float32"},
    "gram": {"first_layer": "gram", "loss": "squared_error", "rho_schedule": "stall"},
    "bf16x3": {"products": "bf16x3", "dtype": "float32"},
    "4 bits": {"quantizer": Quantizer(bits=4)},
    "1 bit, value": {"quantizer": Quantizer(bits=1, coding="value", error_feedback=True)},
    "8 bits, stochastic": {"quantizer": Quantizer(bits=8, rounding="stochastic", delta="message")},
    "16 bits, linspace": {
        "quantizer": Quantizer(bits=16, coding="value", delta="linspace", delta_low=-9, delta_high=9)
    },
    "0 bits": {"quantizer": Quantizer(bits=0), "loss": "squared_error"},
    "constrained": {"quantizer": Quantizer(bits=8, coding="constrained"), "loss": "squared_error"},
    # rho I + nu W^T W is singular in float32
    "backoff": {"form": "exact", "nu": 28.0, "rho": 1e-10, "on_divergence": "backoff", "dtype": "float32"}
    | {"loss": "squared_error"},
}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Let "cuda" be the stand-in; the augmentation on it has tests of its own, test_augment_device.py."""
    monkeypatch.setattr(solver_module, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr("pdadmm.admm.estimator.check_device", lambda name: None)
    monkeypatch.setattr(device_module, "own_device", lambda name: CPU)


@pytest.fixture
def plain(monkeypatch):
    """Plain torch on the CPU, too."""
    monkeypatch.setattr(updates, "_functions", {})
    monkeypatch.setattr(factor, "_inverse", {})
    monkeypatch.setattr(cpu, "_library", None)
    monkeypatch.setattr("pdadmm.admm.products.has_bf16", lambda: False)


def problem_of(case: str) -> Problem:
    problem = make_problem(
        3, 24, 10, 40 if case == "kernel" else 5, 3, getattr(torch, CASES[case].get("dtype", "float64"))
    )
    problem.logit_shift = torch.tensor([0.1, -0.2, 0.1], dtype=torch.float64) if case == "default" else None
    return problem


def settings_of(device: str, grid: str, parameters: dict) -> ADMMSettings:
    return ADMMSettings(**SMALL | parameters | {"device": device, "grid": grid}).checked()


def train_rank(problem: Problem, given: ADMMSettings, transport):
    """Train on one rank; return the history without times, and this rank's best weights."""
    own = copy.copy(problem)
    own.X = problem.X.clone() if transport.rank == 0 else None
    solver = ADMMSolver(own, given, transport).run()
    weights = solver.best_weights()
    assert all(type(x) is torch.Tensor and x.is_cpu for pair in weights.values() for x in pair)
    if solver.device.type != "cpu":
        assert own.X is None
        assert solver.builder.first is None or solver.builder.first.p.device == solver.device
    return [{**row, "seconds": 0} for row in solver.history], weights


def train(problem: Problem, device: str, grid: str = "1x1", **parameters):
    """Return the history without times, and all best weights, in main memory."""
    given = settings_of(device, grid, parameters)
    groups, shards = map(int, grid.split("x"))

    def work(transport):
        with StandIn():  # of this thread
            return train_rank(problem, given, transport)

    results = [work(LocalTransport())] if grid == "1x1" else run_ranks(groups * shards, work)
    assert all(history == results[0][0] for history, _ in results)
    weights = {layer: pair for _, own in results for layer, pair in own.items()}
    assert len(weights) == 4
    return results[0][0], weights


def assert_same(found, expected) -> None:
    assert found[0] == expected[0]
    for layer, pair in expected[1].items():
        assert all(torch.equal(a, b) for a, b in zip(found[1][layer], pair, strict=True)), layer


def assert_near(found, expected, tolerance: float) -> None:
    for row, due in zip(found[0], expected[0], strict=True):
        assert row == pytest.approx(due, rel=tolerance, abs=tolerance)
    for layer, pair in expected[1].items():
        torch.testing.assert_close(found[1][layer], pair, rtol=tolerance, atol=tolerance)


# The same numbers


@pytest.mark.parametrize("case", CASES)
def test_the_device_finds_the_bits_of_plain_torch(plain, case):
    problem = problem_of(case)
    found, expected = (train(problem, device, **CASES[case]) for device in ("cuda", "cpu"))
    assert_same(found, expected)
    if case == "backoff":
        assert found[0][-1]["rho"] > 1e-10


@pytest.mark.parametrize("cores", [True, False], ids=["tensor cores", "none"])
@pytest.mark.parametrize("name", ["tf32", "bf16", "bf16x3"])
@pytest.mark.parametrize("case", ["default", "gradient", "kernel", "labels, gram", "labels"])
def test_products_of_fewer_bits_find_the_bits_of_plain_torch(plain, monkeypatch, caplog, case, name, cores):
    """With tensor cores operands are bf16 arrays; TF32 the stand-in has none of."""
    if not cores:
        monkeypatch.setattr("pdadmm.admm.products.multiplies_bf16", lambda device: False)
    more = CASES[case] | {"products": name, "dtype": "float32"}
    problem = make_problem(3, 24, 10, 40 if case == "kernel" else 5, 3, torch.float32)
    caplog.set_level("INFO", "pdadmm")
    found = train(problem, "cuda", **more)
    assert ("in this device they take longer than full" in caplog.text) == (name == "tf32" or not cores)
    assert_same(found, train(problem, "cpu", **more))


@pytest.mark.parametrize("case", ["default", "gradient", "kernel", "4 bits"])
def test_the_compiled_updates_of_the_cpu_find_the_same_to_rounding(case):
    problem = problem_of(case)
    assert_near(*(train(problem, device, **CASES[case]) for device in ("cuda", "cpu")), tolerance=1e-6)


@pytest.mark.parametrize(
    ("case", "grid"),
    [
        *(("default", grid) for grid in ("2x1", "1x2", "2x2")),
        ("kernel", "1x2"),
        ("gradient", "2x2"),
        ("8 bits, stochastic", "2x2"),
        ("constrained", "2x1"),
    ],
)
def test_ranks_with_a_device_each_find_the_bits_of_as_many_on_the_cpu(plain, case, grid):
    problem = problem_of(case)
    more = CASES[case] | {"loss": "squared_error"}
    assert_same(*(train(problem, device, grid, **more) for device in ("cuda", "cpu")))


def test_a_value_that_went_astray_is_sent_whole(plain, monkeypatch):
    """The receiver's value is changed behind its back, once: both ends notice and agree again."""
    monkeypatch.setenv("PDADMM_CHECKSUMS", "1")
    changed = going_astray(monkeypatch)
    problem = problem_of("4 bits")
    more = CASES["4 bits"] | {"loss": "squared_error", "stages": (4,), "iterations": 8}
    results = []
    for device in ("cuda", "cpu"):
        results.append(train(problem, device, "2x1", **more))
        assert len(changed) == 2
        changed.clear()
    assert_same(*results)


@pytest.mark.parametrize("needs", [pytest.param(None, marks=NEEDS_MPI)])
def test_mpi_sees_main_memory_alone(needs):
    done = mpiexec(4, Path(__file__).with_name("mpi_device.py"))
    assert done.returncode == 0, done.stderr[-3000:]


# What crosses between the memories


def test_no_array_of_nodes_crosses_in_an_iteration(monkeypatch):
    """Objective, momentum and scores are sums on the device: three numbers at most come over at a time."""
    seen = []
    held = ADMMSolver._step
    with StandIn() as device:

        def step(*args):
            device.crossings.clear()
            held(*args)
            seen.append(list(device.crossings))

        monkeypatch.setattr(ADMMSolver, "_step", step)
        for case in ("default", "gradient", "4 bits", "constrained"):
            given = ADMMSettings(**SMALL | CASES[case] | {"device": "cuda"}).checked()
            ADMMSolver(problem_of(case), given, LocalTransport()).run()
    assert len(seen) == 4 * 4
    assert max((size for sizes in seen for size in sizes), default=0) <= 3


def test_stacked_layers_find_the_bits_of_plain_torch_and_their_sums_cross_at_once(plain, monkeypatch):
    monkeypatch.setattr("pdadmm.admm.builder.stacks_on", lambda device, transport: True)
    parameters, problem = {"layers": 6, "stages": (4, 6), "acceleration": "none"}, problem_of("default")
    given = settings_of("cuda", "1x1", parameters)
    with StandIn() as device:
        found = train_rank(problem, given, LocalTransport())
        solver = ADMMSolver(copy.copy(problem), given, LocalTransport())
        network = solver.builder.begin(0, 6)
        network.iterate()
        device.crossings.clear()
        network.iterate()
        assert set(device.crossings) <= {1}
        device.crossings.clear()
        assert len(network.terms()) == 6
        assert max(device.crossings) == 4 * 6  # of layers 2 to 5
    assert_same(found, train_rank(problem, settings_of("cpu", "1x1", parameters), LocalTransport()))


def test_the_stand_in_notices_what_lies_in_the_wrong_memory():
    with StandIn() as device:
        x, y = torch.zeros(3, 2, device=DEVICE), torch.zeros(3, 2)
        assert x.device == DEVICE
        assert not x.is_cpu
        for misuse in (lambda: x + y, lambda: torch.mm(y, y.mT, out=x[:, :1] @ x[:, :1].mT), x.numpy, x.data_ptr):
            with pytest.raises(AssertionError):
                misuse()
        view = x[1:]
        view.fill_(2.0)
        assert float(x.sum()) == 8.0
        assert torch.equal((x + 1.0).cpu(), torch.tensor([[1.0, 1], [3, 3], [3, 3]]))
        assert device.crossings == [6]
    assert not fused.updates_for(x)
    assert not factor.takes(x)
    assert not updates.takes(x)
    assert not cpu.takes(x)


# Checkpoints


GRAPH = csbm(60, num_classes=3, num_features=6, seed=5)
RUN = {"layers": 3, "hidden": 5, "iterations": 3, "hops": 1, "threads": 1}


@pytest.mark.parametrize("solver", [PDADMMG, PDADMMGQ])
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_on_another_device(plain, solver, devices, tmp_path):
    class StopError(Exception):
        pass

    def stop(row):
        if row["iteration"] == 6:
            raise StopError

    whole = solver(**RUN).fit(GRAPH)
    first, second = (solver(**RUN, device=device) for device in devices)
    with StandIn():
        with pytest.raises(StopError):
            first.fit(GRAPH, watch=stop, checkpoint=tmp_path, checkpoint_every=5)
        second.fit(GRAPH, checkpoint=tmp_path, checkpoint_every=5, resume=True)
    assert [{**row, "seconds": 0} for row in second.history_] == [{**row, "seconds": 0} for row in whole.history_]
    ours, theirs = second.model_.state_dict(), whole.model_.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert np.array_equal(second.predict(GRAPH), whole.predict(GRAPH))
    assert (whole.summary_["device"], second.summary_["device"]) == ("cpu", "meta" if devices[1] == "cuda" else "cpu")


# Elsewhere


@pytest.mark.parametrize("device", ["cuda", "auto", "cpu"])
def test_training_from_disk_stays_on_the_cpu(device, tmp_path):
    solver = PDADMMG(**RUN, device=device)
    if device == "cuda":
        with pytest.raises(InputError, match="device = cuda: must be cpu or auto with memory"):
            solver.fit(GRAPH, memory="1GiB", scratch=tmp_path)
    else:
        assert solver.fit(GRAPH, memory="1GiB", scratch=tmp_path).summary_["device"] == "cpu"


def test_the_command_line_has_the_flag(monkeypatch, tmp_path, capsys):
    monkeypatch.undo()
    words = ["train", "--dataset", "csbm:60", "--layers", "2", "--hidden", "4", "--iterations", "2", "--quiet"]
    assert main([*words, "--device", "auto", "--summary", str(tmp_path / "s.json")]) == 0
    if torch.cuda.is_available():
        assert json.loads((tmp_path / "s.json").read_text())["device"] == "cuda"
        return
    assert json.loads((tmp_path / "s.json").read_text())["device"] == "cpu"
    assert main([*words, "--device", "cuda"]) == 2
    assert "device = cuda: must be cpu or auto" in capsys.readouterr().err
    assert main([*words, "--device", "koala"]) == 2
    assert "one of cpu, cuda, auto" in capsys.readouterr().err
