"""Run folders and configuration files: what they hold, and that a configuration repeats its run."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import History, csbm, load_model
from pdadmm.cli import main
from pdadmm.cli.common import flags
from pdadmm.cli.config import Config
from pdadmm.cli.run_folder import FILES, configuration
from pdadmm.cli.train import _parser
from pdadmm.confusion import confusion_matrix
from pdadmm.data import write_npz
from pdadmm.solvers import SOLVERS, solver_class
from pdadmm.toml import to_toml

FAST = ["--layers", "3", "--hidden", "6", "--hops", "1", "--iterations", "3"]
TINY = ["train", "--dataset", "csbm:120", *FAST, "--quiet"]

KEYS = st.text("abcXYZ019-_", min_size=1)
TEXTS = st.text("aé漢\U0001f600 #=,[]{}'\"\\\n\r\t\b\f\x00\x1b\x1f\x7f\x85\u2028")
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two stages with a trace."""
    path = tmp_path_factory.mktemp("runs") / "first"
    assert main([*TINY, "--run", str(path), "--nu", "0.25", "--trace"]) == 0
    return path


@pytest.fixture
def refused(capsys):
    def go(*arguments, words=()):
        assert main([str(word) for word in arguments]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert all(word in told for word in words), told

    return go


# TOML


@settings(deadline=None)
@given(values=st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=4), max_size=6))
def test_toml_gives_back_what_was_written(values):
    text = to_toml(values)
    assert tomllib.loads(text) == values
    assert text.count("\n") == len(values)  # a line each, whatever it holds


@pytest.mark.parametrize("values", [{"a b": 1}, {"": 1}, {"é": 1}, {"a": None}, {"a": 2**63}, {"a": "\ud800"}])
def test_what_toml_does_not_hold(values):
    with pytest.raises(ValueError, match=r"plain key|no place|surrogates"):
        to_toml(values)


# Configuration files


def parsed(solver: str, words: list[str], path=None):
    """What `pdadmm train` makes of these words, and of a configuration file before them."""
    config = Config("train", words if path is None else ["--config", str(path), *words])
    cls = solver_class(solver)
    parser = _parser(cls, solver, cls.preset_parameters("default") if hasattr(cls, "preset") else None)
    return parser.parse_args(config.words(parser)), flags(cls)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_a_configuration_says_what_the_flags_said(folder, solver, data):
    """Whatever flags are drawn, the file gives the same values, default ones included."""
    cls, words = solver_class(solver), ["--dataset", "digits", "--solver", solver]
    for field in data.draw(st.lists(st.sampled_from(flags(cls)), max_size=4, unique_by=lambda field: field.name)):
        check = field.metadata["check"]
        tried = check.choices or ("1", "2", "0.5", "true", "2,10", "0.125", "1x2", "2GiB", str(field.default))
        fitting = [text for text in tried if _accepted(check.accept, text)]
        words.append(f"--{field.name.lower().replace('_', '-')}={data.draw(st.sampled_from(fitting))}")
    first, fields = parsed(solver, words)
    path = folder.with_name("drawn.toml")
    path.write_text(configuration(first, fields), encoding="utf-8")
    again, _ = parsed(solver, [], path)
    for field in fields:
        values = [getattr(one, field.name) for one in (first, again)]
        typed = [None if value is None else field.metadata["check"].accept(value) for value in values]
        assert typed[0] == typed[1], field.name
    assert (first.dataset, first.solver, first.every) == (again.dataset, again.solver, again.every)


def _accepted(accept, text: str) -> bool:
    try:
        accept(text)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def test_the_configuration_repeats_the_run(folder, tmp_path):
    """The same bits of the model and the same history, but for seconds; from any folder."""
    assert main(["train", "--config", str(folder / "config.toml"), "--run", str(tmp_path / "b"), "--quiet"]) == 0
    for name in ("model.safetensors", "config.toml"):
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    rows = [History.from_jsonl(path / "history.jsonl") for path in (folder, tmp_path / "b")]
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in history] for history in rows]
    assert plain[0] == plain[1]
    assert len(plain[0]) == 6


def test_flags_win_over_the_file(folder, tmp_path):
    path = tmp_path / "s.json"
    again = ["train", "--config", str(folder / "config.toml"), "--hidden", "5", "--quiet", "--summary", str(path)]
    assert main(again) == 0
    assert main([again[0], *again[3:], *again[1:3]]) == 0  # in any order
    assert json.loads(path.read_text())["hidden"] == 5


def test_the_data_folder_of_a_file_goes_with_its_data_set(refused, tmp_path):
    """Another data set takes its place without it, as no flag unsets it; one that is typed beside it is refused."""
    path = tmp_path / "cora.toml"
    path.write_text(f'dataset = "cora"\ndata-dir = "{tmp_path}"\n')
    assert main([*TINY, "--config", str(path)]) == 0
    words = ["data_dir = elsewhere: must be left out with dataset csbm:120"]
    refused(*TINY, "--config", path, "--data-dir", "elsewhere", words=words)
    refused("train", "--config", path, *FAST, words=[f"dataset = cora: must be in {tmp_path}"])
    path.write_text(f'dataset = "csbm:120"\ndata-dir = "{tmp_path}"\n')
    refused("train", "--config", path, *FAST, words=["data_dir = "])


def test_a_file_says_how_often_even_without_checkpoints(refused, tmp_path):
    run = [*TINY, "--run", str(tmp_path / "a"), "--every", "7"]
    assert main(run) == 0
    again = ["train", "--config", str(tmp_path / "a" / "config.toml"), "--quiet"]
    assert main(again) == 0
    refused(*again, "--every", "5", words=["every = 5: must be left out without checkpoint"])
    path = tmp_path / "bad.toml"
    for bad in ('"koala"', "0"):
        path.write_text(f'dataset = "csbm:120"\nevery = {bad}\n')
        refused("train", "--config", path, *FAST, words=["every = "])


def test_lists_and_switches_in_a_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('dataset = "csbm:120"\nstages = [2, 3]\nquiet = true\nresume = false\nlayers = 3\nhops = 1\n')
    found, _ = parsed("pdadmm-g", [], path)
    assert (found.stages, found.quiet, found.resume, found.layers) == ("2,3", True, False, "3")
    path.write_text('dataset = "csbm:120"\nbits = 2\n')
    assert Config("train", ["--config", str(path)]).early() == ["--bits=2", "--config", str(path)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nuu = 1", ["key nuu", "did you mean nu?"]),
        ("learning_rte = 1", ["key learning_rte"]),
        ("config = 'x'", ["key config"]),
        ("kappa_first = 1", ["did you mean kappa-first?"]),
        ("nu = 1979-05-27", ["nu", "a text, a number"]),
        ("[data]\nx = 1", ["key data"]),
        ("hops = {a = 1}", ["hops"]),
        ("quiet = 3", ["quiet", "true or false"]),
        ("nu = ", ["a readable TOML file"]),
        ("hops = " + "[" * 3000, ["a readable TOML file"]),
        ("versions = 1", ["versions", "a table"]),
        ("nu = -1", ["nu = -1"]),
    ],
)
def test_files_that_say_something_else(refused, tmp_path, text, words):
    path = tmp_path / "run.toml"
    path.write_text(text)
    refused(*TINY, "--config", path, words=words)


def test_files_that_are_not_there(refused, tmp_path):
    refused(*TINY, "--config", tmp_path / "none.toml", words=["config", "No such file"])
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    refused(*TINY, "--config", tmp_path / "latin.toml", words=["config", "TOML"])


def test_a_preset_is_not_hidden_by_the_file(refused, folder, tmp_path):
    config = folder / "config.toml"
    refused("train", "--config", config, "--preset", "paper", words=["preset", "nu"])
    path = tmp_path / "run.toml"
    path.write_text('dataset = "csbm:120"\n')
    Config("train", ["--config", str(path), "--preset", "paper"]).check_preset({"nu": 1e-4})


def test_other_versions_are_told(folder, tmp_path, capsys):
    path = tmp_path / "old.toml"
    path.write_text((folder / "config.toml").read_text().replace('pdadmm = "', 'pdadmm = "0.0.'))
    assert main(["train", "--config", str(path)]) == 0
    assert "was written by pdadmm 0.0." in capsys.readouterr().err


# Run folders


def test_the_folder_holds_everything(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.toml", *FILES.values()])
    summary = json.loads((folder / "summary.json").read_text())
    model, augmenter, _ = load_model(folder / "model.safetensors")
    graph = csbm(120)
    counts = np.array(summary["confusion"])
    rows = graph.splits["test"]
    predicted = model(__import__("torch").from_numpy(augmenter.transform(graph))).argmax(1).numpy()[rows]
    wanted = np.zeros_like(counts)
    np.add.at(wanted, (graph.labels[rows], predicted), 1)
    assert (counts == wanted).all()
    assert np.trace(counts) / counts.sum() == pytest.approx(summary["test_accuracy"])
    assert any((folder / "checkpoints").glob("iteration-*/manifest.json"))
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert len(History.from_jsonl(folder / "history.jsonl")) == summary["iterations"]
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["nu"], config["dataset"], config["versions"]["pdadmm"]) == (0.25, "csbm:120", summary_version())


def summary_version() -> str:
    import pdadmm

    return pdadmm.__version__


def test_a_folder_is_not_overwritten_but_gone_on_with(refused, folder, tmp_path):
    before = (folder / "summary.json").read_bytes()
    refused(*TINY, "--run", folder, words=["run", "--resume"])
    assert (folder / "summary.json").read_bytes() == before
    short, path = [*TINY, "--run", str(tmp_path / "r"), "--every", "2"], tmp_path / "r"
    assert main(short) == 0
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").unlink()
    assert main([*short, "--resume"]) == 0
    assert (path / "model.safetensors").read_bytes() == whole


def test_results_of_a_run_folder_elsewhere_too(refused, folder, tmp_path):
    run, places = [*TINY, "--nu", "0.25", "--run", str(tmp_path / "r")], {}
    for flag in ("summary", "history", "save"):
        places[flag] = tmp_path / flag
        run += [f"--{flag}", str(places[flag])]
    refused(*run, "--summary", tmp_path / "none" / "s", words=["summary", "none"])
    assert main(run) == 0
    for flag, path in places.items():
        assert path.read_bytes() == (tmp_path / "r" / FILES[flag]).read_bytes()
    assert places["save"].read_bytes() == (folder / "model.safetensors").read_bytes()


def test_places_that_contradict(refused, tmp_path):
    run = [*TINY, "--run", tmp_path / "r"]
    for flag in ("--checkpoint", "--trace"):
        refused(*run, flag, tmp_path / "x", words=[flag[2:], "left out with --run"])
    refused(*TINY, "--trace", words=["trace", "--run"])
    (tmp_path / "file").write_text("")
    refused(*TINY, "--run", tmp_path / "file", words=["run"])
    refused(*run, "--nu", "x", words=["nu"])
    refused(*run, "--every", "0", words=["every"])
    assert not (tmp_path / "r").exists()


def test_a_data_file_is_named_by_its_whole_path(tmp_path, monkeypatch):
    write_npz(csbm(120), tmp_path / "mine.npz")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dataset", "mine.npz", *FAST, "--quiet", "--run", "r"]) == 0
    assert tomllib.loads((tmp_path / "r/config.toml").read_text())["dataset"] == str(tmp_path / "mine.npz")


def test_every_kind_of_network_has_a_confusion_matrix():
    from pdadmm import GCN, PDADMMG

    graph = csbm(120)
    for solver in (GCN(iterations=2, hidden=4), PDADMMG(layers=2, hidden=4, iterations=2, hops=1)):
        counts = np.array(confusion_matrix(solver.fit(graph), graph))
        assert np.trace(counts) / len(graph.splits["test"]) == pytest.approx(solver.score(graph))
    empty = graph.with_splits({**graph.splits, "test": np.empty(0, np.int64)})
    assert confusion_matrix(solver, empty) is None
