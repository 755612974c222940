"""Whole iterations against the plain reference; descent, growth, stopping rules, and ways to go wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_state import state_of
from reference import Extrapolation, Setting, State, iterate, lagrangian

from pdadmm import PDADMMG, csbm
from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import ACTIVATIONS, get_activation
from pdadmm.admm.estimator import PDADMMG as Estimator
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.growth import grow, random_layer
from pdadmm.admm.losses import LOSSES
from pdadmm.admm.network import Network
from pdadmm.admm.problem import Problem
from pdadmm.admm.schedule import FixedRho, StallRho
from pdadmm.admm.settings import default_stages
from pdadmm.admm.solver import ADMMSolver
from pdadmm.data import Graph
from pdadmm.errors import DivergenceError, InputError
from pdadmm.models.gamlp import GAMLP
from pdadmm.parallel.placement import place_layers
from pdadmm.parallel.transport import LocalTransport

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(90, num_classes=3, num_features=5, avg_degree=6, seed=3)


def without_validation(graph: Graph) -> Graph:
    splits = graph.splits
    return graph.with_splits(splits | {"val": np.array([], dtype=np.int64)})


def fit(graph, **parameters) -> PDADMMG:
    given = {"layers": 4, "hidden": 6, "hops": 2, "iterations": 4} | parameters
    return PDADMMG(**given).fit(graph)


class Recorder:
    """Keeps the state before and after every iteration, and the logits of every evaluation."""

    def __init__(self, monkeypatch) -> None:
        self.networks, self.before, self.after, self.logits = [], [], [], []
        plain_iterate, plain_forward = Network.iterate, Network.forward

        def iterate(network):
            self.networks.append(network)
            self.before.append(state_of(network))
            plain_iterate(network)
            self.after.append(state_of(network))

        def forward(network, nodes):
            result = plain_forward(network, nodes)
            self.logits.append(result.clone())
            return result

        monkeypatch.setattr(Network, "iterate", iterate)
        monkeypatch.setattr(Network, "forward", forward)


# Against the reference


def reference_state(found: dict, X: np.ndarray) -> State:
    depth = 1 + max(int(name.partition(".")[0]) for name in found)
    layers = range(depth)
    return State(
        p=[X] + [found[f"{l}.below.p"] for l in layers[1:]],
        W=[found[f"{l}.W"] for l in layers],
        b=[found[f"{l}.b"] for l in layers],
        z=[found[f"{l}.z"] for l in layers],
        q=[found.get(f"{l}.above.q") for l in layers],
        u=[found.get(f"{l}.above.u") for l in layers],
    )


def reference_setting(network: Network, estimator, y) -> Setting:
    """The penalties of each layer as the documentation of the hyper-parameters defines them."""
    s, depth = estimator, len(network.layers)
    unit = [None] + [layer.unit for layer in network.layers[1:]]
    hidden = range(1, depth - 1)
    first = network.layers[0].solver
    gradient = s.form == "gradient"
    return Setting(
        nu=s.nu, rho=s.rho, mu=s.mu, prox_z=s.prox_z,
        kappa=[first.kappa] + [s.kappa_identity * unit[l] if l in hidden else 0.0 for l in range(1, depth)],
        prox=[0.0] + [s.prox_W * unit[l] for l in range(1, depth)],
        target=[None] + [np.eye(s.hidden) if l in hidden else None for l in range(1, depth)],
        slope=get_activation(s.activation).negative_slope,
        exact=[first.name != "gradient"] + [not gradient] * (depth - 1),
        y=y, loss=s.loss,
        floor=16 * np.finfo(np.float64).eps,  # the proximal weight at rounding level: felt where p is tiny
    )  # fmt: skip


@given(
    seed=SEEDS,
    V=st.integers(2, 9),
    n0=st.integers(1, 8),
    hidden=st.integers(1, 5),
    classes=st.integers(1, 4),
    layers=st.integers(2, 5),
    form=st.sampled_from(["exact", "gradient"]),
    first_layer=st.sampled_from(list(FIRST_LAYERS)),
    activation=st.sampled_from(list(ACTIVATIONS)),
    loss=st.sampled_from(list(LOSSES)),
    nu=st.sampled_from([0.03, 0.3, 2.0]),
    rho=st.sampled_from([0.05, 0.3, 4.0]),
    mu=st.sampled_from([0.0, 0.1]),
    prox_z=st.sampled_from([0.0, 0.1, 1.0]),
    kappa_identity=st.sampled_from([0.0, 0.01, 0.3]),
    acceleration=st.sampled_from(list(ACCELERATIONS)),
    first_scale=st.sampled_from([0.1, 1.0]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_iterations_equal_the_reference(V, n0, classes, **parameters):
    compare_with_reference(V, n0, classes, iterations=4, **parameters)


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_extrapolation_equals_the_reference_through_restarts(form, activation):
    more = {"form": form, "activation": activation, "acceleration": "all-stages"}
    stages = compare_with_reference(9, 6, 3, iterations=25, layers=4, hidden=4, rho=0.3, seed=5, **more)
    assert len(stages) == 2
    assert all(stage.restarts > 0 and not stage.ties for stage in stages)
    assert all(len(betas) == 25 for stage in stages for betas in stage.betas)
    assert all(max(betas) > 0.5 and betas[0] == 0.0 for stage in stages for betas in stage.betas)


def condition(state: State, setting: Setting) -> float:
    """By how much the exact W-updates amplify rounding: |p|^2 over the least eigenvalue of their systems.

    Small random data may give a p that is large and all but the same for every node.
    """
    found = 1.0
    for l in range(1, len(state.W)):
        if setting.exact[l]:
            p, weight = state.p[l], setting.mu / setting.nu + setting.prox[l] + setting.kappa[l]
            total = (p**2).sum()
            spread = np.linalg.svd(p - p.mean(0), compute_uv=False).min() ** 2 if len(p) > p.shape[1] else 0.0
            found = max(found, total / (spread + weight + setting.floor * (total + 1)))
    return float(found)


def compare_with_reference(V, n0, classes, seed, **parameters) -> list[Extrapolation]:
    """Train on random data and compare every iteration; return the reference's momentum of each stage."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(V, n0))
    X[0, 0] += 1.0
    X = torch.from_numpy(X - X.mean(0))
    y = random.integers(classes, size=V)
    more = {"kappa_first": 0.2, "prox_W": 0.1, "dtype": "float64", "seed": seed}
    estimator = PDADMMG(**parameters, **more).checked()
    parts = {"train": slice(0, V), "val": slice(V, V), "test": slice(V, V)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = Recorder(monkeypatch)
        problem = Problem(X.clone(), torch.from_numpy(y), n0, classes, parts)
        solver = ADMMSolver(problem, estimator, LocalTransport()).run()
    assert len(seen.before) == len(solver.history) == estimator.iterations * len(estimator.stages)
    accelerated = {"none": 0, "first-stage": 1, "all-stages": len(estimator.stages)}[estimator.acceleration]
    stages: list[Extrapolation] = []
    for network, before, after, row in zip(seen.networks, seen.before, seen.after, solver.history):
        setting = reference_setting(network, estimator, y)
        start = reference_state(before, X.numpy())
        if row["stage"] == len(stages):
            stages.append(Extrapolation(start))
        expected, found = iterate(start, setting), reference_state(after, X.numpy())
        if row["stage"] < accelerated:
            expected = stages[-1].extrapolate(start, expected)
            if stages[-1].ties:  # rounding decides whether the library started again
                break
        slack = 1e-8 + 100 * np.finfo(np.float64).eps * condition(expected, setting)
        for name in ("p", "W", "b", "z", "q", "u"):
            for layer, (ours, theirs) in enumerate(zip(getattr(found, name), getattr(expected, name))):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    size = slack * (1 + np.abs(theirs).max())
                    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=size, err_msg=f"{name} of layer {layer}")
        for layer, (p, W, b, z) in enumerate(zip(found.p, found.W, found.b, found.z)):
            size = 1e-8 * (1 + np.abs(z).max())
            np.testing.assert_allclose(after[f"{layer}.r"], z - p @ W.T - b, rtol=1e-6, atol=size)
        value = lagrangian(found, setting)
        assert row["lagrangian"] == pytest.approx(value, rel=1e-8, abs=1e-8)
    return stages[:accelerated]


def test_a_stage_starts_at_a_feasible_point(graph, monkeypatch):
    seen = Recorder(monkeypatch)
    fit(graph, activation="leaky_relu", dtype="float64")
    f = get_activation("leaky_relu")
    for state in seen.before[::4]:
        assert not any(x.any() for name, x in state.items() if name.endswith((".r", ".u")))
        for name, p in state.items():
            if name.endswith("below.p"):
                below = int(name.partition(".")[0]) - 1
                assert np.array_equal(p, state[f"{below}.above.q"])
                np.testing.assert_array_equal(p, f(torch.from_numpy(state[f"{below}.z"])).numpy())


# Descent

# what the theorem asks for (docs/math.md): rho > 4 nu, the paper's proximal terms, and no extrapolation
DESCENT = {
    "nu": 0.3, "rho": 4.2 * 0.3, "prox_z": 1.0, "prox_W": 0.0, "kappa_identity": 0.0, "acceleration": "none",
    "dtype": "float64",
}  # fmt: skip


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_the_lagrangian_never_rises_and_the_residual_vanishes(form, first_layer):
    graph = csbm(70, num_classes=3, num_features=5, avg_degree=6, seed=1)
    more = {"form": form, "first_layer": first_layer, "iterations": 200, "eval_every": 200}
    trained = fit(graph, layers=4, hidden=5, **DESCENT, **more)
    for stage in (0, 1):
        rows = [row for row in trained.history_ if row["stage"] == stage]
        assert len(rows) == 200
        values = [row["lagrangian"] for row in rows]
        rises = [later - earlier for earlier, later in itertools.pairwise(values)]
        assert max(rises) <= 1e-12 * (1 + abs(values[0])), f"stage {stage} rises by {max(rises)}"
        assert values[-1] < values[0]
    links = [row["residual_link"] for row in trained.history_ if row["stage"] == 0]
    assert links[-1] < 1e-5 * max(links)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_descent_holds_for_every_activation_and_loss(graph, activation, loss):
    trained = fit(graph, iterations=40, activation=activation, loss=loss, mu=0.01, **DESCENT)
    for _, rows in itertools.groupby(trained.history_, key=lambda row: row["stage"]):
        values = [row["lagrangian"] for row in rows]
        assert all(b <= a + 1e-12 * (1 + abs(a)) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_the_residual_falls_with_extrapolation_too(graph, form):
    """It swings, since nothing is proved of it, but does not stay up."""
    trained = fit(graph, form=form, iterations=300, eval_every=300, **DESCENT | {"acceleration": "all-stages"})
    for stage in (0, 1):
        links = [row["residual_link"] for row in trained.history_ if row["stage"] == stage]
        assert links[-1] < 0.1 * max(links)


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_the_carried_residual_does_not_drift(graph, monkeypatch, acceleration):
    seen = Recorder(monkeypatch)
    more = {"form": "gradient", "first_layer": "gradient", "dtype": "float32", "acceleration": acceleration}
    fit(graph, iterations=150, eval_every=150, **more)
    last = seen.after[-1]
    for layer in (1, 2, 3):
        p, W, b, z = (last[f"{layer}.{name}"].astype(np.float64) for name in ("below.p", "W", "b", "z"))
        fresh = z - p @ W.T - b
        assert np.abs(last[f"{layer}.r"] - fresh).max() < 1e-4 * (1 + np.abs(z).max())


# Start and acceleration


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("scaling", ["hop-std", "none"])
def test_first_scale_is_the_deviation_that_z_1_starts_with(graph, monkeypatch, scale, scaling):
    seen = Recorder(monkeypatch)
    fit(graph, layers=2, hidden=800, iterations=1, first_scale=scale, scaling=scaling)
    assert seen.before[0]["0.z"].std() == pytest.approx(scale, rel=0.1)


def test_acceleration_names_the_stages_that_are_extrapolated(graph):
    histories = {}
    for name, stages in {"none": (), "first-stage": (0,), "all-stages": (0, 1)}.items():
        trained = fit(graph, acceleration=name, iterations=6)
        histories[name] = [
            [row["objective"] for row in trained.history_ if row["stage"] == stage] for stage in (0, 1)
        ]
        assert [bool(ACCELERATIONS[name](stage)) for stage in (0, 1)] == [stage in stages for stage in (0, 1)]
    plain, first, every = histories["none"], histories["first-stage"], histories["all-stages"]
    assert plain[0][0] == first[0][0]  # the first step has no past to extrapolate from
    assert plain[0] != first[0] == every[0]
    assert first[1][0] == every[1][0]
    assert first[1] != every[1]
    assert fit(graph, iterations=6).history_.column("objective") == [*first[0], *first[1]]  # the default


def test_one_layer_has_nothing_to_extrapolate(graph):
    objectives = [fit(graph, layers=1, acceleration=name).history_.column("objective") for name in ACCELERATIONS]
    assert objectives[0] == objectives[1] == objectives[2]


# Growth


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_growth_keeps_the_function_on_all_labelled_nodes(graph, monkeypatch, activation, dtype):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 3, 6), layers=6, activation=activation, dtype=dtype)
    rows = sum(len(part) for part in graph.splits.values())
    assert all(len(logits) == rows for logits in seen.logits)
    starts = [0, 5, 10]  # one evaluation before each stage's four iterations
    for number in (1, 2):
        best = trained.stages_[number - 1]["best_iteration"]
        before = seen.logits[best - 1 + number]  # number evaluations belong to starts
        after = seen.logits[starts[number]]
        tolerance = 1e-11 if dtype == "float64" else 1e-4
        torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance * float(1 + before.abs().max()))
        for part in ("train", "val", "test"):
            same = trained.stages_[number - 1][f"{part}_accuracy"]
            assert trained.stages_[number][f"start_{part}_accuracy"] == pytest.approx(same, abs=0.02)


def test_relu_grows_without_changing_a_bit(graph, monkeypatch):
    seen = Recorder(monkeypatch)
    trained = fit(graph, stages=(2, 4), first_layer="kernel")
    assert torch.equal(seen.logits[5], seen.logits[trained.stages_[0]["best_iteration"]])


@pytest.mark.parametrize(("old_depth", "new_depth"), [(2, 3), (2, 10), (5, 10), (4, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_grow_puts_identity_layers_before_the_last(old_depth, new_depth, shifted):
    hidden, widths = 3, [4, *[3] * (new_depth - 1), 2]
    outputs = {l: hidden if l < old_depth - 1 else 2 for l in range(1, old_depth)}
    old = {l: random_layer(1, l, n, hidden, 1.0, torch.float64) for l, n in outputs.items()}
    kept = {l: (W.clone(), b.clone()) for l, (W, b) in old.items()}
    placements = [place_layers([1.0] * depth, 1) for depth in (old_depth, new_depth)]
    shift = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64) if shifted else None
    new = grow(old, *placements, widths, shift, torch.float64, LocalTransport())
    assert sorted(new) == list(range(1, new_depth))
    for l in range(1, old_depth - 1):
        assert torch.equal(new[l][0], kept[l][0])
    for l in range(old_depth - 1, new_depth - 1):
        assert torch.equal(new[l][0], torch.eye(hidden, dtype=torch.float64))
    assert torch.equal(new[new_depth - 1][0], kept[old_depth - 1][0])
    h = torch.rand(6, hidden, dtype=torch.float64)  # not negative: every activation is the identity there
    first = torch.eye(hidden, dtype=torch.float64), torch.zeros(hidden, dtype=torch.float64)
    models = [GAMLP.from_weights([first, *(w[l] for l in sorted(w))], "relu") for w in (kept, new)]
    with torch.no_grad():
        torch.testing.assert_close(models[1](h), models[0](h))


def test_random_layers_depend_on_seed_and_layer_alone():
    W, b = random_layer(1, 2, 4, 3, 0.5, torch.float64)
    assert torch.equal(W, random_layer(1, 2, 4, 3, 0.5, torch.float64)[0])
    assert not b.any()
    assert not torch.equal(W, random_layer(1, 3, 4, 3, 0.5, torch.float64)[0])
    assert not torch.equal(W, random_layer(2, 2, 4, 3, 0.5, torch.float64)[0])
    assert torch.equal(W.float(), random_layer(1, 2, 4, 3, 0.5, torch.float32)[0])
    big, _ = random_layer(2**70, 0, 100, 100, 0.5, torch.float64)
    assert float(big.std()) == pytest.approx(0.5, rel=0.05)


def test_with_the_identity_the_network_is_linear(graph):
    trained = fit(graph, activation="identity", dtype="float64")
    X = torch.from_numpy(trained.augmenter_.transform(graph))
    model = trained.model_
    with torch.no_grad():
        a, b = model(X[:30]), model(X[30:60])
        torch.testing.assert_close(model(0.3 * X[:30] + 0.7 * X[30:60]), 0.3 * a + 0.7 * b)
        relu = GAMLP.from_weights([(layer.weight, layer.bias) for layer in model.layers], "relu")
        assert not torch.allclose(relu(X), model(X))


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


# Small and odd networks


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("hidden", [1, 4])
def test_shallow_and_narrow_networks(graph, activation, layers, hidden):
    trained = fit(graph, layers=layers, hidden=hidden, activation=activation, loss="cross_entropy")
    assert len(trained.model_.layers) == layers
    assert [stage["layers"] for stage in trained.stages_] == list(default_stages(layers))
    assert np.isfinite(trained.history_.column("objective")).all()
    assert trained.predict(graph).shape == (90,)


def test_one_layer_is_ridge_regression_for_the_squared_error(graph):
    """With L = 1 and z eliminated the problem is a ridge regression; its solution is known."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(40, 3)), random.integers(3, size=40)
    trained = PDADMMG(
        layers=1, loss="squared_error", nu=1.0, iterations=300, dtype="float64", kappa_first=0.2
    ).fit(X, y)  # fmt: skip
    centred, target = X - X.mean(0), np.eye(3)[y]
    kappa = 0.2 * (centred**2).sum(1).mean()
    # min_z 1/2 |z - t|^2 + 1/2 |z - a|^2 = 1/4 |a - t|^2: the ridge 1/2 kappa counts twice
    W = np.linalg.solve(centred.T @ centred + 2 * kappa * np.eye(3), centred.T @ target).T
    np.testing.assert_allclose(trained.model_.layers[0].weight.detach().numpy(), W, rtol=1e-6, atol=1e-8)
    b = target.mean(0) - W @ X.mean(0)
    np.testing.assert_allclose(trained.model_.layers[0].bias.detach().numpy(), b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_one_class(form, first_layer):
    random = np.random.default_rng(0)
    trained = PDADMMG(layers=3, hidden=4, iterations=3, form=form, first_layer=first_layer)
    trained.fit(random.normal(size=(6, 3)), np.full(6, 7))
    assert trained.predict(np.zeros((2, 3))).tolist() == [7, 7]
    np.testing.assert_allclose(trained.predict_proba(np.zeros((2, 3))), np.ones((2, 1)))


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_one_training_node(form, first_layer):
    X = np.array([[1.0, -2.0, 0.5]])
    trained = PDADMMG(layers=3, hidden=4, iterations=3, form=form, first_layer=first_layer).fit(X, [5])
    assert trained.predict(X).tolist() == [5]


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_features_that_are_all_alike(first_layer):
    X, y = np.ones((6, 3)), [0, 0, 0, 0, 1, 1]
    trained = PDADMMG(layers=2, hidden=3, iterations=30, first_layer=first_layer).fit(X, y)
    assert trained.predict(X).tolist() == [0] * 6  # the larger class is all there is to learn


@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_more_neurons_than_nodes_and_dead_columns(form):
    random = np.random.default_rng(1)
    X = random.normal(size=(7, 40))
    X[:, ::3] = 0.0
    X[:, 1] = X[:, 2]
    trained = PDADMMG(layers=5, hidden=30, iterations=6, form=form).fit(X, random.integers(3, size=7))
    assert np.isfinite(trained.history_.column("lagrangian")).all()


# Divergence


def fit_or_complain(X, y, **parameters) -> str | None:
    """Train; None where it ends well, else what the error says. Only these two kinds of error may come."""
    try:
        PDADMMG(**parameters).fit(X, y)
    except (DivergenceError, InputError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "parameters",
    [
        {"X": 1e30},
        {"X": 1e30, "first_layer": "gradient"},
        {"X": 1e30, "form": "gradient", "first_layer": "kernel"},
        {"nu": 1e38},
        {"nu": 1e300},
        {"nu": 1e300, "form": "gradient"},
        {"rho": 1e300},
        {"nu": 1e-300},
        {"nu": 1e308, "dtype": "float64"},
        {"mu": 1e300},
        {"prox_W": 1e300},
        {"prox_z": 1e300},
        {"kappa_first": 1e300},
        {"kappa_identity": 1e300},
    ],
    ids=lambda p: ",".join(f"{k}={v}" for k, v in p.items()),
)
def test_absurd_numbers_train_or_diverge_with_a_sentence(parameters):
    """Either the run ends well, or DivergenceError names a layer; no exception of another type."""
    given = {"layers": 3, "hidden": 4, "iterations": 5} | parameters
    random = np.random.default_rng(0)
    X = random.normal(size=(20, 6)) * given.pop("X", 1.0)
    said = fit_or_complain(X, random.integers(3, size=20), **given)
    assert said is None or "layer" in said or any(said.startswith(f"{name} = ") for name in parameters), said


def test_divergence_names_iteration_and_layer():
    random = np.random.default_rng(0)
    X = random.normal(size=(20, 6)) * 1e30
    with pytest.raises(DivergenceError, match=r"iteration 1: layer \d of 2 is not finite .*dtype float64"):
        PDADMMG(layers=3, hidden=4).fit(X, random.integers(3, size=20))


def test_a_sum_that_overflows_is_divergence_too():
    """Every layer's share is finite and their weighted sum is not."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(30, 6)), random.integers(3, size=30)
    for nu in (1e304, 1e306, 1e307, 1.7e308):
        given = {"layers": 3, "hidden": 4, "iterations": 3, "rho": 1.0, "dtype": "float64", "form": "gradient"}
        said = fit_or_complain(X, y, nu=nu, **given)
        assert said is None or "nu = 1" in said


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
