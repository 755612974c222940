"""History: a list of dicts with JSON lines in and out; the lines a person sees while training."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdadmm import History
from pdadmm import console as console_module
from pdadmm.console import Progress, human_bytes, human_seconds, start_logging
from pdadmm.errors import InputError

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
ROWS = st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=5), max_size=6)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("history") / "run.jsonl"


@given(rows=ROWS)
def test_json_lines_bring_every_row_back(file, rows):
    History(rows).to_jsonl(file)
    back = History.from_jsonl(file)
    assert back == rows
    assert isinstance(back, History)
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(rows)


def test_a_table_has_a_column_for_each_quantity(tmp_path):
    History([{"iteration": 1, "objective": 0.1}, {"iteration": 2, "val_accuracy": 1 / 3}]).to_csv(tmp_path / "h.csv")
    text = (tmp_path / "h.csv").read_bytes().decode()
    assert text.splitlines() == ["iteration,objective,val_accuracy", "1,0.1,", "2,,0.3333333333333333"]
    History().to_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().strip() == ""


def test_column():
    history = History([{"a": 1}, {"b": 2}])
    assert history.column("a") == [1, None]
    assert History().column("a") == []
    with pytest.raises(InputError, match=r"name = c: must be one of a, b$"):
        history.column("c")


@pytest.mark.parametrize(
    ("content", "line"),
    [("[1]\n", 1), ('{"a": 1}\n{"b"\n', 2), ('{"a": 1}\n\n', 2), ("null", 1), ("{'a': 1}", 1), ("3\n{}", 1)],
)
def test_a_damaged_line_is_named(tmp_path, content, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=f"line {line}") as caught:
        History.from_jsonl(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="history"):
        History.from_jsonl(tmp_path / "missing.jsonl")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="history"):
        History.from_jsonl(binary)
    with pytest.raises(InputError, match="history"):
        History.from_jsonl(tmp_path)


# Console


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1.5e6, "1.5 MB"),
        (2e9, "2.0 GB"),
        (3e12, "3.0 TB"),
        (4e16, "40000.0 TB"),
    ],
)
def test_bytes_for_people(number, text):
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (5e-6, "5 us"),
        (0.0012, "1.2 ms"),
        (3.14, "3.1 s"),
        (75, "1 min 15 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations_for_people(seconds, text):
    assert human_seconds(seconds) == text


@pytest.fixture
def lines(monkeypatch):
    """What the package logs; every five seconds have passed when ``clock`` is moved on."""
    stream = io.StringIO()
    log = logging.getLogger("pdadmm")
    before = log.handlers[:], log.propagate, log.level
    monkeypatch.setattr("sys.stderr", stream)
    start_logging("info", 0)
    yield stream
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


def row(iteration: int, stage: int = 0, **more) -> dict:
    return {"iteration": iteration, "stage": stage, "layers": 2 + 3 * stage, "seconds": 0.5, "objective": 12.5} | more


def test_log_lines_at_the_end_of_each_stage(lines):
    progress = Progress(10, True)
    for number in range(1, 4):
        progress(row(number))
    assert lines.getvalue() == ""
    progress(row(4, stage=1, val_accuracy=0.75))
    progress.close()
    assert lines.getvalue().splitlines() == [
        "2 layers, iteration 3, 500.0 ms: objective 12.5",
        "5 layers, iteration 4, 500.0 ms: objective 12.5, validation 0.750",
    ]


def test_log_lines_now_and_then(lines, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    progress = Progress(10, True)
    for number in range(1, 13):
        clock[0] += 1.0
        progress(row(number))
    assert [line.split(",")[1] for line in lines.getvalue().splitlines()] == [" iteration 5", " iteration 10"]


def test_other_ranks_are_silent(lines):
    progress = Progress(10, False)
    progress(row(1))
    progress(row(2, stage=1))
    progress.close()
    assert lines.getvalue() == ""
    Progress(10, True).close()  # nothing happened, nothing to say
    assert lines.getvalue() == ""


def test_a_bar_at_a_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress(2, True)
    progress(row(1, val_accuracy=0.5))
    progress(row(2))
    progress.close()
    assert progress.bar.n == 2
    assert "2 layers" in stream.getvalue()


def test_levels(lines, monkeypatch):
    monkeypatch.setattr("sys.stderr", lines)
    log = logging.getLogger("pdadmm")
    log.info("heard")
    start_logging("error", 0)
    log.warning("unheard")
    start_logging("info", 3)
    log.info("unheard")
    log.warning("heard too")
    assert lines.getvalue().split("\n") == ["heard", "heard too", ""]
    assert log.level == logging.WARNING
