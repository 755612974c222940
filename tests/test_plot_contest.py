"""Figures of contests: who is drawn where, the median seed, growth, targets."""

from __future__ import annotations

import pytest

from pdadmm import InputError
from pdadmm.plot import AXES, COLOURS
from pdadmm.plot_contest import BYTES, plot_contest

pytest.importorskip("matplotlib")


def run(best: float, layers: list[int], **more) -> dict:
    count = len(layers)
    values = [best * (k + 1) / count for k in range(count)]
    history = {
        "iteration": list(range(1, count + 1)), "layers": layers, "seconds": [0.1 * (k + 1) for k in range(count)],
        "bytes": [1_000_000 * (k + 1) for k in range(count)], "val_accuracy": values, "test_accuracy": values,
    }  # fmt: skip
    spent = {"seconds_training": 0.1 * count, "iterations": count, "peak_bytes": 1, "bytes": None}
    return {"val_accuracy": best, "test_accuracy": best, "history": history | more} | spent


def row(solver: str, layers: int, *runs: dict) -> dict:
    return {"solver": solver, "layers": layers, "parameters": {}, "runs": list(runs)}


def contest(**changes) -> dict:
    rows = [
        row("pdadmm-g", 4, *(run(best, [2, 2, 4, 4]) for best in (0.7, 0.9, 0.8))),
        row("adam", 4, run(0.6, [4, 4, 4]), {"failed": "diverged"}),
        row("pdadmm-g", 2, run(0.8, [2, 2])),
    ]
    return {"contest": {}, "commands": [], "targets": [0.5, 0.75], "rows": rows} | changes


def curves(panel, width: float) -> list:
    return [line for line in panel.get_lines() if line.get_linewidth() == pytest.approx(width)]


def test_a_column_for_each_depth_and_contest():
    figure = plot_contest({"cora": contest(), "pubmed": contest()})
    titles = [panel.get_title("left") for panel in figure.axes[:4]]
    assert titles == ["cora, 2 layers", "cora, 4 layers", "pubmed, 2 layers", "pubmed, 4 layers"]
    assert [figure.axes[k].get_ylabel() for k in (0, 4)] == ["validation accuracy", "test accuracy"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["pdadmm-g", "adam", "growing, up to the dot"]


def test_all_seeds_are_thin_and_the_median_one_is_bold():
    _, panel, *_ = plot_contest({"cora": contest()}).axes
    assert len(curves(panel, 0.7)) == 4  # the run that failed is not there
    bold = curves(panel, 1.9)
    assert [line.get_color() for line in bold] == [COLOURS[0], COLOURS[1]]
    assert list(bold[0].get_ydata()) == pytest.approx([0.6, 0.8])  # full depth alone
    (grown,) = [line for line in curves(panel, 1.8) if line.get_linestyle() == ":" and len(line.get_xdata()) > 1]
    assert list(grown.get_ydata()) == pytest.approx([0.2, 0.4, 0.6])
    (dot,) = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert list(dot.get_xdata()) == pytest.approx([0.3])


def test_targets_are_marked_on_validation():
    figure = plot_contest({"cora": contest()})
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.5", "0.75"]
    assert not figure.axes[3].texts


def test_without_growth_the_legend_says_nothing_of_it():
    figure = plot_contest({"cora": contest(rows=contest()["rows"][1:])})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pdadmm-g", "adam"]


@pytest.mark.parametrize(("x", "last"), [("seconds", 0.4), ("iteration", 4), ("bytes", 4)])
def test_the_horizontal_axis(x, last):
    panels = plot_contest({"cora": contest()}, x=x).axes
    assert panels[3].get_xlabel() == (BYTES if x == "bytes" else AXES[x][0])
    assert curves(panels[1], 1.9)[0].get_xdata()[-1] == pytest.approx(last)
    assert panels[1].get_xscale() == "log"
    low, high = panels[1].get_xlim()
    assert low < high
    assert high > last


def test_iterations_that_were_not_evaluated_are_left_out():
    rows = [row("adam", 2, run(0.8, [2, 2, 2], val_accuracy=[None, 0.8, None]))]
    panel = plot_contest({"cora": contest(rows=rows)}).axes[0]
    assert list(curves(panel, 1.9)[0].get_xdata()) == pytest.approx([0.2])


def test_the_median_of_two_seeds_is_one_of_them():
    rows = [row("adam", 2, run(0.9, [2, 2]), run(0.8, [2, 2]))]
    panel = plot_contest({"cora": contest(rows=rows)}).axes[0]
    assert curves(panel, 1.9)[0].get_ydata()[-1] == 0.8


@pytest.mark.parametrize(
    ("summaries", "options", "argument"),
    [
        ({"cora": contest()}, {"x": "epochs"}, "x"),
        ({}, {}, "summaries"),
        ({"cora": contest(rows=[])}, {}, "summaries"),
        ({"cora": contest(rows=[row("adam", 2, {"failed": "x"})])}, {}, "summaries"),
        (contest(), {}, "summaries['contest']"),
        ([contest()], {}, "summaries"),
        ({"cora": "cora.json"}, {}, "summaries['cora']"),
        ({"cora": contest(rows=[{"solver": "adam"}])}, {}, "summaries['cora']"),
        ({"cora": contest()}, {"path": "no/such/folder/figure.png"}, "path"),
    ],
)
def test_what_cannot_be_drawn(summaries, options, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        plot_contest(summaries, **options)
    assert caught.value.argument == argument


def test_without_curves_of_test_accuracy_there_are_no_panels_for_it():
    own = run(0.8, [2, 2])
    del own["history"]["test_accuracy"]
    blind = contest(rows=[row("adam", 2, own)])
    (panel,) = plot_contest({"cora": blind}).axes
    assert panel.get_ylabel() == "validation accuracy"
    assert panel.get_xlabel() == AXES["seconds"][0]
    assert len(plot_contest({"cora": blind, "pubmed": contest()}).axes) == 2 * 3


def test_runs_without_messages_have_no_curve_over_bytes():
    silent = contest(rows=[row("adam", 1, run(0.8, [1, 1], bytes=[0, 0]))])
    with pytest.raises(InputError, match="bytes"):
        plot_contest({"cora": silent}, x="bytes")
