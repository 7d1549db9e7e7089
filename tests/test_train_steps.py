"""Whole training steps against the reference's: losses, outputs, gradients, every state tensor.

Fixtures: `train_steps/splitnet_*.npz` (ResNet-110 divided in 2, SGD-Nesterov, same batch each step).
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsplit import losses, methods, models, optim, sharding, stack, torch_import
from jaxsplit.methods import cotrain

CASES = ("splitnet_resnet110_s2_js_diffviews", "splitnet_resnet110_s2_kl_sameview")
# ResNet-110 compiles in half a minute otherwise.
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def build(meta, dtype):
    """The method, its optimizer and its initial variables, as the fixture says."""
    s, num_classes = int(meta["split_factor"]), 100
    spec = models.divided(str(meta["arch"]), s)
    mesh = sharding.make(1, 1, num_networks=s, batch_size=4, devices=jax.devices()[:1])
    networks = stack.make(spec, s, num_classes, mesh, lowering="dense")
    kind = {"js_divergence": "js", "kl_seperate": "kl"}[str(meta["cot_loss_choose"])]
    method = cotrain.make(
        networks,
        loss=kind,
        weight=float(meta["cot_weight"]),
        # `progress` is counted in epochs here.
        warmup_steps=int(meta["cot_weight_warm_up_epochs"]),
    )
    one = [
        torch_import.from_state_dict(
            spec, state_of(meta["data"], f"init/models.{i}."), num_classes, dtype
        )
        for i in range(s)
    ]
    variables = jax.tree.map(lambda *x: jnp.stack(x), *one)
    variables = {collection: {"stack": tree} for collection, tree in variables.items()}
    config = types.SimpleNamespace(
        name="sgd",
        momentum=float(meta["momentum"]),
        nesterov=bool(meta["nesterov"]),
        weight_decay=float(meta["weight_decay"]),
        decay_norm=True,
        divide_weight_decay=False,
    )
    lr = dtype(meta["lr"])
    optimizer = optim.build(config, lambda _: lr, variables["params"], s)
    return spec, networks, method, optimizer, variables


def state_of(data, prefix):
    return {k.removeprefix(prefix): data[k] for k in data if k.startswith(prefix)}


def views_of(meta, dtype):
    """float[S or 1, B, H, W, C] from [B, 3 S or 3, H, W]: network i sees channels 3 i to 3 i + 2."""
    images = meta["data"]["images"].astype(dtype)
    b, channels, h, w = images.shape
    return images.reshape(b, channels // 3, 3, h, w).transpose(1, 0, 3, 4, 2)


def run(parity, case, dtype, steps):
    """Yields, for every step, (losses, outputs, gradients, variables after it)."""
    data = dict(np.load(parity / "train_steps" / f"{case}.npz"))
    meta = {k.removeprefix("meta/"): v for k, v in data.items() if k.startswith("meta/")}
    meta["data"] = data
    spec, networks, method, optimizer, variables = build(meta, dtype)
    batch = {"views": jnp.asarray(views_of(meta, dtype)), "labels": jnp.asarray(data["target"])}
    epoch = jnp.asarray(int(meta["epoch"]))

    def one_step(variables, opt_state):
        def loss(params):
            v = {"params": params, "batch_stats": variables["batch_stats"]}
            value, (stats, metrics) = method.loss(v, batch, jax.random.key(0), epoch)
            return value, (stats, metrics)

        out, grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        of_stack = {c: tree["stack"] for c, tree in variables.items()}
        logits, _, _ = networks.apply(
            of_stack, batch["views"], train=True, key=jax.random.key(0)
        )
        new = {"params": params, "batch_stats": out[1][0]}
        return out[0], out[1][1], logits, grads, new, opt_state

    compiled = jax.jit(one_step, compiler_options=OPTIONS)
    opt_state = optimizer.init(variables["params"])
    for _ in range(steps):
        value, metrics, logits, grads, variables, opt_state = compiled(variables, opt_state)
        yield spec, data, value, metrics, logits, grads, variables


def named(spec, tree, collection, like_all):
    """PyTorch name -> array, with the `models.<i>.` prefix, in PyTorch's layout."""
    one = jax.tree.map(lambda x: x[0], like_all)
    names = torch_import.state_dict_names(spec, one)[collection]
    out = {}
    flat = jax.tree.leaves_with_path(tree["stack"])
    for (path, leaf), name in zip(flat, jax.tree.leaves(names), strict=True):
        for i, value in enumerate(np.asarray(leaf)):
            if path[-1].key == "kernel":
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            out[f"models.{i}.{name}"] = value
    return out


def everything(spec, variables):
    of_stack = {c: tree["stack"] for c, tree in variables.items()}
    return named(spec, variables["params"], "params", of_stack) | named(
        spec, variables["batch_stats"], "batch_stats", of_stack
    )


@pytest.mark.parametrize("case", CASES)
def test_step_in_float64(parity, case):
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        ((spec, data, value, metrics, logits, grads, variables),) = run(
            parity, case, np.float64, 1
        )
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, data["step1/total_loss_f64"], rtol=1e-7)
        np.testing.assert_allclose(
            metrics["cross_entropy"].sum(), data["step1/ce_loss_f64"], rtol=1e-7
        )
        np.testing.assert_allclose(metrics["exchange"], data["step1/cot_loss_f64"], rtol=1e-7)
        expected = data["step1/outputs_f64"]  # stored as float32: 6e-8 of rounding
        np.testing.assert_allclose(logits, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
        of_stack = {c: tree["stack"] for c, tree in variables.items()}
        ours = named(spec, grads, "params", of_stack)
        norms = [np.linalg.norm(ours[name]) for name in data["param_names"]]
        np.testing.assert_allclose(norms, data["step1/grad_norm_f64"], rtol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_three_steps_in_float32(parity, case):
    with jax.default_matmul_precision("highest"):
        for k, (spec, data, value, metrics, logits, _, variables) in enumerate(
            run(parity, case, np.float32, 3), start=1
        ):
            np.testing.assert_allclose(value, data[f"step{k}/total_loss"], rtol=5e-4)
            np.testing.assert_allclose(
                metrics["cross_entropy"].sum(), data[f"step{k}/ce_loss"], rtol=5e-4
            )
            np.testing.assert_allclose(
                metrics["exchange"], data[f"step{k}/cot_loss"], rtol=5e-4
            )
            ensemble = losses.ensemble(logits, "mean_logits")
            scale = np.abs(data[f"step{k}/ensemble_output"]).max()
            np.testing.assert_allclose(
                ensemble, data[f"step{k}/ensemble_output"], atol=5e-4 * scale, rtol=0
            )
            if k in (1, 3):
                check_state(spec, data, variables, k)


def check_state(spec, data, variables, k):
    """Every tensor within 10 x the reference's own rounding (and float32's, where that was 0)."""
    ours = everything(spec, variables)
    noise = dict(zip(data["state_names"], data[f"after{k}/maxabs_f32_minus_f64"], strict=True))
    l2 = dict(zip(data["state_names"], data[f"after{k}/delta_l2"], strict=True))
    checked = 0
    for name, allowed in noise.items():
        if name.endswith("num_batches_tracked"):
            continue
        start = data[f"init/{name}"].astype(np.float64)
        delta = np.linalg.norm(ours[name].astype(np.float64) - start)
        size = np.sqrt(start.size)
        eps = np.finfo(np.float32).eps * max(1.0, np.abs(ours[name]).max())
        limit = 10 * allowed + eps
        assert abs(delta - l2[name]) <= limit * size, name
        stored = data.get(f"after{k}/state/{name}")
        if stored is not None:
            assert np.abs(ours[name] - stored).max() <= limit, name
            checked += 1
    assert checked >= 550  # one network's tensors at least


def test_methods_without_exchange_are_the_sum_of_cross_entropies():
    spec = models.divided("wide_resnet10_1", 1)
    mesh = sharding.make(1, 1, num_networks=2, batch_size=4, devices=jax.devices()[:1])
    networks = stack.make(spec, 2, 10, mesh, lowering="dense")
    config = types.SimpleNamespace(
        method="independent",
        split=2,
        label_smoothing=0.0,
        eval=types.SimpleNamespace(ensemble="mean_logits"),
    )
    method = methods.make(config, None, networks)
    variables = method.init(jax.random.key(0), (8, 8, 1))
    views = jax.random.normal(jax.random.key(1), (2, 4, 8, 8, 1))
    labels = jnp.arange(4)
    value, (_, metrics) = method.loss(
        variables, {"views": views, "labels": labels}, jax.random.key(2), jnp.asarray(0)
    )
    of_stack = {c: tree["stack"] for c, tree in variables.items()}
    logits, _, _ = networks.apply(of_stack, views, train=True, key=jax.random.key(2))
    expected = sum(
        optax.softmax_cross_entropy_with_integer_labels(logits[i], labels).mean() for i in range(2)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert "exchange" not in metrics
    assert method.answer == "ensemble"
