"""Backpropagation: each optimiser's formula, start weights, growth, batches, dropout, ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpi_backprop
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec

from pdadmm import GD, Adadelta, Adagrad, Adam, DivergenceError, Graph, InputError, csbm
from pdadmm.admm.problem import Problem
from pdadmm.baselines.backprop import BackpropSolver
from pdadmm.baselines.dropout import BLOCK, draw_mask
from pdadmm.baselines.initial import start_weights
from pdadmm.baselines.shards import Shard, run_of
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.transport import LocalTransport

HERE = Path(__file__).parent
ESTIMATORS = (GD, Adadelta, Adagrad, Adam)
ACTIVATIONS = {"relu": 0.0, "leaky_relu": 0.01, "identity": 1.0}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(150, num_classes=3, num_features=6, seed=2)


def made_problem(V: int = 20, others: int = 9, inputs: int = 5, classes: int = 3, seed: int = 0) -> Problem:
    random = np.random.default_rng(seed)
    N = V + others
    X = torch.from_numpy(random.normal(size=(N, inputs)))
    parts = {"train": slice(0, V), "val": slice(V, V + others // 2), "test": slice(V + others // 2, N)}
    return Problem(X, torch.from_numpy(random.integers(classes, size=N)), inputs, classes, parts)


def made_solver(estimator, problem=None, **more) -> BackpropSolver:
    """A solver at its start, in float64."""
    chosen = {"layers": 3, "hidden": 4, "dtype": "float64"} | more
    checked = estimator(**chosen).checked()
    problem = problem or made_problem()
    solver = BackpropSolver(problem, checked, LocalTransport(), checked.optimizer)
    solver._start(checked.stages[0])
    return solver


def copies(solver) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in solver.weights]


# The network and its gradient, by hand


def by_hand(weights, X, y, slope, loss, masks=None, share=0.0):
    """Mean loss and gradients of every W and b, written out in numpy."""
    pairs = list(zip(weights[::2], weights[1::2]))
    inputs, pre = [X], []
    for number, (W, b) in enumerate(pairs):
        z = inputs[-1] @ W.T + b
        pre.append(z)
        if number + 1 < len(pairs):
            h = np.where(z > 0, z, slope * z)
            inputs.append(h if masks is None else h * masks[number] / (1 - share))
    z, V = pre[-1], len(X)
    target = np.eye(z.shape[1])[y]
    if loss == "squared_error":
        value, delta = 0.5 * ((z - target) ** 2).sum() / V, (z - target) / V
    else:
        exp = np.exp(z - z.max(1, keepdims=True))
        proba = exp / exp.sum(1, keepdims=True)
        value, delta = -np.log(proba[np.arange(V), y]).mean(), (proba - target) / V
    gradients = []
    for number in reversed(range(len(pairs))):
        gradients = [delta.T @ inputs[number], delta.sum(0), *gradients]
        if number:
            delta = delta @ pairs[number][0]
            if masks is not None:
                delta = delta * masks[number - 1] / (1 - share)
            delta = delta * np.where(pre[number - 1] > 0, 1.0, slope)
    return value, gradients


class Gradients:
    """An optimiser that takes no step and keeps the gradients it was given."""

    def __init__(self, weights) -> None:
        self.weights, self.seen, self.state = weights, [], {}

    def step(self) -> None:
        self.seen.append([weight.grad.numpy().copy() for weight in self.weights])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(["cross_entropy", "squared_error"]), st.sampled_from([0.0, 0.4]), st.integers(0, 99),
)  # fmt: skip
def test_the_gradient_is_that_of_the_mean_loss(V, layers, classes, hidden, activation, loss, dropout, seed):
    problem = made_problem(V, 4, inputs=3, classes=classes, seed=seed)
    chosen = {"layers": layers, "hidden": hidden, "activation": activation, "loss": loss, "dropout": dropout}
    solver = made_solver(Adam, problem, seed=seed, **chosen)
    solver.optimizer = Gradients(solver.weights)
    objective = solver._pass(7)
    masks = None
    if dropout:
        masks = [draw_mask(seed, 7, layer, range(V), hidden, dropout).numpy() for layer in range(layers - 1)]
    value, gradients = by_hand(
        copies(solver), problem.X[:V].numpy(), problem.y[:V].numpy(), ACTIVATIONS[activation], loss, masks, dropout
    )
    assert objective == pytest.approx(value, rel=1e-12, abs=1e-12)
    (found,) = solver.optimizer.seen
    for ours, theirs in zip(found, gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


# The optimisers, by hand


class HandGD:
    def __init__(self, rate, momentum):
        self.rate, self.momentum, self.v = rate, momentum, None

    def __call__(self, w, g):
        self.v = g if self.v is None else self.momentum * self.v + g
        return w - self.rate * self.v


class HandAdam:
    def __init__(self, rate):
        self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

    def __call__(self, w, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return w - self.rate * m / (np.sqrt(v) + 1e-8)


class HandAdagrad:
    def __init__(self, rate):
        self.rate, self.s = rate, 0.0

    def __call__(self, w, g):
        self.s = self.s + g * g
        return w - self.rate * g / (np.sqrt(self.s) + 1e-10)


class HandAdadelta:
    def __init__(self, rate):
        self.rate, self.s, self.d = rate, 0.0, 0.0

    def __call__(self, w, g):
        self.s = 0.9 * self.s + 0.1 * g * g
        step = np.sqrt(self.d + 1e-6) / np.sqrt(self.s + 1e-6) * g
        self.d = 0.9 * self.d + 0.1 * step * step
        return w - self.rate * step


HANDS = {
    "gd": (GD, {"learning_rate": 0.3, "momentum": 0.7}, lambda: HandGD(0.3, 0.7)),
    "gd-plain": (GD, {"learning_rate": 0.3, "momentum": 0.0}, lambda: HandGD(0.3, 0.0)),
    "adam": (Adam, {"learning_rate": 0.02}, lambda: HandAdam(0.02)),
    "adagrad": (Adagrad, {"learning_rate": 0.05}, lambda: HandAdagrad(0.05)),
    "adadelta": (Adadelta, {"learning_rate": 0.8}, lambda: HandAdadelta(0.8)),
}


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("name", HANDS)
def test_steps_are_the_formulas(name, decay):
    estimator, chosen, hand = HANDS[name]
    problem = made_problem()
    solver = made_solver(estimator, problem, weight_decay=decay, **chosen)
    weights = copies(solver)
    hands = [hand() for _ in weights]
    X, y = problem.X[:20].numpy(), problem.y[:20].numpy()
    for iteration in range(1, 6):
        solver._pass(iteration)
        _, gradients = by_hand(weights, X, y, 0.0, "cross_entropy")
        weights = [rule(w, g + decay * w) for rule, w, g in zip(hands, weights, gradients)]
        for ours, theirs in zip(copies(solver), weights):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_steps_do_not_depend_on_memory_order(estimator, monkeypatch):
    """Fused optimisers walk through weight and gradient as they lie in memory."""
    solver, transposed = made_solver(estimator), made_solver(estimator)
    keep = transposed._summed

    def turned(gradients, loss):
        gradients, loss = keep(gradients, loss)
        return [g.mT.contiguous().mT if g.dim() == 2 else g for g in gradients], loss

    monkeypatch.setattr(transposed, "_summed", turned)
    transposed._adopt([(W.mT.contiguous().mT, b) for W, b in transposed.layers()])
    for iteration in range(1, 4):
        solver._pass(iteration)
        transposed._pass(iteration)
    for one, other in zip(copies(solver), copies(transposed)):
        np.testing.assert_allclose(one, other, rtol=1e-12)


# Start weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_he_has_its_variance(activation):
    slope = ACTIVATIONS[activation]
    weights = start_weights("he", 3, [200, 150, 100, 50], slope, torch.float64)
    for W, b in weights:
        assert float(W.square().mean()) * W.shape[1] == pytest.approx(2 / (1 + slope**2), rel=0.05)
        assert abs(float(W.mean())) < 4 * float(W.std()) / math.sqrt(W.numel())
        assert not b.any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.sampled_from([0.0, 0.01, 1.0]))
def test_orthogonal_is_orthogonal(widths, slope):
    for (W, b), shape in zip(start_weights("orthogonal", 0, widths, slope, torch.float64), zip(widths[1:], widths)):
        assert W.shape == shape
        small = W @ W.mT if shape[0] <= shape[1] else W.mT @ W
        torch.testing.assert_close(small, torch.eye(len(small), dtype=torch.float64) * 2 / (1 + slope**2))
        assert not b.any()


def test_identity_starts_as_two_layers():
    weights = start_weights("identity", 0, [30, 7, 7, 7, 4], 0.0, torch.float64)
    assert [tuple(W.shape) for W, _ in weights] == [(7, 30), (7, 7), (7, 7), (4, 7)]
    for W, _ in weights[1:3]:
        assert torch.equal(W, torch.eye(7, dtype=torch.float64))
    assert float(weights[-1][0].abs().max()) <= 1 / math.sqrt(7)
    assert float(weights[0][0].square().mean()) * 30 == pytest.approx(2, rel=0.5)


@pytest.mark.parametrize("scheme", ["he", "orthogonal", "identity"])
def test_start_weights_depend_on_seed_and_layer_alone(scheme):
    def draw(seed, dtype=torch.float64, widths=(5, 6, 6, 6, 3)):
        return [W for W, _ in start_weights(scheme, seed, widths, 0.0, dtype)]

    assert all(torch.equal(one, other) for one, other in zip(draw(4), draw(4)))
    assert not torch.equal(draw(4)[0], draw(5)[0])
    assert torch.equal(draw(4)[0], draw(4, widths=(5, 6, 6, 3))[0])
    if scheme != "identity":
        assert not torch.equal(draw(4)[1], draw(4)[2])
    assert all(torch.equal(one.float(), other) for one, other in zip(draw(4), draw(4, torch.float32)))


# Growth


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_growth_keeps_function_and_optimiser_state(estimator, activation):
    problem = made_problem(V=30)
    solver = made_solver(estimator, problem, layers=7, stages=(2, 4, 7), activation=activation, hidden=6)
    iteration = 0
    for depth in (4, 7):
        for _ in range(3):
            iteration += 1
            solver._pass(iteration)
        with torch.no_grad():
            before = solver._forward(problem.X)
        state, old = solver._state(), solver.layers()
        assert any(isinstance(value, torch.Tensor) for value in state[0].values())
        solver._grow(depth)
        assert len(solver.layers()) == depth
        with torch.no_grad():
            torch.testing.assert_close(solver._forward(problem.X), before, rtol=1e-9, atol=1e-9)
        now = solver._state()
        kept = [*range(2 * len(old) - 2), 2 * depth - 2, 2 * depth - 1]
        for number, own in zip(kept, state):
            assert own.keys() == now[number].keys()
            assert all(torch.equal(torch.as_tensor(own[key]), torch.as_tensor(now[number][key])) for key in own)
        for number in set(range(2 * depth)) - set(kept):  # inserted: nothing remembered
            values = [torch.as_tensor(value) for value in now[number].values() if value is not None]
            assert all(not value.any() for value in values)


def test_a_stage_starts_from_the_best_of_the_one_before(graph):
    trained = Adam(layers=5, hidden=8, stages=(2, 5), iterations=30, learning_rate=0.01, hops=2).fit(graph)
    first, second = trained.stages_
    for part in ("train", "val", "test"):
        assert second[f"start_{part}_accuracy"] == pytest.approx(first[f"{part}_accuracy"], abs=1e-6)
    assert [row["layers"] for row in trained.history_] == [2] * 30 + [5] * 30
    assert len(trained.model_.layers) == 5


def test_going_back_takes_the_optimiser_along():
    solver = made_solver(Adam, layers=4, stages=(2, 4))
    solver._pass(1)
    snapshot, before, state = solver._snapshot(), copies(solver), solver._state()
    solver._pass(2)
    assert not np.array_equal(copies(solver)[0], before[0])
    solver._go_back(snapshot)
    assert all(np.array_equal(one, other) for one, other in zip(copies(solver), before))
    assert torch.equal(solver._state()[0]["exp_avg"], state[0]["exp_avg"])
    solver._pass(2)
    assert float(solver._state()[0]["step"]) == 2


# Batches


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_a_pass_visits_every_node_once(V, size, ranks, iteration):
    problem = made_problem(V, others=2)
    visited, sizes = [], []
    for rank in range(ranks):
        solver = made_solver(GD, problem, batch_size=size)
        own = run_of(V, rank, ranks)
        solver.shard = Shard(problem, own, range(V, V), problem.X[own.start : own.stop], problem.X[:0])
        batches = list(solver._batches(iteration))
        sizes.append([count for _, count in batches])
        for number, (rows, count) in enumerate(batches):
            found = torch.arange(len(own)) if rows is None else rows
            assert count == min(size, V - number * size)
            visited += (found + own.start).tolist()
    assert sorted(visited) == list(range(V))
    assert all(found == sizes[0] for found in sizes)
    assert sum(sizes[0]) == V


def test_batches_change_from_pass_to_pass_and_seed_to_seed():
    def first(seed, iteration):
        solver = made_solver(GD, batch_size=5, seed=seed)
        return next(iter(solver._batches(iteration)))[0].tolist()

    assert first(0, 1) == first(0, 1)
    assert first(0, 1) != first(0, 2)
    assert first(0, 1) != first(1, 1)


def test_batches_take_steps_on_their_own_means():
    problem = made_problem(V=7)
    solver = made_solver(GD, problem, batch_size=3, momentum=0.0, weight_decay=0.0, learning_rate=0.2)
    weights, total = copies(solver), 0.0
    for rows, count in solver._batches(1):
        value, gradients = by_hand(weights, problem.X[rows].numpy(), problem.y[rows].numpy(), 0.0, "cross_entropy")
        weights = [w - 0.2 * g for w, g in zip(weights, gradients)]
        total += count * value
    assert solver._pass(1) == pytest.approx(total / 7, rel=1e-12)
    for ours, theirs in zip(copies(solver), weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


# Dropout


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 700), st.integers(0, 700), st.integers(1, 6), st.integers(0, 2**62))
def test_masks_do_not_depend_on_the_cut(one, other, width, seed):
    start, stop = sorted((one, other))
    whole = draw_mask(seed, 3, 1, range(700), width, 0.4)
    assert torch.equal(draw_mask(seed, 3, 1, range(start, stop), width, 0.4), whole[start:stop])


def test_masks_keep_their_share_and_differ():
    rows = range(40 * BLOCK)
    for share in (0.1, 0.5, 0.9):
        kept = float(draw_mask(0, 1, 0, rows, 20, share).double().mean())
        assert kept == pytest.approx(1 - share, abs=5 * math.sqrt(share * (1 - share) / (20 * len(rows))))
    one = draw_mask(0, 1, 0, rows, 20, 0.5)
    for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        agree = float((one == draw_mask(*other, rows, 20, 0.5)).double().mean())
        assert agree == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(one[:BLOCK], one[BLOCK : 2 * BLOCK])


def test_dropout_keeps_the_expectation_and_rests_at_evaluation():
    problem = made_problem(V=4)
    solver = made_solver(Adam, problem, layers=2, hidden=6, dropout=0.3)
    X = problem.X[:4]
    with torch.no_grad():
        plain = solver._forward(X)
        mean = torch.zeros_like(plain)
        for iteration in range(4000):
            mean += solver._forward(X, solver._masks(iteration)) / 4000
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.1)
    solver.settings.dropout = 0.0
    without = solver._evaluate()
    solver.settings.dropout = 0.3
    assert solver._evaluate() == without


def test_no_dropout_draws_no_mask():
    assert made_solver(Adam)._masks(1) is None


# What a run reports


def test_evaluation_is_not_training_time(graph, monkeypatch):
    ticks = []

    class Ticking:
        def __init__(self):
            self.seconds = 0.0

        def start(self):
            ticks.append("start")

        def stop(self):
            ticks.append("stop")
            self.seconds += 1.0

    evaluate = BackpropSolver._evaluate
    monkeypatch.setattr("pdadmm.baselines.driver.Clock", Ticking)
    monkeypatch.setattr(BackpropSolver, "_evaluate", lambda self: ticks.append("evaluate") or evaluate(self))
    trained = Adam(layers=4, hidden=5, stages=(2, 4), iterations=3, hops=1).fit(graph)
    assert ticks[:6] == ["start", "stop", "evaluate", "start", "stop", "evaluate"]
    running = 0
    for tick in ticks:
        running += {"start": 1, "stop": -1}.get(tick, 0)
        assert running == 0 or tick != "evaluate"
    assert trained.summary_["seconds_training"] == 8.0  # two stages' starts and six iterations
    assert trained.history_.column("seconds") == [2.0, 3.0, 4.0, 6.0, 7.0, 8.0]


def test_patience_and_time_end_a_stage(graph):
    few = Adam(layers=3, hidden=8, iterations=200, patience=3, hops=1, learning_rate=0.05).fit(graph)
    assert few.summary_["iterations"] == few.stages_[0]["best_iteration"] + 3
    short = Adam(layers=3, hidden=8, stages=(2, 3), iterations=50, max_seconds=1e-9, hops=1).fit(graph)
    assert [stage["iterations"] for stage in short.stages_] == [1, 1]


def test_evaluations_are_where_they_were_asked_for(graph):
    history = GD(layers=2, hidden=5, iterations=7, eval_every=3, hops=1).fit(graph).history_
    assert [row["iteration"] for row in history if "val_accuracy" in row] == [3, 6, 7]


def test_the_objective_falls_and_the_best_iteration_is_kept(graph):
    for estimator in ESTIMATORS:
        trained = estimator(layers=2, hidden=16, iterations=40, hops=2).fit(graph)
        objective = trained.history_.column("objective")
        assert objective[-1] < 0.95 * objective[0]
        best = trained.history_[trained.stages_[0]["best_iteration"] - 1]
        assert best["val_accuracy"] == max(trained.history_.column("val_accuracy"))
        assert trained.score(graph) == pytest.approx(best["test_accuracy"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_divergence_is_one_sentence(graph, estimator):
    with pytest.raises(DivergenceError, match=r"iteration \d+: the loss of 4 layers .*lower learning_rate"):
        estimator(layers=4, hidden=8, learning_rate=1e20, iterations=30, hops=1).fit(graph)


def test_divergence_of_the_only_step_is_seen(graph):
    """The loss comes from before the step: the logits after it tell."""
    with pytest.raises(DivergenceError):
        GD(layers=4, hidden=8, learning_rate=1e20, iterations=1, hops=1).fit(graph)


def test_settings_that_cannot_be(graph):
    for bad in (
        {"dropout": 1.0}, {"dropout": -0.1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0},
        {"initial": "zero"}, {"stages": (1, 10)}, {"stages": (2, 9)}, {"loss": "hinge"},
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            Adam(**bad).fit(graph)
        assert caught.value.argument == next(iter(bad))
    with pytest.raises(InputError, match="momentum"):
        GD(momentum=1.0).fit(graph)
    assert not hasattr(Adam(), "momentum")
    assert Adam(layers=7).checked().stages == (7,)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["he", "orthogonal", "identity"]),
    st.sampled_from(ESTIMATORS),
)  # fmt: skip
def test_any_shape_trains(layers, hidden, batch_size, initial, estimator):
    random = np.random.default_rng(layers + hidden)
    X, y = random.normal(size=(23, 4)), random.integers(3, size=23)
    chosen = {"layers": layers, "hidden": hidden, "batch_size": batch_size, "initial": initial}
    trained = estimator(iterations=2, dropout=0.2, **chosen).fit(X, y)
    assert trained.predict_proba(X).shape == (23, 3)
    assert np.isfinite(trained.predict_proba(X)).all()


# Ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    mpi_backprop.run_cases(folder, 0)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Launch every case on so many ranks, once a module."""
    folders = {}

    def launch(ranks: int) -> Path:
        if ranks not in folders:
            folder = tmp_path_factory.mktemp(f"ranks{ranks}")
            folders[ranks] = mpiexec(ranks, HERE / "mpi_backprop.py", folder), folder
        done, folder = folders[ranks]
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return launch


def with_mpi(test):
    for mark in NEEDS_MPI:
        test = mark(test)
    return test


@with_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", mpi_backprop.CASES)
def test_ranks_agree_with_one_process(alone, launched, ranks, name):
    folder = launched(ranks)
    expected = dict(np.load(alone / f"{name}.0.npz"))
    ours = json.loads((alone / f"{name}.0.json").read_text())
    for rank in range(ranks):
        for key, array in np.load(folder / f"{name}.{rank}.npz").items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-10, atol=1e-10, err_msg=key)
        told = json.loads((folder / f"{name}.{rank}.json").read_text())
        assert told["summary"]["ranks"] == ranks
        assert len(told["history"]) == len(ours["history"])
        for one, other in zip(told["history"], ours["history"]):
            assert one.keys() == other.keys()
            for key in one.keys() - {"seconds", "bytes"}:
                assert one[key] == pytest.approx(other[key], rel=1e-10, abs=1e-12), key


@with_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_those_of_the_gradients(launched, ranks):
    told = json.loads((launched(ranks) / "gd.0.json").read_text())
    summary, history = told["summary"], told["history"]
    numbers = sum(array.size for array in np.load(launched(ranks) / "gd.0.npz").values()) + 1  # and the loss
    steps = math.ceil(420 / 37)  # training nodes of csbm:700 in batches of 37
    assert summary["bytes_per_iteration"] == steps * ranks * ring_bytes(8 * numbers, ranks)
    assert summary["bytes_sent"] == history[-1]["bytes"] == 6 * summary["bytes_per_iteration"]
    assert summary["bytes_other"] > 0
    told = json.loads((launched(ranks) / "adam.0.json").read_text())["summary"]
    assert told["bytes_sent"] == sum(stage["iterations"] * stage["bytes_per_iteration"] for stage in told["stages"])
