"""What every solver, transport and reader must do; a new row of a table is covered without a new line here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_writers import WRITERS
from graph_writers import fitted as fitted_to_format
from hypothesis import HealthCheck, assume, given, settings
from mpi_transport import check_transport
from sklearn.base import clone
from strategies import graphs

import pdadmm
from pdadmm import Graph, InputError, csbm, load_dataset
from pdadmm.data import READERS, read_path
from pdadmm.data.readers import find_reader
from pdadmm.errors import InputError as HomeOfInputError
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.history import QUANTITIES, History
from pdadmm.parallel.transport import LocalTransport
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class

# MPITransport meets the same check in test_mpi.py, on 1 to 3, and in test_mpi_many.py on ten.
TRANSPORTS = [LocalTransport]

SMALL = {"layers": 3, "hidden": 8, "iterations": 4, "hops": 2}
GRADIENT = {"iterations": 200}  # steps along a gradient are shorter than an iteration of pdADMM-G
FEW = {"iterations": 4}  # where no accuracy is looked at
ROW = {"iteration": int, "stage": int, "layers": int, "objective": float, "seconds": float, "bytes": int}
SUMMARY = {
    "seed": int, "ranks": int, "layers": int, "hidden": int, "iterations": int, "stages": list,
    "test_accuracy": float, "val_accuracy": float, "train_accuracy": float,
    "seconds_training": float, "seconds_setup": float, "seconds_per_iteration": float,
    "seconds_augmentation": float, "bytes_sent": int, "bytes_other": int, "peak_rss_bytes": int,
}  # fmt: skip
STAGE = {"layers": int, "iterations": int, "val_accuracy": float, "test_accuracy": float}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(150, num_classes=3, num_features=6, seed=2)


def make(name: str, **more):
    """A small estimator of one row; it gets those of the usual parameters that it has."""
    solver = solver_class(name)
    known = {field.name for field in parameters(solver)}
    quick = SMALL | (GRADIENT if "learning_rate" in known else {})
    return solver(**{key: value for key, value in (quick | more).items() if key in known})


@pytest.fixture(scope="module")
def fitted(graph):
    """One trained estimator a row, made once."""
    made = {}

    def fit(name: str):
        if name not in made:
            made[name] = make(name).fit(graph)
        return made[name]

    return fit


def same_weights(one, other) -> bool:
    ours, theirs = one.model_.state_dict(), other.model_.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=lambda row: row.__name__)
def test_transports_keep_their_word(transport):
    check_transport(transport())


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_name_their_solver(name):
    row = SOLVERS[name]
    assert row.name == name
    assert row.description
    assert solver_class(name).__name__ == row.estimator
    assert getattr(pdadmm, row.estimator) is solver_class(name)  # importable from the top
    assert row.estimator in pdadmm.__all__
    assert solver_class(name).__doc__


def test_an_unknown_solver_is_named():
    with pytest.raises(InputError, match=r"solver = koala: must be one of .*pdadmm-g"):
        solver_class("koala")
    assert InputError is HomeOfInputError


@pytest.mark.parametrize("name", SOLVERS)
def test_every_parameter_has_a_good_default_and_a_line_of_help(name):
    for field in parameters(solver_class(name)):
        assert field.metadata["help"].strip()
        assert "\n" not in field.metadata["help"]
        field.metadata["check"].accept(field.default)
    assert make(name).checked().get_params().keys() == make(name).get_params().keys()


@pytest.mark.parametrize("name", SOLVERS)
def test_it_learns(graph, fitted, name):
    estimator = fitted(name)
    majority = np.bincount(graph.labels[graph.splits["test"]]).max() / len(graph.splits["test"])
    assert estimator.score(graph) > majority + 0.1
    assert estimator.score(graph, split="train") > majority + 0.1
    labels, proba = estimator.predict(graph), estimator.predict_proba(graph)
    assert labels.shape == (150,)
    assert proba.shape == (150, 3)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(estimator.classes_[proba.argmax(1)], labels)


@pytest.mark.parametrize("name", SOLVERS)
def test_history_has_one_row_an_iteration(fitted, name, tmp_path):
    history = fitted(name).history_
    assert isinstance(history, History)
    assert history.column("iteration") == list(range(1, len(history) + 1))
    for row in history:
        assert set(row) <= set(QUANTITIES)
        for key, kind in ROW.items():
            assert type(row[key]) is kind, key
    absent = set(QUANTITIES).difference(*history)
    assert all(history.column(key) == [None] * len(history) for key in absent)
    for key in ("train_accuracy", "val_accuracy", "test_accuracy"):
        assert all(0 <= value <= 1 for value in history.column(key) if value is not None)
    assert history.column("stage") == sorted(history.column("stage"))
    assert history.column("seconds") == sorted(history.column("seconds"))
    assert history.column("bytes") == sorted(history.column("bytes"))
    history.to_jsonl(tmp_path / "h.jsonl")
    assert History.from_jsonl(tmp_path / "h.jsonl") == history


@pytest.mark.parametrize("name", SOLVERS)
def test_summary_has_what_every_solver_reports(graph, fitted, name):
    estimator = fitted(name)
    summary = estimator.summary_
    for key, kind in SUMMARY.items():
        assert type(summary[key]) is kind, key
    for stage in summary["stages"]:
        for key, kind in STAGE.items():
            assert type(stage[key]) is kind, key
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["stages"] == estimator.stages_
    assert summary["ranks"] == 1
    assert summary["bytes_sent"] == summary["bytes_other"] == 0
    assert summary["iterations"] == len(estimator.history_) == sum(stage["iterations"] for stage in summary["stages"])
    assert summary["test_accuracy"] == pytest.approx(estimator.score(graph))
    assert summary["peak_rss_bytes"] > 1e6
    assert all(value >= 0 for key, value in summary.items() if key.startswith("seconds"))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_seed_gives_the_same_bits(graph, fitted, name):
    again = clone(fitted(name)).fit(graph)
    assert same_weights(fitted(name), again)
    assert fitted(name).history_.column("objective") == again.history_.column("objective")
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    one = make(name, **FEW).fit(graph)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same_weights(one, make(name, **FEW).fit(graph))  # whatever the global generators say
    np.random.set_state(("MT19937", state[0], 624))
    torch.set_rng_state(state[1])


@pytest.mark.parametrize("name", SOLVERS)
def test_training_leaves_the_global_generators_alone(graph, name):
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    make(name, **FEW).fit(graph)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("name", SOLVERS)
def test_another_seed_gives_another_network(graph, name):
    one, other = (make(name, seed=seed, **FEW).fit(graph) for seed in (0, 1))
    assert not same_weights(one, other)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_graph_is_left_as_it_was(graph, name):
    before = graph.fingerprint()
    make(name, **FEW).fit(graph).predict(graph)
    assert graph.fingerprint() == before


@pytest.mark.parametrize("name", SOLVERS)
def test_save_and_load(graph, fitted, name, tmp_path):
    fitted(name).save(tmp_path / "m")
    back = solver_class(name)().load(tmp_path / "m")
    np.testing.assert_array_equal(back.predict_proba(graph), fitted(name).predict_proba(graph))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_goes_on_from_a_checkpoint(graph, fitted, name, tmp_path):
    def cut_off(row) -> None:
        if row["iteration"] == 7:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        make(name).fit(graph, checkpoint=tmp_path, checkpoint_every=5, watch=cut_off)
    again = make(name).fit(graph, checkpoint=tmp_path, checkpoint_every=50, resume=True)
    assert same_weights(fitted(name), again)
    assert fitted(name).history_.column("objective") == again.history_.column("objective")
    assert fitted(name).stages_ == again.stages_


@pytest.mark.parametrize("name", SOLVERS)
def test_it_trains_from_disk_or_says_that_it_does_not(graph, name, tmp_path):
    disk = {"memory": "300MiB", "scratch": tmp_path}
    if not solver_class(name).streams:
        with pytest.raises(InputError, match="memory = 300MiB: must be left out"):
            make(name).fit(graph, **disk)
        return
    few = {"iterations": min(20, make(name).iterations)}
    plain, again = make(name, **few).fit(graph), make(name, **few).fit(graph, **disk)
    ours, theirs = (run.history_.column("objective") for run in (plain, again))
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert again.score(graph) == pytest.approx(plain.score(graph), abs=0.05)
    assert json.loads(json.dumps(again.summary_)) == again.summary_


@pytest.mark.parametrize("name", SOLVERS)
def test_arrays_with_names(name, graph):
    random = np.random.default_rng(0)
    labels = random.integers(3, size=60)
    X, y = random.normal(size=(60, 4)) + 3 * np.eye(3, 4)[labels], np.array(["red", "green", "blue"])[labels]
    if not issubclass(solver_class(name), GraphClassifier):  # a GNN needs edges, and says so
        for give in (lambda: make(name).fit(X, y), lambda: make(name, iterations=1).fit(graph).predict(X)):
            with pytest.raises(InputError, match="must be a Graph; a GNN aggregates over the edges"):
                give()
        return
    estimator = make(name).fit(X, y)
    assert estimator.score(X, y) > 0.8
    assert estimator.summary_["val_accuracy"] is None
    json.dumps(estimator.summary_)


@pytest.mark.parametrize("name", SOLVERS)
def test_bad_parameters_are_named(graph, name):
    for field in parameters(solver_class(name)):
        with pytest.raises(InputError) as caught:
            make(name, **{field.name: object()}).fit(graph)
        assert caught.value.argument == field.name


# Readers


@pytest.mark.parametrize("name", SOLVERS)
def test_what_plays_no_part_is_refused(name):
    solver = solver_class(name)
    fields = {field.name: field for field in parameters(solver)}
    for field in fields.values():
        for other, served in field.metadata["where"].items():
            choices, check = fields[other].metadata["check"].choices, field.metadata["check"]
            assert set(served) < set(choices)
            value = next(one for one in (0.25, (3, 3), 3, 2) if _accepts(check, one))
            for choice in choices:
                estimator = solver(**{other: choice, field.name: value, "layers": 2})
                if choice in served:
                    estimator.checked()
                else:
                    solver(**{other: choice}).checked()  # a default is never refused
                    with pytest.raises(InputError, match=f"{field.name} = .*{other} {choice}; .* {served[0]}"):
                        estimator.checked()


def _accepts(check, value):
    try:
        return check.accept(value) is not None
    except (ValueError, TypeError):
        return False


@pytest.mark.parametrize("form", WRITERS)
def test_every_reader_gives_back_the_graph_that_was_written(form):
    """Adjacency, weights, features, labels and splits, whatever the format; of READERS' rows none is left out."""
    reader, write, lacks = WRITERS[form]
    assert set(READERS) == {row for row, *_ in WRITERS.values()}
    tried = []

    @given(graph=graphs())
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.filter_too_much])
    def check(graph):
        graph = fitted_to_format(graph, lacks)
        assume(graph is not None)
        with tempfile.TemporaryDirectory() as folder:
            path = write(graph, Path(folder))
            assert find_reader(path) is READERS[reader]
            again, named = load_dataset(path), read_path(path, "other")
        assert again.fingerprint() == named.fingerprint() == graph.fingerprint()
        assert (again.name, named.name) == ("g" if path.suffix or reader == "planetoid" else path.name, "other")
        assert bool(again.own_split) == (graph.splits is not None)
        tried.append(graph)

    check()
    assert tried


@pytest.mark.parametrize("row", READERS.values(), ids=READERS)
def test_every_reader_names_what_is_missing(row, tmp_path):
    """Each file of a folder in turn; and a folder of other things."""
    base = csbm(12, num_classes=2, num_features=2, avg_degree=3)
    write, lacks = next(entry[1:] for entry in WRITERS.values() if entry[0] == row.name)
    path = write(fitted_to_format(base, lacks), tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match=r"dataset"):
            row.read(path, None, "file")
        file.write_bytes(content)
        assert row.read(path, None, "file").num_nodes == 12
    (tmp_path / "empty").mkdir()
    assert not row.holds(tmp_path / "empty")
    with pytest.raises(InputError, match=r"in one of the formats npz, planetoid"):
        read_path(tmp_path / "empty")
