"""Hops on a device: the stand-in and the emulated kernel find the CPU's features, within the device's memory."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from augment_checks import assert_hops, hub_graph, reference_hops
from cuda_emulator import Emulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec
from stand_in_device import DEVICE, DeviceTensor, StandIn
from strategies import graphs
from test_augment_augmenter import random_graph

from pdadmm import GD, PDADMMG, InputError, csbm
from pdadmm.admm import solver as solver_module
from pdadmm.augment import OPERATORS, SCALINGS, WEIGHTINGS, Augmenter, hop_weights, propagate, propagation_matrix
from pdadmm.augment import device as hops_module
from pdadmm.augment.device import propagate_on
from pdadmm.disk.augment import Request, augment_folder
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.kernels import gpu, gpu_launch
from pdadmm.models.gamlp import load_model
from pdadmm.parallel import device as device_module
from pdadmm.parallel.device import own_device

CPU = torch.device("cpu")
DTYPES = ("float32", "float64")
PLENTY = 1 << 40
RELAXED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def stand_in(monkeypatch):
    """Let "cuda" and "auto" be the stand-in, with plain torch's product."""
    monkeypatch.setattr(device_module, "own_device", lambda name: CPU if name == "cpu" else DEVICE)
    monkeypatch.setattr(hops_module, "free_bytes", lambda device: PLENTY)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the kernel for the CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_launch, "SOURCES", ("spmm",))
        return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def emulated(stand_in, emulator, monkeypatch) -> Emulator:
    """The same with our kernel, emulated on the stand-in's arrays."""
    monkeypatch.setattr(gpu_launch, "launch", emulator.launch)
    monkeypatch.setattr(gpu_launch, "DEVICE", DEVICE.type)
    monkeypatch.setattr(gpu, "available", lambda device: True)
    monkeypatch.setattr(DeviceTensor, "data_ptr", lambda x: x.inner.data_ptr())
    return emulator


@pytest.fixture(params=["torch's product", "our kernel"])
def product(request):
    """Both products in turn."""
    request.getfixturevalue("stand_in" if request.param == "torch's product" else "emulated")
    return request.param


# The same features


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@RELAXED
def test_hops_agree_with_exact_ones(product, dtype, data):
    """Over random graphs: weighted or not, dense and sparse X, zero rows, one column, kept rows out of order."""
    graph = data.draw(graphs())
    V, F = graph.features.shape
    hops, operator = data.draw(st.integers(0, 4)), data.draw(st.sampled_from(list(OPERATORS)))
    weights = hop_weights(data.draw(st.sampled_from(list(WEIGHTINGS))), hops, 0.2, 2.0)
    rows = data.draw(st.none() | st.lists(st.integers(0, V - 1), max_size=2 * V))  # repeated, or none at all
    width = data.draw(st.none() | st.integers(1, F + 2))
    S = propagation_matrix(graph, operator, dtype)
    rows = None if rows is None else np.array(rows, np.int64)
    with StandIn():
        found = propagate_on(DEVICE, S, graph.features, hops, weights, rows, width)
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    assert_hops(found, *reference_hops(S, graph.features, hops, weights, rows))


@pytest.mark.parametrize(("weighting", "rows"), [("powers", None), ("heat", np.array([7, 269, 0, 7, 3]))])
def test_a_columns_bits_depend_on_no_width_and_no_kept_rows(emulated, weighting, rows):
    """Rows that are cut in segments, and widths that the kernel treats each in its own way."""
    S, X = hub_graph(270, 69)
    weights, before = hop_weights(weighting, 2), len(emulated.launched)
    with StandIn():
        full = propagate_on(DEVICE, S, X, 2, weights)
        assert_hops(full, *reference_hops(S, X, 2, weights, None))
        full = full if rows is None else full[rows]
        for width in (4, 33, 68):
            np.testing.assert_array_equal(propagate_on(DEVICE, S, X, 2, weights, rows, width), full)
    kinds = {name.removeprefix("spmm_") for name in emulated.launched[before:]}
    assert {"segments_float_4_32", "segments_float_1_32", "join_float"} <= kinds
    assert all(name.endswith(("_4_32", "_1_32", "join_float")) for name in kinds)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_augmenter_gives_the_cpus_features(product, weighting, dtype, scaling):
    graph, train = random_graph(2, sparse=True, weighted=True), np.array([3, 50, 7, 21, 30])
    rows = np.concatenate([train, [3, 58, 12, 40]])
    given = {"hops": 3, "weighting": weighting, "dtype": dtype, "scaling": scaling}
    ours, theirs = Augmenter(**given, slice_columns=4, device="cuda"), Augmenter(**given)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-12}
    with StandIn() as device:
        found = ours.fit_transform(graph, train, rows)
        assert device.crossings
        again = ours.transform(graph, rows[::-1])
    np.testing.assert_allclose(found, theirs.fit_transform(graph, train, rows), **near)
    np.testing.assert_allclose(ours.shift_, theirs.shift_, **near)
    np.testing.assert_array_equal(again, found[::-1])


def test_the_kernel_has_float32_alone(emulated):
    graph, counts = random_graph(), []
    for dtype in DTYPES:
        before = len(emulated.launched)
        with StandIn():
            Augmenter(2, dtype=dtype, device="cuda").fit_transform(graph)
        counts.append(len(emulated.launched) - before)
    assert counts == [2, 0]


def test_hops_of_nothing(product):
    graph = random_graph()
    S = propagation_matrix(graph)
    with StandIn() as device:
        found = propagate_on(DEVICE, S, np.empty((60, 0), np.float32), 2)
        assert found.shape == (60, 0)
        np.testing.assert_array_equal(propagate_on(DEVICE, S, graph.features, 0), graph.features)
        assert not device.crossings  # there was nothing to multiply
        assert propagate_on(DEVICE, S, graph.features, 2, rows=np.empty(0, np.int64)).shape == (0, 27)


def test_no_warning_of_torchs_reaches_the_user(stand_in):
    with StandIn(), warnings.catch_warnings():
        warnings.simplefilter("error")
        Augmenter(1, device="cuda").fit_transform(random_graph())


# What crosses, and what lies there


@pytest.mark.parametrize("rows", [None, np.arange(20)])
def test_the_operator_crosses_once_and_each_number_once(product, rows):
    graph, hops = random_graph(F=10), 3
    S, kept = propagation_matrix(graph), 60 if rows is None else 20
    with StandIn() as device:
        propagate_on(DEVICE, S, graph.features, hops, None, rows, 4)
    there = [S.nnz, 61, S.nnz] + ([] if rows is None else [20])
    assert device.crossings == there + [w * n for w in (4, 4, 2) for n in (60, *[kept] * (hops + 1))]
    with StandIn() as device:
        propagate_on(DEVICE, S, graph.features, hops, hop_weights("ppr", hops), rows, 4)
    assert device.crossings == there + [w * n for w in (4, 4, 2) for n in (60, kept)]  # a sum crosses alone


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rows", [None, np.arange(150)])
def test_features_larger_than_the_device(product, monkeypatch, weighting, rows):
    """S and a few slices are all that lies there, and slices are as wide as memory allows."""
    graph = random_graph(V=200, F=90)
    S, weights = propagation_matrix(graph), hop_weights(weighting, 2)
    S_bytes = 8 * S.nnz + 4 * 201 + (0 if rows is None else 8 * 150)
    kept = 200 if rows is None else 150
    column = 4 * (2 * 200 + kept * ((rows is not None) + (weights is not None)))
    with StandIn(S_bytes + 10 * column + 8000) as device:  # 8000: making a plan takes a few arrays of V
        assert device.capacity < graph.features.nbytes
        monkeypatch.setattr(hops_module, "free_bytes", lambda there: device.capacity - device.held())
        found = propagate_on(DEVICE, S, graph.features, 2, weights, rows)
        assert S_bytes + 8 * column <= device.peak <= device.capacity
        assert device.held() == 0
    assert_hops(found, *reference_hops(S, graph.features, 2, weights, rows))


def test_slices_are_halved_where_memory_does_not_suffice(product, monkeypatch):
    """Memory that others take meanwhile, or slice_columns too wide."""
    graph = random_graph(V=200, F=90)
    S = propagation_matrix(graph)
    with StandIn() as device:
        full = propagate_on(DEVICE, S, graph.features, 2)
    with StandIn(8 * S.nnz + 4 * 201 + 8 * 200 * 6 + 7000) as device:
        found = propagate_on(DEVICE, S, graph.features, 2, None, None, 90)  # told that there is plenty
    slices = [size // 200 for size in device.crossings[3:]]
    assert set(slices) <= {90, 45, 22, 11, 5, *range(1, 5)}
    assert min(slices[:-3]) > 1
    np.testing.assert_allclose(found, full, rtol=1e-6, atol=1e-6)
    if product == "our kernel":
        np.testing.assert_array_equal(found, full)


@pytest.mark.parametrize("capacity", [100, 6000])
def test_a_device_too_small_is_one_sentence(stand_in, monkeypatch, capacity):
    graph = random_graph(V=200, F=3)
    S = propagation_matrix(graph)
    needed = 8 * S.nnz + 4 * 201
    capacity = needed + 1000 if capacity == 6000 else capacity  # S fits, two slices of a column do not
    with StandIn(capacity) as device:
        monkeypatch.setattr(hops_module, "free_bytes", lambda there: capacity - device.held())
        with pytest.raises(InputError) as error:
            Augmenter(1, device="cuda").fit_transform(graph)
    what = "S and one column" if capacity > needed else "S"
    assert f", where {what} of 200 nodes need " in str(error.value)
    assert "must be cpu, or a GPU that holds them: " in str(error.value)
    assert "augment in main memory" in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), r"nan at node 1, column 0: must be finite in float32"),
        (sp.csr_array([[0, 1.0], [0, np.inf]]), r"inf at node 1, column 1: must be finite in float32"),
        (np.array([[3e38, 3e38], [3e38, 3e38]]), "inf .*overflow"),  # after a hop
    ],
)
def test_features_that_are_not_finite(product, features, message):
    graph = SimpleNamespace(adjacency=sp.csr_array([[0.0, 9.0], [0.0, 0.0]]), features=features)
    told = []
    for device in ("cpu", "cuda"):
        augmenter = Augmenter(2, operator="col", scaling="none", slice_columns=1, device=device)
        with StandIn(), pytest.raises(InputError, match=message) as error:
            augmenter.fit_transform(graph)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    graph = random_graph()
    expected = Augmenter(1).fit_transform(graph)
    with pytest.raises(InputError, match="device = koala: must be one of cpu, cuda, auto"):
        Augmenter(device="koala")
    augmenter = Augmenter(1, device="cuda")
    with pytest.raises(InputError, match=r"device = cuda: must be cpu or auto.*(CUDA build|finds no GPU)"):
        augmenter.fit_transform(graph)
    np.testing.assert_array_equal(Augmenter(1, device="auto").fit_transform(graph), expected)


def test_a_process_finds_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("cpu") == CPU
    for name in ("SLURM_LOCALID", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for size, rank, number in ((None, None, 0), ("1", "3", 0), ("8", "3", 3), ("8", "6", 2), ("8", None, 0)):
        for variable, value in (("PMI_SIZE", size), ("MPI_LOCALRANKID", rank)):
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        assert own_device("cuda") == own_device("auto") == torch.device("cuda", number)


# The device is no part of the state


def test_the_state_is_that_of_the_cpu(stand_in):
    graph = random_graph()
    with StandIn():
        ours = Augmenter(2, device="cuda")
        ours.fit_transform(graph)
    config, arrays = ours.state()
    theirs = Augmenter(2)
    theirs.fit_transform(graph)
    assert config == theirs.state()[0]
    made = Augmenter.from_state(config, arrays)
    assert (made.device, ours.device) == ("cpu", "cuda")
    assert vars(Augmenter(2, device="cuda")) == vars(Augmenter(2))
    np.testing.assert_allclose(made.transform(graph), theirs.transform(graph), rtol=1e-4, atol=1e-5)
    for again in (pickle.loads(pickle.dumps(ours)), copy.copy(ours), copy.deepcopy(ours)):
        assert repr(again) == repr(ours)
        assert repr(ours).endswith("device='cuda')")
        assert again.state()[0] == config


# Solvers


GRAPH = csbm(60, num_classes=3, num_features=6, seed=5)
RUN = {"layers": 3, "hidden": 5, "iterations": 3, "hops": 2, "threads": 1}


@pytest.fixture
def asked(stand_in, monkeypatch) -> list:
    """The devices that solvers asked for, which they get on the stand-in."""
    monkeypatch.setattr(solver_module, "choose_device", lambda name, transport: CPU if name == "cpu" else DEVICE)
    monkeypatch.setattr("pdadmm.admm.estimator.check_device", lambda name: None)
    names: list[str] = []

    def own(name: str) -> torch.device:
        names.append(name)
        return CPU if name == "cpu" else DEVICE

    monkeypatch.setattr(device_module, "own_device", own)
    return names


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_solver_on_a_device_augments_there(asked, device, tmp_path):
    with StandIn():
        solver = PDADMMG(**RUN, device=device).fit(GRAPH)
        assert asked == [device]
        predicted = solver.predict_proba(GRAPH)
        assert asked == [device, "auto"]
    plain = PDADMMG(**RUN).fit(GRAPH)
    assert len(asked) == 2
    with StandIn():  # a slice of hops knows no limit
        limited = PDADMMG(**RUN, device="cuda", device_memory="1GiB").fit(GRAPH)
    assert len(asked) == 2
    assert limited.augmenter_.device == "cpu"
    assert plain.augmenter_.device == "cpu"
    np.testing.assert_allclose(predicted, plain.predict_proba(GRAPH), atol=1e-3)
    solver.save(tmp_path / "model.safetensors")
    plain.save(tmp_path / "plain.safetensors")
    _, augmenter, _ = load_model(tmp_path / "model.safetensors")
    assert augmenter.device == "cpu"
    assert augmenter.state()[0] == load_model(tmp_path / "plain.safetensors")[1].state()[0]
    loaded = PDADMMG().load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(loaded.predict_proba(GRAPH), predicted, atol=1e-4)
    assert len(asked) == 2  # a loaded model has main memory


def test_a_solver_pickled_with_a_gpu_predicts_without(asked, monkeypatch):
    with StandIn():
        packed = pickle.dumps(PDADMMG(**RUN, device="cuda").fit(GRAPH))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pickle.loads(packed).predict(GRAPH).shape == (60,)


def test_a_folder_of_augmented_features_serves_a_solver_on_a_device(asked, tmp_path):
    write_graph(GRAPH, tmp_path / "graph")
    with DiskGraph(tmp_path / "graph") as graph:
        made_by = Augmenter(RUN["hops"], device="cuda")  # from disk to disk: main memory, whatever it says
        augment_folder(graph, Request(made_by, "all", None, 0, 1 << 30), tmp_path / "out")
    with AugmentedFolder(tmp_path / "out") as folder, StandIn():
        solver = PDADMMG(**RUN, device="cuda").fit(folder)
        assert not asked
        assert solver.augmenter_.device == "auto"
        assert folder.same_augmenter(Augmenter(RUN["hops"])).device == "cpu"
        assert solver.predict(GRAPH).shape == (60,)
    assert asked == ["auto"]


def test_what_stays_in_main_memory(asked, tmp_path):
    GD(layers=2, hidden=5, iterations=2, hops=1).fit(GRAPH)
    solver = PDADMMG(**RUN, device="auto").fit(GRAPH, memory="1GiB", scratch=tmp_path)  # from disk
    assert solver.augmenter_.device == "cpu"
    assert not asked


@pytest.mark.parametrize("needs", [pytest.param(None, marks=NEEDS_MPI)])
def test_rank_0_augments_alone(needs):
    done = mpiexec(3, Path(__file__).with_name("mpi_augment_device.py"))
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_hop_in_main_memory_needs_no_torch():
    assert propagate is Augmenter()._propagation()
