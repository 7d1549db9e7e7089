"""FFSD's auxiliary modules: outputs, statistics and size of the reference, and under `vmap`."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsplit import costs, models
from jaxsplit.models import fusion
from jaxsplit.models.layers import ConvTranspose
from jaxsplit.weights import torch_network
from tests.support.samples import first
from tests.support.xla import FAST

TOLERANCE = 2e-5  # of the largest value, as for the backbones
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
STATS = {"mean": "running_mean", "var": "running_var"}
# Module alone, as the parity file calls it -> ours.
MODULES = {
    "fusion_c64_m2": fusion.Fusion(64, 100),
    "fusion_c16_m3": fusion.Fusion(16, 10),
    "trans_fusion_c16_m3": fusion.TransFusion(3 * 16),
    "sd_c64_l2": fusion.SelfDistillation((32, 16)),
    "sd_c32_l3_imagenet_style": fusion.SelfDistillation((16, 8, 4)),
    "diy_sd_30_20_12": fusion.SelfDistillation((20, 12)),
}
# Leaders' files -> their names here.
LEADERS = {
    "resnet20": "resnet20",
    "wideresnet1602": "ffsd_wide_resnet16_2",
    "densenet": "densenet40_12",
    "googlenet": "googlenet",
}
SLOW = ("densenet", "googlenet", "wideresnet1602")


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def relative_error(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def nchw(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def nhwc(x) -> np.ndarray:
    return x.astype(np.float32).transpose(0, 2, 3, 1)


def shapes_of(module, *shape: int):
    """Shapes of the variables for an input of `shape`."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)


def names_of(variables, torch_name=fusion.torch_name):
    """The reference's name of every leaf."""

    def name(path, _):
        collection, *module, leaf = (p.key for p in path)
        table = LEAVES if collection == "params" else STATS
        return f"{torch_name(tuple(module))}.{table[leaf]}"

    return jax.tree.map_with_path(name, variables)


def variables_of(module, state: dict, x, torch_name=fusion.torch_name):
    """Variables from a `state_dict`, of which every tensor is read once."""
    names = names_of(shapes_of(module, *x.shape), torch_name)
    read = jax.tree.leaves(names)
    assert sorted(read) == sorted(n for n in state if not n.endswith("num_batches_tracked"))
    return jax.tree.map_with_path(
        lambda path, name: torch_network.to_jax(state[name], path).astype(np.float32), names
    )


def run(module, variables, x, train: bool):
    """(output, new statistics)."""
    with jax.default_matmul_precision("highest"):
        return quick(lambda v, x: module.apply(v, x, train, mutable=["batch_stats"]))(variables, x)


# ---- the reference's numbers


@pytest.fixture(scope="module")
def module_data(parity) -> dict:
    data = dict(np.load(parity / "models" / "ffsd_modules.npz"))
    assert {key.split("/")[0] for key in data} == set(MODULES)
    return data


@pytest.mark.parametrize("name", first(2, MODULES))
def test_modules_are_the_references(module_data, name):
    data = {
        k.removeprefix(f"{name}/"): v for k, v in module_data.items() if k.startswith(f"{name}/")
    }
    state = {k.removeprefix("state/"): v for k, v in data.items() if k.startswith("state/")}
    module, x = MODULES[name], nhwc(data["x"])
    variables = variables_of(module, state, x)
    for mode in ("eval", "train"):
        output, new = run(module, variables, x, mode == "train")
        if isinstance(module, fusion.Fusion):
            logits, fused = output
            got = {"output": logits, "hooked_relu1_1": nchw(fused)}
        elif isinstance(module, fusion.TransFusion):
            got = {"output": nchw(output)}
        else:
            got = {f"hooked_layer{i}": nchw(y) for i, y in enumerate(output)}
            got["output"] = nchw(output[-1])
        assert {f"{n}_{mode}" for n in got} == {k for k in data if k.endswith(f"_{mode}")}
        for n, value in got.items():
            assert relative_error(value, data[f"{n}_{mode}"]) <= TOLERANCE, (n, mode)
    names = jax.tree.leaves(names_of(new))
    assert {f"train_stats/{n}" for n in names} == {k for k in data if k.startswith("train_stats/")}
    for n, value in zip(names, jax.tree.leaves(new), strict=True):
        assert relative_error(value, data[f"train_stats/{n}"]) <= TOLERANCE, n


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in LEADERS],
)
def test_leaders_second_output_is_the_references(parity, model):
    data = dict(np.load(parity / "models" / f"ffsd_cifar100_{model}.npz"))
    state = {k.removeprefix("state/"): v for k, v in data.items() if k.startswith("state/")}
    own = {k: v for k, v in state.items() if k.startswith("trans_fusion_module.")}
    spec = models.divided(LEADERS[model], 1)
    network = models.build(spec, 100)
    rest = {k: v for k, v in state.items() if k not in own}
    variables = torch_network.from_state_dict(spec, rest, 100)
    module = fusion.TransFusion(data["trans_fusion_eval"].shape[1])
    # GoogLeNet's rounding, of the whole network, is larger than that of the others.
    noise = 10 * data["trans_fusion_eval_maxabs_f32_minus_f64"]
    for mode in ("eval", "train"):
        (_, features), _ = run(network, variables, nhwc(data["x"]), mode == "train")
        x = features["final"]
        mine = variables_of(module, own, x, fusion.trans_fusion_torch_name)
        output, new = run(module, mine, x, mode == "train")
        wanted = data[f"trans_fusion_{mode}"]
        assert relative_error(nchw(output), wanted) <= max(TOLERANCE, noise / wanted.max()), mode
    names = jax.tree.leaves(names_of(new, fusion.trans_fusion_torch_name))
    assert len(names) == 4
    for name, value in zip(names, jax.tree.leaves(new), strict=True):
        assert relative_error(value, data[f"train_stats/{name}"]) <= TOLERANCE, name


def size_and_cost(module, *shape: int) -> list[int]:
    """[parameters, elements of running statistics, multiply-adds] for one input of `shape`."""
    return list(costs.module_cost(module, shape)[:3])


def test_size_and_cost_are_the_references(parity):
    rows = json.loads((parity / "reference_models.json").read_text())["ffsd"]
    columns = ("params", "bn_buffer_elements", "macs")
    for row in rows:
        *earlier, (c, h, w) = row["feature_maps_CHW"]
        num_classes = 100 if row["dataset"] == "cifar100" else 1000
        widths = [channels for channels, _, _ in reversed(earlier)]
        for m in (2, 3):
            wanted = row[f"model_num_{m}"]
            got = size_and_cost(fusion.TransFusion(m * c), h, w, c)
            leader = [wanted["leader"][k] - row[k] for k in columns]  # beyond the student
            assert got == leader, row["model"]
            got = size_and_cost(fusion.Fusion(c, num_classes), h, w, m * c)
            assert got == [wanted["fusion_module"][k] for k in columns], row["model"]
            got = size_and_cost(fusion.SelfDistillation(widths), h, w, c)
            assert got == [wanted["self_distillation_model"][k] for k in columns], row["model"]
    assert len(rows) == 10


# ---- the transposed convolution


@pytest.mark.parametrize("size", first(1, [(5, 4), (1, 3)]))
def test_transposed_convolution_is_the_transpose(size):
    module = ConvTranspose(6)
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    variables = module.init(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 6, 3)

    def transpose(kernel, x):
        large = jax.ShapeDtypeStruct((2, 2 * size[0], 2 * size[1], 6), x.dtype)

        def strided(y):
            return lax.conv_general_dilated(
                y, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        return jax.linear_transpose(strided, large)(x)[0]

    def ours(kernel, x):
        return module.apply({"params": {"kernel": kernel}}, x)

    def both(fn):
        wave = jnp.sin(jnp.arange(2 * 4 * size[0] * size[1] * 6, dtype=x.dtype))
        return fn(kernel, x), jax.grad(lambda k, x: fn(k, x).ravel() @ wave, (0, 1))(kernel, x)

    with jax.default_matmul_precision("highest"):
        got, want = quick(lambda: both(ours))(), quick(lambda: both(transpose))()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert relative_error(g, w) <= 1e-5


@pytest.mark.slow
def test_mapped_over_networks():
    """S modules on one leading axis compute what they do alone, in convolutions of one network."""
    s, module = 3, fusion.SelfDistillation((4,))
    x = jax.random.normal(jax.random.key(0), (s, 2, 3, 3, 8))
    init = quick(jax.vmap(lambda k: module.init(k, x[0])))
    params = init(jax.random.split(jax.random.key(1), s))

    def gradient(variables, x):
        def loss(params, x):
            maps, _ = module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return sum(jnp.sin(3 * m).sum() for m in maps)

        return jax.value_and_grad(loss, (0, 1))(variables["params"], x)

    got = quick(jax.vmap(gradient))(params, x)
    one = quick(gradient)
    for i in range(s):
        alone = one(jax.tree.map(lambda v, i=i: v[i], params), x[i])
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(g[i], w, rtol=1e-4, atol=1e-4)
    text = jax.jit(jax.vmap(gradient)).lower(params, x).as_text()
    # Per network and direction three convolutions, the fourth being a matrix product.
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    assert len(groups) == 2 * (s * 3 * 3) and set(groups) == {"1"}


def test_types():
    x = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    logits, fused = jax.eval_shape(
        lambda x: fusion.Fusion(4, 5, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)[0],
        x,
    )
    assert (logits.dtype, fused.dtype) == (jnp.float32, jnp.bfloat16)
    module = fusion.SelfDistillation((4,), dtype=jnp.bfloat16)
    (up,), variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    assert (up.shape, up.dtype) == ((2, 8, 8, 4), jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float32")}
