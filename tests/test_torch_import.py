"""`state_dict`s of the reference systems: names, layouts, and errors that name the tensor."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsplit import models, torch_import
from jaxsplit.errors import ConfigError
from jaxsplit.models import resnet, senet

K = 5
SPECS = {
    "resnet": dataclasses.replace(resnet.SPECS["resnet50"], blocks=(1, 2), width=4, stem=(3, 4, 6)),
    "wide_resnet": dataclasses.replace(
        models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=4, stem=(3,)
    ),
    "resnext": dataclasses.replace(
        resnet.SPECS["resnext29_8x64d"], blocks=(1,), width=4, stem=(6,), groups=2
    ),
    "se_resnet": dataclasses.replace(
        senet.SPECS["se_resnet50"], blocks=(1, 1), width=4, stem=(3, 4, 6), se_reduction=4
    ),
}
COUNTER = "layer0.1.num_batches_tracked"  # what no computation reads


def shapes_of(spec):
    module = models.build(spec, K)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)


def random_state(spec) -> tuple[dict, dict]:
    """(variables, the `state_dict` that PyTorch would have for them)."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(spec)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    state = {}
    names = torch_import.state_dict_names(spec, variables)
    for name, value in zip(jax.tree.leaves(names), jax.tree.leaves(variables), strict=True):
        # ndim alone tells the layouts: kernels of convolutions have 4 axes, that of the head 2.
        if value.ndim == 4:
            value = np.einsum("hwio->oihw", value)
        elif value.ndim == 2:
            value = np.einsum("io->oi", value)
        state[name] = np.ascontiguousarray(value)
    assert len(state) == len(jax.tree.leaves(shapes))
    return variables, state


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name):
    variables, state = random_state(SPECS[name])
    got = torch_import.from_state_dict(SPECS[name], state, K)
    assert jax.tree.structure(got) == jax.tree.structure(variables)
    for g, v in zip(jax.tree.leaves(got), jax.tree.leaves(variables), strict=True):
        assert g.dtype == np.float32
        np.testing.assert_array_equal(g, v)


def test_kernel_layout_by_hand():
    kernel = np.zeros((7, 5, 3, 2), np.float32)  # out, in, h, w
    kernel[6, 4, 2, 1] = 1.0
    path = (jax.tree_util.DictKey("conv1"), jax.tree_util.DictKey("kernel"))
    got = torch_import.to_jax(kernel, path)
    assert got.shape == (3, 2, 5, 7) and got[2, 1, 4, 6] == 1.0
    assert torch_import.to_jax(np.zeros((7, 5)), path).shape == (5, 7)
    bias = np.arange(3.0)
    assert torch_import.to_jax(bias, (jax.tree_util.DictKey("bias"),)) is bias


def test_names():
    """Some of every kind, as the reference's own networks have them."""
    names = {name: set(random_state(spec)[1]) for name, spec in SPECS.items()}
    norm = ("weight", "bias", "running_mean", "running_var")
    assert names["resnet"] >= {
        *(f"layer0.{i}.weight" for i in (0, 3, 6)),  # convolutions of the stem
        *(f"layer0.{i}.{leaf}" for i in (1, 4, 7) for leaf in norm),
        *(
            f"layer{s}.0.{kind}{i}.weight"
            for s in (1, 2)
            for kind in ("conv", "bn")
            for i in (1, 2, 3)
        ),
        *(f"layer1.0.downsample.1.{leaf}" for leaf in norm),
        "layer1.0.downsample.0.weight",  # no average pool before it
        "layer2.0.downsample.1.weight",
        "layer2.0.downsample.2.running_var",
        "layer2.1.conv1.weight",
        "fc.weight",
        "fc.bias",
    }
    assert not any(name.startswith("layer2.1.downsample") for name in names["resnet"])
    assert names["wide_resnet"] >= {"layer0.0.weight", "layer0.1.bias", "layer2.0.conv2.weight"}
    assert "layer2.0.conv3.weight" not in names["wide_resnet"]
    assert names["se_resnet"] >= {
        "layer0.conv1.weight",
        "layer0.bn3.running_mean",
        "layer1.0.se_module.fc1.weight",
        "layer1.0.se_module.fc2.bias",
        "layer2.0.downsample.1.weight",
        "last_linear.weight",
        "last_linear.bias",
    }


def test_dtype_and_counters():
    spec = SPECS["resnext"]
    _, state = random_state(spec)
    state = {name: value.astype(np.float16) for name, value in state.items()}
    state[COUNTER] = np.int64(7)
    for dtype in (np.float32, np.float64):
        leaves = jax.tree.leaves(torch_import.from_state_dict(spec, state, K, dtype))
        assert {v.dtype for v in leaves} == {np.dtype(dtype)}
        total = sum(v.astype(np.float64).sum() for n, v in state.items() if n != COUNTER)
        assert sum(v.astype(np.float64).sum() for v in leaves) == pytest.approx(total, rel=1e-12)


def test_missing_and_left_over_tensors_are_named():
    spec = SPECS["resnet"]
    _, state = random_state(spec)
    for name in ("fc.bias", "layer2.1.bn3.running_var"):
        del state[name]
    state |= {"layer3.0.conv1.weight": np.zeros(3), "aux.weight": np.zeros(2), COUNTER: np.int64(0)}
    with pytest.raises(ConfigError) as error:
        torch_import.from_state_dict(spec, state, K)
    assert str(error.value) == (
        "state_dict does not fit resnet50: missing ['fc.bias', 'layer2.1.bn3.running_var'], "
        "left over ['aux.weight', 'layer3.0.conv1.weight']"
    )


@pytest.mark.parametrize(
    "name, shape", [("layer1.0.conv2.weight", (4, 4, 3, 1)), ("fc.weight", (K + 1, 32))]
)
def test_a_tensor_of_another_shape_is_named(name, shape):
    spec = SPECS["resnet"]
    _, state = random_state(spec)
    state[name] = np.zeros(shape, np.float32)
    with pytest.raises(ConfigError, match=rf"^{name}: shape \(.*\) where resnet50 has \(.*\)$"):
        torch_import.from_state_dict(spec, state, K)


def test_another_number_of_classes_is_an_error():
    spec = SPECS["wide_resnet"]
    _, state = random_state(spec)
    with pytest.raises(ConfigError, match="^fc.(weight|bias): shape"):
        torch_import.from_state_dict(spec, state, K + 1)
