"""Timelines of one process, both kinds of solver; a trace changes no result. (Two ranks: test_mpi_commands.py.)"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pdadmm import PDADMMG, Adam, Trace, digits
from pdadmm.cli import main

HERE = Path(__file__).parent
STEPS = {"prepare p", "wait for q", "update p", "send p", "update W, b", "update z", "wait for p", "update q, u"}


@pytest.fixture(scope="module")
def graph():
    return digits()


@pytest.mark.parametrize("solver", [PDADMMG(layers=5, hidden=9, iterations=3), Adam(layers=2, hidden=9, iterations=3)])
def test_a_trace_tells_all_and_changes_nothing(graph, solver):
    plain = solver.fit(graph).predict_proba(graph)
    trace = Trace()
    traced = solver.fit(graph, trace=trace).predict_proba(graph)
    assert (plain == traced).all()
    (spans,) = trace.ranks
    assert spans[0][3] >= 0
    for (_, _, before, start, length), (_, _, iteration, following, _) in itertools.pairwise(spans):
        assert following == pytest.approx(start + length, abs=1e-9)  # no gap, no overlap
        assert iteration >= before
    assert spans[-1][2] == len(solver.history_)
    (seconds,) = trace.seconds()
    if isinstance(solver, Adam):
        assert {"gradients", "sum gradients", "optimiser", "evaluate"} <= set(seconds)
    else:
        assert set(seconds) >= STEPS | {"first layer's factor", "evaluate", "measure"}
        assert {layer for name, layer, *_ in spans if name == "update z"} == {1, 2, 3, 4, 5}
    assert sum(seconds.values()) == pytest.approx(spans[-1][3] + spans[-1][4] - spans[0][3])


def test_a_trace_of_spans_has_an_end(graph, monkeypatch):
    monkeypatch.setattr("pdadmm.trace.LONGEST", 5)
    trace = Trace()
    PDADMMG(layers=2, hidden=8, iterations=2).fit(graph, trace=trace)
    assert len(trace.ranks[0]) == 5


def test_a_trace_in_a_folder_that_is_missing(capsys, tmp_path):
    status = main(["train", "--dataset", "digits", "--trace", str(tmp_path / "nowhere" / "trace.json")])
    assert status == 2
    assert "trace" in capsys.readouterr().err
