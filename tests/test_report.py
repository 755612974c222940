"""``pdadmm report``: the page's parts and figures, hostile words, what is missing, and how a browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.cli import main
from pdadmm.errors import InputError
from pdadmm.report import page, read_run
from pdadmm.report.charts import Curve, _log_ticks, _ticks, chart
from pdadmm.report.folder import Span
from pdadmm.report.timeline import shares, timeline

HOSTILE = "</style></title><script>alert(1)</script><img src=https://example.org/x onerror=alert(2)>&\"'"
VOID = {"meta", "link", "img", "br"}
PARTS = ["Curves", "Accuracy by depth", "Confusion matrix of the test nodes", "Messages", "Timeline of the ranks",
         "Predicted and measured", "Configuration"]  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Elements, addresses and words of a page; AssertionError where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run"
    fast = ["--layers", "4", "--hidden", "6", "--hops", "1", "--iterations", "5", "--quiet"]
    assert main(["train", "--dataset", "csbm:200", *fast, "--run", str(path), "--trace"]) == 0
    return path


def changed(folder: Path, target: Path, **changes) -> Path:
    """A copy of a run folder with other entries in its summary."""
    shutil.copytree(folder, target)
    summary = json.loads((folder / "summary.json").read_text()) | changes
    (target / "summary.json").write_text(json.dumps(summary))
    return target


# The page


def test_the_page_has_every_part_and_figure(folder, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    text = out.read_text(encoding="utf-8")
    read = Reader(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == PARTS
    summary = json.loads((folder / "summary.json").read_text())
    words = " ".join(read.words)
    assert f"{100 * summary['test_accuracy']:.1f} %" in words
    confusion = re.search(r"<table class=confusion>.*?</table>", text, re.DOTALL).group()
    shown = [int(number or 0) for number in re.findall(r'<td(?: class="(?:right|wrong)[^>]*)?>(\d*)</td>', confusion)]
    assert shown[1:] == np.ravel(summary["confusion"]).tolist()  # the first is the corner
    assert len(re.findall(r"<polyline", text)) == 1 + 3 + 3
    assert "rank 0" in words
    assert all(name in words for name in ("kappa-first", "versions", "csbm:200"))
    assert "No messages" in words
    assert "messages of an iteration" in words


def test_the_page_loads_nothing_and_runs_nothing(folder):
    read = Reader(page(read_run(folder)))
    assert read.addresses == ["data:,"]
    assert not {"script", "img", "iframe", "object", "form"} & set(read.tags)
    assert "url(" not in "".join(read.words)


def test_the_same_folder_gives_the_same_page(folder):
    assert page(read_run(folder)) == page(read_run(folder))


def test_the_page_lands_in_the_folder_unless_told(folder, tmp_path, capsys):
    copy = changed(folder, tmp_path / "copy")
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").stat().st_size > 10_000
    for out in (tmp_path / "none" / "x.html", tmp_path):
        assert main(["report", str(copy), "-o", str(out)]) == 2
        assert "out" in capsys.readouterr().err


def test_hostile_words_stay_words(folder, tmp_path):
    """Names, settings, kinds of messages and spans out of files are shown as they are, and do nothing."""
    copy = changed(
        folder, tmp_path / "x<script>", dataset=HOSTILE, solver=HOSTILE, split=HOSTILE, seed=HOSTILE,
        bytes_by_kind={HOSTILE: 5}, stages=[{"layers": HOSTILE}, HOSTILE], confusion=[[HOSTILE]],
        predicted={"seconds_per_iteration": HOSTILE},
    )  # fmt: skip
    (copy / "config.toml").write_text(f"'{HOSTILE[:-1]}' = {json.dumps(HOSTILE)}\n[{json.dumps(HOSTILE)}]\na = 1\n")
    event = {"ph": "X", "pid": 0, "ts": 0, "dur": 5, "name": HOSTILE, "args": {"iteration": 1}}
    (copy / "trace.json").write_text(json.dumps({"traceEvents": [event]}))
    rows = [{"iteration": k, "stage": k, "layers": HOSTILE, "objective": 1.0} for k in (1, 2)]
    (copy / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = Reader(page(read_run(copy)))
    assert not {"script", "img"} & set(read.tags)
    assert read.addresses == ["data:,"]
    assert sum(HOSTILE in words for words in read.words) >= 8


def test_missing_parts_say_how_to_get_them(folder, tmp_path):
    copy = changed(folder, tmp_path / "bare", confusion=None, predicted=None, stages=[])
    for name in ("trace.json", "config.toml"):
        (copy / name).unlink()
    text = page(read_run(copy))
    assert re.findall(r"<h2>(.*?)</h2>", text) == PARTS
    for words in ("train --run DIR --trace</code>", "train --run DIR</code>", "mpirun -n 4", "no model of"):
        assert words in text


def test_predicted_stands_beside_measured(folder, tmp_path):
    told = {"seconds_per_iteration": 0.002, "bytes_per_iteration": 1000, "peak_rss_bytes": 2e8}
    measured = {"seconds_per_iteration": 0.003, "peak_rss_bytes": 1e8, "bytes_by_kind": {"p": 900, "control": 10**6}}
    copy = changed(folder, tmp_path / "told", predicted=told, **measured)
    rows = [{"iteration": k, "bytes": 800 * k} for k in (1, 2, 3)]
    (copy / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page(read_run(copy)).partition("Predicted and")[2])
    assert cells[4:8] == ["an iteration", "2.0 ms", "3.0 ms", "1.50"]
    assert cells[8:12] == ["messages of an iteration", "1.0 kB", "800 B", "0.80"]
    assert cells[12:16] == ["peak memory of a rank", "200.0 MB", "100.0 MB", "0.50"]
    assert re.findall(r"<th scope=row>(p|control)</th>", page(read_run(copy))) == ["p", "control"]


def test_the_page_says_why_no_seconds_were_predicted(folder, tmp_path):
    told = {"bytes_per_iteration": 1000, "peak_rss_bytes": 2e8}
    without, uncalibrated = (
        page(read_run(changed(folder, tmp_path / name, predicted=found)))
        for name, found in (("without", told), ("uncalibrated", told | {"seconds_per_iteration": None}))
    )
    assert "there is no model of them" in without
    assert "--calibrate" not in without.partition("Predicted and")[2]
    assert "once <code>pdadmm plan --calibrate</code>" in uncalibrated


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[]"),
        ("summary.json", None),
        ("history.jsonl", "nonsense"),
        ("config.toml", "= 1"),
        ("trace.json", "{}"),
        ("trace.json", '{"traceEvents": [{"pid": 0, "ph": "X", "ts": -1, "dur": 1}]}'),
        ("trace.json", '{"traceEvents": [{"pid": "0"}]}'),
    ],
)
def test_damaged_folders(folder, tmp_path, capsys, name, content):
    copy = changed(folder, tmp_path / "copy")
    (copy / name).write_text(content) if content else (copy / name).unlink()
    assert main(["report", str(copy)]) == 2
    told = capsys.readouterr().err
    assert name in told or name == "summary.json"
    assert told.count("\n") == 1
    with pytest.raises(InputError):
        read_run(tmp_path / "none")


@settings(deadline=None, max_examples=15)
@given(
    summary=st.dictionaries(
        st.sampled_from(["stages", "confusion", "bytes_by_kind", "predicted", "layers", "seed", "test_accuracy"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "<b>", "x"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["p", "a"]), inner, max_size=2),
            max_leaves=6,
        ),
    )
)
def test_any_json_is_shown_or_left_out(folder, summary):
    run = read_run(folder)
    run.summary = summary
    assert "b" not in Reader(page(run)).tags


# Charts and timeline


@settings(deadline=None, max_examples=50)
@given(
    points=st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e9, 1e9)), max_size=50),
    log=st.booleans(),
    lowest=st.none() | st.floats(-1, 1),
)
def test_a_chart_draws_what_it_can(points, log, lowest):
    """Every coordinate is a number, and points on a curve without a floor lie inside the picture."""
    drawn = chart("a <b>", [Curve("x", sorted(points))], "iteration", log, lowest=lowest)
    Reader(drawn)
    shown = [point for point in points if point[1] > 1e-290 or not log]
    assert ("Not recorded" in drawn) == (not shown)
    found = [tuple(map(float, pair.split(","))) for pair in " ".join(re.findall(r'points="(.*?)"', drawn)).split()]
    assert len(found) == (len(shown) if len(shown) > 1 else 0)
    assert all(54 <= x <= 430 for x, _ in found)
    if lowest is None:
        assert all(17.9 <= y <= 256.1 for _, y in found)


@settings(deadline=None, max_examples=50)
@given(low=st.floats(-1e6, 1e6), length=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, length):
    for ticks in (_ticks(low, low + length), _log_ticks(abs(low) + 1e-3, abs(low) + 1e-3 + length)):
        assert 1 <= len(ticks) <= 20
        assert ticks == sorted(set(ticks))
    assert all(low - 1e-6 * length <= tick <= low + length * (1 + 1e-6) for tick in _ticks(low, low + length))


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 5)), min_size=1, max_size=20),
    bins=st.integers(1, 30),
)
def test_shares_add_up_to_the_time_of_each_name(lengths, bins):
    spans, now = [], 0.0
    for name, length in lengths:
        spans.append(Span(name, None, 1, now, length))
        now += length
    found = shares(spans, now, bins)
    assert len(found) == bins
    assert all(sum(inside.values()) == pytest.approx(1) for inside in found)
    for name in "abc":
        total = sum(inside.get(name, 0) for inside in found) * now / bins
        assert total == pytest.approx(sum(length for one, length in lengths if one == name), abs=1e-9)


def test_a_timeline_of_many_ranks_and_names():
    ranks = [[Span(f"work {k}", k, 1, 0.1 * k, 0.1) for k in range(12)] for _ in range(40)]
    text = timeline(ranks)
    Reader(text)
    assert "The first 32 of 40 ranks" in text
    assert "everything else" in text
    assert text.count(">rank ") == 64
    assert text.count("<title>") == 32 * 12
    assert "The trace is empty" in timeline([[]])
    assert "in detail" not in timeline([[Span("setup", None, 0, 0.0, 1.0)]])


# In a browser


def screenshot(target: Path, address: str, *flags: str) -> str:
    """Have Chromium draw a page into ``target``; return what it logged."""
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={target.with_suffix('.profile')}", f"--screenshot={target}", *flags, address,
    ]  # fmt: skip
    job = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return job.communicate(timeout=150)[1]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail(f"Chromium hung: {job.communicate()[1]}")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_shows_the_page(folder, tmp_path):
    """Wide and light, narrow and dark: not blank, in the right dress, and nothing failed to load or was blocked."""
    image = pytest.importorskip("matplotlib.image")
    out = tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    shots = {
        "light": ("--window-size=1280,1600", "--blink-settings=preferredColorScheme=1"),
        "dark": ("--window-size=600,1600", "--blink-settings=preferredColorScheme=0"),
    }
    drawn = {}
    for name, flags in shots.items():
        said = screenshot(tmp_path / f"{name}.png", out.as_uri(), *flags)
        assert "CONSOLE" not in said, said
        assert (tmp_path / f"{name}.png").exists(), said
        drawn[name] = image.imread(tmp_path / f"{name}.png")[..., :3]
    assert drawn["light"].shape == (1600, 1280, 3)
    for name, picture in drawn.items():
        page_colour = np.median(picture.reshape(-1, 3), axis=0)
        assert (page_colour.mean() > 0.9) == (name == "light")
        other = np.abs(picture - page_colour).max(axis=2) > 0.1
        assert 0.01 < other.mean() < 0.6
        assert (other.any(axis=1).reshape(-1, 200).any(axis=1)).all()  # something in every strip of 200 rows
        colours = picture[other].reshape(-1, 3)
        assert (np.ptp(colours, axis=1) > 0.3).mean() > 0.02  # curves and the timeline, not text alone


def test_reporting_imports_no_torch(folder, tmp_path):
    """The page is written where only the results are, within a moment."""
    code = (
        "import sys; from pdadmm.report import page, read_run; page(read_run(sys.argv[1]));"
        "assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)
