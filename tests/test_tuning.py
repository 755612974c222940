"""The random search: what it draws, what it keeps fixed, what it may not see."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pdadmm import InputError, csbm
from pdadmm.admm.settings import default_stages
from pdadmm.data.splits import generator
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class
from pdadmm.tuning import SPACES, Batch, Choice, Growth, LogUniform, Setting, best_trial, trial_parameters, tune

SMALL = {"layers": 3, "hidden": 8, "hops": 1, "iterations": 3}
SETTING = Setting(10, 1000)
SPREADS = [(name, key, spread) for name, space in SPACES.items() for key, spread in space.items()]


@pytest.fixture(scope="module")
def graph():
    return csbm(150, num_classes=3, num_features=6, seed=2)


# Spaces


def test_every_solver_has_a_space():
    assert set(SOLVERS) <= set(SPACES)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_space_names_parameters_of_its_solver(name):
    fields = {field.name: field for field in parameters(solver_class(name))}
    assert set(SPACES[name]) <= set(fields)
    assert not set(SPACES[name]) & {"layers", "hidden", "seed", "hops", "operator", "scaling", "dtype", "threads"}
    for trial in range(40):
        for key, value in trial_parameters(name, trial, 0, {}, SETTING).items():
            assert fields[key].metadata["check"].accept(value) == value


@pytest.mark.parametrize(("name", "key", "spread"), SPREADS, ids=lambda part: part if isinstance(part, str) else "")
def test_draws_stay_inside_and_fill_the_space(name, key, spread):
    drawn = [spread.draw(generator(k, key), SETTING) for k in range(200)]
    if isinstance(spread, LogUniform):
        assert spread.low <= min(drawn) < spread.low ** 0.8 * spread.high ** 0.2
        assert spread.high >= max(drawn) > spread.low ** 0.2 * spread.high ** 0.8
        middle = math.sqrt(spread.low * spread.high)
        assert 60 < sum(value < middle for value in drawn) < 140
    elif isinstance(spread, Choice):
        assert set(drawn) == set(spread.values)
    elif isinstance(spread, Growth):
        assert set(drawn) == {None, default_stages(SETTING.layers)}
    else:
        assert isinstance(spread, Batch)
        assert set(drawn) == {None, 512}
    assert str(spread)


def test_batches_are_smaller_than_the_training_set():
    draws = {Batch((512, 2048)).draw(generator(k, "x"), Setting(2, nodes)) for k in range(60) for nodes in (512, 140)}
    assert draws == {None}
    assert {Batch((512, 2048)).draw(generator(k, "x"), Setting(2, 2049)) for k in range(60)} == {None, 512, 2048}


@pytest.mark.parametrize("name", SOLVERS)
def test_trial_0_is_the_defaults(name):
    defaults = solver_class(name)().get_params()
    assert trial_parameters(name, 0, 7, {}, SETTING) == {key: defaults[key] for key in SPACES[name]}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_draw_depends_on_seed_trial_and_parameter_alone(name):
    drawn = trial_parameters(name, 3, 5, {}, SETTING)
    key = next(iter(drawn))
    fixed = trial_parameters(name, 3, 5, {key: 1}, SETTING)
    assert fixed == {other: value for other, value in drawn.items() if other != key}
    assert drawn != trial_parameters(name, 4, 5, {}, SETTING)
    assert drawn != trial_parameters(name, 3, 6, {}, SETTING)


# The search


def without_times(trials):
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def test_the_same_trials_whatever_the_budget(graph):
    seen = []
    longer = tune("pdadmm-g", graph, 3, SMALL, 5, seen.append)
    assert seen == longer
    assert without_times(tune("pdadmm-g", graph, 2, SMALL, 5)) == without_times(longer[:2])
    assert [trial["trial"] for trial in longer] == [0, 1, 2]
    assert all(0 < trial["val_accuracy"] <= 1 and trial["val_loss"] > 0 and trial["seconds"] > 0 for trial in longer)
    json.dumps(longer, allow_nan=False)


@pytest.mark.parametrize("budget", [np.int64(1), np.uint8(1)])
def test_budgets_of_numpy(graph, budget):
    json.dumps(tune("adam", graph, budget, {"layers": 2, "hidden": 4, "iterations": 1}))


@pytest.mark.parametrize("budget", [0, -1, np.int64(0), True, np.True_, 2.0, "2", None])
def test_bad_budgets(graph, budget):
    with pytest.raises(InputError, match=r"budget = .*: must be a whole number of at least 1"):
        tune("adam", graph, budget, {})


def test_what_is_fixed_stays(graph, monkeypatch):
    fitted = []
    solver = solver_class("pdadmm-g")
    real = solver.fit
    monkeypatch.setattr(solver, "fit", lambda self, graph: fitted.append(self.get_params()) or real(self, graph))
    trials = tune("pdadmm-g", graph, 3, SMALL | {"nu": 0.7}, 0)
    assert all("nu" not in trial["parameters"] and "iterations" not in trial["parameters"] for trial in trials)
    assert [(run["nu"], run["iterations"], run["layers"]) for run in fitted] == [(0.7, 3, 3)] * 3
    assert len({run["kappa_first"] for run in fitted}) == 3


def test_the_accuracy_is_the_one_that_a_run_reports(graph):
    trial = tune("pdadmm-g", graph, 1, SMALL)[0]
    plain = solver_class("pdadmm-g")(**SMALL).fit(graph)
    assert trial["val_accuracy"] == plain.summary_["val_accuracy"]
    row = plain.history_[plain.stages_[-1]["best_iteration"] - 1]
    assert trial["val_loss"] == pytest.approx(row["val_loss"], rel=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_test_nodes_are_never_seen(graph, name):
    """Other test labels, the same trials to the bit; and no test accuracy in them."""
    labels = graph.labels.copy()
    test = graph.splits["test"]
    labels[test] = np.roll(labels[test], 7)
    assert (labels != graph.labels).any()
    other = type(graph)(graph.indptr, graph.indices, graph.weights, graph.features, labels, graph.splits)
    known = {field.name for field in parameters(solver_class(name))}
    fixed = {key: value for key, value in SMALL.items() if key in known}
    trials = tune(name, graph, 2, fixed)
    assert without_times(trials) == without_times(tune(name, other, 2, fixed))
    assert "test" not in json.dumps(trials)


def test_a_trial_on_several_graphs_has_the_mean_of_each_alone(graph):
    splits = {name: np.roll(nodes, 1) for name, nodes in graph.splits.items()}
    order = np.random.default_rng(0).permutation(graph.num_nodes)
    ends = np.cumsum([len(nodes) for nodes in splits.values()])
    other = graph.with_splits({name: order[b - len(splits[name]) : b] for name, b in zip(splits, ends)})
    joined = tune("pdadmm-g", graph, 3, SMALL, 5, others=[(other, 9)])
    first, second = tune("pdadmm-g", graph, 3, SMALL, 5), tune("pdadmm-g", other, 3, SMALL | {"seed": 9}, 5)
    assert [one["val_accuracy"] for one in first] != [one["val_accuracy"] for one in second]
    for both, a, b in zip(joined, first, second, strict=True):
        assert both["parameters"] == a["parameters"] == b["parameters"]
        assert both["val_accuracies"] == [a["val_accuracy"], b["val_accuracy"]]
        assert both["val_accuracy"] == pytest.approx((a["val_accuracy"] + b["val_accuracy"]) / 2)
        assert both["val_loss"] == pytest.approx((a["val_loss"] + b["val_loss"]) / 2)
    json.dumps(joined, allow_nan=False)


def test_a_trial_that_diverges_on_one_graph_fails(graph):
    big = type(graph)(graph.indptr, graph.indices, None, graph.features * np.float32(1e30), graph.labels, graph.splits)
    (trial,) = tune("pdadmm-g", graph, 1, SMALL | {"scaling": "none"}, others=[(big, 1)])
    assert trial["val_accuracy"] is None
    assert "not finite" in trial["failed"]


def test_a_trial_that_diverges_counts_and_loses(graph):
    big = type(graph)(graph.indptr, graph.indices, None, graph.features * np.float32(1e30), graph.labels, graph.splits)
    trials = tune("pdadmm-g", big, 2, SMALL | {"scaling": "none"})
    assert len(trials) == 2
    assert all(trial["val_accuracy"] is None and "not finite" in trial["failed"] for trial in trials)
    assert best_trial(trials) is None
    good = {"trial": 2, "val_accuracy": 0.1, "val_loss": None}
    assert best_trial([*trials, good]) is good


def test_ties_go_to_the_smaller_loss_then_to_the_earlier_trial():
    def trial(accuracy, loss):
        return {"val_accuracy": accuracy, "val_loss": loss}

    trials = [trial(0.7, 0.9), trial(0.8, None), trial(0.8, 0.5), trial(0.8, 0.4), trial(0.8, 0.4)]
    assert best_trial(trials) is trials[3]
    assert best_trial([trial(0.8, None), trial(0.8, None)]) == trial(0.8, None)
    assert best_trial([first := trial(0.8, None), trial(0.8, None)]) is first


def test_without_validation_nodes_there_is_nothing_to_choose_by(graph):
    none = graph.with_splits({**graph.splits, "val": []})
    with pytest.raises(InputError, match="validation nodes"):
        tune("pdadmm-g", none, 2, SMALL)
    with pytest.raises(InputError, match="validation nodes"):
        tune("pdadmm-g", graph.with_splits(None), 2, SMALL)
    with pytest.raises(InputError, match="nu = -1"):
        tune("pdadmm-g", graph, 1, SMALL | {"nu": -1})
