"""Backpropagation on a device: the stand-in finds the CPU's numbers, and nothing lies in the wrong memory."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from backprop_small import ESTIMATORS
from stand_in_device import DEVICE, DeviceTensor, StandIn
from test_grid import make_problem
from thread_transport import run_ranks

from pdadmm import Adam, InputError, csbm
from pdadmm.baselines import backprop
from pdadmm.baselines.backprop import BackpropSolver
from pdadmm.baselines.estimator import device_of
from pdadmm.parallel.transport import LocalTransport

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = {"layers": 4, "hidden": 6, "iterations": 4, "dtype": "float64"}
CASES = {
    "default": {},
    "growth": {"stages": (2, 4), "initial": "identity"},
    "growth, leaky": {"stages": (2, 3, 4), "activation": "leaky_relu"},
    "batches": {"batch_size": 7, "dropout": 0.3},
    "squared error": {"loss": "squared_error", "dropout": 0.5, "dtype": "float32"},
}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Let "cuda" be the stand-in, for training alone."""
    monkeypatch.setattr(backprop, "choose_device", lambda name, *_, **__: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr("pdadmm.baselines.estimator.check_device", lambda name: None)
    monkeypatch.setattr("pdadmm.parallel.device.own_device", lambda name: CPU)


def train(estimator, device: str, ranks: int = 1, **parameters):
    """Return the history without times, and the weights in main memory."""
    settings = estimator(**SMALL | parameters, device=device).checked()
    problem = make_problem(3, 20, 8, 5, 3, getattr(torch, settings.dtype))
    problem.logit_shift = torch.tensor([0.1, -0.2, 0.1], dtype=torch.float64)

    def work(transport):
        own = dataclasses.replace(copy.copy(problem), X=problem.X.clone() if transport.rank == 0 else None)
        with StandIn():
            solver = BackpropSolver(own, settings, transport, settings.optimizer).run()
            assert solver.summary()["device"] == ("meta" if device == "cuda" else "cpu")
            assert all(isinstance(weight, DeviceTensor) == (device == "cuda") for weight in solver.weights)
            assert device == "cpu" or own.X is None
            return [{**row, "seconds": 0} for row in solver.history], [w.detach().cpu() for w in solver.weights]

    results = [work(LocalTransport())] if ranks == 1 else run_ranks(ranks, work)
    for history, weights in results[1:]:
        assert history == results[0][0]
        assert all(torch.equal(*pair) for pair in zip(weights, results[0][1], strict=True))
    return results[0]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda row: row.__name__)
def test_the_device_finds_the_numbers_of_the_cpu(estimator, case, ranks):
    (found, ours), (expected, due) = (train(estimator, device, ranks, **CASES[case]) for device in ("cuda", "cpu"))
    tolerance = 1e-4 if CASES[case].get("dtype") == "float32" else 1e-9
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    for weight, other in zip(ours, due, strict=True):
        torch.testing.assert_close(weight, other, rtol=tolerance, atol=tolerance)


def test_nothing_of_the_nodes_crosses_in_a_pass_over_all_of_them():
    settings = Adam(**SMALL, device="cuda").checked()
    with StandIn() as device:
        solver = BackpropSolver(make_problem(3, 20, 8, 5, 3), settings, LocalTransport(), settings.optimizer)
        solver._start(4)
        for _ in range(2):
            device.crossings.clear()
            solver._pass(1)
            assert max(device.crossings, default=0) <= 1


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda row: row.__name__)
def test_a_checkpoint_goes_on_on_another_device(estimator, devices, tmp_path):
    class StopError(Exception):
        pass

    def stop(row):
        if row["iteration"] == 6:
            raise StopError

    graph = csbm(60, num_classes=3, num_features=6, seed=5)
    run = {"layers": 3, "hidden": 5, "stages": (2, 3), "iterations": 4, "hops": 1, "dtype": "float64"}
    whole = estimator(**run).fit(graph)
    with StandIn():
        with pytest.raises(StopError):
            estimator(**run, device=devices[0]).fit(graph, checkpoint=tmp_path, checkpoint_every=2, watch=stop)
        again = estimator(**run, device=devices[1]).fit(graph, checkpoint=tmp_path, resume=True)
    assert again.history_.column("objective") == pytest.approx(whole.history_.column("objective"), rel=1e-9)
    assert all(type(weight) is torch.nn.Parameter and weight.is_cpu for weight in again.model_.parameters())
    for found, expected in zip(again.model_.parameters(), whole.model_.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert np.array_equal(again.predict(graph), whole.predict(graph))


# Without a device


def test_weights_say_where_they_lie():
    weight = torch.zeros(2)
    assert device_of([weight]) == device_of([{"params": [weight]}]) == "cpu"
    for estimator in ESTIMATORS:
        (group,) = estimator().checked().optimizer([weight]).param_groups
        assert group.get("fused") or not group["foreach"]


def test_cuda_without_a_gpu_is_an_error(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.undo()
    with pytest.raises(InputError, match="device = cuda: must be cpu or auto"):
        Adam(device="cuda").fit(csbm(60, num_classes=3, num_features=6, seed=5))
    assert Adam(device="auto", layers=2, iterations=1, hops=1).fit(csbm(60, 3, 6)).summary_["device"] == "cpu"
