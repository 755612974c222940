"""What every solver's estimator shares: fit on a graph or on arrays, predict, score, save."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch

from pdadmm.data import Graph
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.rows import by_rows, is_read_by_rows, row_ranges
from pdadmm.errors import InputError, did_you_mean
from pdadmm.files import peak_rss_bytes
from pdadmm.history import History
from pdadmm.kept import CHECKPOINT_EVERY, Kept
from pdadmm.models.gamlp import load_model, save_model
from pdadmm.parallel.agreement import data_digest, environment, require_agreement, settings_of
from pdadmm.parallel.launch import make_transport, set_threads, together
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import optional, param, parameters, whole
from pdadmm.saver import Saver
from pdadmm.trace import Trace

if TYPE_CHECKING:
    from pdadmm.gist.slices import SlicedGNN

__all__ = ["NodeClassifier", "Outcome", "peak_rss_bytes", "real_matrix"]

log = logging.getLogger("pdadmm")

PARTS = ("train", "val", "test")
MOST_THREADS = 1024  # far more end the process
_TOLD: set[tuple[Any, ...]] = set()  # what was said of classes without training nodes, and of which graphs
LEARNED = ("model_", "augmenter_", "history_", "stages_", "summary_", "classes_", "n_features_in_")


@dataclass
class Outcome:
    """What a solver returns on each rank: its best (W, b) by layer, or slices of them, and what it recorded."""

    weights: dict[int, tuple[torch.Tensor, torch.Tensor]] | SlicedGNN
    history: History
    stages: list[dict[str, Any]]
    summary: dict[str, Any]


def real_matrix(X: Any) -> np.ndarray:
    """Return augmented features as an array of real numbers (V, n_0)."""
    allowed = "a matrix of real numbers (V, n_0)"
    if sp.issparse(X):
        remedy = "give X.toarray(), or a pdadmm.Graph, whose features may be sparse"
        raise InputError("X", "a scipy.sparse matrix", allowed, remedy)
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise InputError("X", type(X).__name__, allowed, str(error).split(".")[0]) from None
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InputError("X", f"shape {array.shape} of {array.dtype}", allowed)
    return array


def _check_watchers(watch: Any, trace: Any) -> None:
    """Raise InputError for what cannot be called with rows, or is no Trace."""
    if watch is not None and not callable(watch):
        raise InputError("watch", watch, "a function of a row of the history")
    if trace is not None and not isinstance(trace, Trace):
        raise InputError("trace", trace, "a pdadmm.Trace", "its write(path) makes the file, after fit")


def _classes_like(predicted: np.ndarray, y: Any) -> np.ndarray:
    """Return ``y`` as an array; InputError where it cannot be compared with what was predicted."""
    truth = np.asarray(y)
    if truth.shape != predicted.shape:
        raise InputError("y", f"shape {truth.shape}", f"of shape {predicted.shape}, a class for every row")
    kinds = [array.dtype.kind in "biuf" for array in (truth, predicted)]
    if truth.dtype.kind != "O" and predicted.dtype.kind != "O" and kinds[0] != kinds[1]:
        raise InputError("y", f"of type {truth.dtype}", f"classes as in fit, of type {predicted.dtype}")
    return truth


def _weights(given: Any, rows: int) -> np.ndarray | None:
    """Return the weights of the rows; InputError for others than a number of at least 0 for each, not all 0."""
    if given is None:
        return None
    try:
        weights = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError):
        weights = np.empty(0)
    if weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InputError("sample_weight", f"{given!r:.40}", f"{rows} numbers of at least 0, not all 0")
    return weights


def _readable(graph: Any, on_disk: bool) -> Any:
    """Return what ``fit`` was given in the form that training reads; InputError where it cannot be trained on."""
    if on_disk and not isinstance(graph, (Graph, AugmentedFolder, GraphFolder)):
        return graph if is_read_by_rows(graph) else by_rows(real_matrix(graph))
    if not on_disk and is_read_by_rows(graph):
        raise InputError("X", type(graph).__name__, "a matrix of real numbers", "or train from disk, with memory")
    return graph


def _warn_of_classes(graph: Any) -> None:
    """Warn of classes without training nodes, as of a number left out; once in a process for those of a graph."""
    if not isinstance(graph, (Graph, AugmentedFolder, GraphFolder)):
        return
    assert graph.splits is not None  # it was trained on
    counts = np.bincount(graph.labels[graph.splits["train"]], minlength=int(graph.num_classes))
    bare = np.flatnonzero(counts == 0)
    what = graph.name, graph.num_nodes, *bare.tolist()
    if bare.size and what not in _TOLD:
        _TOLD.add(what)
        more = f" ({bare.size} such classes)" if bare.size > 1 else ""
        log.warning("no training node has the class %d%s, which is never learned: classes go from 0 to %d",
                    bare[0], more, counts.size - 1)  # fmt: skip


def _of_all_ranks(transport: Transport, seconds_setup: float) -> dict[str, Any]:
    """Return what the ranks' ledgers and processes add up to; collective."""
    ledger = transport.ledger
    own = ledger.bytes_sent, ledger.bytes_other, peak_rss_bytes(), seconds_setup, dict(ledger.sent)
    sent, other, peak, seconds, by_kind = zip(*transport.allgather(own), strict=True)
    return {
        "ranks": transport.size,
        "seconds_setup": max(seconds),
        "bytes_sent": sum(sent),
        "bytes_other": sum(other),
        "bytes_by_kind": dict(sum(map(Counter, by_kind), Counter())),
        "peak_rss_bytes": max(peak),
    }


def _described(graph: Graph | Any, y: Any) -> dict[str, Any]:
    """Return sizes and a fingerprint of what ``fit`` was given, to know it again."""
    if isinstance(graph, (Graph, AugmentedFolder, GraphFolder)):
        sizes: dict[str, Any] = {f"nodes for {part}": len(rows) for part, rows in graph.splits.items()}
        sizes |= {"nodes": graph.num_nodes, "features": graph.num_features, "classes": graph.num_classes}
        return sizes | {"fingerprint": graph.fingerprint()}
    X, labels, digest = by_rows(graph), np.asarray(y), hashlib.sha256()
    for start, stop in row_ranges(X, X.shape[0]):
        digest.update(np.ascontiguousarray(X.rows(start, stop)).tobytes())
        digest.update(str(labels[start:stop].tolist()).encode())
    return {"nodes": X.shape[0], "features": X.shape[1], "fingerprint": digest.hexdigest()}


@dataclass(eq=False, repr=False)
class NodeClassifier:
    """A classifier of the nodes of a graph, in scikit-learn's manner.

    A kind of network adds ``network``, ``_problem``, ``_adopt`` and ``_logits``; a solver its own settings,
    ``_checked`` and ``_train``.
    """

    network: ClassVar[str]  # the class of model_

    eval_every: int = param(1, whole(1), "iterations between evaluations, of which the best is kept")
    threads: int | None = param(
        None, optional(whole(1, MOST_THREADS)),
        "BLAS threads of each rank (default: OMP_NUM_THREADS, else cores / ranks)",
    )  # fmt: skip

    def __new__(cls, *values: Any, **named: Any) -> NodeClassifier:
        """Refuse what is no hyper-parameter, with the nearest one: a TypeError, as Python's own."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in named:
            if name not in known:
                cure = did_you_mean(name, known) or f"it has {', '.join(known)}"
                raise TypeError(f"{cls.__name__} has no hyper-parameter {name}: {cure}")
        return super().__new__(cls)

    streams = False  # whether this solver trains from disk

    # what a kind of network and a solver add, for settings and a problem of their own
    _problem: ClassVar[Callable[..., Any]]
    _adopt: ClassVar[Callable[..., None]]
    _logits: ClassVar[Callable[..., torch.Tensor]]
    _checked: ClassVar[Callable[..., Any]]
    _train: ClassVar[Callable[..., Outcome]]
    _storage: ClassVar[Callable[..., Any]]  # where it streams

    def fit(
        self,
        graph: Graph | Any,
        y: Any = None,
        comm: Any = None,
        watch: Any = None,
        trace: Trace | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = CHECKPOINT_EVERY,
        resume: bool = False,
        memory: int | str | None = None,
        scratch: str | os.PathLike | None = None,
    ) -> Self:
        """Train on a Graph with splits, on a folder that `pdadmm augment` made, or on arrays X (V, n_0) and y (V,).

        X may be a matrix read by rows, where ``memory`` is given.
        ``comm``: an mpi4py communicator; None is the world's under mpirun, else one process. Every rank
        passes the same graph. ``watch`` is called on every rank with each row of the history; ``trace``
        records what takes the time. ``checkpoint``: a folder for checkpoints, one every ``checkpoint_every``
        iterations; ``resume`` goes on from the last one there. ``memory``, such as "2GiB", is what training may take
        beyond what the process holds now; X and state then lie in the folder ``scratch``, with a checkpoint of every
        iteration.
        Raises InputError on all ranks for anything that cannot be trained on, DivergenceError when training
        leaves the finite numbers; with checkpoints SIGINT and SIGTERM end it after the iteration, as
        KeyboardInterrupt and SystemExit(143).
        """
        began = time.perf_counter()
        _check_watchers(watch, trace)
        self._forget()  # a fit that fails leaves nothing half old, half new
        transport = make_transport(comm)
        settings = together(transport, lambda: self._checked(transport))
        kept = Kept(checkpoint, checkpoint_every, resume, memory, scratch)
        self._agree(transport, settings, graph, y, vars(kept) | {"trace": None if trace is None else "given"})
        limit = together(transport, lambda: kept.limit(type(self), transport.size))
        threads = set_threads(settings.threads, transport)
        graph = _readable(graph, limit is not None)
        on_disk = {} if limit is None else {"on_disk": True}  # only a solver that streams knows it
        problem, shift, seconds_augmentation = together(
            transport, lambda: self._problem(settings, graph, y, transport, **on_disk)
        )
        if transport.rank == 0:
            _warn_of_classes(graph)
        saver = kept.saver(settings, limit, transport, lambda: _described(graph, y))
        more = {} if limit is None else {"storage": self._storage(problem, settings, saver.folder, limit)}
        seconds_setup = time.perf_counter() - began - seconds_augmentation
        outcome = self._run(problem, settings, transport, watch, trace, saver, **more)
        self._adopt(outcome, settings, problem, shift, transport)
        self.history_, self.stages_ = outcome.history, outcome.stages
        self.summary_ = outcome.summary | {"threads": threads} | _of_all_ranks(transport, seconds_setup)
        self.summary_["seconds_augmentation"] = transport.bcast(seconds_augmentation)
        if limit is not None:
            self.summary_ |= {"memory_bytes": limit.limit, "memory_peak_bytes": limit.most()}
        transport.close()
        return self

    def _run(
        self, problem: Any, settings: Any, transport: Transport, watch: Any, trace: Trace | None, saver: Saver | None,
        **more: Any,
    ) -> Outcome:  # fmt: skip
        """Return what training found, traced and with its checkpoints where they were asked for."""
        if trace is not None:
            transport.trace = trace
            trace.start(transport)
        try:
            with saver.watching() if saver is not None else contextlib.nullcontext():
                outcome = self._train(problem, settings, transport, watch or (lambda row: None), saver, **more)
        except InputError as error:
            if transport.size == 1:
                raise
            # of one rank alone: it must end the others too
            raise RuntimeError(f"rank {transport.rank} failed while training: {error}") from error
        if trace is not None:
            trace.collect(transport)
        return outcome

    def _forget(self) -> None:
        """Drop what an earlier fit learned."""
        for name in LEARNED:
            self.__dict__.pop(name, None)

    def _agree(self, transport: Transport, settings: Any, graph: Any, y: Any, kept: dict[str, Any]) -> None:
        """Raise InputError on all ranks where they were not given the same; ``kept``: arguments about what is kept."""
        if transport.size > 1:
            facts = {"solver": type(self).__name__, **environment(), **settings_of(settings)}
            facts |= {name: str(value) for name, value in kept.items()}
            require_agreement(transport, facts | {"data": data_digest(graph, y)})

    @staticmethod
    def _graph_rows(graph: Graph | AugmentedFolder | GraphFolder) -> tuple[np.ndarray, np.ndarray, dict[str, slice]]:
        """Return the labelled nodes (train, val, test), their classes, and the parts' rows."""
        if graph.splits is None:
            remedy = "use graph.with_splits(make_splits(graph, 'random:20')), or --split"
            raise InputError("graph.splits", None, "given", remedy)
        rows = np.concatenate([graph.splits[part] for part in PARTS])
        ends = np.cumsum([0, *(len(graph.splits[part]) for part in PARTS)]).tolist()
        parts = {part: slice(start, stop) for part, start, stop in zip(PARTS, ends, ends[1:])}
        return rows, graph.labels[rows].astype(np.int64), parts

    @staticmethod
    def _check_patience(settings, parts: dict[str, slice]) -> None:
        if settings.patience is not None and parts["val"].stop == parts["val"].start:
            raise InputError("patience", settings.patience, "None without validation nodes")

    # scikit-learn's manner, without its import: that takes longer than training a small graph

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        names = sorted(field.name for field in parameters(type(self)))
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Self:
        """Set hyper-parameters by name; return self. Raises InputError for a name that is not one."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise InputError("parameter", name, "one of " + ", ".join(known))
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = (f for f in parameters(type(self)) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def _not_fitted(self) -> Exception:
        from sklearn.exceptions import NotFittedError

        return NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")

    # What a trained estimator can do

    def predict(self, graph: Graph | Any) -> np.ndarray:
        """Return the class of every node of a Graph (V,), or of every row of augmented features."""
        logits = self._logits(graph)
        return self.classes_[logits.argmax(1).numpy()]

    def predict_proba(self, graph: Graph | Any) -> np.ndarray:
        """Return class probabilities (V, C), the softmax of the logits, columns as in ``classes_``."""
        return torch.softmax(self._logits(graph), dim=1).numpy()

    def score(
        self, graph: Graph | Any, y: Any = None, sample_weight: Any = None, split: str = "test"
    ) -> float:
        """Return the accuracy on one split of a Graph, or on arrays X, y."""
        if not isinstance(graph, (Graph, AugmentedFolder)):
            if y is None:
                raise InputError("y", None, "given with an array of features")
            predicted = self.predict(graph)
            right = predicted == _classes_like(predicted, y)
            return float(np.average(right, weights=_weights(sample_weight, len(right))))
        if y is not None or sample_weight is not None:
            named = isinstance(y, str) and y in PARTS
            remedy = f'score(graph, split="{y}")' if named else "it holds its labels"
            raise InputError("y, sample_weight", "given", "left out with a Graph", remedy)
        if split not in PARTS:
            raise InputError("split", split, "one of " + ", ".join(PARTS))
        if graph.splits is None or not len(graph.splits[split]):
            value = f"without {'splits' if graph.splits is None else f'nodes for {split}'}"
            remedy = "score the graph of fit, or graph.with_splits(make_splits(graph, 'random:20'))"
            raise InputError("graph", value, f"one with nodes for {split}, whose share it tells", remedy)
        rows = graph.splits[split]
        return float((self.predict(graph)[rows] == graph.labels[rows]).mean())

    def save(self, path: str | os.PathLike) -> None:
        """Write the trained model with its augmentation to a safetensors file; InputError where that cannot be."""
        if not hasattr(self, "model_"):
            raise self._not_fitted()
        if not Path(path).name or Path(path).is_dir() or not Path(path).parent.is_dir():
            raise InputError("path", str(path), "a file in a folder that exists")
        save_model(path, self.model_, self.augmenter_, self.classes_)

    def load(self, path: str | os.PathLike | None = None) -> Self:
        """Take a trained model from a file that ``save`` wrote; return self, ready to predict."""
        if path is None or not isinstance(self, NodeClassifier):
            raise TypeError("load takes the path of a model, and is called on an estimator: PDADMMG().load(path)")
        model, augmenter, classes = load_model(path)
        if type(model).__name__ != self.network:
            raise InputError("model", str(path), f"a file with a {self.network}", f"it holds a {type(model).__name__}")
        self._forget()
        self.model_, self.augmenter_, self.classes_ = model, augmenter, classes
        self.n_features_in_ = self.model_.widths[0]
        if self.augmenter_ is not None:
            self.n_features_in_ = self.augmenter_.num_features_
        return self
