"""Runs that end by a signal or diverge: a checkpoint is left, or rho raised, and the words are right."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from checkpoint_small import GRAPH, SMALL, names, outcome

from pdadmm import PDADMMG, Adam, DivergenceError
from pdadmm.admm.network import Network
from pdadmm.errors import Interrupted

# Signals


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("solver", [PDADMMG(**SMALL), Adam(**SMALL | {"iterations": 8})], ids=["pdadmm-g", "adam"])
def test_a_signal_leaves_a_checkpoint(tmp_path, caplog, number, error, solver):
    expected, before = outcome(solver.fit(GRAPH)), [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def watch(row) -> None:
        if row["iteration"] == 2:
            signal.raise_signal(number)

    with pytest.raises(error) as caught:
        solver.fit(GRAPH, checkpoint=tmp_path, checkpoint_every=100, watch=watch)
    assert not isinstance(caught.value, SystemExit) or caught.value.code == 143
    assert f"stopped by {signal.Signals(number).name} after iteration 3" in caplog.text
    assert names(tmp_path) == ["iteration-000003"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert outcome(solver.fit(GRAPH, checkpoint=tmp_path, resume=True)) == expected


def test_a_second_signal_has_its_usual_effect(tmp_path):
    def watch(row) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, watch=watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Interrupted)
    assert names(tmp_path) == []


# Divergence


def test_divergence_names_the_first_update_that_is_not_finite(tmp_path, monkeypatch):
    """A NaN put into z of layer 2 before iteration 6 shows in what is computed from it first: p of layer 2."""
    iterate, count = Network.iterate, 0

    def damaging(network):
        nonlocal count
        count += 1
        if count == 6:
            network.layers[1].z[3, 1] = torch.nan
            network.layers[1].r[3, 1] = torch.nan
        iterate(network)

    monkeypatch.setattr(Network, "iterate", damaging)
    with pytest.raises(DivergenceError, match=r"iteration 6: layer 2 of 3 is not finite \(p first\) .*raise rho") as no:
        PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, checkpoint_every=2)
    assert "the checkpoint of iteration 4 in" in str(no.value)
    assert names(tmp_path) == ["iteration-000002", "iteration-000004"]
    monkeypatch.setattr(Network, "iterate", iterate)
    assert outcome(PDADMMG(**SMALL).fit(GRAPH, checkpoint=tmp_path, resume=True)) == outcome(
        PDADMMG(**SMALL).fit(GRAPH)
    )


SINGULAR = {"form": "exact", "nu": 28.0, "rho": 1e-10}  # rho I + nu W^T W is singular in float32


def test_backing_off_raises_rho_until_it_trains(caplog):
    with pytest.raises(DivergenceError, match="rho = 1e-10"):
        PDADMMG(**SMALL, **SINGULAR).fit(GRAPH)
    trained = PDADMMG(**SMALL, **SINGULAR, on_divergence="backoff").fit(GRAPH)
    rho = trained.history_.column("rho")
    assert len(rho) == 8
    assert rho == sorted(rho)
    assert 1e-9 <= rho[-1] <= 1e-5
    assert caplog.text.count("going on from the best weights so far with rho") >= 1
    assert np.isfinite(trained.history_.column("lagrangian")).all()


def test_backing_off_gives_up_where_it_does_not_help():
    X = np.random.default_rng(0).normal(size=(20, 6)) * 1e30
    with pytest.raises(DivergenceError, match="layer 1"):
        PDADMMG(**SMALL, on_divergence="backoff").fit(X, np.arange(20) % 3)


def test_backing_off_keeps_the_best_weights(monkeypatch):
    """Diverging after the best iteration costs nothing of it: the stage ends with weights at least as good."""
    iterate, count = Network.iterate, 0

    def damaging(network):
        nonlocal count
        count += 1
        iterate(network)
        if count == 3:
            network.layers[0].z.fill_(torch.nan)

    monkeypatch.setattr(Network, "iterate", damaging)
    trained = PDADMMG(**SMALL, on_divergence="backoff").fit(GRAPH)
    rows = [row for row in trained.history_ if row["stage"] == 0]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["rho"] for row in rows] == pytest.approx([0.3, 0.3, 3.0, 3.0])
    assert trained.stages_[0]["val_accuracy"] == max(row["val_accuracy"] for row in rows)
