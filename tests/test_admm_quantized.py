"""pdADMM-G-Q: p constrained to a grid, and whole runs of few bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pdadmm import PDADMMG, PDADMMGQ, DivergenceError, InputError, Quantizer, csbm
from pdadmm.admm.channel import HEADER_BYTES
from pdadmm.admm.link import Link
from pdadmm.admm.network import Network
from pdadmm.admm.updates import update_p_constrained_
from pdadmm.quantize import make_grid

GRAPH = csbm(120, num_classes=3, num_features=12, avg_degree=6, seed=3)


# p on a grid (Problem 3)


def phi(p, z, W, b, q, u, nu, rho):
    fit, gap = z - p @ W.T - b, p - q
    return 0.5 * nu * fit.square().sum(1) + (u * gap).sum(1) + 0.5 * rho * gap.square().sum(1)


@pytest.mark.parametrize("seed", range(20))
def test_the_constrained_step_stays_on_the_grid_and_no_node_rises(seed):
    random = torch.Generator().manual_seed(seed)
    V, m, n = (int(torch.randint(1, 12, (), generator=random)) for _ in range(3))

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    grid = make_grid("linspace", 4, -1.0, 2.0)
    nu, rho = float(draw(1).exp()), float(draw(1).exp())
    p, W, b, q, u, z = grid.project(draw(V, m)), 3 * draw(n, m), draw(n), draw(V, m), draw(V, m), draw(V, n)
    before = phi(p, z, W, b, q, u, nu, rho)
    r = z - p @ W.T - b
    update_p_constrained_(p, r, W, q, u, nu, rho, grid)
    assert torch.equal(grid.project(p), p)
    after = phi(p, z, W, b, q, u, nu, rho)
    assert bool((after <= before + 1e-10 * (1 + before.abs())).all())
    torch.testing.assert_close(r, z - p @ W.T - b, rtol=1e-10, atol=1e-10)


GRIDS = [{"delta": "paper"}, {"delta": "linspace", "delta_low": 0, "delta_high": 6}]


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_lagrangian_does_not_rise_on_a_fixed_grid(form, grid):
    """The paper's iteration: the theorem knows no extrapolation."""
    solver = PDADMMG(
        layers=4, hidden=16, stages=(2, 4), iterations=60, form=form, dtype="float64", threads=1,
        nu=0.3, rho=4.2 * 0.3, prox_z=1.0, prox_W=0.0, kappa_identity=0.0, acceleration="none",
        quantizer=Quantizer(bits=8, coding="constrained", **grid),
    ).fit(GRAPH)  # fmt: skip
    for stage in (0, 1):
        values = [row["lagrangian"] for row in solver.history_ if row["stage"] == stage]
        for earlier, later in itertools.pairwise(values):
            assert later <= earlier + 1e-9 * abs(values[0])


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_p_stays_on_its_grid_where_q_and_u_are_extrapolated(form, grid, monkeypatch):
    quantizer = Quantizer(bits=8, coding="constrained", **grid).checked()
    points, plain_iterate, seen = quantizer.p_grid(), Network.iterate, []

    def iterate(network):
        plain_iterate(network)
        for layer in network.uppers:
            link = layer.below
            assert torch.equal(points.project(link.p), link.p)
            assert torch.equal(link.p, link.own_p)
            a = torch.addmm(layer.b, link.p, layer.W.mT)
            torch.testing.assert_close(layer.r, layer.z - a, rtol=1e-9, atol=1e-9)
            seen.append(link.momentum.beta)

    monkeypatch.setattr(Network, "iterate", iterate)
    PDADMMG(
        layers=4, hidden=16, stages=(2, 4), iterations=20, form=form, dtype="float64", threads=1,
        acceleration="all-stages", quantizer=quantizer,
    ).fit(GRAPH)  # fmt: skip
    assert len(seen) == 20 * (1 + 3)
    assert max(seen) > 0.4


# Whole runs


def test_8_bits_train_like_32():
    plain, quantized = (
        PDADMMG(layers=4, hidden=16, iterations=10, threads=1, quantizer=quantizer).fit(GRAPH)
        for quantizer in (None, Quantizer(bits=8))
    )
    assert abs(plain.summary_["val_accuracy"] - quantized.summary_["val_accuracy"]) <= 0.05
    assert quantized.summary_["bytes_per_iteration"] < 0.5 * plain.summary_["bytes_per_iteration"]


def test_pdadmmgq_is_pdadmmg_with_a_quantizer():
    one = PDADMMG(layers=3, hidden=16, iterations=4, threads=1, quantizer=Quantizer(bits=2)).fit(GRAPH)
    other = PDADMMGQ(layers=3, hidden=16, iterations=4, threads=1, bits=2).fit(GRAPH)
    for name, value in one.model_.state_dict().items():
        assert torch.equal(value, other.model_.state_dict()[name]), name


def test_0_bits_send_nothing_but_headers_and_leave_u_at_zero():
    solver = PDADMMGQ(layers=3, hidden=16, iterations=4, threads=1, bits=0).fit(GRAPH)
    assert solver.summary_["bytes_per_iteration"] == 2 * 2 * HEADER_BYTES
    assert all(row["residual_link"] == 0.0 for row in solver.history_)


def test_references_of_an_inserted_layer_start_at_its_activations():
    quantizer = Quantizer(bits=1).checked()
    h = torch.from_numpy(np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3))
    link = Link(h, 2, True, True, quantizer)
    assert torch.equal(link.p, h)
    assert torch.equal(link.q, h)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"bits": 3}, "bits"),
        ({"coding": "sometimes"}, "coding"),
        ({"delta": "square"}, "delta"),
        ({"rounding": "up"}, "rounding"),
        ({"error_feedback": "perhaps"}, "error_feedback"),
        ({"q_bits": 5}, "q_bits"),
        ({"coding": "constrained", "delta": "column"}, "delta"),
        ({"coding": "constrained", "bits": 8, "rounding": "stochastic"}, "coding"),
        ({"coding": "constrained", "bits": 2}, "bits"),
        ({"delta": "linspace"}, "delta_low, delta_high"),
        ({"delta_low": 0, "delta_high": 1}, "delta_low, delta_high"),
        ({"bits": 0, "tol": 1e-3}, "tol"),
        ({"coding": "difference", "delta": "paper", "bits": 8}, "delta"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options, name):
    with pytest.raises(InputError) as caught:
        PDADMMGQ(layers=3, hidden=4, iterations=1, **options).fit(GRAPH)
    assert caught.value.argument == name


def test_a_constrained_run_that_diverges_says_so():
    with pytest.raises(DivergenceError, match="layer"):
        PDADMMGQ(layers=2, hidden=16, bits=8, coding="constrained", nu=1e20).fit(GRAPH)


def test_a_quantizer_object_belongs_to_pdadmmg():
    with pytest.raises(InputError, match="quantizer"):
        PDADMMGQ(quantizer=Quantizer()).fit(GRAPH)
