"""What a person sees while a run goes on: a progress bar at a terminal, log lines elsewhere, as text or as JSON."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
from typing import Any

__all__ = [
    "FORMATS",
    "LEVELS",
    "Progress",
    "StepProgress",
    "Work",
    "complain",
    "human_bytes",
    "human_seconds",
    "start_logging",
    "stop_logging",
]

log = logging.getLogger("pdadmm")

SECONDS_BETWEEN_LINES = 5.0
_handler: logging.Handler = logging.NullHandler()  # the one that start_logging made last


LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


class JSONLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, rank, message, and the fields of the record (``extra``)."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        about = {"time": moment.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line = about | {"rank": self.rank, "message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(level: str, rank: int, form: str = "text") -> None:
    """Send log lines of this package to standard error, from rank 0 only below the level of warnings.

    ``form``: one of FORMATS.
    """
    global _handler
    _handler = logging.StreamHandler(sys.stderr)
    _handler.setFormatter(JSONLines(rank) if form == "json" else logging.Formatter("%(message)s"))
    log.handlers[:] = [_handler]
    log.propagate = False
    log.setLevel(level.upper() if rank == 0 else "WARNING")


def stop_logging() -> None:
    """Undo ``start_logging``: the next command of this process may want another form, or none."""
    if any(handler is _handler for handler in log.handlers):
        log.handlers.remove(_handler)
        log.propagate = True
        log.setLevel(logging.NOTSET)


def _as_json() -> bool:
    return any(isinstance(handler.formatter, JSONLines) for handler in log.handlers)


def _at_terminal() -> bool:
    return sys.stderr.isatty() and not _as_json()


def complain(sentence: str) -> None:
    """Say on standard error why a command ends, in the form of the log lines."""
    if _as_json():
        log.error("%s", sentence)
    else:
        print(f"pdadmm: {sentence}", file=sys.stderr)


class Work:
    """Progress of one long job of ``total`` steps: a bar at a terminal, elsewhere a line at most every five seconds.

    In a program of one's own, without ``start_logging``, it is quiet unless that program shows the log of "pdadmm".

    >>> work = Work("augmentation", 2)
    >>> work.step(); work.step()
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.began = self.last_time = time.monotonic()
        self.bar: Any = None
        if total > 1 and log.handlers and log.isEnabledFor(logging.INFO) and _at_terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=name, leave=False, delay=1.0)

    def step(self) -> None:
        """Say that one more step is done; the last one takes the bar away."""
        self.done += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update()
            if self.done >= self.total:
                self.bar.close()
        elif now - self.last_time >= SECONDS_BETWEEN_LINES:
            self.last_time = now
            spent = now - self.began
            left = human_seconds(spent * (self.total - self.done) / self.done)
            fields = {"done": self.done, "total": self.total, "seconds": spent}
            text = f"{self.name}: {self.done} of {self.total} in {human_seconds(spent)}, about {left} left"
            log.info("%s", text, extra={"fields": fields})


class Progress:
    """Called with each row of the history; ``total`` iterations are expected.

    A bar at a terminal; elsewhere a log line at most every five seconds and at the end of each stage, for every
    iteration at the level debug. A line as JSON has the row's entries.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self.shown, self.last_time = shown, time.monotonic()
        self.last_row: dict[str, Any] | None = None
        self.bar: Any = None
        if shown and _at_terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="it", leave=False)

    def __call__(self, row: dict[str, Any]) -> None:
        if not self.shown:
            return
        if self.bar is not None:
            self.bar.update(row["iteration"] - self.bar.n)  # a run that goes on starts further up
            self.bar.set_description(f"{row['layers']} layers")
            if "val_accuracy" in row:
                self.bar.set_postfix(val=f"{row['val_accuracy']:.3f}", objective=f"{row['objective']:.3g}")
            return
        if log.isEnabledFor(logging.DEBUG):
            self._line(row)
            return
        if self.last_row is not None and row["stage"] != self.last_row["stage"]:
            self._line(self.last_row)
        elif time.monotonic() - self.last_time >= SECONDS_BETWEEN_LINES:
            self._line(row)
        self.last_row = row

    def _line(self, row: dict[str, Any]) -> None:
        self.last_time = time.monotonic()
        accuracy = f", validation {row['val_accuracy']:.3f}" if "val_accuracy" in row else ""
        log.info(
            "%d layers, iteration %d, %s: objective %.4g%s",
            row["layers"], row["iteration"], human_seconds(row["seconds"]), row["objective"], accuracy,
            extra={"fields": dict(row)},
        )  # fmt: skip

    def close(self) -> None:
        """Take the bar away, or write the last line."""
        if self.bar is not None:
            self.bar.close()
        elif self.shown and self.last_row is not None:
            self._line(self.last_row)


class StepProgress:
    """Called with (step, bytes done, bytes in all): a bar for each step at a terminal, nothing elsewhere."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.step = shown and sys.stderr.isatty(), ""
        self.bar: Any = None

    def __call__(self, step: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if step != self.step:
            from tqdm import tqdm

            self.close()
            self.step, self.bar = step, tqdm(total=total, unit="B", unit_scale=True, leave=False, desc=step)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def human_bytes(number: float) -> str:
    """Return a size as a person writes it.

    >>> human_bytes(999), human_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration as a person writes it.

    >>> human_seconds(0.0012), human_seconds(75)
    ('1.2 ms', '1 min 15 s')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
