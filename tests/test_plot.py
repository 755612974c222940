"""Figures of convergence: what is drawn where, files, and what cannot be drawn."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pdadmm import History, InputError
from pdadmm.plot import AXES, plot_convergence

matplotlib = pytest.importorskip("matplotlib")


def history(runs: int = 6, **changes) -> History:
    rows = [
        {
            "iteration": k, "stage": int(k > 3), "layers": 2 if k <= 3 else 4, "seconds": 0.1 * k, "bytes": 1000 * k,
            "objective": 100.0 / k, "residual_link": 10.0 ** -k, "residual_linear": 1.0 / k,
            "residual_activation": 0.5 / k, "train_accuracy": 0.9, "val_accuracy": 0.5 + 0.05 * k,
            "test_accuracy": 0.5 + 0.04 * k,
        }
        for k in range(1, runs + 1)
    ]  # fmt: skip
    return History([row | changes for row in rows])


def without(history: History, *names: str) -> History:
    return History([{key: value for key, value in row.items() if key not in names} for row in history])


def lines(panel) -> list:
    """The curves: no legend entries, no marks of growth."""
    return [line for line in panel.get_lines() if len(line.get_xdata()) > 2]


def test_the_three_panels_hold_the_curves():
    figure = plot_convergence({"run": history()})
    objective, residuals, accuracy = figure.axes
    assert list(lines(objective)[0].get_ydata()) == history().column("objective")
    assert [len(lines(panel)) for panel in figure.axes] == [1, 3, 2]
    assert objective.get_yscale() == residuals.get_yscale() == "log"
    assert accuracy.get_yscale() == "linear"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["validation", "test"]


def test_objectives_of_two_kinds_are_told_apart():
    residuals = ("residual_link", "residual_linear", "residual_activation")
    alike = {"one": history(), "two": history()}
    for runs in (alike, {name: without(run, *residuals) for name, run in alike.items()}):
        assert plot_convergence(runs).axes[0].get_title(loc="left") == "objective"
    mixed = plot_convergence({"ours": history(), "adam": without(history(), *residuals)})
    assert mixed.axes[0].get_title(loc="left") == "objective (sum in pdADMM-G, else mean)"


def test_a_history_draws_itself(tmp_path):
    """The same figure as plot_convergence of this one run, and the same refusals."""
    figure = history().plot(tmp_path / "run.png", x="seconds")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    wanted = plot_convergence({"run": history()}, x="seconds")
    drawn = [[line.get_xydata().tolist() for panel in one.axes for line in lines(panel)] for one in (figure, wanted)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 6
    with pytest.raises(InputError, match="x = miles"):
        history().plot(x="miles")


@pytest.mark.parametrize(("x", "last"), [("iteration", 6), ("seconds", 0.6), ("bytes", 0.006)])
def test_the_horizontal_axis(x, last):
    figure = plot_convergence({"run": history()}, x=x)
    for panel in figure.axes:
        assert panel.get_xlabel() == AXES[x][0]
        assert lines(panel)[0].get_xdata()[-1] == pytest.approx(last)


def test_growth_is_marked_where_all_runs_agree():
    figure = plot_convergence({"a": history(), "b": history()})
    assert [text.get_text() for text in figure.axes[0].texts] == ["2 layers", "4"]
    assert figure.axes[2].get_lines()[-1].get_xdata() == [3, 3]
    differ = plot_convergence({"a": history(), "b": history(stage=0)})
    assert not differ.axes[0].texts


def test_two_runs_have_two_colours_and_are_named():
    figure = plot_convergence({"one": history(), "two": history()})
    colours = {line.get_color() for line in lines(figure.axes[0])}
    assert len(colours) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert not plot_convergence({"one": history()}).legends


def test_what_is_not_recorded_is_left_out():
    names = ("residual_link", "residual_linear", "residual_activation", "val_accuracy", "test_accuracy")
    figure = plot_convergence({"adam": without(history(), *names)})
    assert [len(lines(panel)) for panel in figure.axes] == [1, 0, 0]
    assert figure.axes[1].texts[0].get_text() == "not recorded"
    half = History([row if k % 2 else without([row], *names)[0] for k, row in enumerate(history())])
    assert list(lines(plot_convergence({"half": half}).axes[2])[0].get_xdata()) == [2, 4, 6]


def test_zero_is_left_out_of_a_logarithmic_panel():
    figure = plot_convergence({"run": history(residual_link=0.0)})
    assert len(lines(figure.axes[1])) == 2


def test_the_accuracy_panel_shows_the_end():
    run = History([row | {"val_accuracy": 0.1 if row["iteration"] < 3 else 0.95} for row in history(40)])
    run = History([row | {"test_accuracy": row["val_accuracy"]} for row in run])
    low, high = plot_convergence({"run": run}).axes[2].get_ylim()
    assert low > 0.9
    assert 0.95 < high <= 1.0


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_files(tmp_path, ending, start):
    path = tmp_path / f"figure.{ending}"
    plot_convergence({"a": history(), "b": history()}, path)
    assert path.read_bytes().startswith(start)


def test_a_history_alone_is_told_where_to_go():
    with pytest.raises(InputError, match=r'^histories = a History, .{,40}: must be .*; give \{"name": history\}$'):
        plot_convergence(history())


@pytest.mark.parametrize(
    ("histories", "options", "argument"),
    [
        ({"run": history()}, {"x": "epochs"}, "x"),
        ({"run": history(bytes=0)}, {"x": "bytes"}, "x"),
        ({}, {}, "histories"),
        (history(), {}, "histories"),
        ({"run": History()}, {}, "histories['run']"),
        (3, {}, "histories"),
        ({"run": 3}, {}, "histories['run']"),
        ({"run": "run.jsonl"}, {}, "histories['run']"),
        ({"run": [1.0, 2.0]}, {}, "histories['run']"),
        ({"run": history().column("objective")}, {}, "histories['run']"),
        ({"run": without(history(), "seconds")}, {"x": "seconds"}, "histories['run']"),
        ({"run": history()}, {"path": "no/such/folder/figure.png"}, "path"),
        ({"run": history()}, {"path": "figure.nonsense"}, "path"),
    ],
)
def test_what_cannot_be_drawn(histories, options, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        plot_convergence(histories, **options)
    assert caught.value.argument == argument


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install matplotlib, or pip install '\.\[plot\]'"):
        plot_convergence({"run": history()})


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never():
    code = (
        "import sys, pdadmm.plot as plot; assert 'matplotlib' not in sys.modules\n"
        "plot.plot_convergence({'a': [{'iteration': 1, 'objective': 2.0}]})\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_settings_of_the_session_stay():
    before = dict(matplotlib.rcParams)
    plot_convergence({"run": history()})
    assert dict(matplotlib.rcParams) == before
