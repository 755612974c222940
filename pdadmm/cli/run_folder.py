"""``--run DIR``: one folder for all that a training leaves: configuration, history, summary, model, checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from pdadmm.cli.common import accepted
from pdadmm.data import DATASETS
from pdadmm.errors import InputError
from pdadmm.parameters import whole
from pdadmm.toml import to_toml
from pdadmm.versions import versions

__all__ = ["CONFIG", "FILES", "Record", "begin", "place"]

CONFIG = "config.toml"
# Flag -> its place in the folder.
FILES = {
    "summary": "summary.json",
    "history": "history.jsonl",
    "save": "model.safetensors",
    "trace": "trace.json",
    "checkpoint": "checkpoints",
}
COPIED = ("summary", "history", "save")
HEAD = """\
# pdadmm train --config {name} repeats this run; flags on the command line win over these.
# The same bits come from the same versions, threads (OMP_NUM_THREADS where not set here) and kind of processor.
"""


def place(given: argparse.Namespace) -> None:
    """Put the results of a run with --run into its folder; ``given.copies``: flag -> where else one is wanted.

    ``given.record`` is a Record of nothing yet.

    InputError for a place that is named twice or not at all.
    """
    given.copies, given.record = {}, Record()
    if given.run is None:
        if given.trace == "":
            raise InputError("trace", "without a FILE", "given a FILE", "or name a run folder with --run DIR")
        return
    for flag, name in FILES.items():
        asked = getattr(given, flag)
        if asked and flag not in COPIED:
            raise InputError(flag, asked, "left out with --run", f"the folder {given.run} has its {name}")
        # --ultra-wide leaves no model to save, and with --memory the scratch folder holds the checkpoints
        sliced = flag == "save" and str(getattr(given, "ultra_wide", False)).lower() in ("true", "yes")
        elsewhere = flag == "checkpoint" and getattr(given, "memory", None) is not None
        if (flag != "trace" or asked == "") and not (sliced or elsewhere):
            path = os.path.join(given.run, name)
            given.copies |= {flag: asked} if asked and os.path.realpath(asked) != os.path.realpath(path) else {}
            setattr(given, flag, path)


def begin(given: argparse.Namespace, fields: list[dataclasses.Field]) -> None:
    """Make the folder, and let ``given.record()`` write its configuration once the run begins.

    InputError for a folder that holds a run already, unless --resume goes on with it, or that cannot be written.
    """
    if given.run is None:
        return
    folder = Path(given.run)
    if (folder / CONFIG).exists() and not given.resume:
        remedy = "--resume goes on with that run; another folder starts a new one"
        raise InputError("run", given.run, "a folder without a run", remedy)
    try:
        given.record = Record(folder / CONFIG, configuration(given, fields))
    except UnicodeError as error:
        raise InputError("dataset, data_dir", "a path", "text that UTF-8 can hold, with --run", str(error)) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("run", given.run, "a folder that can be written", error.strerror or "") from None
    file = given.record.path
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise InputError("run", given.run, "a folder that can be written")


class Record:
    """Writes ``text``, every flag that decides a run's result, given or by default, when it is first called.

    That is at the first iteration: a run that is refused leaves its folder as it was.
    """

    def __init__(self, path: Path = Path(), text: str = "") -> None:
        text.encode()  # a path may hold what UTF-8 cannot
        self.path, self.text = path, text

    def __call__(self) -> None:
        """Write it, once; InputError where that cannot be."""
        if self.text:
            try:
                self.path.write_text(self.text, encoding="utf-8")
            except OSError as error:
                raise InputError("run", str(self.path), "a file that can be written", error.strerror or "") from None
            self.text = ""


def configuration(given: argparse.Namespace, fields: list[dataclasses.Field]) -> str:
    """Return the text of config.toml; paths are absolute, so that it holds in any folder."""
    dataset = given.dataset
    if dataset not in DATASETS and os.path.exists(dataset):
        dataset = os.path.abspath(dataset)
    values: dict[str, Any] = {
        "dataset": dataset,
        "data-dir": given.data_dir and os.path.abspath(given.data_dir),
        "split": given.split,
        "split-seed": accepted("split_seed", given.split_seed, whole(0)),
        "solver": given.solver,
        "preset": getattr(given, "preset", None),
        "memory": getattr(given, "memory", None),
        "scratch": getattr(given, "scratch", None) and os.path.abspath(given.scratch),
        "every": accepted("every", given.every, whole(1)),
    }
    for field in fields:
        value = getattr(given, field.name)
        flag = field.name.lower().replace("_", "-")
        values[flag] = None if value is None else accepted(field.name, value, field.metadata["check"])
    unset = ", ".join(name for name, value in values.items() if value is None)
    text = HEAD.format(name=CONFIG) + to_toml({name: value for name, value in values.items() if value is not None})
    return text + (f"# not set: {unset}\n" if unset else "") + "\n[versions]\n" + to_toml(versions())
