"""The planner: bytes are the ledger's, memory and seconds grow with the network, words and files hold."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_transport import run_ranks

import pdadmm
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.problem import Problem
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.cli import main
from pdadmm.errors import InputError
from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.choose import choose, table
from pdadmm.planner.disk import disk_bytes
from pdadmm.planner.figures import speedup_over_ranks
from pdadmm.planner.forecast import Setting, forecast_grid, forecasts
from pdadmm.planner.gnn import GNNJob, epoch_bytes, epoch_seconds
from pdadmm.planner.job import Job, placement
from pdadmm.planner.machine import FILE, interpolated, load_machine, machine_folder, save_machine
from pdadmm.planner.memory import peak, phases, state
from pdadmm.planner.seconds import layer_seconds
from pdadmm.planner.simulate import Link, simulate
from pdadmm.planner.traffic import iteration_bytes

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples"
LINK = Link(1e-4, 1e9)


@pytest.fixture(scope="module")
def machine():
    return load_machine(EXAMPLE)


def sent_of(job: Job, grid: RankGrid, stages: tuple[int, ...], acceleration: str) -> list[int]:
    """What a real run sends in each iteration at full depth: all but the first, which waits for no q of before."""
    problem = Problem(
        torch.randn(job.rows, job.widths[0], generator=torch.Generator().manual_seed(0)),
        torch.arange(job.rows) % job.widths[-1], job.widths[0], job.widths[-1],
        {"train": slice(0, job.nodes), "val": slice(job.nodes, job.rows), "test": slice(job.rows, job.rows)},
    )  # fmt: skip
    given = ADMMSettings(
        layers=job.layers, hidden=job.widths[1], stages=stages, iterations=3, grid=str(grid), quantizer=job.quantizer,
        first_layer=job.first_layer, form=job.form, acceleration=acceleration,
    ).checked()  # fmt: skip

    def work(transport):
        own = dataclasses.replace(problem, X=problem.X.clone() if transport.rank == 0 else None)
        return ADMMSolver(own, given, transport).run().history

    rows = [row["bytes"] for row in run_ranks(grid.groups * grid.shards, work)[0] if row["layers"] == job.layers]
    return [later - earlier for earlier, later in itertools.pairwise(rows)]


@st.composite
def jobs(draw) -> tuple[Job, RankGrid, tuple[int, ...], str]:
    layers, hidden = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    grid = RankGrid(draw(st.integers(1, min(3, layers))), draw(st.integers(1, 2)))
    bits = draw(st.sampled_from([32, 16, 8, 4, 2, 1]))
    quantizer = None if bits == 32 else Quantizer(bits=bits).checked()
    acceleration = draw(st.sampled_from(["none", "first-stage", "all-stages"]))
    stages = draw(st.sampled_from([(layers,), (2, layers)])) if layers > 2 else (layers,)
    job = Job(
        draw(st.integers(4, 12)), 14, (draw(st.integers(1, 9)), *[hidden] * (layers - 1), 3), 4, quantizer,
        draw(st.sampled_from(["auto", *FIRST_LAYERS])), draw(st.sampled_from(["exact", "gradient"])),
        acceleration == "all-stages" or (acceleration == "first-stage" and len(stages) == 1),
    )  # fmt: skip
    return job, grid, stages, acceleration


@settings(max_examples=20, deadline=None)
@given(jobs())
def test_bytes_are_the_ledgers(drawn):
    job, grid, stages, acceleration = drawn
    assert set(sent_of(job, grid, stages, acceleration)) == {iteration_bytes(job, grid)}


# very narrow products gain more speed from twice the width than they have more to do
GROWTH = st.tuples(st.integers(500, 10**6), st.integers(16, 400), st.integers(16, 400), st.integers(2, 30))


@settings(deadline=None)
@given(GROWTH, st.sampled_from(["V", "n", "L"]))
def test_everything_grows_with_the_network(shape, what):
    V, n_0, n, L = shape
    known = load_machine(EXAMPLE)

    def figures(V: int, n: int, L: int) -> list[float]:
        job = Job(V, V, (n_0, *[n] * (L - 1), 5), first_layer="gram", form="exact")
        seconds = sum(layer_seconds(job, layer, V, known).total for layer in range(L))
        sent = iteration_bytes(job, RankGrid(min(L, 2), 2))
        return [sent, peak(job, RankGrid(1, 1))[0], disk_bytes(job, 500), seconds]

    small = figures(V, n, L)
    large = figures(2 * V if what == "V" else V, 2 * n if what == "n" else n, L + 1 if what == "L" else L)
    assert all(after >= before for before, after in zip(small, large))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 12))
def test_groups_share_the_layers_and_their_arrays(V, groups):
    job = Job(V, V, (7, *[4] * 11, 3))
    runs = [layers for layers in placement(job, RankGrid(groups, 1)) if len(layers)]
    assert [layer for layers in runs for layer in layers] == list(range(12))
    alone, shared = state(job, range(12), V, V), [state(job, layers, V, V) for layers in runs]
    for name in ("X", "first layer", "z, r", "W, b", "best W, b"):
        assert sum(one[name] for one in shared) == alone[name]
    # each boundary between ranks is held on both sides
    assert sum(one["p, q, u"] for one in shared) == alone["p, q, u"] + (len(runs) - 1) * 3 * 4 * V * 4


def test_memory_by_hand():
    job = Job(100, 300, (10, 20, 20, 5))
    held = state(job, range(3), 100, 300)
    assert held == {
        "X": 4 * 300 * 10, "first layer": 4 * (10 * 10 + 100 * 20), "p, q, u": 4 * 3 * 2 * 100 * 20, "messages": 0,
        "z, r": 4 * 2 * 100 * (20 + 20 + 5), "W, b": 4 * (20 * 11 + 20 * 21 + 20 * 20 + 5 * 21),
        "best W, b": 4 * (20 * 11 + 20 * 21 + 5 * 21 + 100 * 20), "scratch": 4 * 100 * 20,
    }  # fmt: skip
    assert phases(job, range(3), 100, 300)["evaluation"] == sum(held.values()) + 4 * 3 * 300 * 20
    coded = state(dataclasses.replace(job, quantizer=Quantizer(bits=4).checked()), range(3), 100, 300)
    assert coded["p, q, u"] == held["p, q, u"] / 3 * 5
    assert coded["messages"] == 2 * 2 * (2 * 20 * 4 + 100 * 20 // 2)


def test_the_first_layers_factor_may_be_the_height():
    assert peak(Job(2000, 2000, (1500, 2, 2)), RankGrid(1, 1))[1] == "first layer's factor"


# GNNs


@pytest.mark.parametrize("mixed", [False, True])
def test_a_gnns_bytes_are_the_ledgers(mixed):
    graph = pdadmm.csbm(60, num_classes=3, num_features=4, seed=1)
    from pdadmm.baselines.fullgraph import FullGraphSolver
    from pdadmm.recording import Breakdown

    solver = (pdadmm.MixGCN if mixed else pdadmm.GCN)(hidden=5, layers=3, iterations=3, dropout=0.0, scaling="none")
    graph = graph.with_splits(pdadmm.make_splits(graph, "fraction:60/20/20", 0))

    def work(transport):
        given = solver.checked()
        problem = solver.__class__(**solver.get_params())._problem(given, graph, None, transport)[0]
        times, widths = Breakdown(), [4, 5, 5, 3]
        mixer, holders, told = given._spread(problem, transport, widths, times)
        found = FullGraphSolver(problem, given, transport, mixer, holders, times).run()
        return found.history, told["halo_rows"]

    history, volume = run_ranks(3, work)[0]
    job = GNNJob(60, 0, (4, 5, 5, 3), volume)
    assert history[2]["bytes"] - history[1]["bytes"] == epoch_bytes(job, 3, mixed)


def test_a_gnns_seconds_grow_with_its_halo(machine):
    near, far = (GNNJob(1000, 5000, (16, 32, 32, 4), halo) for halo in (10, 2000))
    told = [epoch_seconds(job, 4, False, machine, LINK, 2) for job in (near, far)]
    assert told[0] < told[1]


# The machine and the words


def test_a_machine_comes_back_from_its_file(machine, tmp_path):
    assert load_machine(save_machine(machine, tmp_path / "new").parent) == machine


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "pdadmm-machine-1", "cores": -1}', "{\"format\": 3}"])
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match="pdadmm plan --calibrate"):
        load_machine(tmp_path)


def test_the_folder_is_given_named_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("PDADMM_MACHINE", str(tmp_path / "named"))
    assert machine_folder("given") == Path("given")
    assert machine_folder() == tmp_path / "named"
    monkeypatch.delenv("PDADMM_MACHINE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine_folder() == tmp_path / "pdadmm"


@given(st.dictionaries(st.integers(1, 1000), st.floats(0.1, 10.0), min_size=1), st.integers(1, 2000))
def test_rates_between_the_sizes_lie_between_the_rates(rates, size):
    assert min(rates.values()) * (1 - 1e-9) <= interpolated(rates, size) <= max(rates.values()) * (1 + 1e-9)


@settings(deadline=None)
@given(st.integers(1, 64))
def test_company_never_speeds_up(computing):
    known = load_machine(EXAMPLE)
    assert known.crowded(computing + 1) >= known.crowded(computing) >= 1.0


def test_what_fits_and_is_fastest_is_chosen(machine):
    job, gnn = Job(20000, 20000, (64, *[128] * 7, 5)), GNNJob(20000, 10**5, (16, *[128] * 7, 5), 10**4)
    free = Setting(machine, 8, 1, LINK)
    found = forecasts(job, gnn, free)
    best = choose(found)
    own = [one for one in found if one.network == "GA-MLP"]
    assert best in own
    assert best.seconds <= 1.02 * min(one.seconds for one in own)
    assert all(one.name in table(found) for one in found)
    tight = dataclasses.replace(free, memory=int(best.memory) - 1)
    other = choose(forecasts(job, gnn, tight))
    assert other is None or (other.memory <= tight.memory and other.name != best.name)
    assert choose(forecasts(job, gnn, dataclasses.replace(free, memory=1))) is None


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 8), st.sampled_from([None, 4]), st.booleans())
def test_one_rank_does_all_the_work(V, L, bits, accelerated):
    known, quantizer = load_machine(EXAMPLE), None if bits is None else Quantizer(bits=bits).checked()
    job = Job(V, V, (9, *[16] * (L - 1), 3), 4, quantizer, accelerated=accelerated)
    told = simulate(job, RankGrid(1, 1), known, 1, LINK, 2)
    total = sum(layer_seconds(job, layer, V, known).total for layer in range(L))
    assert told.iterations == pytest.approx([total, total])
    # what both sides of a boundary do comes to it on two ranks, and no work is lost
    if L > 1:
        shared = simulate(job, RankGrid(2, 1), known, 1, LINK, 1)
        assert sum(shared.work) >= total - 1e-9


def test_the_shards_of_a_grid_need_less_each(machine):
    job, setting = Job(5000, 5000, (64, *[64] * 3, 5)), Setting(machine, 4, 1, LINK)
    whole, half = (forecast_grid(job, RankGrid(2, shards), setting) for shards in (1, 2))
    assert half.memory < whole.memory
    assert half.seconds < whole.seconds


def test_the_speedup_is_at_most_the_ranks(machine):
    found = speedup_over_ranks(Job(5000, 5000, (64, *[256] * 11, 5)), Setting(machine, 12, 1, LINK), 2)
    assert list(found) == [1, 2, 4, 8, 12]
    assert found[1] == 1.0
    assert all(1.0 <= speedup <= ranks for ranks, speedup in found.items())


# The command


SMALL = ["plan", "--nodes", "20000", "--edges", "2e5", "--features", "100", "--layers", "16", "--hidden", "256",
         "--ranks", "8", "--machine-dir", str(EXAMPLE)]  # fmt: skip


def test_the_example_in_the_docs_is_what_is_printed(capsys, monkeypatch):
    text = (ROOT / "docs" / "plan.md").read_text("utf-8")
    command, _, rest = text.partition("    $ pdadmm ")[2].partition("\n")
    shown = "\n".join(line.removeprefix("    ") for line in rest.partition("\n\n")[0].splitlines())
    monkeypatch.chdir(ROOT)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("more", [["--hidden", "8"], ["--hidden", "300", "--memory", "600MiB", "--nodes", "500000"]])
def test_the_launch_line_is_one(capsys, tmp_path, more):
    assert main([*SMALL, "--ranks", "1", "--layers", "2", "--machine-dir", str(ROOT / "examples"), *more]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Launch: "))
    assert ("--memory 600MiB --scratch DIR" in line) == ("--memory" in more)
    flags = line.partition(" train ")[2].replace("GRAPH", "csbm:60").replace("DIR", str(tmp_path / "state")).split()
    assert main(["train", *flags, "--hidden", "8", "--iterations", "1", "--quiet"]) == 0


def test_simulation_and_figure_are_asked_for(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "speedup.png"
    assert main([*SMALL, "--simulate", "--iterations", "3", "--straggler", "2", "--figures", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "Simulated 3 iterations of " in out
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(("more", "words"), [
    (["--nodes", "1.5"], "nodes = 1.5"),
    (["--bits", "3"], "bits = 3"),
    (["--memory", "much"], "memory = much"),
    (["--train-nodes", "1e6"], "train_nodes = 1000000: must be at most nodes = 20000"),
    (["--nodes", "10", "--edges", "46"], "edges = 46: must be at most 45, the pairs of nodes; give each edge once"),
    (["--straggler", "2"], "must be used with --simulate or --figures"),
    (["--straggler", "0.5", "--simulate"], "straggler = 0.5"),
    (["--machine-dir", "nowhere"], "run: pdadmm plan --calibrate"),
    (["--figures", "no/folder/x.png"], "figures = no/folder/x.png"),
    (["--figures", "x.bmp"], "figures = x.bmp: must be a file that ends in .png, .pdf or .svg"),
])  # fmt: skip
def test_bad_flags_are_one_sentence(more, words, capsys):
    assert main([*SMALL, *more]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (10, 45)])
def test_a_graph_may_be_complete(nodes, edges, capsys):
    assert main([*SMALL, "--nodes", str(nodes), "--edges", str(edges)]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_missing_is_named(capsys):
    assert main(["plan", "--nodes", "3"]) == 2
    assert "--edges, --features, --layers, --hidden, --ranks" in capsys.readouterr().err


def test_a_run_prints_predicted_beside_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PDADMM_MACHINE", str(tmp_path))
    run = ["train", "--dataset", "digits", "--layers", "2", "--hidden", "8", "--iterations", "2", "--quiet"]
    assert main(run) == 0
    assert "predicted / measured, an iteration: bytes 0 B / 0 B, memory " in capsys.readouterr().out
    known = load_machine(EXAMPLE)
    from pdadmm.planner.machine import host_facts

    save_machine(dataclasses.replace(known, facts=host_facts()), tmp_path)
    assert main([*run, "--solver", "gcn"]) == 0
    assert "an iteration: seconds " in capsys.readouterr().out
    assert main([*run, "--solver", "gcn", "--architecture", "sage"]) == 0
    assert "predicted" not in capsys.readouterr().out
