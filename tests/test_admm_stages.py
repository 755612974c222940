"""Stages and the model kept, what ends them, and what evaluation costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from admm_small import Recorder, fit, small_graph, without_validation

from pdadmm import PDADMMG
from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.estimator import PDADMMG as Estimator
from pdadmm.admm.schedule import FixedRho, StallRho
from pdadmm.admm.settings import default_stages
from pdadmm.data import Graph
from pdadmm.errors import InputError


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# Stages and the model kept


def test_default_stages():
    assert [default_stages(layers) for layers in (1, 2, 3, 4, 5, 10, 11)] == [
        (1,), (2,), (2, 3), (2, 4), (2, 3, 5), (2, 5, 10), (2, 6, 11),
    ]  # fmt: skip


def test_stages_run_in_order_and_rows_are_numbered(graph):
    trained = fit(graph, layers=5, stages="2,3,5", iterations=3)
    assert trained.history_.column("layers") == [2] * 3 + [3] * 3 + [5] * 3
    assert trained.history_.column("stage") == [0] * 3 + [1] * 3 + [2] * 3
    assert trained.history_.column("iteration") == list(range(1, 10))
    assert [stage["layers"] for stage in trained.stages_] == [2, 3, 5]
    assert [stage["iterations"] for stage in trained.stages_] == [3, 3, 3]
    assert trained.summary_["iterations"] == 9
    seconds = trained.history_.column("seconds")
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    assert trained.summary_["seconds_training"] >= seconds[-1]


@pytest.mark.parametrize("seed", range(4))
def test_the_model_is_the_best_full_depth_iteration(graph, monkeypatch, seed):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 4), iterations=6, seed=seed, nu=0.1)
    last = trained.stages_[-1]
    full = [row for row in trained.history_ if row["layers"] == 4]
    key = max((row["val_accuracy"], -row["val_loss"]) for row in full)
    best = next(row for row in full if (row["val_accuracy"], -row["val_loss"]) == key)
    assert last["best_iteration"] == best["iteration"]
    assert best["iteration"] > 6  # not the moment of insertion
    for name in ("train", "val", "test"):
        assert last[f"{name}_accuracy"] == best[f"{name}_accuracy"] == trained.summary_[f"{name}_accuracy"]
        assert trained.score(graph, split=name) == pytest.approx(best[f"{name}_accuracy"])
    logits = seen.logits[best["iteration"] + 1]
    rows = np.concatenate([graph.splits[name] for name in ("train", "val", "test")])
    with torch.no_grad():
        ours = trained.model_(torch.from_numpy(trained.augmenter_.transform(graph, rows=rows)))
    torch.testing.assert_close(ours, logits, rtol=1e-3, atol=1e-3)
    assert len(trained.model_.layers) == 4


def test_the_next_stage_starts_from_the_best_weights(graph, monkeypatch):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 4), iterations=40, prox_W=0.0)
    best = trained.stages_[0]["best_iteration"]
    assert best < 40, "this run no longer has its best iteration before the stage's end"
    assert not torch.equal(seen.logits[best], seen.logits[40])
    torch.testing.assert_close(seen.logits[41], seen.logits[best])


def test_without_validation_nodes_the_last_iteration_is_kept(graph):
    trained = fit(without_validation(graph), iterations=5)
    assert trained.stages_[-1]["best_iteration"] == 10
    assert trained.summary_["val_accuracy"] is None
    assert "val_accuracy" not in trained.history_[0]


# Stopping


def test_the_time_limit_gives_each_stage_its_share(graph):
    trained = fit(graph, layers=5, iterations=50, max_seconds=1e-9)
    assert [stage["iterations"] for stage in trained.stages_] == [1, 1, 1]
    assert len(trained.model_.layers) == 5
    assert fit(graph, iterations=3, max_seconds=1e9).summary_["iterations"] == 6


class TickingClock:
    """A clock on which whatever is timed takes one second."""

    def __init__(self, wait) -> None:
        self.seconds = 0.0

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.seconds += 1.0


def test_each_stage_ends_with_its_share_of_the_time(graph, monkeypatch):
    monkeypatch.setattr("pdadmm.admm.solver.Clock", TickingClock)
    trained = fit(graph, layers=5, iterations=50, max_seconds=30)
    for stage in range(3):
        seconds = [row["seconds"] for row in trained.history_ if row["stage"] == stage]
        assert seconds[-1] >= 10 * (stage + 1)
        assert seconds[-2] < 10 * (stage + 1)


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_tol_ends_a_stage_when_p_meets_q(graph, acceleration):
    more = {"acceleration": acceleration, "dtype": "float64", "rho": 2.0}
    for tol in (1e9, 0.02):
        trained = fit(graph, iterations=60, tol=tol, **more)
        for stage in range(2):
            rows = [row for row in trained.history_ if row["stage"] == stage]
            met = [row["residual_link"] <= tol**2 * row["q_squared"] for row in rows]
            assert not any(met[:-1])
            assert met[-1] or len(rows) == 60
    assert len(rows) < 60  # the second limit was met before the end
    assert fit(graph, iterations=4, tol=1e-30, **more).summary_["iterations"] == 8


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_patience_ends_a_stage_without_progress(graph, acceleration):
    trained = fit(graph, iterations=300, patience=5, acceleration=acceleration)
    for stage, summary in enumerate(trained.stages_):
        rows = [row for row in trained.history_ if row["stage"] == stage]
        assert len(rows) == summary["iterations"] < 300
        assert rows[-1]["iteration"] - summary["best_iteration"] == 5


def test_patience_counts_iterations_when_evaluations_are_rare(graph):
    trained = fit(graph, iterations=300, patience=7, eval_every=3)
    for stage, summary in enumerate(trained.stages_):
        last = max(row["iteration"] for row in trained.history_ if row["stage"] == stage)
        assert last - summary["best_iteration"] >= 7
        assert summary["iterations"] < 300


def test_patience_needs_validation_nodes(graph):
    with pytest.raises(InputError, match="patience"):
        fit(without_validation(graph), patience=3)


def test_the_stall_schedule_raises_rho_tenfold():
    schedule = StallRho()
    costs = [10.0, 9.0, 9.0, 8.9999, 8.0, 8.0, 9.0, 9.0, 9.0]
    found = []
    rho = 0.05
    for cost in costs:
        rho = schedule.next(rho, cost)
        found.append(rho)
    assert found == pytest.approx([0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0])
    assert StallRho().next(3.0, 1.0) == 3.0
    assert FixedRho().next(0.2, 5.0) == 0.2


def test_the_schedule_acts_while_training(graph):
    trained = fit(graph, iterations=60, rho=0.01, rho_schedule="stall")
    rhos = trained.history_.column("rho")
    assert rhos[0] == 0.01
    assert sorted(rhos) == rhos
    assert set(np.round(rhos, 9)) <= {0.01, 0.1, 1.0}
    assert len(set(fit(graph, iterations=5, rho=0.01).history_.column("rho"))) == 1


# Evaluation


def test_eval_every(graph):
    trained = fit(graph, iterations=7, eval_every=3)
    evaluated = [row["iteration"] for row in trained.history_ if "val_accuracy" in row]
    assert evaluated == [3, 6, 7, 10, 13, 14]
    assert {stage["best_iteration"] for stage in trained.stages_} <= set(evaluated)


def test_evaluation_does_not_change_the_trajectory(graph):
    graph = without_validation(graph)
    for form in ("exact", "gradient"):
        one, other = (fit(graph, iterations=10, eval_every=every, form=form).model_.state_dict() for every in (1, 5))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_history_without_accuracies_is_the_same(graph):
    graph = without_validation(graph)
    names = ("iteration", "stage", "layers", "objective", "lagrangian", "residual_link", "rho", "bytes")
    histories = [fit(graph, iterations=6, eval_every=every).history_ for every in (1, 4)]
    for name in names:
        assert histories[0].column(name) == histories[1].column(name)


# Settings that depend on one another


@pytest.mark.parametrize("stages", [(2, 4), (5, 10), "2,5"])
def test_stages_must_end_at_the_depth(stages):
    with pytest.raises(InputError, match="stages"):
        PDADMMG(layers=3, stages=stages).checked()


def test_stages_of_a_deep_network_start_at_two():
    with pytest.raises(InputError, match="stages"):
        PDADMMG(layers=3, stages=(1, 3)).checked()
    assert PDADMMG(layers=1, stages=[1]).checked().stages == (1,)


def test_rho_defaults_to_nu():
    assert PDADMMG(nu=0.7).checked().rho == 0.7
    assert PDADMMG(nu=0.7, rho=0.2).checked().rho == 0.2
    assert Estimator is PDADMMG
