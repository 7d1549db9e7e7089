"""FFSD: two training steps against the reference's, its losses, groups of parameters, bad input.

Fixtures: `train_steps/ffsd_*.npz` (ResNet-20, two students, one batch).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.common import get_config
from jaxsplit import methods, models, optim, sharding, stack
from jaxsplit.losses import distill
from jaxsplit.methods import ffsd
from jaxsplit.models import fusion
from jaxsplit.weights import torch_network
from tests.support.xla import EXACT, EXACT_FLOAT64

CASES = ("ffsd_resnet20_m2_epoch3", "ffsd_resnet20_m2_epoch7_lambda_div1")
LAMBDAS = ("diversity", "fusion", "self_distillation")
STUDENTS = 2
ROUNDING = 2e-7  # of a float32 gradient of a self-distillation module


def names_of(spec, variables) -> dict:
    """A tree like the variables of a method: the reference's '<network>/<name>' of each leaf."""

    def of_module(tree, torch_name):
        return torch_network.names_of(torch_name, tree)

    parts = {}
    for part in variables["params"]:
        tree = {c: variables[c][part] for c in variables}
        if part == "stack":
            continue
        if part == "leader":
            names = torch_network.state_dict_names(spec, tree)
        elif part == "trans_fusion":
            names = of_module(tree, fusion.trans_fusion_torch_name)
        else:
            names = of_module(tree, fusion.torch_name)
        network = {"trans_fusion": "leader"}.get(part, part)
        parts[part] = jax.tree.map(lambda name, network=network: f"{network}/{name}", names)
    return parts


SPEC = models.divided("resnet20", 1)
# Of both fixtures (`test_meta`).
META = dict(lr=0.1, momentum=0.9, weight_decay=1e-4, fusion_weight_decay=1e-5)
META |= dict(sd_adam_lr=1e-3, sd_adam_weight_decay=1e-4, temperature=2)


def make_method(weights) -> methods.Method:
    mesh = sharding.make(1, 1, num_networks=STUDENTS, batch_size=8, devices=jax.devices()[:1])
    return ffsd.make(
        stack.make(SPEC, STUDENTS, 100, mesh, lowering="dense"),
        leader=SPEC,
        distill=distill.make(get_config().distill, 2.0),
        weights=weights,
        steps_per_epoch=1,
        warmup_steps=5,
    )


@functools.cache
def programs(dtype):
    """(optimizer, its jitted step), the same for both fixtures: compiling takes the time."""
    config = get_config()
    config.method = "ffsd"
    config.optim.lr, config.optim.momentum = META["lr"], META["momentum"]
    config.optim.weight_decay, config.optim.decay_bias = META["weight_decay"], True
    config.ffsd.self_distillation_lr = META["sd_adam_lr"]
    config.ffsd.self_distillation_weight_decay = META["sd_adam_weight_decay"]
    config.ffsd.fusion_weight_decay = META["fusion_weight_decay"]
    method = make_method(ffsd.Weights())
    optimizer = optim.build(
        config.optim,
        lambda _: dtype(META["lr"]),
        jax.eval_shape(lambda: method.init(jax.random.key(0), (32, 32, 3)))["params"],
        STUDENTS,
        group=method.group,
        groups=methods.METHODS["ffsd"].optimizers(config),
    )

    def one_step(variables, opt_state, batch, weights, progress):
        def loss(params):
            v = {"params": params, "batch_stats": variables["batch_stats"]}
            return make_method(weights).loss(v, batch, jax.random.key(0), progress)

        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return metrics, grads, {"params": params, "batch_stats": stats}, opt_state

    options = EXACT_FLOAT64 if dtype is np.float64 else EXACT
    return optimizer, jax.jit(one_step, compiler_options=options)


def initial(data, dtype) -> dict:
    """The variables of a fixture."""
    shapes = jax.eval_shape(
        lambda: make_method(ffsd.Weights()).init(jax.random.key(0), (32, 32, 3))
    )
    flat = {k.removeprefix("init/"): v for k, v in data.items() if k.startswith("init/")}

    def take(path, name, like):
        value = torch_network.to_jax(flat[name], path)
        assert value.shape == like.shape, name
        return jnp.asarray(value, dtype)

    variables = {c: {} for c in shapes}
    for part, names in names_of(SPEC, shapes).items():
        made = jax.tree.map_with_path(take, names, {c: shapes[c][part] for c in shapes})
        for c in shapes:
            variables[c][part] = made[c]
    students = []
    for i in range(STUDENTS):
        own = {k.partition("/")[2]: v for k, v in flat.items() if k.startswith(f"student{i}/")}
        students.append(torch_network.from_state_dict(SPEC, own, 100, dtype))
    for c in shapes:
        variables[c]["stack"] = jax.tree.map(lambda *x: jnp.stack(x), *(s[c] for s in students))
    return variables


def run(data, dtype, steps=2):
    """Yields (metrics, gradients, variables after it) of each step."""
    optimizer, one_step = programs(dtype)
    variables = initial(data, dtype)
    images = jnp.asarray(data["images"].transpose(0, 2, 3, 1), dtype)
    batch = {"views": images[None], "labels": jnp.asarray(data["target"])}
    of = {name: dtype(data[f"meta/lambda_{name}"]) for name in LAMBDAS}
    weights = ffsd.Weights(
        diversity=of["diversity"],
        student_self_distillation=of["diversity"],
        fusion=of["fusion"],
        trans_fusion=of["fusion"],
        leader_self_distillation=of["fusion"],
        train_self_distillation=of["self_distillation"],
    )
    progress = jnp.asarray(int(data["meta/epoch"]) - 1)
    opt_state = jax.jit(optimizer.init)(variables["params"])
    for _ in range(steps):
        # Fetched: the first state and the later ones are placed alike, and one program serves all.
        variables, opt_state = jax.device_get((variables, opt_state))
        metrics, grads, variables, opt_state = one_step(
            variables, opt_state, batch, weights, progress
        )
        yield jax.device_get((metrics, grads, variables))


def everything(spec, variables) -> dict[str, np.ndarray]:
    """The reference's '<network>/<name>' -> array in PyTorch's layout."""
    out = {}

    def put(path, name, value):
        value = np.asarray(value)
        if path[-1].key == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        out[name] = value

    shapes = {c: variables[c] for c in variables}
    for part, names in names_of(spec, shapes).items():
        jax.tree.map_with_path(put, names, {c: variables[c][part] for c in variables})
    for i in range(STUDENTS):
        one = jax.tree.map(lambda x, i=i: x[i], {c: variables[c]["stack"] for c in variables})
        names = torch_network.state_dict_names(spec, one)
        names = jax.tree.map(lambda name, i=i: f"student{i}/{name}", names)
        jax.tree.map_with_path(put, names, one)
    return out


def meters(metrics, data, step: int) -> dict[str, float]:
    """The reference's meters, all weights in them, by our metrics."""
    m, w = metrics, metrics["ffsd/warmup"]
    lam = {name: w * float(data[f"meta/lambda_{name}"]) for name in LAMBDAS}
    out = {
        "fusion_ce_loss": m["fusion/cross_entropy"],
        "fusion_ensemble_loss": m["fusion/distill"],
        "fusion_loss": m["fusion/cross_entropy"] + m["fusion/distill"],
        "leader_ce_loss": m["leader/cross_entropy"],
        "leader_ensemble_loss": m["leader/distill"],
        "leader_fusion_loss": lam["fusion"] * m["leader/fusion"],
        "leader_trans_fusion_loss": lam["fusion"] * m["leader/trans_fusion"],
        "leader_self_distillation_loss": lam["fusion"] * m["leader/self_distillation"],
        "leader_loss": m["leader/loss"],
    }
    for i in range(STUDENTS):
        own = {
            "ce_losses": m["cross_entropy"][i],
            "dml_losses": m["distill"][i],
            "diversity_losses": lam["diversity"] * m["diversity"][i],
            "self_distillation_losses": lam["diversity"] * m["self_distillation"][i],
        }
        out |= {f"student{i}/{k}": v for k, v in own.items()}
        out[f"student{i}/losses"] = sum(own.values())
    for kind, name in (("feature", "maps"), ("attention", "attention")):
        # Ours is one sum over the modules.
        out[f"sd_{kind}"] = lam["self_distillation"] * m[f"self_distillation/{name}"]
    return {f"step{step}/{k}": float(v) for k, v in out.items()}


def wanted_meters(data, step: int, suffix: str) -> dict[str, float]:
    out = {
        k.removesuffix(suffix): float(v)
        for k, v in data.items()
        if k.startswith(f"step{step}/") and k.endswith(suffix) and v.size == 1 and "loss" in k
        and (suffix or not k.endswith("_f64"))
    }  # fmt: skip
    for kind in ("feature", "attention"):
        parts = (
            f"student1/self_distillation_{kind}_losses",
            f"leader_self_distillation_{kind}_loss",
        )
        out[f"step{step}/sd_{kind}"] = sum(out.pop(f"step{step}/{p}") for p in parts)
    return out


class Case:
    """A fixture, and both steps of ours in a type, taken when first asked for."""

    def __init__(self, parity, name):
        self.data = dict(np.load(parity / "train_steps" / f"{name}.npz"))
        self._steps = {}

    def steps(self, dtype) -> list:
        """(metrics, gradients, variables) of each step."""
        if dtype not in self._steps:
            with jax.default_matmul_precision("highest"), jax.enable_x64(dtype == np.float64):
                self._steps[dtype] = list(run(self.data, dtype))
        return self._steps[dtype]


@pytest.fixture(scope="module")
def cases(parity):
    return {name: Case(parity, name) for name in CASES}


# A step in float64 takes half a minute to compile; CI runs these slow tests, too.
BOTH = [(name, dtype) for name in CASES for dtype in (np.float64, np.float32)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_every_loss_of_two_steps(cases, name, dtype):
    data, steps = cases[name].data, cases[name].steps(dtype)
    suffix, rtol = {np.float32: ("", 5e-4), np.float64: ("_f64", 1e-6)}[dtype]
    for step, (metrics, _, _) in enumerate(steps, start=1):
        wanted = wanted_meters(data, step, suffix)
        assert len(wanted) == 9 + 2 * 5 + 2
        assert meters(metrics, data, step) == pytest.approx(wanted, rel=rtol, abs=1e-12)


def near_sign_change(case, spec) -> dict[str, np.ndarray]:
    """Name -> what Adam makes of the rounding of a float32 gradient.

    Its first step is lr * g / (|g| + eps): steep where a gradient, decay included, is near 0. The
    rounding of ours is below `ROUNDING` everywhere.
    """
    data, eps, lr = case.data, 1e-8, float(case.data["meta/sd_adam_lr"])
    _, grads, variables = case.steps(np.float64)[0]
    g = everything(spec, {"params": grads, "batch_stats": variables["batch_stats"]})
    out = {}
    for name in g:
        network, _, tensor = name.partition("/")
        if network.startswith("sd"):
            weight = data[f"init/{network}/{tensor}"].astype(np.float64)
            total = np.abs(g[name] + float(data["meta/sd_adam_weight_decay"]) * weight)
            out[name] = lr * np.minimum(2, ROUNDING * eps / (total + eps) ** 2)
            assert (out[name] > 1e-7).mean() < 5e-3, name  # a few elements only
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_every_parameter_and_statistic_after_each_step(cases, name, dtype):
    case, spec = cases[name], SPEC
    data = case.data
    # Float64 is as near as the stored float32 is: nothing is added.
    factor = {np.float32: 10, np.float64: 1 + 1e-6}[dtype]
    slack = near_sign_change(case, spec) if dtype == np.float32 else {}
    tensors = [n for n in data["state_names"] if not n.endswith("num_batches_tracked")]
    for step, (_, _, variables) in enumerate(case.steps(dtype), start=1):
        mine = everything(spec, variables)
        names = data["state_names"]
        noise = dict(zip(names, data[f"after{step}/maxabs_f32_minus_f64"], strict=True))
        changes = dict(zip(names, data[f"after{step}/delta_l2"], strict=True))
        compared = 0
        for tensor in tensors:
            key = f"after{step}/state/{tensor}"
            if key in data:
                compared += 1
                allowed = factor * noise[tensor] + 1e-9 + slack.get(tensor, 0)
                assert (np.abs(mine[tensor] - data[key]) <= allowed).all(), (step, tensor)
            # Those that are not stored, too, by their change from the start.
            network, _, own = tensor.partition("/")
            change = mine[tensor].astype(np.float64) - data[f"init/{network}/{own}"]
            allowed = factor * noise[tensor] * np.sqrt(change.size) + 1e-6 * changes[tensor]
            assert abs(np.linalg.norm(change) - changes[tensor]) <= allowed + 1e-9, (step, tensor)
        stored = [k for k in data if k.startswith(f"after{step}/state/")]
        assert compared == sum(not k.endswith("num_batches_tracked") for k in stored) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", [CASES[1]])
def test_rounding_of_gradients(cases, name):
    case, spec = cases[name], SPEC
    mine, exact = (
        everything(spec, {"params": grads, "batch_stats": variables["batch_stats"]})
        for _, grads, variables in (case.steps(np.float32)[0], case.steps(np.float64)[0])
    )
    for tensor in case.data["param_names"]:
        if tensor.startswith("sd"):
            assert np.abs(mine[tensor] - exact[tensor]).max() < ROUNDING, tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_first_step(cases, name):
    case, spec = cases[name], SPEC
    _, grads, variables = case.steps(np.float64)[0]
    mine = everything(spec, {"params": grads, "batch_stats": variables["batch_stats"]})
    norms = zip(case.data["param_names"], case.data["step1/grad_norm_f64"], strict=True)
    wanted = dict(norms)
    found = {tensor: float(np.linalg.norm(mine[tensor])) for tensor in wanted}
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_meta(cases):
    for case in cases.values():
        for name, value in META.items():
            assert case.data[f"meta/{name}"] == value
