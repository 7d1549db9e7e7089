"""A trunk that the networks of a stack share equals one network with several ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import experiment, methods, models, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.stack import merge
from tests.support import nets
from tests.support.samples import first
from tests.support.xla import FAST

S, B, K, IMAGE = 2, 4, 5, (8, 8, 3)
TINY = dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=8)
DROPPING = dataclasses.replace(
    models.divided("ffsd_wide_resnet16_2", 1), blocks=1, num_stages=2, dropout=0.3
)


def quick(fn):
    return jax.jit(fn, compiler_options=FAST)


def make(spec=TINY, data=1, net=1, trunk="stage1", **fields) -> stack.Stack:
    devices = jax.devices()[: data * net]
    mesh = sharding.make(data, net, num_networks=S, batch_size=B, devices=devices)
    return stack.make(spec, S, K, mesh, trunk=trunk, **fields)


def inputs(spec=TINY, shared=True, dtype=np.float64):
    """Variables with no zero and no one in them, views and labels."""
    rng = np.random.default_rng(0)
    trees = jax.eval_shape(lambda k: make(spec).init(k, IMAGE), jax.random.key(0))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        return (rng.normal(size=leaf.shape) / 8).astype(dtype)

    views = rng.normal(size=(1 if shared else S, B, *IMAGE)).astype(dtype)
    return jax.tree.map_with_path(fill, trees), views, rng.integers(0, K, B)


def loss_of(logits, labels):
    """Another weight for each network, so that none can stand in for another."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[None, :, None], -1)
    return -(picked.mean((1, 2)) * jnp.arange(1.0, S + 1)).sum()


def training_of(net: stack.Stack, key=None):
    def run(variables, views, labels):
        def loss(params):
            out = net.apply(dict(variables, params=params), views, train=True, key=key)
            return loss_of(out[0], labels), out

        value, grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, grads, net.apply(variables, views, train=False)[0]

    return run


@quick
def by_hand(variables, views, labels):
    """The same by a loop over whole networks that get the trunk's arrays as theirs."""
    module = models.build(TINY, K)
    trunk = {c: {k: v for k, v in t.items() if k[:6] in TRUNK} for c, t in variables.items()}
    own = {c: {k: v for k, v in t.items() if k[:6] not in TRUNK} for c, t in variables.items()}

    def whole(trunk_params, own_params, i):
        params = trunk_params | jax.tree.map(lambda x: x[i], own_params)
        stats = trunk["batch_stats"] | jax.tree.map(lambda x: x[i], own["batch_stats"])
        return {"params": params, "batch_stats": stats}

    def loss(trunk_params, own_params):
        outs = []
        for i in range(S):
            view = views[i if len(views) > 1 else 0]
            network = whole(trunk_params, own_params, i)
            (logits, features), new = module.apply(network, view, True, mutable=["batch_stats"])
            outs.append((logits, features, new["batch_stats"]))
        logits, features, stats = jax.tree.map(lambda *x: jnp.stack(x), *outs)
        stats = {
            k: jax.tree.map(lambda x: x.mean(0), v) if k[:6] in TRUNK else v
            for k, v in stats.items()
        }
        return loss_of(logits, labels), (logits, features, stats)

    args = trunk["params"], own["params"]
    value, (of_trunk, of_own) = jax.value_and_grad(loss, (0, 1), has_aux=True)(*args)
    evaluated = jnp.stack(
        [module.apply(whole(*args, i), views[i if len(views) > 1 else 0])[0] for i in range(S)]
    )
    return value, of_trunk | of_own, evaluated


TRUNK = ("stem_c", "stem_b", "stage1")


def assert_close(got, want, tolerance: float, least: float = 0.0) -> None:
    """Of each array within the tolerance x its largest element, or x `least` where that is more."""
    got, want = jax.device_get((got, want))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), jax.tree_util.keystr(path)
        error = np.abs(g - w).max() / max(np.abs(w).max(), least)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


@pytest.fixture(scope="module", params=first(1, [False, True]), ids=["views", "one view"])
def case(request):
    with jax.enable_x64(True):
        args = inputs(shared=request.param)
        return args, jax.device_get(by_hand(*args))


@pytest.mark.parametrize(
    "mesh",
    first(1, [(2, 2), (1, 1), (2, 1), (1, 2)]),
    ids=str,
)
def test_equals_networks_that_share_arrays(case, mesh):
    """Logits, features, statistics, gradients: the trunk's is the sum over the networks."""
    args, want = case
    with jax.enable_x64(True):
        got = quick(training_of(make(data=mesh[0], net=mesh[1], batch_norm="sync")))(*args)
    assert got[1]["stem_conv1"]["kernel"].shape == (3, 3, 3, 16)
    assert got[1]["stage2_block1"]["conv1"]["kernel"].shape == (S, 3, 3, 8, 16)
    assert_close(got, want, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["auto", "unrolled", "grouped"])
def test_lowerings_agree(case, lowering):
    args, want = case
    with jax.enable_x64(True):
        assert_close(quick(training_of(make(lowering=lowering)))(*args), want, 1e-11)


@pytest.mark.slow
def test_local_statistics_are_averaged_over_the_batch_and_the_networks():
    """On 2 x 2 devices: of each half of the batch, of each network, the mean."""
    with jax.enable_x64(True):
        variables, views, labels = inputs(shared=False)
        _, _, got = quick(lambda v, x: make(data=2, net=2).apply(v, x, train=True))(
            variables, views
        )
        module, parts = models.build(TINY, K), []
        for i in range(S):
            for half in (views[i][: B // 2], views[i][B // 2 :]):
                network = make().take(variables, i)
                _, new = module.apply(network, half, True, mutable=["batch_stats"])
                parts.append(new["batch_stats"])
        want = jax.tree.map(lambda *x: np.mean(x, 0), *parts)
    for layer in ("stem_bn1", "stage1_block1"):
        assert_close(got[layer], want[layer], 1e-11)
    assert got["stage2_block1"]["bn1"]["mean"].shape[0] == S


@pytest.mark.slow
def test_dropout_in_the_trunk():
    """Networks drop out differently: the trunk's new statistics are their mean, on any mesh."""
    with jax.enable_x64(True):
        args = inputs(DROPPING)
        results = [
            quick(training_of(make(DROPPING, *mesh, batch_norm="sync"), jax.random.key(1)))(*args)
            for mesh in ((1, 1), (2, 2))
        ]
    (_, (logits, features, stats)), grads, _ = results[0]
    assert (np.asarray(features["stage1"][0]) != np.asarray(features["stage1"][1])).any()
    assert stats["stage1_block1"]["bn2"]["mean"].shape == (32,)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results[0]))
    # A bias before BatchNorm has no gradient but rounding.
    assert_close(results[1], results[0], 1e-11, least=0.1)


@pytest.mark.slow
def test_one_view_goes_through_the_trunk_once():
    """Work of the compiled forward pass: that of one trunk and S ends."""
    spec = dataclasses.replace(TINY, blocks=(2, 1), width=16)

    def flops(trunk, pick=lambda out: out[0]):
        net = make(spec, trunk=trunk, lowering="dense")
        args = jax.eval_shape(lambda k: net.init(k, IMAGE), jax.random.key(0))
        views = jax.ShapeDtypeStruct((1, B, *IMAGE), jnp.float32)
        forward = jax.jit(lambda v, x: pick(net.apply(v, x, train=True)))
        return forward.lower(args, views).compile().cost_analysis()["flops"]

    apart, shared, all_shared = flops(""), flops("stage1"), flops("stage2")
    trunks = flops("", lambda out: out[1]["stage1"])  # of both networks, without the rest
    assert trunks > 0.7 * apart
    assert shared == pytest.approx(apart - trunks / 2, rel=0.06)
    assert all_shared == pytest.approx(apart / 2, rel=0.06)


@pytest.mark.slow
def test_initial_networks():
    """The trunk is network 0's, the rest as without one; parts of networks are found again."""
    shared, apart = (make(trunk=t).init(jax.random.key(3), IMAGE) for t in ("stage1", ""))
    net = make()
    for i in range(S):
        got, whole = net.take(shared, i), make(trunk="").take(apart, i)
        first = make(trunk="").take(apart, 0)
        want = merge(net.of_networks(whole), net.of_trunk(first))
        assert_close_or_zero(got, want)
    assert net.of_trunk(shared)["params"].keys() == {"stem_conv1", "stem_bn1", "stage1_block1"}
    assert net.of_networks(shared)["params"].keys() == {"stage2_block1", "head"}


def assert_close_or_zero(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


# ---- Which layers


@pytest.mark.parametrize(
    ("layer", "stage", "inside"),
    [
        ("stem_conv", "stage1", True),
        ("stage1_block9", "stage1", True),
        ("stage1_transition", "stage1", False),
        ("stage1_transition", "stage2", True),
        ("stage2_layer1", "stage1", False),
        ("stage10_block1", "stage1", False),
        ("stage2_block1", "stage10", True),
        ("final_bn", "stage3", False),
        ("head", "stage3", False),
        ("stem_conv", "", False),
        ("stage1_block1", "", False),
    ],
)
def test_layers(layer, stage, inside):
    assert models.in_trunk(layer, stage) == inside


FAMILIES = [
    "resnet110",
    "wide_resnet16_8",
    "se_resnet50_B",
    "resnest101",
    "resnexst50_4x16d",
    "densenet40_12",
    "densenet121",
    "efficientnetb0_cifar",
    "efficientnetb0",
    "googlenet",
    "shake_resnet26_2x32d",
    "pyramidnet164",
    "resnet20",
    "ffsd_resnet18",
    "ffsd_wide_resnet16_2",
    "vit_ti4",
    "convnext_atto",
]
# Depth is what takes the time; no family names its layers by it.
SHALLOW = {"blocks": (2, 1, 1), "layers": (2, 1, 1)}


def shallow(arch):
    spec = models.divided(arch, 1)
    for field, value in SHALLOW.items():
        own = getattr(spec, field, None)
        if isinstance(own, tuple) and arch[:9] != "efficient":
            spec = dataclasses.replace(spec, **{field: (*value, *(1,) * (len(own) - len(value)))})
    return spec


def test_every_family_is_tried():
    tried = {id(models.known(arch)[0]) for arch in (*FAMILIES, nets.SMALLEST)}
    assert tried == set(map(id, models.FAMILIES.values()))


@pytest.mark.parametrize("arch", first(6, FAMILIES))
def test_the_trunk_is_what_its_last_map_is_computed_from(arch):
    """Of all layers with parameters those that the output of a stage depends on, no other."""
    spec = shallow(arch)
    module = models.build(spec, K)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    flat, tree = jax.tree.flatten(shapes)
    layers = [path[1].key for path, _ in jax.tree.leaves_with_path(shapes)]

    def maps(*flat):
        features = module.apply(tree.unflatten(flat), image)[1]
        return features["stage1"], features["stage2"]

    program = jax.make_jaxpr(maps)(*flat).jaxpr
    for stage, wanted in (("stage1", [True, False]), ("stage2", [False, True])):
        _, used = partial_eval.dce_jaxpr(program, wanted)
        reached = {layer for layer, is_used in zip(layers, used, strict=True) if is_used}
        assert reached == {layer for layer in layers if models.in_trunk(layer, stage)}


def test_names_of_stages(monkeypatch):
    spec = models.divided("wide_resnet10_1", 1)
    assert (
        models.trunk_stage(spec, "")
        == models.trunk_stage(spec, "none", default="all but the last")
        == ""
    )
    assert models.trunk_stage(spec, "", default="all but the last") == "stage2"
    assert models.trunk_stage(spec, "stage3") == "stage3"
    with pytest.raises(
        ConfigError, match="trunk='stage4': must be one of none, stage1, stage2, st"
    ):
        models.trunk_stage(spec, "stage4")
    one_stage = dataclasses.replace(spec, blocks=(1,))
    with pytest.raises(ConfigError, match="trunk='': must be one of none, stage1 with wide_resnet"):
        models.trunk_stage(one_stage, "", default="all but the last")

    class Bare:
        arch = "bare"

    bare = models.Family({"bare": Bare}, None, None, num_stages=lambda spec: 0)
    monkeypatch.setitem(models.FAMILIES, "bare", bare)
    assert models.trunk_stage(Bare, "none", default="all but the last") == ""
    with pytest.raises(ConfigError, match="trunk='': must be 'none'; bare has no stages to share"):
        models.trunk_stage(Bare, "", default="all but the last")


def test_of_a_config():
    def of(**fields):
        config = common.get_config()
        config.update(arch="wide_resnet10_1", split=4, **fields)
        return config_lib.resolve(config).trunk

    assert [of(method=m) for m in ("cotrain", "dml", "one", "cl_ilr")] == [
        "",
        "",
        "stage2",
        "stage2",
    ]
    assert of(method="cotrain", trunk="stage1") == of(method="one", trunk="stage1") == "stage1"
    assert of(method="cl_ilr", trunk="none") == ""
    with pytest.raises(ConfigError, match="trunk='none': must be a stage with method='one'"):
        of(method="one", trunk="none")
    for name in ("batch_ensemble", "mimo"):
        assert of(method=name) == of(method=name, trunk="none") == ""
        with pytest.raises(
            ConfigError, match=f"^trunk='stage1': must be none with method='{name}'"
        ):
            of(method=name, trunk="stage1")
    config = common.get_config()
    config.trunk = "last"
    with pytest.raises(
        ConfigError, match="trunk='last': must be one of none, stage1, stage2, stage3"
    ):
        config_lib.check(config)


@pytest.mark.parametrize("views", first(2, ["same", "different"]))
@pytest.mark.parametrize(
    "name",
    first(3, (m for m, its in methods.METHODS.items() if its.trunk != "never" and not its.teacher)),
)
def test_every_method(name, views):
    """Traced: gradients and new statistics are like what there is, the trunk apart."""
    config = common.get_config()
    config.update(arch="wide_resnet10_1", divide=False, method=name, trunk="stage2", views=views)
    config.split = {"single": 1, "okddip": 3}.get(name, 2)
    config.divide = name == "packed"  # whose two members of the default alpha are whole
    config.update(data=dict(name="synthetic", image_size=8), batch_size=4, mesh=dict(data=1))
    exp = experiment.build(config)
    shapes = exp.state_shapes()
    assert shapes.params["trunk"]["stem_conv1"]["kernel"].shape == (3, 3, 3, 16)
    assert shapes.params["trunk"].keys() == {
        "stem_conv1",
        "stem_bn1",
        "stage1_block1",
        "stage2_block1",
    }
    assert shapes.params["stack"].keys() == {"stage3_block1", "head"}
    num_views = 1 if views == "same" else config.split
    batch = {"views": jnp.zeros((num_views, 4, 8, 8, 3)), "labels": jnp.zeros(4, jnp.int32)}

    def loss(params, stats, progress):
        variables = {"params": params, "batch_stats": stats}
        return exp.method.loss(variables, batch, jax.random.key(0), progress)

    trained = jax.value_and_grad(loss, has_aux=True)
    args = (shapes.params, shapes.batch_stats, jnp.int32(0))
    (_, (stats, _)), grads = jax.eval_shape(trained, *args)

    def kinds(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert kinds(grads) == kinds(shapes.params)
    assert kinds(stats) == kinds(shapes.batch_stats)
