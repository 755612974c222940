"""The docs tell the truth: names exist, flags and defaults are the program's, links lead somewhere, examples run."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shlex
from functools import cache, partial
from pathlib import Path

import pytest
from stand_in_device import DEVICE, StandIn

import pdadmm
from pdadmm.admm import activations, first_layer, losses, schedule, updates
from pdadmm.admm.presets import PRESETS
from pdadmm.augment import OPERATORS, SCALINGS, WEIGHTINGS
from pdadmm.cli import COMMANDS, main
from pdadmm.data import DATASETS, READERS
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.parallel import ledger
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class
from pdadmm.tuning import SPACES

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def find(dotted: str):
    """The object that a dotted name stands for; AssertionError where there is none."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            assert hasattr(found, name), f"{dotted} does not exist"
            found = getattr(found, name)
        return found
    raise AssertionError(f"{dotted} does not exist")


@cache
def help_of(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return out.getvalue()


def flags_of_train() -> set[str]:
    return {flag for name in SOLVERS for flag in FLAG.findall(help_of("train", "--solver", name))}


def flags_section(command: str) -> str:
    """The part of docs/cli.md about one command's flags."""
    section = read("docs/cli.md").partition(f"\n## Flags of `pdadmm {command}`\n")[2].partition("\n## ")[0]
    assert section, f"docs/cli.md says nothing of the flags of {command}"
    return section


def documented_flags(command: str) -> dict[str, str]:
    """Flag -> default, from the tables of docs/cli.md."""
    rows = re.findall(r"^\| `(--[a-z-]+)[^`|]*`.*? \| (.*?) \|", flags_section(command), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a flag stands in two tables"
    return dict(rows)


def flag_rows(solver: str) -> dict[str, list[str]]:
    """Flag -> cells of its row in docs/cli.md, from the tables for every solver and those that name this one."""
    found = {}
    for section in flags_section("train").split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        named = re.findall(r"--solver ([\w-]+)", heading)
        assert set(named) <= set(SOLVERS), heading
        if named and solver not in named:
            continue
        for flag, cells in re.findall(r"^\| `(--[a-z-]+)[^`|]*` \| (.*) \|$", body, re.MULTILINE):
            assert flag not in found, f"{flag} stands in two tables of {solver}"
            found[flag] = re.split(r" (?<!\\)\| ", cells)
    return found


def documented_default(cell: str, solver: str) -> str:
    """The default in a table: one for all, or a list such as "gd 0.03, adam 0.001" or "10, gcn 2"."""
    parts = cell.split(", ")
    own = dict(part.split(" ", 1) for part in parts if part.split(" ")[0] in SOLVERS and " " in part)
    return own.get(solver, ", ".join(part for part in parts if part.split(" ")[0] not in own))


# Names


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_name_in_backticks_exists(page):
    for dotted in re.findall(r"`(pdadmm(?:\.\w+)+)`", page.read_text("utf-8")):
        find(dotted)


def test_a_wrong_name_would_be_noticed():
    with pytest.raises(AssertionError, match="update_x_ does not exist"):
        find("pdadmm.admm.updates.update_x_")
    with pytest.raises(AssertionError, match="does not exist"):
        find("pdadm.admm")


def test_every_update_and_every_family_member_is_in_the_math():
    text = read("docs/math.md")
    missing = [name for name in updates.__all__ if f"`pdadmm.admm.updates.{name}`" not in text]
    assert not missing
    members = [*first_layer.FIRST_LAYERS.values(), *schedule.RHO_SCHEDULES.values(), *map(type, losses.LOSSES.values())]
    for member in {*members, *map(type, activations.ACTIVATIONS.values())}:
        assert f"`{member.__module__}.{member.__name__}" in text


def test_every_public_name_is_documented():
    text = read("docs/python.md")
    assert not [name for name in pdadmm.__all__ if name != "__version__" and f"`pdadmm.{name}`" not in text]


def test_every_learned_attribute_is_documented():
    documented = set(re.findall(r"`(\w+_)`", read("docs/python.md")))
    assert set(re.findall(r"``(\w+_)``", inspect.getdoc(GraphClassifier))) <= documented


# The command line


@pytest.mark.parametrize("name", SOLVERS)
def test_every_flag_of_train_is_in_the_tables(name):
    listed = re.findall(r"^  (?:-h, )?(--[a-z-]+)", help_of("train", "--solver", name), re.MULTILINE)
    assert set(flag_rows(name)) == set(listed)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_defaults_in_the_tables_are_the_programs(name):
    rows = flag_rows(name)
    for field in parameters(solver_class(name)):
        flag = "--" + field.name.lower().replace("_", "-")
        if field.default is not None and field.metadata["check"].flag:
            assert documented_default(rows[flag][0], name) == str(field.default), flag


@pytest.mark.parametrize("name", SOLVERS)
def test_every_choice_is_named_beside_its_flag(name):
    rows = flag_rows(name)
    assert all(f"`{solver}`" in rows["--solver"][1] for solver in SOLVERS)
    for field in parameters(solver_class(name)):
        for choice in field.metadata["check"].choices or ():
            flag = "--" + field.name.lower().replace("_", "-")
            assert choice in re.findall(r"[\w-]+", " ".join(rows[flag])), f"{flag} {choice}"


def test_every_preset_is_documented_with_its_values():
    section = read("docs/cli.md").partition("\n### Presets\n")[2].partition("\n##")[0]
    assert all(f"`{name}`" in flag_rows("pdadmm-g")["--preset"][1] for name in PRESETS)
    for row in PRESETS.values():
        text = section.partition(f"\n`{row.name}`")[2].partition("\n\n")[0]
        for name, value in (row.parameters | row.quantized).items():
            assert f"`--{name.lower().replace('_', '-')} {value}`" in " ".join(text.split()), name


def test_the_tables_reader_reads():
    assert documented_default("gd 0.03, adam 0.001", "adam") == "0.001"
    assert documented_default("10, gcn 2", "gcn") == "2"
    assert documented_default("10, gcn 2", "adam") == "10"
    assert documented_default("column; paper where constrained", "adam") == "column; paper where constrained"
    assert flag_rows("gd")["--momentum"][0] == "0.9"
    assert "--momentum" not in flag_rows("adam")
    assert flag_rows("pdadmm-g")["--iterations"][0] != flag_rows("adam")["--iterations"][0]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_the_flags_of_other_commands_are_documented(command):
    """Each is named in its section, those that tune shares with train by name of that; defaults are the program's."""
    text = help_of(command)
    shared = flags_of_train() if command == "tune" else set()
    listed = "\n".join(re.findall(r"^  -.*$", text, re.MULTILINE))
    named, flags = set(FLAG.findall(flags_section(command))), set(FLAG.findall(listed)) - {"--help"}
    assert flags - shared <= named <= flags | flags_of_train()
    tabled = documented_flags(command)
    assert set(tabled) <= flags
    for flag, default in tabled.items():
        if default not in ("required", "off", "not written"):
            own = re.search(rf"(?<= ){flag} .*?(?=\n  -|\n\n|\Z)", text, re.DOTALL).group()
            assert f"(default: {default}" in " ".join(own.split()), flag


def test_the_search_spaces_in_the_docs_are_the_programs():
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \| (.*) \|$", read("docs/contest.md"), re.MULTILINE)
    assert rows == [(name, key, str(spread)) for name, space in SPACES.items() for key, spread in space.items()]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_flag_in_the_text_exists(page):
    others = {"--ntasks", "--cpus-per-task", "--signal", "--index-url"}  # of Slurm and pip
    known = flags_of_train() | {"--version"} | others
    known |= {flag for name in COMMANDS for flag in FLAG.findall(help_of(name))}
    for folder in ("examples", "benchmarks"):
        known |= {flag for path in (ROOT / folder).glob("*.py") for flag in FLAG.findall(path.read_text("utf-8"))}
    assert set(FLAG.findall(page.read_text("utf-8"))) <= known


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_in_the_text_parses(page):
    """Every flag of a command line that is shown is a flag of that command."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(rf"^ +.*?(?<=\s|/)(?:python -m )?(pdadmm (?:{'|'.join(COMMANDS)}).*)$", text, re.MULTILINE):
        arguments = shlex.split(line.partition("#")[0])[1:]
        known = set(FLAG.findall(help_of(*arguments[:1]))) | flags_of_train()
        assert {word for word in arguments if word.startswith("--")} <= known, line


def test_every_command_and_message_kind_is_documented():
    text = read("docs/cli.md")
    assert all(f"`pdadmm {name}`" in text for name in COMMANDS)
    kinds = re.findall(r'"(\w+)"', inspect.getdoc(ledger.Ledger).partition(")")[0])
    assert len(kinds) >= 6
    assert all(f"| `{kind}` |" in read("docs/mpi.md") for kind in kinds)


def test_every_data_set_format_operator_weighting_and_scaling_is_documented():
    text = read("docs/data.md")
    for row in DATASETS.values():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row.name}`"))
        assert f"{row.nodes:,}" in line
        assert f"{row.edges:,}" in line
        assert f"| {row.split} |" in line
        assert all(f"`{file}`" in line for file in row.files)
    assert all(f"\n| `{name}` | " in text for name in READERS)
    assert all(f"`{name}`" in read("docs/math.md") for name in (*OPERATORS, *WEIGHTINGS, *SCALINGS))


# What runs


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A short run of one solver of each kind, and the keys of all their summaries with those of `pdadmm train`."""
    augmented, gnns = (pdadmm.PDADMMG, pdadmm.Adam), (pdadmm.GCN, pdadmm.SampledGNN, pdadmm.GIST)
    kinds = [*(partial(solver, hops=1) for solver in augmented), *gnns]
    runs = [solver(layers=3, hidden=8, iterations=2).fit(pdadmm.digits()) for solver in kinds]
    from_disk = {"memory": "300MiB", "scratch": tmp_path_factory.mktemp("disk")}
    disk = pdadmm.PDADMMG(layers=3, hidden=8, iterations=2).fit(pdadmm.digits(), **from_disk)
    sampled = pdadmm.SampledGNN(hidden=8, iterations=1)
    sampled.fit(pdadmm.digits(), memory="300MiB", scratch=tmp_path_factory.mktemp("sampled"))
    streamed = pdadmm.SampledGNN(hidden=8, iterations=1, buffer_share=0.5)
    streamed.fit(pdadmm.digits(), memory="300MiB", scratch=tmp_path_factory.mktemp("streamed"))
    with pytest.MonkeyPatch.context() as patch, StandIn():
        patch.setattr("pdadmm.admm.solver.choose_device", lambda name, transport: DEVICE)
        patch.setattr("pdadmm.admm.estimator.check_device", lambda name: None)
        limited = pdadmm.PDADMMG(layers=3, hidden=8, iterations=2, device="cuda", device_memory="1GiB")
        limited.fit(pdadmm.digits())
    assert disk.history_[0].keys() == limited.history_[0].keys() == runs[0].history_[0].keys()
    added = {"solver", "preset", "dataset", "split", "split_seed", "nodes", "train_nodes", "predicted", "confusion"}
    runs_beside = (disk, limited, sampled, streamed)
    return runs, added.union(*(run.summary_ for run in (*runs, *runs_beside)))


def tables_of(title: str) -> list[set[str]]:
    """The keys in each table of a section of docs/cli.md."""
    section = read("docs/cli.md").partition(f"## {title}")[2].partition("\n## ")[0]
    rows = [re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for table in section.split("|---|---|---|")[1:]]
    return [{key for row in table for key in re.findall(r"`(\w+)`", row)} for table in rows]


def test_every_key_of_the_summary_is_documented_and_exists(small):
    (table,) = tables_of("Keys of the summary")
    assert table == small[1]


def test_every_key_of_the_history_is_documented_and_exists(small):
    common, extra = tables_of("Keys of the history")
    admm, *others = ({key for row in run.history_ for key in row} for run in small[0])
    assert all(other == common for other in others)
    assert admm == common | extra


def test_every_key_of_a_stage_is_documented(small):
    section = read("docs/cli.md").partition("Each object of `stages`")[2].partition("\n## ")[0]
    for run in small[0]:
        plain = {key.removeprefix("start_") for key in run.stages_[0]}
        assert plain <= set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text("utf-8")], ids=page_id)
def test_the_python_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        exec(compile(block, page_id(page), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_readme_example_is_short():
    (block,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 10


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_reference_has_every_public_name():
    text = read("docs/api.md")
    listed = re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)$", text, re.MULTILINE)
    assert {f"pdadmm.{name}" for name in pdadmm.__all__ if name != "__version__"} <= set(listed)
    for name in listed + re.findall(r"^\.\. automodule:: ([\w.]+)$", text, re.MULTILINE):
        assert inspect.getdoc(find(name)), name


def test_the_index_names_every_page():
    text = read("docs/index.md")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.stem != "index"]
    assert len(pages) >= 5
    assert all(f"({name})" in text for name in pages)
