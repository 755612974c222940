"""Contests: the arithmetic on hand-made runs, seeds, resuming, child processes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from pdadmm import InputError, contest, standings
from pdadmm.contest import COMMON, Contest, compact_history, compare, gradient_bytes, read_summary
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class
from pdadmm.standings import default_targets, figures, seconds_to, table, table_of_work

ENTRIES = [("pdadmm-g", 2)]
COMMON_VALUES = {"hops": 1, "threads": 1}
OF_AUGMENTED = {"hops": 3, "operator": "rw", "weighting": "ppr", "alpha": 0.3, "heat_time": 1.0}  # of no GNN


def small(**changes) -> Contest:
    return Contest(**{"dataset": "csbm:120", "hidden": 6, "seeds": 2, "budget": 2, "common": COMMON_VALUES} | changes)


@pytest.fixture
def in_process(monkeypatch):
    """Work done here instead of in children, which take seconds to start; the jobs that were done."""
    jobs = []

    def work_here(work, job):
        jobs.append((work.__name__, json.loads(json.dumps(job))))
        return work(job)

    monkeypatch.setattr(contest, "_in_child", work_here)
    return jobs


def run(val, seconds=None, layers=4, test=0.5, **more):
    seconds = seconds or [float(k + 1) for k in range(len(val))]
    layers = layers if isinstance(layers, list) else [layers] * len(val)
    best = max(value for value in val if value is not None)
    return {
        "val_accuracy": best, "test_accuracy": test, "seconds_training": seconds[-1], "iterations": len(val),
        "bytes": 10, "peak_bytes": 2_000_000, "history": {"layers": layers, "val_accuracy": val, "seconds": seconds},
    } | more  # fmt: skip


# Arithmetic


def test_seconds_to_a_target_count_growth_as_time_and_not_as_arrival():
    history = run([0.9, 0.6, None, 0.8], [1.0, 2.0, 2.5, 4.0], [2, 4, 4, 4])["history"]
    assert seconds_to(history, 4, 0.8) == 4.0
    assert seconds_to(history, 4, 0.6) == 2.0
    assert seconds_to(history, 4, 0.81) is None
    assert seconds_to(history, 2, 0.81) == 1.0


def test_figures_by_hand():
    runs = [run([0.5, 0.8], test=0.6), run([0.7, 0.7], test=0.8, peak_bytes=3e6), run([0.1, 0.2, 0.75], test=0.7)]
    found = figures({"layers": 4, "runs": runs}, [0.7, 0.75, 0.8])
    assert found["test_accuracy"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.1), "values": [0.6, 0.8, 0.7]}
    assert found["val_accuracy"]["mean"] == pytest.approx(0.75)
    assert [part["values"] for part in found["seconds_to"]] == [[2.0, 1.0, 3.0], [2.0, None, 3.0], [2.0, None, None]]
    assert [part["reached"] for part in found["seconds_to"]] == [3, 2, 1]
    # a seed that never arrives is slower than all: leaving it out would reward failing
    assert [part["seconds"] for part in found["seconds_to"]] == [2.0, 3.0, None]
    assert (found["seconds_training"], found["iterations"], found["peak_bytes"]) == (2.0, 2, 3e6)
    assert found["failed"] == 0


def test_failed_runs_count():
    row = {"solver": "pdadmm-g", "layers": 4, "runs": [run([0.8]), {"failed": "diverged"}, {"failed": "diverged"}]}
    found = row["figures"] = figures(row, [0.7])
    assert found["failed"] == 2
    assert found["test_accuracy"] == {"mean": 0.5, "std": None, "values": [0.5]}
    assert (found["seconds_to"][0]["reached"], found["seconds_to"][0]["seconds"]) == (1, None)
    assert "(2 of 3 failed)" in table([row], [0.7])
    lost = {"solver": "pdadmm-g", "layers": 4, "runs": [{"failed": "diverged"}]}
    lost["figures"] = figures(lost, [0.7])
    assert lost["figures"]["test_accuracy"]["mean"] is None
    assert "| - (1 of 1 failed) | - | - | - (0 of 1) |" in table([lost], [0.7])
    assert default_targets([lost]) == []


def test_bytes_that_a_solver_does_not_tell_are_left_out():
    row = {"layers": 4, "runs": [run([0.8], bytes=None), run([0.8])]}
    assert figures(row, [])["bytes"] is None


def test_default_targets_come_from_backpropagation():
    ours = {"solver": "pdadmm-g", "layers": 4, "runs": [run([0.9])]}
    theirs = [{"solver": name, "layers": 4, "runs": [run([value])]} for name, value in (("adam", 0.8), ("gd", 0.5))]
    assert default_targets([ours]) == [0.855, 0.891]
    assert default_targets([ours, *theirs]) == [0.76, 0.792]
    assert set(standings.BACKPROP) == {"gd", "adadelta", "adagrad", "adam"}


def test_the_table():
    rows = [{"solver": "pdadmm-g", "layers": 4, "runs": [run([0.8], [0.1234]), run([0.8], [0.1234], test=0.7)]}]
    assert standings.standings(rows, [0.7]) == [0.7]
    head, line, row = table(rows, [0.7]).splitlines()
    assert head.startswith("| solver | layers | test accuracy | validation | training s | s to 0.7 | iterations |")
    assert head.count("|") == line.count("|") == row.count("|")
    assert row == "| pdadmm-g | 4 | 0.6000 ± 0.1414 | 0.8000 ± 0.0000 | 0.123 | 0.123 (2 of 2) | 1 | 1e-05 | 2 |"


def test_the_table_of_work():
    plain = {"solver": "adam", "layers": 2, "runs": [run([0.8], [0.1])]}
    assert table_of_work([plain]) == ""
    spent = [{"sparse": 1.0, "dense": 2.0}, {"sparse": 3.0, "dense": 4.0}]
    gnn = {"solver": "gcn", "layers": 2, "runs": [run([0.8], [0.1]) | {"spent": one} for one in spent]}
    head, _, row = table_of_work([plain, gnn]).splitlines()
    assert head == "| solver | layers | sparse s | dense s | communication s | waiting s | sampling s |"
    assert row == "| gcn | 2 | 2 | 3 | 0 | 0 | 0 |"


def test_a_compact_history_has_the_bytes_of_a_rank_for_each_layer():
    rows = [{"iteration": k, "stage": k > 2, "layers": 2, "bytes": 0, "seconds": k / 3} for k in (1, 2, 3)]
    rows[1] |= {"val_accuracy": 1 / 3, "objective": math.inf}
    found = compact_history(rows, [10, 100])
    assert found["bytes"] == [10, 20, 120]
    assert found["seconds"] == [0.333333, 0.666667, 1.0]
    assert found["val_accuracy"] == [None, 1 / 3, None]
    assert "objective" not in found
    assert "test_accuracy" not in found
    assert "bytes" not in compact_history(rows, [None, None])


def test_bytes_of_gradients_by_hand():
    """4 layers of 3, 5 inputs, 2 classes: a ring of 4 ranks sends 2 * 3 times the gradients of every step."""
    settings = SimpleNamespace(dtype="float32", batch_size=None, hidden=3, layers=4)
    two, four = 6 * 3 + 4 * 2, 6 * 3 + 2 * (4 * 3) + 4 * 2
    assert gradient_bytes(settings, [5, 3, 3, 3, 2], [2, 4], 10) == [2 * 3 * two * 4, 2 * 3 * four * 4]
    settings.batch_size, settings.dtype = 4, "float64"  # three steps
    assert gradient_bytes(settings, [5, 3, 3, 3, 2], [4], 10) == [2 * 3 * four * 8 * 3]
    settings.layers = 1
    assert gradient_bytes(settings, [5, 2], [1], 10) == [0]


# Seeds


def test_seeds_of_splits():
    drawn = small(split="random:5")
    assert [drawn.split_seed(seed) for seed in (0, 3, 1000)] == [0, 3, 1000]
    assert [small(split="random:5", split_seeds="fixed").split_seed(seed) for seed in (0, 3, 1000)] == [0, 0, 0]
    for split in (None, "file", "public"):
        assert small(split=split).split_seed(3) is None


def test_common_flags_are_parameters_of_every_solver():
    for name, row in SOLVERS.items():
        known = {field.name for field in parameters(solver_class(name))}
        common = {"scaling", "dtype", "eval_every", "threads"} if row.on_graph else set(COMMON)
        assert common | {"layers", "hidden", "seed"} <= known


def test_who_runs_what(in_process, tmp_path):
    summary = compare(small(split="random:5", seeds=3), ENTRIES, tmp_path / "c.json")
    works = [work for work, _ in in_process]
    assert works == ["_tune", "_run", "_run", "_run"]
    jobs = [job for _, job in in_process]
    assert [job["fixed"]["seed"] for job in jobs] == [1000, 0, 1, 2]
    assert [job["data"] for job in jobs] == [["csbm:120", None, "random:5", seed] for seed in (1000, 0, 1, 2)]
    (row,) = summary["rows"]
    chosen = row["parameters"]
    assert chosen == row["tuning"]["trials"][row["tuning"]["best"]]["parameters"]
    assert all(job["fixed"] == {"layers": 2, "hidden": 6, "seed": k, **COMMON_VALUES, **chosen}
               for k, job in enumerate(jobs[1:]))  # fmt: skip
    assert [(run["seed"], run["split_seed"]) for run in row["runs"]] == [(0, 0), (1, 1), (2, 2)]
    assert (row["tuning"]["seed"], row["tuning"]["split_seed"]) == (1000, 1000)
    assert "test_accuracy" not in json.dumps(row["tuning"])


def test_without_a_budget_no_seed_is_tuned_on(in_process, tmp_path):
    contest = small(budget=0, first_seed=999)
    assert not contest.tuned
    (row,) = compare(contest, ENTRIES, tmp_path / "c.json")["rows"]
    assert 1000 in [run["seed"] for run in row["runs"]]


def test_the_runs_are_those_of_the_estimator(in_process, tmp_path):
    (row,) = compare(small(budget=0), ENTRIES, tmp_path / "c.json")["rows"]
    assert (row["parameters"], row["tuning"]) == ({}, None)
    assert [work for work, _ in in_process] == ["_run", "_run"]
    for seed, run in enumerate(row["runs"]):
        solver = solver_class("pdadmm-g")(layers=2, hidden=6, hops=1, seed=seed)
        solver.fit(contest.load_dataset("csbm:120"))
        for name in ("test_accuracy", "val_accuracy", "iterations"):
            assert run[name] == solver.summary_[name]
        assert run["bytes"] == sum(stage["iterations"] * stage["bytes_per_iteration"] for stage in solver.stages_)
        assert run["history"]["val_accuracy"] == solver.history_.column("val_accuracy")
    assert row["figures"]["test_accuracy"]["values"] == [run["test_accuracy"] for run in row["runs"]]


def test_seeds_may_begin_anywhere(in_process, tmp_path):
    (row,) = compare(small(split="random:5", first_seed=7, tune_seed=6), ENTRIES, tmp_path / "c.json")["rows"]
    assert [job["fixed"]["seed"] for _, job in in_process] == [6, 7, 8]
    assert [(run["seed"], run["split_seed"]) for run in row["runs"]] == [(7, 7), (8, 8)]


def test_tuning_over_several_seeds(in_process, tmp_path):
    asked = small(split="random:5", tune_seed=6, tune_seeds=3, first_seed=9)
    (row,) = compare(asked, ENTRIES, tmp_path / "c.json")["rows"]
    work, job = in_process[0]
    assert (work, job["data"][-1], job["fixed"]["seed"]) == ("_tune", 6, 6)
    assert job["others"] == [[["csbm:120", None, "random:5", seed], seed] for seed in (7, 8)]
    assert [len(trial["val_accuracies"]) for trial in row["tuning"]["trials"]] == [3, 3]
    with pytest.raises(InputError, match="none of the seeds 8 to 9"):
        compare(small(tune_seed=6, tune_seeds=3, first_seed=8), ENTRIES, tmp_path / "other.json")


@pytest.mark.parametrize("solver", ["pdadmm-g", "adam", "gcn"])
def test_test_nodes_judged_once(solver, in_process, tmp_path, monkeypatch):
    """The same accuracy as along the way, by a fit that had no test nodes."""
    seen = []
    real = solver_class(solver).fit

    def fit(self, graph):
        seen.append(len(graph.splits["test"]))
        return real(self, graph)

    monkeypatch.setattr(solver_class(solver), "fit", fit)
    plain = {"budget": 0, "common": {"threads": 1}}
    rows = {
        test: compare(small(**plain, test=test), [(solver, 2)], tmp_path / f"{test}.json")["rows"][0]
        for test in ("curve", "once")
    }
    assert [bool(nodes) for nodes in seen] == [True, True, False, False]
    for one, other in zip(rows["curve"]["runs"], rows["once"]["runs"]):
        assert one["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=1e-12)
        assert one["history"]["val_accuracy"] == other["history"]["val_accuracy"]
        assert set(one["history"]) - set(other["history"]) == {"test_accuracy"}
    read_summary(tmp_path / "once.json")


# Going on


def test_going_on_with_a_contest(in_process, tmp_path):
    path = tmp_path / "c.json"
    first = compare(small(), ENTRIES, path, command="one")
    del in_process[:]
    seen = []
    both = [*ENTRIES, ("pdadmm-g-q", 2), ("pdadmm-g", 3), ("pdadmm-g", 3)]
    second = compare(small(), both, path, [0.5], "two", lambda summary: seen.append(read_summary(path)))
    assert len(in_process) == 2 * 3
    assert all(job["fixed"]["layers"] == 3 or job["solver"] == "pdadmm-g-q" for _, job in in_process)
    assert [len(summary["rows"]) for summary in seen] == [2, 3]  # written after each
    assert second["rows"][0]["runs"] == first["rows"][0]["runs"]
    assert (second["commands"], second["targets"]) == (["one", "two"], [0.5])
    assert all([part["target"] for part in row["figures"]["seconds_to"]] == [0.5] for row in second["rows"])
    assert read_summary(path) == json.loads(json.dumps(second))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.json"]


def test_a_contest_that_is_cut_off_keeps_what_it_has(in_process, tmp_path, monkeypatch):
    path, real = tmp_path / "c.json", contest._row

    def cut(asked, solver, layers):
        if layers == 3:
            raise KeyboardInterrupt
        return real(asked, solver, layers)

    monkeypatch.setattr(contest, "_row", cut)
    with pytest.raises(KeyboardInterrupt):
        compare(small(), [*ENTRIES, ("pdadmm-g", 3)], path)
    monkeypatch.setattr(contest, "_row", real)
    del in_process[:]
    compare(small(), [*ENTRIES, ("pdadmm-g", 3)], path)
    assert {job["fixed"]["layers"] for _, job in in_process} == {3}


def test_what_shapes_the_features_may_come_of_rows_that_are_there(in_process, tmp_path):
    path = tmp_path / "c.json"
    compare(small(budget=0), ENTRIES, path)
    both = compare(small(budget=0), [("gcn", 2)], path)
    assert [row["solver"] for row in both["rows"]] == ["pdadmm-g", "gcn"]
    alike = small(budget=0, common={"scaling": "row-l2", "hops": 4})  # the default hops, and what a GNN has, too
    assert compare(alike, [("gcn", 2)], tmp_path / "gcn.json")["rows"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dataset": "csbm:130"}, "dataset, graph"),
        ({"split": "random:4"}, "split"),
        ({"hidden": 7}, "hidden"),
        ({"seeds": 3}, "seeds"),
        ({"budget": 1}, "budget"),
        ({"tune_seed": 7}, "tune_seed"),
        ({"first_seed": 3}, "first_seed"),
        ({"test": "once"}, "test"),
        ({"common": {"hops": 2, "threads": 1}}, "common"),
        ({"common": {"hops": 1, "threads": 2}}, "common, threads"),
    ],
)
def test_another_contest_is_not_gone_on_with(in_process, tmp_path, changes, word):
    path = tmp_path / "c.json"
    compare(small(), [], path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"of the same contest, and differs in {word};"):
        compare(small(**changes), ENTRIES, path)
    assert path.read_bytes() == before
    assert not in_process


def test_a_contest_from_before_a_common_parameter_is_gone_on_with(in_process, tmp_path):
    path = tmp_path / "c.json"
    compare(small(), [], path)  # which names hops and threads alone
    compare(small(common={"device": "cpu", "dtype": "float32"} | COMMON_VALUES), [], path)
    with pytest.raises(InputError, match="differs in common;"):
        compare(small(common={"device": "auto"} | COMMON_VALUES), [], path)


def test_other_versions_are_another_contest(tmp_path, monkeypatch):
    compare(small(), [], tmp_path / "c.json")
    monkeypatch.setattr(contest, "versions", lambda: {"pdadmm": "9.9"})
    with pytest.raises(InputError, match="differs in versions"):
        compare(small(), ENTRIES, tmp_path / "c.json")


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"rows": []}'])
def test_other_files(tmp_path, text, in_process):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="a file that pdadmm compare wrote"):
        read_summary(tmp_path / "c.json")
    if text:
        with pytest.raises(InputError, match="a file that pdadmm compare wrote"):
            compare(small(), ENTRIES, tmp_path / "c.json")
        assert not in_process


# Failures


def test_a_run_that_diverges_is_recorded(in_process, tmp_path, monkeypatch):
    from pdadmm import DivergenceError

    solver = solver_class("pdadmm-g")
    real = solver.fit

    def fit(self, graph):
        if self.seed in (1, 1000):
            raise DivergenceError("iteration 1: layer 1 is not finite")
        return real(self, graph)

    monkeypatch.setattr(solver, "fit", fit)
    (row,) = compare(small(), ENTRIES, tmp_path / "c.json")["rows"]
    assert row["tuning"]["best"] == 0  # all failed: the defaults
    assert row["runs"][1] == {"seed": 1, "split_seed": None, "failed": "iteration 1: layer 1 is not finite"}
    assert row["figures"]["failed"] == 1


@pytest.mark.parametrize(
    ("changes", "entries", "word"),
    [
        ({"tune_seed": 1}, ENTRIES, "tune_seed = 1"),
        ({"tune_seed": 6, "first_seed": 5}, ENTRIES, "tune_seed = 6"),
        ({"common": {"hops": -1}}, ENTRIES, "hops = -1"),
        ({}, [("koala", 2)], "solver = koala"),
        ({"split": "koala"}, ENTRIES, "split = koala"),
        ({"split": "fraction:50/0/50"}, ENTRIES, "validation and test nodes"),
        ({"dataset": "koala"}, ENTRIES, "dataset = koala"),
        ({"split_seeds": "koala"}, ENTRIES, "split_seeds = koala: must be one of same, fixed"),
        ({"test": "twice"}, ENTRIES, "test = twice: must be one of curve, once"),
        ({"split_seeds": "fixed"}, ENTRIES, "split_seeds = fixed: must be left out with a split that is not drawn"),
        ({"split_seeds": "fixed", "split": "file"}, ENTRIES, "split_seeds = fixed: must be left out"),
        ({"budget": 0, "tune_seed": 7}, ENTRIES, "tune_seed = 7: must be left out with budget 0"),
        ({"common": {"hop": 3}}, ENTRIES, "common = hop: must be one of hops, operator"),
        *(({"common": {name: value}}, [("gcn", 2), ("sage", 2)], f"{name} = .*: must be left out with gcn, sage alone")
          for name, value in OF_AUGMENTED.items()),
    ],
)
def test_bad_contests_end_before_the_first_run(in_process, tmp_path, changes, entries, word):
    with pytest.raises(InputError, match=word):
        compare(small(**changes), entries, tmp_path / "c.json")
    assert not in_process
    assert not list(tmp_path.iterdir())


# Children


def test_a_child_has_its_own_peak_memory():
    """What the parent once held is not the child's: getrusage would say so."""
    held = b"x" * 400_000_000
    assert contest.peak_bytes() > len(held)
    assert contest._in_child(_peak, len(held)) < len(held)


def _peak(_):
    return contest.peak_bytes()


def test_a_child_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "_run", _die)
    monkeypatch.setattr(contest, "_tune", _die)
    (row,) = compare(small(seeds=1), ENTRIES, tmp_path / "c.json")["rows"]
    assert row["tuning"] == {"seed": 1000, "split_seed": None, "best": None, "trials": [], "failed": contest.KILLED}
    assert row["parameters"] == {}
    assert row["runs"] == [{"seed": 0, "split_seed": None, "failed": contest.KILLED}]


def _die(_):
    import os

    os._exit(9)


def test_solvers_of_a_contest_train_where_the_others_do():
    contest = Contest("digits", common={"device": "auto"})
    contest.check_common(["pdadmm-g", "adam"])
    with pytest.raises(InputError, match=r"device = auto: must be cpu with .*; gcn, gist would train on the CPU"):
        contest.check_common(["pdadmm-g", "gcn", "gist"])
    Contest("digits", common={"device": "cpu"}).check_common(["gcn"])
