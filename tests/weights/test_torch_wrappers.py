"""Weights of others as they are saved: containers, wrapped names, averages, precisions.

A stand-in for `torch.load` takes arrays of numpy for tensors. What PyTorch itself writes is tested
in test_torch_import.py, where it is installed.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsplit.errors import ConfigError
from jaxsplit.weights import torch_files, torch_wrappers

NET = {
    "conv1.weight": np.arange(4.0, dtype=np.float32).reshape(1, 4, 1, 1),
    "bn1.num_batches_tracked": np.array(7),  # without axes
    "fc.bias": np.array([0.5], np.float32),
}
AVERAGE = {name: np.asarray(value + 1) for name, value in NET.items()}
TO_TAKE = "(to take these: --ema, or :ema after the path of init_from)"


def prefixed(prefix: str, state: dict = NET) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def read(monkeypatch, tmp_path):
    """A function that reads what `torch.load` would return; notes without the path."""

    def read_(content, **options) -> torch_files.Weights:
        path = tmp_path / "a.pth"
        path.touch()
        monkeypatch.setattr(torch_files, "read_torch", lambda path: content)
        weights = torch_files.read([path], **options)
        return weights._replace(notes=tuple(n.removeprefix(f"{path}: ") for n in weights.notes))

    return read_


@pytest.fixture
def refused(read, tmp_path):
    def refused_(content, **options) -> str:
        with pytest.raises(ConfigError) as caught:
            read(content, **options)
        return str(caught.value).removeprefix(f"{tmp_path / 'a.pth'}: ")

    return refused_


def same(got: dict, wanted: dict) -> bool:
    return got.keys() == wanted.keys() and all(np.array_equal(got[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(
    "outer, inner",
    [
        ("", ""),
        ("", "module."),
        ("", "model."),
        ("", "_orig_mod."),
        ("module.", "module."),
        ("_orig_mod.", "module."),
        ("module.", "_orig_mod."),
        ("model._orig_mod.", "module."),
        ("", "module._orig_mod."),
        ("module.model._orig_mod.", "_fsdp_wrapped_module.net."),
    ],
)
@pytest.mark.parametrize("counter", [{}, {"n_averaged": np.array(3)}])
def test_prefixes(read, outer, inner, counter):
    """In any order and depth; AveragedModel keeps its counter beside `module`."""
    weights = read(prefixed(outer, prefixed(inner) | counter))
    (network,) = weights.networks
    assert same(network, NET) and weights.notes == ()


def test_prefixes_of_every_network_of_a_divided_one(read):
    state = prefixed("module.models.0._orig_mod.") | prefixed("module.models.1._orig_mod.", AVERAGE)
    assert all(map(same, read({"state_dict": state}).networks, [NET, AVERAGE]))
    state = prefixed("models.0.module.") | {"models.0.n_averaged": np.array(1)}
    state |= prefixed("models.1.module.", AVERAGE)
    assert all(map(same, read({"state_dict": state}).networks, [NET, AVERAGE]))


def test_a_part_that_was_compiled_alone(read):
    state = {
        "layer1._orig_mod.0.weight": np.zeros(1),
        "layer2.0._checkpoint_wrapped_module.weight": np.ones(1),
    }
    (network,) = read(state).networks
    assert network.keys() == {"layer1.0.weight", "layer2.0.weight"}


def test_names_that_become_the_same(refused):
    state = {"_orig_mod.fc.bias": np.zeros(1), "fc.bias": np.zeros(1)}
    assert refused(state) == "two names for one tensor: '_orig_mod.fc.bias' and 'fc.bias'"


def test_a_part_that_is_called_like_a_wrapper_keeps_its_name(read):
    state = {"model.conv1.weight": np.zeros(1), "net.weight": np.zeros(1), "fc.bias": np.zeros(1)}
    assert same(read(prefixed("module.", state)).networks[0], state)


@pytest.mark.parametrize("container", torch_wrappers.CONTAINERS)
def test_containers(read, container):
    """Beside an optimizer, whose state holds tensors, too; and one in another."""
    optimizer = {"state": {0: {"momentum_buffer": np.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    facts = {"optimizer": optimizer, "epoch": np.array(3), "scaler": {}, "arch": "resnet110"}
    weights = read({container: prefixed("module."), **facts})
    assert same(weights.networks[0], NET) and weights.notes == ()
    assert (weights.epoch, weights.arch) == (3, "resnet110")
    inner = read({"model": {container: NET, "step": 3}, "epoch": 4})
    assert same(inner.networks[0], NET) and inner.epoch == 4


def test_order_of_containers(read):
    """The first in the written order that holds tensors only; another is told."""
    weights = read({"model": {"depth": 50, "name": "resnet"}, "weight": NET})
    assert same(weights.networks[0], NET) and weights.notes == ()
    weights = read({"net": AVERAGE, "model": NET})
    assert same(weights.networks[0], NET)
    assert weights.notes == ("weights in 'model' are taken; it also holds weights in 'net'",)


@pytest.mark.parametrize("key", torch_wrappers.AVERAGES)
def test_an_average_beside_the_weights(read, key):
    for content, where in (
        ({"state_dict": NET, key: prefixed("module.", AVERAGE), "epoch": 1}, "'state_dict'"),
        ({"state_dict": {"model": NET, key: AVERAGE}}, "'state_dict.model'"),
        ({"state_dict": NET, key: {"decay": 0.9, "module": AVERAGE}}, "'state_dict'"),
        # A module that holds both, and .safetensors and .npz, which have no containers.
        ({"state_dict": prefixed("model.") | prefixed(f"{key}.", AVERAGE)}, "'state_dict'"),
    ):
        raw, averaged = read(content), read(content, take="average")
        assert same(raw.networks[0], NET) and same(averaged.networks[0], AVERAGE)
        (note,) = raw.notes
        assert note.startswith(f"weights in {where} are taken; it also holds averaged weights in '")
        assert note.endswith(TO_TAKE) and key in note
        (note,) = averaged.notes
        assert note.endswith(f"are taken; it also holds weights in {where}")


def test_an_average_alone(read, refused):
    weights = read({"model_ema": AVERAGE})
    assert same(weights.networks[0], AVERAGE)
    assert weights.notes == ("it holds only averaged weights in 'model_ema', which are taken",)
    assert read({"model_ema": AVERAGE}, take="average").notes == ()
    assert refused({"model": NET}, take="average") == (
        "holds no averaged weights; searched: state_dict_ema, model_ema, ema, "
        "params_ema, ema_state_dict"
    )


def test_what_is_no_state_dict(refused):
    assert refused({1: np.zeros(1)}) == "holds no state_dict: not names: [1]"
    assert refused({"model": {"a": "text"}}) == "holds no state_dict: not tensors: ['a']"
    assert refused({"model": {}}) == "holds no state_dict"


class Pretender:
    """Has what a tensor has, but is none: nothing of it may be called."""

    shape = ()

    def detach(self):
        raise AssertionError


def test_only_tensors_are_called(refused):
    assert refused({"a": Pretender()}) == "holds no state_dict: not tensors: ['a']"


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_precisions(tmp_path, kind, dtype):
    path = tmp_path / f"a.{kind}"
    content = {"a": np.array([1.5, -2.0, 2**-9], jnp.dtype(dtype)), "n": np.array(3)}
    np.savez(path, **content) if kind == "npz" else save_file(content, path)
    (state,) = torch_files.read([path]).networks
    assert state["a"].astype(np.float32).tolist() == [1.5, -2.0, 2**-9] and state["n"] == 3
    assert jnp.issubdtype(state["a"].dtype, jnp.floating)


def test_an_average_in_a_file_without_containers(tmp_path):
    content = prefixed("model.") | prefixed("model_ema.module.", AVERAGE)
    save_file(content, tmp_path / "a.safetensors")
    raw, averaged = (
        torch_files.read([tmp_path / "a.safetensors"], take=x) for x in ("weights", "average")
    )
    assert same(raw.networks[0], NET) and same(averaged.networks[0], AVERAGE)
    assert raw.notes[0].endswith(f"it also holds averaged weights in 'model_ema' {TO_TAKE}")


def test_mixed_prefixes_are_shown():
    names = ["module.conv1.weight", "module.fc.bias", "fc.weight"]
    missing = ["conv1.weight", "fc.bias"]
    assert torch_wrappers.mixed(names, missing) == (
        "some names have the prefix 'module.', ['module.conv1.weight', 'module.fc.bias'], and some "
        "do not, ['fc.weight']"
    )
    assert torch_wrappers.mixed(names, ["bn1.bias"]) == ""
