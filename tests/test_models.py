"""GAMLP: plain torch layers with the network's function; its file, whole or damaged."""

from __future__ import annotations

import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pdadmm import GAMLP, Augmenter, csbm, load_model
from pdadmm.admm.activations import ACTIVATIONS, get_activation
from pdadmm.errors import InputError
from pdadmm.models.gamlp import model_digest, save_model


def test_names_of_the_state_dict():
    model = GAMLP([4, 3, 2])
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == {
        "layers.0.weight": (3, 4), "layers.0.bias": (3,), "layers.1.weight": (2, 3), "layers.1.bias": (2,),
    }  # fmt: skip
    assert all(isinstance(layer, torch.nn.Linear) for layer in model.layers)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_the_composed_network(name, dtype):
    random = torch.Generator().manual_seed(0)
    widths = [5, 4, 4, 3]
    weights = [
        (torch.randn(n, m, generator=random).to(dtype), torch.randn(n, generator=random).to(dtype))
        for m, n in itertools.pairwise(widths)
    ]
    model = GAMLP.from_weights(weights, name)
    assert model.widths == widths
    assert not model.training
    p = torch.randn(7, 5, generator=random).to(dtype)
    expected, f = p, get_activation(name)
    for l, (W, b) in enumerate(weights):
        z = expected @ W.mT + b
        expected = z if l == 2 else f(z)
    found = model(p)
    assert found.dtype == dtype
    torch.testing.assert_close(found.detach(), expected)
    weights[0][0].zero_()  # the model has its own copy
    torch.testing.assert_close(model(p).detach(), expected)


def test_one_layer_is_linear():
    model = GAMLP([3, 2])
    p = torch.randn(4, 3)
    torch.testing.assert_close(model(p), model.layers[0](p))


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match="activation"):
        GAMLP([3, 2], "koala")


def test_it_can_be_trained_further_by_torch():
    model = GAMLP([3, 4, 2])
    p, y = torch.randn(20, 3), torch.randint(2, (20,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = torch.nn.functional.cross_entropy(model(p), y)
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(p), y).backward()
        optimiser.step()
    assert torch.nn.functional.cross_entropy(model(p), y) < before


# The file


def described(activation="relu", dtype=torch.float32):
    torch.manual_seed(0)
    return GAMLP([6, 4, 3], activation, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [[0, 1, 2], ["a", "b", "ü"], np.array([3, 5, 9]), [False, True, 2.5]])
def test_round_trip(tmp_path, activation, dtype, classes):
    graph = csbm(30, num_classes=3, num_features=2, avg_degree=4)
    augmenter = Augmenter(hops=2, operator="rw", scaling="standard")
    X = augmenter.fit_transform(graph, fit_rows=graph.splits["train"])
    model, path = described(activation, dtype), tmp_path / "model.safetensors"
    save_model(path, model, augmenter, classes)
    back, again, names = load_model(path)
    assert isinstance(names, np.ndarray)
    np.testing.assert_array_equal(names, classes)
    assert back.activation_name == activation
    assert back.widths == [6, 4, 3]
    for name, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[name])
        assert value.dtype == back.state_dict()[name].dtype
    np.testing.assert_array_equal(again.transform(graph), X)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # no partial file stays
    plain = load_file(path)  # any safetensors reader can use it
    assert torch.equal(plain["layers.0.weight"], model.layers[0].weight)


def test_round_trip_without_augmenter(tmp_path):
    save_model(tmp_path / "m", described(), None, [0, 1, 2])
    assert load_model(tmp_path / "m")[1] is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("models") / "m"
    graph = csbm(30, num_classes=3, num_features=2, avg_degree=4)
    augmenter = Augmenter(hops=2)
    augmenter.fit_transform(graph)
    save_model(path, described(), augmenter, [0, 1, 2])
    return path.read_bytes()


def assert_refused(path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_cut_and_damaged_files_are_refused_or_read(whole, tmp_path_factory, data):
    """Never another exception than InputError, whatever the bytes."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert_refused(path)
        return
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        assert bytes(content) == whole or load_model(path)[0].widths == [6, 4, 3]  # a space for a space in JSON


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"PK\x03\x04", b"\x80\x04\x95.", b"\xff" * 100],
    ids=["empty", "text", "zip", "pickle", "ones"],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    assert_refused(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert_refused(tmp_path / "missing")
    assert_refused(tmp_path)


@pytest.fixture
def rewritten(tmp_path):
    """A good file whose description of the model is changed: values replaced, left out, or all of it swapped."""

    def rewrite(changes=None, swap=None):
        path = tmp_path / "other.safetensors"
        save_model(path, described(), None, [0, 1, 2])
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata())
        key = next(key for key, text in metadata.items() if "widths" in text)
        if swap is None:
            config = json.loads(metadata[key]) | (changes or {})
            config = {name: value for name, value in config.items() if value != "gone"}
            swap = json.dumps({"digest": model_digest(config, load_file(path))} | config)
        save_file(load_file(path), path, metadata=metadata | {key: swap})
        return path

    return rewrite


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": "gone"}, {"widths": [6, 3]}, {"widths": [6, 5, 3]}, {"widths": 3}, {"widths": ["a", 4, 3]},
        {"widths": [-6, 4, 3]}, {"widths": []}, {"widths": [10**30, 4, 3]}, {"activation": "koala"},
        {"activation": None}, {"activation": []}, {"augment": {}}, {"augment": [1]}, {"augment": "gone"},
        {"augment": {"parameters": {"hops": -1}, "num_features": 2}}, {"classes": "gone"}, {"classes": [[0], 1, 2]},
        {"widths": [6, 10**6, 10**6, 3]}, {"widths": [6.0, 4, 3]}, {"widths": [6, True, 3]}, {"digest": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(rewritten, changes):
    assert load_model(rewritten())[0].widths == [6, 4, 3]
    assert_refused(rewritten(changes))


@pytest.mark.parametrize("swap", ["", "{", "[]", "3", "null", "{}", '"text"'])
def test_a_description_that_is_none_is_refused(rewritten, swap):
    assert_refused(rewritten(swap=swap))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_another_make_is_refused(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in described().state_dict().items()}, path, metadata=metadata)
    assert_refused(path)


def test_tensors_that_do_not_fit_are_refused(rewritten):
    path = rewritten()
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    good = load_file(path)
    wrong = good | {"layers.0.weight": torch.zeros(4, 5)}
    mixed, flipped = good | {"layers.1.bias": good["layers.1.bias"].double()}, good | {"layers.1.bias": torch.ones(3)}
    types = [{name: value.to(dtype) for name, value in good.items()} for dtype in (torch.int32, torch.float16)]
    for tensors in ({}, {"x": torch.zeros(2)}, wrong, mixed, flipped, *types):
        save_file(tensors, path, metadata=metadata)
        assert_refused(path)
