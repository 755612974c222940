"""Training with a limit on device memory: nodes pass the stand-in in blocks, with the numbers of other forms."""

from __future__ import annotations

import contextlib
import json
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_in_device import CPU, DEVICE, DeviceTensor, StandIn
from test_disk_training import CHOICES, close, outcome

from pdadmm import PDADMMG, PDADMMGQ, Augmenter, DivergenceError, InputError, Quantizer, csbm
from pdadmm.admm import host_storage
from pdadmm.admm import solver as solver_module
from pdadmm.admm.host_storage import HostStorage, device_blocks
from pdadmm.admm.products import PRODUCTS
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.admm.streamed import largest_state
from pdadmm.cli import main
from pdadmm.disk import storage
from pdadmm.disk.storage import Blocks, fixed_bytes
from pdadmm.kernels import cpu, factor, updates
from pdadmm.parallel.transport import LocalTransport

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = "1GiB"
ON_DEVICE = {"device": "cuda", "device_memory": LIMIT}
SMALL = {"layers": 4, "hidden": 5, "hops": 1, "iterations": 2, "stages": (2, 4)}
GRAPH = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
# in the order of the nodes within each part, as training from disk takes them
GRAPH = GRAPH.with_splits({part: np.sort(rows) for part, rows in GRAPH.splits.items()})
V, N = len(GRAPH.splits["train"]), sum(len(rows) for rows in GRAPH.splits.values())
CASES = {
    "default": {},
    "plain": {"acceleration": "none", "loss": "squared_error", "mu": 0.1},
    "gradient": {"form": "gradient", "first_layer": "gradient", "acceleration": "all-stages"},
    "leaky": {"activation": "leaky_relu", "rho_schedule": "stall", "rho": 0.01, "prior_weight": 0.75},
    "one layer": {"layers": 1, "stages": (1,)},
    "labels": {"initial": "labels", "first_layer": "cg", "acceleration": "all-stages"},
    "labels, gram": {"initial": "labels", "stages": (4,)},
    "wide classes": {"hidden": 2, "eval_every": 2},
}
BITS = {name: {"products": name} for name in PRODUCTS}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Let "cuda" be the stand-in, and the CPU do what it does: plain torch."""
    monkeypatch.setattr(solver_module, "choose_device", lambda name, transport: DEVICE if name == "cuda" else CPU)
    monkeypatch.setattr("pdadmm.admm.estimator.check_device", lambda name: None)
    monkeypatch.setattr("pdadmm.parallel.device.own_device", lambda name: CPU)
    monkeypatch.setattr(updates, "_functions", {})
    monkeypatch.setattr(factor, "_inverse", {})
    monkeypatch.setattr(cpu, "_library", None)


@pytest.fixture
def blocks_of(monkeypatch):
    """Make the blocks of this size, on the device and from disk."""

    def give(nodes: int) -> None:
        monkeypatch.setattr(Blocks, "nodes", lambda self, memory: min(nodes, self.rows))

    return give


def through_device(more: dict, **fit):
    with StandIn():
        return PDADMMG(**SMALL | more | ON_DEVICE).fit(GRAPH, **fit)


# The same numbers


@pytest.mark.parametrize(
    ("case", "block"),
    [*((case, block) for case in CASES for block in (7, V)), ("default", 1), ("default", N), ("gradient", 1)],
)
def test_the_bits_of_training_from_disk_in_the_same_blocks(blocks_of, tmp_path, case, block):
    blocks_of(block)
    disk = PDADMMG(**SMALL | CASES[case]).fit(GRAPH, memory=LIMIT, scratch=tmp_path)
    device = through_device(CASES[case])
    assert outcome(device) == outcome(disk)
    assert device.summary_["block_nodes"] == disk.summary_["block_nodes"] == block
    assert (device.summary_["device"], device.summary_["first_layer"]) == ("meta", disk.summary_["first_layer"])


@pytest.mark.parametrize("products", BITS)
def test_every_number_format_of_products(blocks_of, tmp_path, monkeypatch, products):
    monkeypatch.setattr("pdadmm.admm.products.has_bf16", lambda: False)  # whose sums have another order
    blocks_of(9)
    disk = PDADMMG(**SMALL | BITS[products]).fit(GRAPH, memory=LIMIT, scratch=tmp_path)
    assert outcome(through_device(BITS[products])) == outcome(disk)


SETTINGS = st.fixed_dictionaries(CHOICES)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=SETTINGS, block=st.sampled_from([4, 7, V - 1, V, N]))
def test_every_block_size_gives_the_run_in_memory(monkeypatch, more, block):
    monkeypatch.setattr(Blocks, "nodes", lambda self, memory: block)
    more = more | {"dtype": "float64", "stages": None}
    close(PDADMMG(**SMALL | more).fit(GRAPH), through_device(more), 1e-9)


def test_auto_is_gram_where_features_outnumber_nodes(blocks_of):
    """A kernel has a row and a column for every node."""
    blocks_of(7)
    more = {"first_layer": "auto", "hops": 12, "dtype": "float64"}
    assert V < 13 * 5
    found = through_device(more)
    assert found.summary_["first_layer"] == "gram"
    close(PDADMMG(**SMALL | more).fit(GRAPH), found, 1e-9)


# What lies on the device


class Watched(StandIn):
    """Notes the shapes on the device, and the most bytes that were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.alive: dict[int, int] = {}  # storage -> arrays that have it
        self.bytes = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, DeviceTensor) and not hasattr(x, "watched"):
                x.watched = True
                self.shapes.add(tuple(x.shape))
                storage = x.inner.untyped_storage()
                self._come(storage._cdata, storage.nbytes())
                weakref.finalize(x, self._leave, storage._cdata, storage.nbytes())
        return result

    def _come(self, key: int, size: int) -> None:
        self.alive[key] = self.alive.get(key, 0) + 1
        self.bytes += size if self.alive[key] == 1 else 0
        self.most = max(self.most, self.bytes)

    def _leave(self, key: int, size: int) -> None:
        self.alive[key] -= 1
        self.bytes -= size if not self.alive[key] else 0


MANY = csbm(300, num_classes=3, num_features=6, avg_degree=4, seed=3)  # of which a block is few
CLASSES = csbm(300, num_classes=12, num_features=6, avg_degree=4, seed=3)
LAYERS = {"layers": 4, "hidden": 8, "hops": 1, "iterations": 2, "stages": (2, 4)}  # n_0 is 12
WATCHED = {name: more for name, more in CASES.items() if name != "wide classes"} | BITS
WATCHED |= {"float64": {"dtype": "float64"}, "wide": {"hidden": 20}, "many classes": {"hidden": 4}}


@pytest.mark.parametrize("case", WATCHED)
def test_no_more_than_a_block_is_on_the_device(blocks_of, monkeypatch, case):
    """Newton, the evaluation, growth and the factor included; the plan of its memory is a bound, and no idle one."""
    block, more, plans = 40, WATCHED[case], []
    blocks_of(block)
    monkeypatch.setattr(host_storage, "device_blocks", lambda *given: plans.append(device_blocks(*given)) or plans[0])
    with Watched() as device:
        found = PDADMMG(**LAYERS | more | ON_DEVICE).fit(CLASSES if case == "many classes" else MANY)
    assert found.summary_["train_accuracy"] is not None
    wide = max(more.get("hidden", 8), 12)
    for shape in device.shapes:  # weights are smaller than a block here
        assert max(shape, default=0) <= block if len(shape) > 1 else sum(shape) <= block * wide, shape
    assert (block, 12) in device.shapes
    planned = plans[0].fixed + block * plans[0].each - host_storage.ALLOWANCE
    assert 0.4 * planned < device.most <= planned


def test_bytes_are_those_of_the_formula(blocks_of, monkeypatch):
    """X, y and the state of the training nodes go there once in an iteration, the state comes back once."""
    blocks_of(7)
    more = {"stages": (4,), "iterations": 5, "eval_every": 5, "acceleration": "none"}
    state, row = 4 * (2 * 3 * 5 + 3) * V, 4 * 10 + 8
    crossed, held = [], ADMMSolver._step
    with StandIn() as device:

        def step(*given):
            device.crossings.clear()
            held(*given)
            crossed.append(sum(device.crossings))

        monkeypatch.setattr(ADMMSolver, "_step", step)
        told = PDADMMG(**SMALL | more | ON_DEVICE).fit(GRAPH).summary_
    assert told["device_bytes_per_iteration"] == 2 * state + row * V
    sums = 3 * 3 * -(-V // 7)  # three together, for three boundaries in each block
    assert crossed[1:4] == [2 * state // 4 + (10 + 1) * V + sums] * 3  # numbers, and nothing beside them
    assert told["bytes_from_device"] == 5 * state
    # X also for the factor and the first sums, and twice of all labelled nodes, to score them
    assert told["bytes_to_device"] == 4 * state + 5 * row * V + 2 * 40 * V + 2 * row * N
    assert (told["device_memory_bytes"], told["state_bytes"]) == (1 << 30, state)
    assert told["device_memory_peak_bytes"] is None  # that is a GPU's
    assert "memory_bytes" not in told


# Checkpoints


class CutOff(Exception):
    """What ends a run here without any warning."""


def cut_off(more: dict, folder, at: int, in_pass: bool, every: int = 2, **fit) -> None:
    """Train, and die after iteration ``at``: as its row is shown, or in the middle of the next pass."""

    def watch(row) -> None:
        if row["iteration"] == at and not in_pass:
            raise CutOff

    held, passes = HostStorage.sweep, []

    def sweep(self, write):
        passes.append(write)
        for number, block in enumerate(held(self, write)):
            if in_pass and sum(passes) > at and number == 2:
                raise CutOff
            yield block

    with contextlib.suppress(CutOff), pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostStorage, "sweep", sweep)
        through_device(more, watch=watch, checkpoint=folder, checkpoint_every=every, **fit)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=SETTINGS, at=st.integers(1, 6), in_pass=st.booleans(), every=st.integers(1, 3))
def test_a_run_that_goes_on_has_the_same_bits(monkeypatch, tmp_path_factory, more, at, in_pass, every):
    monkeypatch.setattr(Blocks, "nodes", lambda self, memory: 5)
    folder, more = tmp_path_factory.mktemp("run"), more | {"stages": None}
    expected = outcome(through_device(more))
    cut_off(more, folder, at, in_pass, every)
    cut_off(more, folder, at + 1, not in_pass, every, resume=True)
    go_on = {"checkpoint": folder, "checkpoint_every": every, "resume": True}
    assert outcome(through_device(more, **go_on)) == expected
    assert outcome(through_device(more, **go_on)) == expected  # the finished run


def test_another_limit_may_go_on_and_another_form_may_not(monkeypatch, tmp_path):
    expected = through_device({"dtype": "float64"})
    cut_off({"dtype": "float64"}, tmp_path, 4, in_pass=False)
    go_on = {"checkpoint": tmp_path, "resume": True}
    for device in ("cpu", "cuda"):
        with StandIn(), pytest.raises(InputError) as caught:
            PDADMMG(**SMALL, dtype="float64", device=device).fit(GRAPH, **go_on)
        assert "with a limit on device memory: must be gone on with as it was begun; give device_memory" in str(
            caught.value
        )
    monkeypatch.setattr(Blocks, "nodes", lambda self, memory: 8)
    with StandIn():
        found = PDADMMG(**SMALL, dtype="float64", device="cuda", device_memory="2GiB").fit(GRAPH, **go_on)
    assert found.summary_["block_nodes"] == 8 != expected.summary_["block_nodes"]
    close(expected, found, 1e-9)
    other = tmp_path / "in memory"
    PDADMMG(**SMALL, dtype="float64").fit(GRAPH, checkpoint=other)
    with StandIn(), pytest.raises(InputError, match=r"without a limit on device memory.*leave device_memory out"):
        PDADMMG(**SMALL, **ON_DEVICE, dtype="float64").fit(GRAPH, checkpoint=other, resume=True)


def test_a_checkpoint_that_could_not_be_written_costs_nothing_else(monkeypatch, tmp_path):
    expected = outcome(through_device({}))

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pdadmm.checkpoint.write_part", full)
    assert outcome(through_device({}, checkpoint=tmp_path, checkpoint_every=1)) == expected


def test_the_device_is_given_back(blocks_of, monkeypatch):
    blocks_of(7)
    kept = []
    monkeypatch.setattr(HostStorage, "remove", lambda self, held=HostStorage.remove: (held(self), kept.append(self)))
    through_device({})
    (store,) = kept
    assert store.shuttle.rooms == ({}, {})
    assert store.state == {}
    assert not hasattr(store, "features")


# Divergence


def test_divergence_backs_off_to_the_best_weights(blocks_of, monkeypatch, tmp_path):
    """A stage that begins again has no state; both forms then do the same."""
    blocks_of(7)
    longer = SMALL | {"iterations": 3, "loss": "squared_error"}
    held, told = {kind: kind.sweep for kind in (HostStorage, storage.Storage)}, []

    def spoiled(self, write):
        for nodes, X, state in held[type(self)](self, write):
            if write and len(told) == 2:
                state["z1"].fill_(torch.nan)
            yield nodes, X, state

    for kind in held:
        monkeypatch.setattr(kind, "sweep", spoiled)
    results = []
    for more, fit in ((ON_DEVICE, {}), ({}, {"memory": LIMIT, "scratch": tmp_path})):
        told.clear()
        with StandIn():
            run = PDADMMG(**longer, on_divergence="backoff", **more)
            results.append(outcome(run.fit(GRAPH, watch=told.append, **fit)))
        assert run.history_[-1]["rho"] == pytest.approx(3.0)
    assert results[0] == results[1]
    told.clear()
    with StandIn(), pytest.raises(DivergenceError, match=r"iteration 3: layer \d of 2 is not finite \(z first\)"):
        PDADMMG(**longer, **ON_DEVICE).fit(GRAPH, watch=told.append)


# What is refused


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    for solver, more, word in (
        (PDADMMG(device_memory="8GiB"), {}, "device_memory = 8589934592: must be left out with device cpu; memory"),
        (PDADMMG(device="cuda", device_memory="lots"), {}, "device_memory = lots: must be a size such as 2GiB"),
        (PDADMMG(device="cuda", device_memory=0), {}, "device_memory = 0: must be a size"),
        (PDADMMG(**ON_DEVICE | {"device_memory": "1MiB"}), {}, r"device_memory = 1MiB: must be at least \d+MiB for"),
        (PDADMMG(**ON_DEVICE, first_layer="kernel"), {}, "first_layer = kernel: must be auto, gram, gradient or cg w"),
        (PDADMMG(**ON_DEVICE, quantizer=Quantizer()), {}, "left out with quantized messages; the scale"),
        (PDADMMGQ(**ON_DEVICE), {}, "device_memory = 1073741824: must be left out with quantized messages"),
        (PDADMMG(**ON_DEVICE | {"device": "auto"}), {"memory": LIMIT, "scratch": tmp_path},
         "device_memory = 1073741824: must be left out with memory; training from disk runs on the CPU"),
    ):  # fmt: skip
        with StandIn(), pytest.raises(InputError, match=word):
            solver.fit(GRAPH, **more)
    ranks = type("ranks", (LocalTransport,), {"size": 2})()
    with pytest.raises(InputError, match="device_memory = 1073741824: must be left out on several ranks; start one"):
        PDADMMG(**ON_DEVICE)._checked(ranks)
    monkeypatch.setattr(host_storage, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(InputError, match=r"main memory holds X and the state: they take .* kB, and there are 1.0 MB"):
        through_device({})


def test_the_least_limit_that_is_named_is_enough(monkeypatch):
    monkeypatch.setattr(host_storage, "ALLOWANCE", 0)  # what is left is small beside a block
    monkeypatch.setattr(storage, "ALLOWANCE", 0)
    monkeypatch.setattr(storage, "MIB", 1)
    widths, X = [30, 16, 16, 4], torch.zeros(5000, 30)
    columns, _ = largest_state(ADMMSettings(layers=3, hidden=16).checked(), 4000, 30, 4)

    def stored(memory: int) -> HostStorage:
        return HostStorage(memory, DEVICE, X, 4000, widths, columns, torch.float32)

    with pytest.raises(InputError, match=r"device_memory = 100MiB: must be at least (\d+)MiB") as caught:
        stored(100)
    least = int(caught.value.allowed.split()[2].removesuffix("MiB"))
    assert stored(least).block == storage.LEAST_BLOCK
    with pytest.raises(InputError, match="device_memory"):
        stored(least - 1)
    state, work = 4 * sum(columns.values()), 4 * (24 * 16 + 12 * 4) + 128
    for memory in (1_000_000, 50_000_000):
        block = stored(memory).block
        taken = block * (2 * (state + 120) + work) + fixed_bytes(0, widths, 4) + 2 * 4 * 30**2
        assert taken <= memory < taken + 1.01 * taken / block or block == 5000
    assert block == 5000  # there are no more


@pytest.mark.parametrize("free", [300, 900])
def test_a_limit_above_what_is_free_is_refused(monkeypatch, free):
    """Where the blocks would take that much: a small training has room for a large limit."""
    store = object.__new__(HostStorage)
    store.device, store.memory, store.state_bytes = torch.device("cuda", 0), 1 << 30, 0
    for name, value in (("memory_reserved", 80), ("memory_allocated", 30), ("mem_get_info", (free - 50, 1000))):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(storage, "LEAST_BLOCK", 1)
    blocks = Blocks(rows=60, state=1.0, each=10.0, fixed=100, cached=False)
    if free == 900:
        assert store._plan(blocks) == 60
    else:
        with pytest.raises(InputError, match=r"device_memory = 1.1 GB: must be at most the 300 B that are free"):
            store._plan(blocks)


def test_auto_without_a_gpu_says_that_nothing_is_limited(caplog):
    expected = outcome(PDADMMG(**SMALL).fit(GRAPH))
    with caplog.at_level("INFO", "pdadmm"):
        run = PDADMMG(**SMALL, device="auto", device_memory=LIMIT).fit(GRAPH)
    assert "device auto: there is no GPU, so device_memory limits nothing" in caplog.text
    assert outcome(run) == expected
    assert (run.summary_["device"], "device_memory_bytes" in run.summary_) == ("cpu", False)


def test_arrays_of_features_pass_too(blocks_of):
    blocks_of(7)
    X = Augmenter(hops=1).fit_transform(GRAPH, GRAPH.splits["train"])
    rows = np.concatenate([*GRAPH.splits.values()])
    more = SMALL | {"dtype": "float64"}
    with StandIn():
        found = PDADMMG(**more, **ON_DEVICE).fit(X[rows], GRAPH.labels[rows])
    close(PDADMMG(**more).fit(X[rows], GRAPH.labels[rows]), found, 1e-9)


def test_the_command_line(monkeypatch, tmp_path, capsys):
    words = ["train", "--dataset", "csbm:60", "--layers", "2", "--hidden", "4", "--iterations", "2", "--quiet"]
    assert main([*words, "--device-memory", "8GiB"]) == 2
    assert "device_memory = 8589934592: must be left out with device cpu" in capsys.readouterr().err
    with StandIn():
        limited = ["--device", "cuda", "--device-memory", "1GiB", "--summary", str(tmp_path / "s.json")]
        assert main([*words, *limited]) == 0
    told = json.loads((tmp_path / "s.json").read_text())
    assert (told["device_memory_bytes"], told["block_nodes"]) == (1 << 30, 60)
    assert main([*words, "--solver", "adam", "--device-memory", "1GiB"]) == 2
    assert "it is of pdadmm-g, pdadmm-g-q" in capsys.readouterr().err
