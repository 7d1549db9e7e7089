"""Recomputed stages change memory only; bfloat16 changes the networks' inside only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, digits_wrn16_4_x4
from jaxsplit import compiler, evaluation, loop, losses, methods, models, sharding, stack
from jaxsplit import config as config_lib
from jaxsplit.conv import conv
from jaxsplit.errors import ConfigError
from jaxsplit.models import efficientnet, fusion, layers, pooling, resnet, vit
from tests.support.samples import first, sampled
from tests.support.xla import FAST, USUAL

K, B = 5, 4
# One of every family of modules, as small as it goes.
ARCHS = (
    "resnet110",
    "wide_resnet16_8",
    "se_resnet50_B",
    "resnest101",
    "resnexst50_4x16d",
    "densenet190",
    "densenet40_12",
    "efficientnetb0",
    "googlenet",
    "shake_resnet26_2x32d",
    "pyramidnet164",
    "resnet20",
    "ffsd_wide_resnet28_10",
    "vit_ti4",
    "convnext_atto_p1",
)


def tiny(arch: str):
    """The network of that name with one block a stage, narrow where that takes one field."""
    spec = models.divided(arch, models.known(arch)[1].splits[-1])
    fields = {f.name for f in dataclasses.fields(spec)}
    if isinstance(spec, efficientnet.Spec):
        return dataclasses.replace(spec, depth=0.1)
    if isinstance(spec, vit.Spec):
        return dataclasses.replace(spec, width=24, heads=2, blocks=4)
    if "layers" in fields:
        return dataclasses.replace(spec, layers=(1,) * len(spec.layers), growth=4, shake_drop=0.3)
    if "stages" in fields:
        return dataclasses.replace(spec, stages=tuple(stage[:1] for stage in spec.stages))
    if isinstance(spec.blocks, int):
        return dataclasses.replace(spec, blocks=1, widening=1)
    return dataclasses.replace(spec, blocks=(1,) * len(spec.blocks))


def make(spec, num_networks=2, batch=B, **fields) -> stack.Stack:
    mesh = sharding.make(
        1, 1, num_networks=num_networks, batch_size=batch, devices=jax.devices()[:1]
    )
    return stack.make(spec, num_networks, K, mesh, **fields)


def side(spec) -> int:
    return 16 if spec.image_size == 32 else 64


def images(spec, num_networks=2) -> np.ndarray:
    n = side(spec)
    return np.random.default_rng(1).normal(size=(num_networks, B, n, n, 3)).astype(np.float32)


def training(networks: stack.Stack):
    """(variables, images) -> (gradients, (logits, features, new statistics))."""

    def run(variables, x):
        def loss(params):
            out = networks.apply(
                dict(variables, params=params), x, train=True, key=jax.random.key(2)
            )
            labels = jnp.arange(x.shape[1]) % K
            return losses.cross_entropy(out[0], labels).sum(), out

        return jax.grad(loss, has_aux=True)(variables["params"])

    return run


def shapes(networks: stack.Stack, spec):
    n = side(spec)
    return jax.eval_shape(lambda k: networks.init(k, (n, n, 3)), jax.random.key(0))


def types(tree) -> set[str]:
    return {str(v.dtype) for v in jax.tree.leaves(tree)}


def barriers(networks: stack.Stack, spec) -> int:
    x = images(spec, networks.num_networks)
    text = jax.jit(training(networks)).lower(shapes(networks, spec), x).as_text()
    return text.count("optimization_barrier")


# ---- remat


def test_every_family_of_modules_is_tried():
    assert {models.known(arch)[0].build.__module__ for arch in ARCHS} == {
        family.build.__module__ for family in models.FAMILIES.values()
    }


@pytest.mark.parametrize("arch", sampled(ARCHS, ["wide_resnet16_8", "densenet40_12"]))
def test_shapes_and_types(arch):
    """Recomputed or not: the same trees. Of bfloat16 are the maps only, in both modes."""
    spec = tiny(arch)
    outs = []
    for remat in ("", "all"):
        networks = make(spec, lowering="dense", dtype="bfloat16", remat=remat)
        variables = shapes(networks, spec)
        outs.append((variables, jax.eval_shape(training(networks), variables, images(spec))))
    assert outs[0] == outs[1]
    variables, (grads, (logits, features, stats)) = outs[0]
    assert types((variables, grads, logits, stats)) == {"float32"}
    assert types(features) == {"bfloat16"}
    assert set(features) == {*models.remat_stages(spec, "all"), "final"}
    assert len(features) == spec.num_stages + 1
    evaluate = functools.partial(networks.apply, train=False)
    logits, features, _ = jax.eval_shape(evaluate, variables, images(spec)[:1])
    assert types(logits) == {"float32"} and types(features) == {"bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["densenet40_12", "ffsd_wide_resnet16_2"])
def test_only_the_stages_named_recompute(arch, monkeypatch):
    """Every recomputed block is one barrier in the program; on CPU a convolution has some too."""
    monkeypatch.setattr(compiler, "platform", lambda: "gpu")
    spec = tiny(arch)
    counts = [
        barriers(make(spec, 1, lowering="dense", remat=remat), spec)
        for remat in ("", "stage2", "stage1,stage3", "all")
    ]
    assert counts == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        dataclasses.replace(tiny("wide_resnet16_8"), width=8, dropout=0.2),
        dataclasses.replace(tiny("shake_resnet26_2x32d"), width=8),
        dataclasses.replace(tiny("pyramidnet164"), alpha=8.0),
        tiny("densenet190"),
        dataclasses.replace(tiny("ffsd_wide_resnet28_10"), dropout=0.4),
    ],
    ids=lambda spec: spec.arch,
)
def test_gradients_statistics_and_draws_are_the_same(spec):
    """All but the first have draws inside of their blocks: dropout, shake-shake, shake-drop."""
    x = images(spec)
    outs = []
    for remat in ("", "all"):
        networks = make(spec, lowering="dense", remat=remat)
        options = FAST | USUAL | (compiler.options("cpu") or {})
        if not outs:
            init = jax.jit(lambda k: networks.init(k, x.shape[2:]), compiler_options=FAST)  # noqa: B023
            variables = init(jax.random.key(0))
        outs.append(jax.jit(training(networks), compiler_options=options)(variables, x))
    want, got = jax.device_get(outs)
    for (path, w), g in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        error = np.abs(g - w).max() / max(np.abs(w).max(), 1e-6)
        assert error < 1e-5, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["dense", "unrolled"])
def test_memory_falls(lowering):
    """Eight blocks at one resolution: seven of eight keep their input only."""
    spec = resnet.Spec("deep", (8,), 8, block="basic", splits=(1, 2))
    x = jax.ShapeDtypeStruct((2, 32, 16, 16, 3), jnp.float32)
    used = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "deep", models.Family({"deep": spec}, None, resnet.build))
        for remat in ("", "all"):
            networks = make(spec, batch=32, lowering=lowering, remat=remat)
            lowered = jax.jit(training(networks)).lower(shapes(networks, spec), x)
            options = FAST | (compiler.options("cpu") or {})
            compiled = lowered.compile(compiler_options=options)
            used[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert used["all"] < 0.5 * used[""], used


def test_an_own_backbone_is_built_without():
    """Its `build` need not know of the keyword, as long as nobody asks for it."""
    own = dataclasses.make_dataclass(
        "Own", [("arch", str, "own"), ("splits", tuple, (1,)), ("image_size", int, 8)], frozen=True
    )()

    def build(spec, num_classes, *, axis_name, dtype):
        return resnet.build(resnet.Spec("own", (1,), 4), num_classes, axis_name=axis_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            models.FAMILIES, "own", models.Family({"own": own}, None, build, num_stages=lambda _: 0)
        )
        assert make(own).module.remat == ()
        with pytest.raises(ConfigError, match="^remat='all': must be ''; own cannot recompute"):
            make(own, remat="all")


@pytest.mark.parametrize(
    "text", ["stage4", "stage1,stage9", "stage1;stage2", "ALL", "stage1,", "1"]
)
def test_an_unknown_stage_lists_those_there_are(text):
    config = common.get_config()
    config.remat = text
    message = (
        f"^remat='{text}': must be '', 'all' or stages of wide_resnet28_10, separated by commas: "
        "stage1, stage2, stage3$"
    )
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)


def test_the_field_may_change_on_resume():
    old, new = common.get_config(), common.get_config()
    new.remat = "stage2, stage1"
    config_lib.check(new)
    config_lib.check_identity(old, new, "run")
    assert models.remat_stages(config_lib.resolve(new).spec, new.remat) == ("stage1", "stage2")


# ---- bfloat16


def test_types_of_auxiliary_modules():
    x = jnp.ones((2, 4, 4, 6))
    for module in (
        fusion.Fusion(4, K, dtype=jnp.bfloat16),
        fusion.TransFusion(4, dtype=jnp.bfloat16),
        fusion.SelfDistillation((4, 2), dtype=jnp.bfloat16),
    ):
        apply = functools.partial(module.init_with_output, train=True)
        out, variables = jax.eval_shape(apply, jax.random.key(0), x)
        logits, maps = out if isinstance(module, fusion.Fusion) else (None, out)
        assert types(variables) == {"float32"} and types(maps) == {"bfloat16"}
        assert logits is None or types(logits) == {"float32"}


def rounded(f, *args):
    """(f of bfloat16, f of the same numbers in float32), both float64 on the host."""
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in args]
    got, want = jax.jit(f)(*narrow), jax.jit(f)(*(a.astype(jnp.float32) for a in narrow))
    assert types(got) == {"bfloat16"}
    return (jax.tree.map(lambda v: np.asarray(v, np.float64), t) for t in (got, want))


RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(16, 32, 32, 4)) + 3.0  # a mean far from zero shows sums that stop


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.mean((1, 2)),
        pooling.avg_pool_2x2,
        lambda x: pooling.avg_pool_3x3(x, 1),
        lambda x: pooling.avg_pool_3x3(x, 2),
        lambda x: conv(x, jnp.ones((3, 3, 1, 4), x.dtype), padding=((1, 1),) * 2, groups=4),
        lambda x: conv(x, jnp.ones((1, 1, 4, 4), x.dtype)),
        lambda x: conv(x, jnp.ones((3, 3, 4, 4), x.dtype)),
    ],
    ids=["mean", "pool2", "pool3", "pool3_strided", "depthwise", "1x1", "3x3"],
)
def test_sums_are_rounded_once(f):
    got, want = rounded(f, MAP)
    np.testing.assert_allclose(got, want, rtol=2.0**-8)


def test_statistics_are_those_of_float32():
    """A spread of 1 about 300: bfloat16, whose numbers are 2 apart there, loses none in the sum."""
    x = jnp.asarray(300.0 + RNG.normal(size=(64, 16, 16, 4)), jnp.bfloat16)
    norm = layers.BatchNorm(momentum=0.0, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, False)
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], exact.var((0, 1, 2), ddof=1), rtol=1e-4)
    want = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize(
    "module",
    first(
        1,
        [
            lambda dtype: layers.SqueezeExcite(4, dtype),
            lambda dtype: layers.Conv(4, 3, use_bias=True, dtype=dtype),
            lambda dtype: layers.SplitAttention(
                4, 2, 1, functools.partial(layers.BatchNorm, dtype=dtype), dtype
            ),
        ],
    ),
    ids=["squeeze_excite", "bias", "split_attention"],
)
def test_gradients_sum_in_float32(module):
    """Of what is broadcast over 16 x 32 x 32 places: a sum in bfloat16 would stop growing."""
    x = jnp.asarray(MAP, jnp.bfloat16)
    args = (True,) if isinstance(module(None), layers.SplitAttention) else ()
    variables = module(None).init(jax.random.key(0), x.astype(jnp.float32), *args)
    rng = np.random.default_rng(3)  # of its own: other tests must not move the draws
    weights = rng.uniform(0.5, 1.5, (*MAP.shape[:3], 4)).astype(np.float32)

    def grads(dtype, x):
        def loss(params):
            y = module(dtype).apply(
                dict(variables, params=params), x, *args, mutable=["batch_stats"]
            )[0]
            return (y.astype(jnp.float32) * weights).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    got, want = grads(jnp.bfloat16, x), grads(None, x.astype(jnp.float32))
    if "fc2" in got:  # what BatchNorm takes away again, as a bias before it, has no gradient
        got, want = got["fc2"], want["fc2"]
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = np.linalg.norm(g - w) / np.linalg.norm(w)
        # Rounded operands leave 1 to 5 %; the sum in bfloat16 was 98 % wrong.
        assert g.dtype == jnp.float32 and error < 0.1, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
def test_losses_and_evaluation_are_those_of_float32():
    """From the logits on, all is float32: as NumPy's float64, to what bfloat16 could never hold."""
    spec = dataclasses.replace(tiny("wide_resnet16_8"), blocks=(1, 1), width=8)
    networks = make(spec, batch=8, dtype="bfloat16")
    method = methods.cotrain.make(networks, weight=0.5)
    variables = jax.jit(lambda k: method.init(k, (8, 8, 3)), compiler_options=FAST)(
        jax.random.key(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 8, 3))
    labels = jnp.arange(8) % K
    run = jax.jit(lambda v, x: method.loss(v, dict(views=x, labels=labels), jax.random.key(2), 0))
    value, (stats, values) = run(variables, x)
    stacked = {name: tree["stack"] for name, tree in variables.items()}
    logits = jax.jit(lambda v, x: networks.apply(v, x, train=True, key=jax.random.key(2))[0])(
        stacked, x
    )

    def log_softmax(z):
        z = np.asarray(z, np.float64)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    log_p = log_softmax(logits)
    mean = np.log(np.exp(log_p).mean(0))
    js = (np.exp(log_p) * (log_p - mean)).sum(-1).mean()
    nll = -log_p[:, np.arange(8), labels].mean(-1)
    np.testing.assert_allclose(values["cross_entropy"], nll, rtol=1e-6)
    np.testing.assert_allclose(values["cotrain/js"], js, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(value, nll.sum() + 0.5 * js, rtol=1e-6)
    assert types((value, stats, values)) == {"float32"}

    pixels = np.asarray(RNG.integers(0, 256, (8, 8, 8, 3)), np.uint8)
    batch = dict(images=pixels, labels=labels, mask=jnp.ones(8))
    evaluate = evaluation.make_eval_step(method, (0.5,) * 3, (0.25,) * 3)
    sums = jax.jit(evaluate)(variables, batch)
    assert types(sums) == {"float32"}
    views = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    named = jax.jit(method.predict)(variables, views)
    assert types(named) == {"float32"}
    for name, z in named.items():
        want = -log_softmax(z)[np.arange(8), labels].sum()
        np.testing.assert_allclose(sums[name]["nll"], want, rtol=1e-5)


@pytest.mark.slow
def test_digits_are_learned_as_well_in_bfloat16(tmp_path):
    found = {"float32": [], "bfloat16": []}
    for dtype, of_seeds in found.items():
        for seed in range(3):  # an image is 0.28 %, and a run varies by two of them
            config = digits_wrn16_4_x4.get_config()
            config.arch, config.seed = "wide_resnet10_2", seed
            config.dtype = dtype
            config.duration = "10 epochs"
            config.eval.every = config.checkpoint.every = config.log_every = "10 epochs"
            results = loop.train_and_evaluate(config, tmp_path / f"{dtype}{seed}")
            of_seeds.append(results["test/ensemble/top1"])
    assert np.mean(found["float32"]) > 0.98
    assert abs(np.mean(found["bfloat16"]) - np.mean(found["float32"])) <= 0.005, found
