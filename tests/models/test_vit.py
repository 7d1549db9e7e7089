"""ViT and ConvNeXt beside timm: parameters, logits, costs; and as stacks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import config as config_lib
from jaxsplit import costs, defaults, models, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.models import convnext, subgroups, tokens, vit
from jaxsplit.weights import torch_network
from tests.support.paths import GOLDEN
from tests.support.samples import first

# timm's vit_tiny_patch16_224, vit_small_patch16_224, ..., convnext_tiny for 1,000 classes
PARAMETERS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
}
OTHERS = ("vit_ti4", "vit_ti4_28", "vit_s32_gap", "convnext_atto_p1")
VIT = dataclasses.replace(models.divided("vit_ti4", 1), width=24, blocks=4)
CONVNEXT = dataclasses.replace(
    models.divided("convnext_atto", 1), blocks=(1, 2, 1, 1), channels=(8, 12, 16, 24)
)
GOLDENS = {
    "vit_token": dataclasses.replace(VIT, image_size=16),
    "vit_mean": dataclasses.replace(VIT, image_size=16, pool="mean"),
    "convnext": CONVNEXT,
    "convnext_conv_mlp": CONVNEXT,
}


FIRST = ("vit_ti16", "convnext_atto", "vit_ti4_28", "convnext_tiny")


@pytest.mark.parametrize("arch", first(2, (*FIRST, *sorted({*PARAMETERS, *OTHERS} - {*FIRST}))))
def test_parameters_and_costs(arch):
    """Parameters are timm's; S networks cost 0.97 to 1.03 times the undivided one."""
    fields = dict(num_classes=1000, image_shape=(models.divided(arch, 1).image_size,) * 2 + (3,))
    whole = costs.cost(models.divided(arch, 1), **fields)
    if arch in PARAMETERS:
        assert whole.params == PARAMETERS[arch]
    if arch.startswith("vit"):
        spec = models.divided(arch, 1)
        assert vit.macs(spec) == whole.macs - 1000 * spec.width
    for s in (2, 4):
        small = models.divided(arch, s)
        assert s * costs.cost(small, **fields).macs == pytest.approx(whole.macs, rel=0.03)


@pytest.mark.parametrize(("size", "s"), vit.DIVIDED)
def test_the_table_is_what_divide_computes(size, s):
    small = models.divided(f"vit_{size}16", s)
    assert (small.width, small.heads) == vit.DIVIDED[size, s]
    assert small.width % small.heads == 0 and small.blocks == 12


def test_rates_are_divided():
    for spec in (dataclasses.replace(VIT, dropout=0.2, drop_path=0.4), CONVNEXT):
        spec = dataclasses.replace(spec, drop_path=0.4)
        small = models.known(spec.arch)[0].divide(spec, 4)
        assert small.drop_path == 0.2
        assert getattr(small, "dropout", 0.1) == 0.1


def config_of(**fields):
    config = defaults.get_config()
    config.arch, config.split = "vit_ti4", 4
    config.update(fields)
    return config


def test_rates_of_a_config():
    """Those of the undivided network; 'paper' leaves those of the architecture."""
    spec = config_lib.resolve(config_of(drop_path=0.4, dropout=0.1)).spec
    assert (spec.drop_path, spec.dropout, spec.width) == (0.2, 0.05, 92)
    assert config_lib.resolve(config_of(drop_path=0.4, divide=False)).spec.drop_path == 0.4
    b3 = config_lib.resolve(config_of(arch="efficientnetb3_lightnetpp", dropout=0.1)).spec
    assert (b3.dropout, b3.drop_path) == (0.05, 0.15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(drop_path=1.0), r"^drop_path=1.0: must be 'paper' or in \[0, 1\)$"),
        (dict(dropout="x"), "^dropout='x': must be 'paper' or a finite number$"),
        (dict(arch="resnet110", drop_path=0.1), "^drop_path=0.1: must be 'paper' with resnet110,"),
    ],
)
def test_wrong_rates(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config_of(**fields))


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_are_those_of_timm(name):
    golden, spec = np.load(GOLDEN / f"{name}.npz"), GOLDENS[name]
    state = {k.removeprefix("state/"): golden[k] for k in golden.files if k.startswith("state/")}
    size = golden["images"].shape[1]
    (variables,) = torch_network.from_state_dicts(spec, [state], 10, image_size=size)
    logits, features = jax.jit(models.build(spec, 10).apply)(variables, golden["images"])
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)
    assert set(features) == {"stage1", "stage2", "stage3", "stage4", "final"}
    assert all(x.ndim == 4 for x in features.values())


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("vit_ti4", 30, "arch='vit_ti4': its patches of 4 pixels must divide the images, which"),
        ("vit_ti4", 30, "multiple of 4, or another patch divides them, such as vit_ti3_30"),
        ("vit_s16_gap", 28, "multiple of 16, or another patch divides them, such as vit_s2_28_gap"),
        ("vit_s16", 31, "which have 31 x 31; data.image_size can be a multiple of 16(?!,)"),
        ("convnext_atto", 28, "of at least 32 x 32 pixels, not 28 x 28; convnext_atto_p2 can"),
        ("convnext_atto_p1", 4, "takes images of at least 8 x 8 pixels, not 4 x 4"),
    ],
)
def test_images_that_do_not_fit(arch, size, message):
    with pytest.raises(ConfigError, match=message):
        costs.cost(models.divided(arch, 1), num_classes=10, image_shape=(size, size, 3))


@pytest.mark.parametrize(("width", "near"), [(25, 24), (26, 27), (1, 3)])
def test_a_width_that_its_heads_do_not_divide(width, near):
    message = (
        rf"^arch='vit_ti4': its width {width} must be a multiple of its 3 heads, such as {near}\b"
    )
    with pytest.raises(ConfigError, match=message):
        costs.cost(dataclasses.replace(VIT, width=width), num_classes=10, image_shape=(32, 32, 3))


def test_a_member_of_a_packed_ensemble_attends_within_its_groups():
    """With two, half of the channels of q, k and v depend on half of the inputs, as `proj` does."""
    c, heads = 8, 4
    layer = subgroups.applied(tokens.Attention(heads), subgroups.Subgroups(2, least=1))
    x = jax.random.normal(jax.random.key(0), (1, 3, c))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    eye = {"kernel": jnp.eye(c // 2, c).at[:, c // 2 :].set(jnp.eye(c // 2)), "bias": jnp.zeros(c)}
    variables["params"]["proj"] = eye  # the attention's own output

    slopes = jax.jit(jax.jacobian(lambda x: layer.apply(variables, x)))(x)
    slopes = np.abs(slopes).sum((0, 1, 3, 4))  # [output, input]
    halves = slopes.reshape(2, c // 2, 2, c // 2)
    assert (halves[0, :, 0] > 0).all() and (halves[1, :, 1] > 0).all()
    assert (halves[0, :, 1] == 0).all() and (halves[1, :, 0] == 0).all()


@pytest.mark.parametrize(
    "arch",
    [
        *("vit_x16", "vit_s0", "vit_s16_8", "vit_s16_225", "vit_s300", "vit_s"),
        *("convnext_huge", "convnext_atto_p4"),
    ],
)
def test_names_that_are_none(arch):
    with pytest.raises(ConfigError, match=f"arch='{arch}': unknown; nearest are"):
        models.divided(arch, 1)


def test_names():
    spec = models.divided("vit_b8_64_gap", 1)
    assert (spec.patch, spec.image_size, spec.pool, spec.width) == (8, 64, "mean", 768)
    assert models.divided("vit_s14", 1).image_size == 224
    assert models.divided("vit_ti3", 1).image_size == 30
    assert convnext.parse("convnext_pico_p2").patch == 2


# ---- Stacks

TINY = {
    "vit": dataclasses.replace(
        VIT, width=8, heads=2, patch=2, image_size=8, dropout=0.2, drop_path=0.3
    ),
    "convnext": dataclasses.replace(
        CONVNEXT, patch=1, blocks=(1, 1, 1, 1), channels=(4, 4, 6, 8), drop_path=0.3
    ),
}


def a_stack(name, s=2, mesh=(1, 1), **fields):
    """(a stack, variables that are all random, views float[s, 8, 8, 8, 3])."""
    devices = jax.devices()[: mesh[0] * mesh[1]]
    on = sharding.make(*mesh, num_networks=s, batch_size=8, devices=devices)
    made = stack.make(TINY[name], s, 5, on, **fields)
    shapes = jax.eval_shape(lambda key: made.init(key, (8, 8, 3)), jax.random.key(0))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("scale", "layer_scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype("float32")
        fan_in = max(1, leaf.size // (leaf.shape[0] * leaf.shape[-1]))
        return (rng.normal(size=leaf.shape) * fan_in**-0.5).astype("float32")

    views = rng.normal(size=(s, 8, 8, 8, 3)).astype("float32")
    return made, jax.tree.map_with_path(fill, shapes), views


def loss_and_gradients(made, variables, views):
    def loss(variables):
        logits, features, _ = made.apply(variables, views, train=True, key=jax.random.key(3))
        return (logits.astype(jnp.float32) ** 2).sum() + (features["stage2"] ** 2).mean()

    return jax.jit(jax.value_and_grad(loss))(variables)


@pytest.fixture(scope="module")
def usual():
    """name -> (loss, gradients) of two networks in the lowering 'dense' on one device."""
    return functools.cache(lambda name: loss_and_gradients(*a_stack(name, lowering="dense")))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("mesh", "fields"),
    [
        ((2, 2), dict(lowering="dense", remat="all")),
        ((1, 1), dict(lowering="unrolled")),  # a loop over the networks
        ((4, 1), dict(lowering="packed")),
    ],
    ids=["mesh and remat", "unrolled", "packed"],
)
def test_lowerings_meshes_and_remat_agree(usual, name, mesh, fields):
    """With dropout and stochastic depth, whose draws depend on neither."""
    got = loss_and_gradients(*a_stack(name, mesh=mesh, **fields))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(usual(name)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_bfloat16(usual, name):
    """Gradients of float32 that are those of float32 to the digits of bfloat16."""
    loss, gradients = loss_and_gradients(*a_stack(name, lowering="dense", dtype="bfloat16"))
    assert loss == pytest.approx(float(usual(name)[0]), rel=0.05)
    far = []
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(usual(name)[1]), strict=True):
        assert x.dtype == jnp.float32
        far.append(np.linalg.norm(x - y) / np.linalg.norm(y))
    assert np.median(far) < 0.05


def dots(jaxpr):
    """Shapes of the results of all products of matrices in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn.outvars[0].aval.shape
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    yield from dots(sub)


@pytest.mark.parametrize("name", TINY)
def test_networks_are_one_batched_product(name):
    """As many products for four networks as for two, forward and backward, all batched."""

    def products(s):
        made, variables, views = a_stack(name, s)  # lowering="auto"
        program = jax.make_jaxpr(lambda v: loss_and_gradients(made, v, views))(variables)
        found = list(dots(program.jaxpr))
        assert found and all(shape[0] == s or s in shape for shape in found)
        return len(found)

    assert products(3) == products(7)
