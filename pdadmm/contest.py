"""A contest between solvers: each is tuned with the same budget, then trains the same seeds (docs/contest.md)."""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from pdadmm import console
from pdadmm.augment import AUGMENTATION
from pdadmm.contest_check import check_summary
from pdadmm.data import load_dataset, load_with_split
from pdadmm.data.registry import check_data_dir
from pdadmm.errors import DivergenceError, InputError, reason_of
from pdadmm.files import parse_json, regular_file
from pdadmm.parallel.launch import launched_size
from pdadmm.parameters import parameters
from pdadmm.recording import KINDS_OF_WORK
from pdadmm.solvers import solver_class
from pdadmm.standings import BACKPROP, standings
from pdadmm.tuning import best_trial, tune, without_test
from pdadmm.versions import versions

__all__ = ["COLUMNS", "COMMON", "SPLIT_SEEDS", "TEST", "Contest", "common_parameters", "compare", "read_summary"]

log = logging.getLogger("pdadmm")

# What is given once for all solvers, and never searched.
COMMON = (*AUGMENTATION, "dtype", "device", "eval_every", "threads")
COLUMNS = ("iteration", "layers", "seconds", "bytes", "objective", "residual_link", "val_accuracy", "test_accuracy")
SPLIT_SEEDS = ("same", "fixed")
TEST = ("curve", "once")
FIXED_SPLIT_SEED = 0
KILLED = "the process ended before it reported: it was killed, perhaps for want of memory"


@dataclass(frozen=True)
class Contest:
    """What is equal for all solvers: the data, the width, the seeds, the budget and ``common`` (of COMMON).

    ``seeds`` seeds from ``first_seed`` on are reported; a trial of tuning is judged by its mean over the ``tune_seeds``
    seeds from ``tune_seed`` on, none of them reported. ``split_seeds`` "same" draws split k for seed k, "fixed" one
    split for all; a split that is not drawn has no seed. ``test`` "curve" judges the
    test nodes at every evaluation, "once" takes them out of the graph and judges the trained network.
    """

    dataset: str
    data_dir: str | None = None
    split: str | None = None
    split_seeds: str = "same"
    hidden: int = 100
    seeds: int = 5
    first_seed: int = 0
    budget: int = 10
    tune_seed: int = 1000
    tune_seeds: int = 1
    test: str = "curve"
    common: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reported(self) -> range:
        """The seeds that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def tuned(self) -> range:
        """The seeds of tuning; none without a budget."""
        return range(self.tune_seed, self.tune_seed + (self.tune_seeds if self.budget else 0))

    def split_seed(self, seed: int) -> int | None:
        """Return the seed of the split that goes with a seed, None where the split is not drawn."""
        if self.split is None or self.split in ("file", "public"):
            return None
        return seed if self.split_seeds == "same" else FIXED_SPLIT_SEED

    def job(self, solver: str, layers: int, seed: int) -> dict[str, Any]:
        """Return what a child process needs to know about a run, or about the runs of tuning."""
        own = {row.name for row in parameters(solver_class(solver))}
        fixed = {"layers": layers, "hidden": self.hidden, "seed": seed}
        fixed |= {name: value for name, value in self.common.items() if name in own}
        split_seed = self.split_seed(seed)
        return {"solver": solver, "data": (self.dataset, self.data_dir, self.split, split_seed or 0), "fixed": fixed}

    def configuration(self) -> dict[str, Any]:
        """Return all that must be equal for rows of one summary: the graph's digest and the versions too."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "data_dir"}
        return own | {
            "common": dict(self.common),
            "threads": self.common.get("threads") or os.environ.get("OMP_NUM_THREADS"),
            "graph": load_dataset(self.dataset, self.data_dir).fingerprint(),
            "versions": versions(),
        }

    def check(self, entries: Sequence[tuple[str, int]]) -> None:
        """Raise InputError for whatever would end the contest later, before the first run."""
        if launched_size() > 1:
            remedy = "every run is a process of its own: start it without mpirun"
            raise InputError("ranks", launched_size(), "1 for compare", remedy)
        for flag, names in (("split_seeds", SPLIT_SEEDS), ("test", TEST)):
            if getattr(self, flag) not in names:
                raise InputError(flag, getattr(self, flag), "one of " + ", ".join(names))
        shared = set(self.tuned) & set(self.reported)
        if shared:
            remedy = "tuning must not see a seed that is reported"
            allowed = f"none of the seeds {self.reported[0]} to {self.reported[-1]}"
            raise InputError("tune_seed", min(shared), allowed, remedy)
        self._check_idle()
        for solver, layers in entries:
            solver_class(solver)(**self.job(solver, layers, self.first_seed)["fixed"]).checked()
        for seed in (self.first_seed, *self.tuned):
            graph = load_with_split(self.dataset, self.data_dir, self.split, self.split_seed(seed) or 0)
            assert graph.splits is not None  # load_with_split
            if not len(graph.splits["val"]) or not len(graph.splits["test"]):
                raise InputError("split", self.split or "its own", "one with validation and test nodes")

    def _check_idle(self) -> None:
        """Raise InputError for what the contest's other settings leave no part."""
        check_data_dir(self.dataset, self.data_dir)
        if self.split_seed(self.first_seed) is None and self.split_seeds != Contest.split_seeds:
            remedy = "splits random:N and fraction:A/B/C are drawn"
            raise InputError("split_seeds", self.split_seeds, "left out with a split that is not drawn", remedy)
        for flag in ("tune_seeds", "tune_seed"):
            if not self.budget and getattr(self, flag) != getattr(Contest, flag):  # the class has the defaults
                raise InputError(flag, getattr(self, flag), "left out with budget 0", "nothing is tuned")

    def check_common(self, solvers: Collection[str]) -> None:
        """Raise InputError for a value of ``common``, not the default, that plays no part with any of the solvers."""
        default = {row.name: row.default for row in common_parameters()}
        known = {row.name for solver in solvers for row in parameters(solver_class(solver))}
        for name, value in self.common.items():
            if name not in COMMON:
                raise InputError("common", name, "one of " + ", ".join(COMMON))
            if solvers and name not in known and value != default[name]:
                allowed = f"left out with {', '.join(solvers)} alone"
                raise InputError(name, value, allowed, "it is of solvers on augmented features: name one of them, too")
        self._check_device(solvers)

    def _check_device(self, solvers: Collection[str]) -> None:
        """Raise InputError where some solvers would train on a GPU and some on the CPU: seconds are compared."""
        if self.common.get("device", "cpu") == "cpu":
            return
        own = {solver: {row.name for row in parameters(solver_class(solver))} for solver in solvers}
        on_cpu = [solver for solver, names in own.items() if "device" not in names]
        if on_cpu:
            remedy = f"{', '.join(on_cpu)} would train on the CPU all the same"
            raise InputError("device", self.common["device"], "cpu with solvers that have no other", remedy)


def common_parameters() -> list[Field[Any]]:
    """Return the parameters of COMMON, as pdADMM-G declares them."""
    return [row for row in parameters(solver_class("pdadmm-g")) if row.name in COMMON]


def compare(
    contest: Contest,
    entries: Sequence[tuple[str, int]],
    path: str | os.PathLike,
    targets: Sequence[float] | None = None,
    command: str = "",
    watch: Callable[[dict[str, Any]], None] = lambda summary: None,
) -> dict[str, Any]:
    """Run a contest of (solver, layers) ``entries``, write it to ``path`` after each, and return its summary.

    Rows that ``path`` already holds are kept. Every run is a child process (spawn: a script that calls this
    needs ``if __name__ == "__main__"``). Raises InputError before the first run for whatever cannot be run,
    and where ``path`` holds another contest. ``watch`` is called with the summary after each row.
    """
    contest.check(entries)
    summary = _begin(contest, Path(path))
    taking_part = [row["solver"] for row in summary["rows"]] + [solver for solver, _ in entries]
    contest.check_common(dict.fromkeys(taking_part))
    if command:
        summary["commands"].append(command)
    _finish(summary, targets, Path(path))
    done = {(row["solver"], row["layers"]) for row in summary["rows"]}
    for solver, layers in entries:
        if (solver, layers) in done:
            log.info("%s, %d layers: kept from %s", solver, layers, path)
            continue
        done.add((solver, layers))
        summary["rows"].append(_row(contest, solver, layers))
        _finish(summary, targets, Path(path))
        watch(summary)
    return summary


def _begin(contest: Contest, path: Path) -> dict[str, Any]:
    """Return the summary to go on with: a new one, or that of the same contest in ``path``."""
    wanted = json.loads(json.dumps(contest.configuration()))
    if not path.exists() or not path.stat().st_size:
        return {"contest": wanted, "commands": [], "targets": [], "rows": []}
    summary = read_summary(path)
    defaults = json.loads(json.dumps({row.name: row.default for row in common_parameters()}))
    wanted, found = ({**own, "common": defaults | own["common"]} for own in (wanted, summary["contest"]))
    differ = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if differ:
        remedy = "name another file, or remove this one to start again"
        raise InputError("summary", str(path), f"of the same contest, and differs in {', '.join(differ)}", remedy)
    return summary


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """Return what ``pdadmm compare --summary`` wrote; InputError for another file."""
    try:
        summary = parse_json(regular_file(path).read_text(encoding="utf-8"))
        check_summary(summary)
    except (OSError, ValueError) as error:
        beside = os.path.join(os.path.dirname(path), "history.jsonl")
        remedy = reason_of(error) + (f"; a run's history is in {beside}" if os.path.isfile(beside) else "")
        raise InputError("summary", str(path), "a file that pdadmm compare wrote", remedy) from None
    return summary


def _finish(summary: dict[str, Any], targets: Sequence[float] | None, path: Path) -> None:
    """Work out the figures and write the file whole: a contest that is cut off leaves the last one intact."""
    summary["targets"] = standings(summary["rows"], targets)
    lines = [f" {json.dumps(name)}: {json.dumps(summary[name])}" for name in ("contest", "commands", "targets")]
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in summary["rows"])
    text = "{\n" + ",\n".join(lines) + ',\n "rows": [\n' + rows + "\n]\n}\n"
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError("summary", str(path), "a file that can be written", error.strerror or "") from None


def _row(contest: Contest, solver: str, layers: int) -> dict[str, Any]:
    """Tune, then run the reported seeds; return the row without its figures."""
    row: dict[str, Any] = {"solver": solver, "layers": layers, "parameters": {}, "tuning": None}
    if contest.budget:
        job = contest.job(solver, layers, contest.tune_seed) | {"budget": contest.budget}
        job["others"] = [(contest.job(solver, layers, seed)["data"], seed) for seed in contest.tuned[1:]]
        seeds = {"seed": contest.tune_seed, "split_seed": contest.split_seed(contest.tune_seed)}
        try:
            trials = _in_child(_tune, job)
            best = best_trial(trials) or trials[0]
            row["parameters"] = best["parameters"]
            row["tuning"] = seeds | {"best": best["trial"], "trials": trials}
            log.info("%s, %d layers: trial %d of %d is best", solver, layers, best["trial"], contest.budget)
        except BrokenProcessPool:
            row["tuning"] = seeds | {"best": None, "trials": [], "failed": KILLED}
            log.warning("%s, %d layers: %s; it goes on with the defaults", solver, layers, KILLED)
    row["runs"] = []
    for seed in contest.reported:
        job = contest.job(solver, layers, seed) | {"test": contest.test}
        job["fixed"] |= row["parameters"]
        run = {"seed": seed, "split_seed": contest.split_seed(seed), **_run_alone(job)}
        row["runs"].append(run)
        log.info("%s, %d layers, seed %d: %s", solver, layers, seed, _told(run))
    return row


def _told(run: dict[str, Any]) -> str:
    if "failed" in run:
        return f"failed, {run['failed']}"
    return f"test accuracy {run['test_accuracy']:.4f}, training {console.human_seconds(run['seconds_training'])}"


# In child processes


def _in_child(work: Callable[[Any], Any], job: Any) -> Any:
    """Return ``work(job)`` from a fresh process, whose peak memory is its own; Ctrl-C ends both, in one sentence."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits it: Ctrl-C is ours
        try:
            future = pool.submit(work, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        try:
            return future.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _run_alone(job: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one run in a child; ``failed`` is a sentence where it diverged or was killed."""
    try:
        return _in_child(_run, job)
    except DivergenceError as error:
        return {"failed": str(error)}
    except BrokenProcessPool:
        return {"failed": KILLED}


def _tune(job: dict[str, Any]) -> list[dict[str, Any]]:
    others = [(load_with_split(*data), seed) for data, seed in job["others"]]
    graph, seed = load_with_split(*job["data"]), job["fixed"]["seed"]
    return tune(job["solver"], graph, job["budget"], job["fixed"], seed, others=others)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    graph = load_with_split(*job["data"])
    once = job["test"] == "once"
    estimator = solver_class(job["solver"])(**job["fixed"]).fit(without_test(graph) if once else graph)
    summary = estimator.summary_
    peak = peak_bytes() or summary["peak_rss_bytes"]
    if once:
        summary["test_accuracy"] = estimator.score(graph)
    rates = [stage.get("bytes_per_iteration") for stage in estimator.stages_]
    if job["solver"] in BACKPROP:  # what is told is of one rank, which sends nothing
        assert graph.splits is not None  # load_with_split
        depths = [stage["layers"] for stage in estimator.stages_]
        rates = gradient_bytes(estimator.checked(), estimator.model_.widths, depths, len(graph.splits["train"]))
    names = ("test_accuracy", "val_accuracy", "train_accuracy", "seconds_training", "iterations", "threads")
    history = compact_history(estimator.history_, rates)
    spent = {kind: summary[f"seconds_{kind}"] for kind in KINDS_OF_WORK if f"seconds_{kind}" in summary}
    return {
        **{name: summary[name] for name in names},
        **({"spent": spent} if spent else {}),
        "bytes": history["bytes"][-1] if "bytes" in history else None,
        "peak_bytes": peak,
        "history": history,
    }


def peak_bytes() -> int | None:
    """Return the largest resident set of this program, in bytes; None where the system does not tell.

    getrusage will not do: on Linux a process inherits the peak of the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return None


def gradient_bytes(settings: Any, widths: Sequence[int], depths: Sequence[int], nodes: int) -> list[int]:
    """Return, for each stage's depth, the bytes of gradients that backpropagation sends in an iteration on L ranks.

    Nodes are spread over R = L ranks, as many as pdADMM-G has with a rank for each layer; a ring sums the n bytes
    of a step's gradients, so that all ranks together send 2 n (R - 1). ``widths`` are [n_0, .., n_L].
    """
    item = {"float32": 4, "float64": 8}[settings.dtype]
    steps = math.ceil(nodes / (settings.batch_size or nodes))
    rates = []
    for depth in depths:
        own = [widths[0], *[settings.hidden] * (depth - 1), widths[-1]]
        numbers = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(own))
        rates.append(2 * (settings.layers - 1) * numbers * item * steps)
    return rates


def compact_history(history: Sequence[Mapping[str, Any]], rates: Sequence[int | None]) -> dict[str, list]:
    """Return the COLUMNS that a history has, each a list.

    ``bytes`` are those that the iterations would send on as many ranks as layers, as one process sends none:
    ``rates`` an iteration for each stage, None where a solver does not tell.
    """
    columns = {name: [_short(name, row.get(name)) for row in history] for name in COLUMNS}
    columns["bytes"] = [None]
    if None not in rates:
        columns["bytes"] = list(itertools.accumulate(rates[row["stage"]] for row in history))
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _short(name: str, value: Any) -> Any:
    """Six digits are enough for a curve; accuracies are kept as they are, they meet targets exactly."""
    if not isinstance(value, float) or name.endswith("accuracy"):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
