"""The training step, as pure functions of arrays."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec as P

from jaxsplit import augment, averaging, metrics
from jaxsplit.augment.ops import Op
from jaxsplit.errors import ConfigError
from jaxsplit.methods.base import Method
from jaxsplit.sharding import Sharding, first_example, first_network, fold_in_data
from jaxsplit.state import TrainState


def make_inputs(
    sharding: Sharding,
    ops: Sequence[tuple[str, Op]],
    *,
    num_networks: int,
    shared_view: bool,
    streamed: bool,
    mixup: float,
    cutmix: float = 0.0,
    mix_switch: float = 0.5,
) -> Callable[[dict, dict, Array], dict]:
    """Makes the function that turns a batch into the input of a method's `loss`.

    Each device makes its own part.

    Args:
      sharding: the mesh.
      ops: of `augment.pipeline`.
      num_networks: S.
      shared_view: all networks see one view of an image.
      streamed: whether a batch holds images and labels, instead of indices into the resident split.
      mixup: alpha; 0: off.
      cutmix: alpha; 0: off.
      mix_switch: if both are on, the probability of CutMix in a step.

    Returns:
      A function of `resident` ({'images': uint8[N, H, W, C], 'labels': int32[N]}, or {}), `batch`
      ({'index': int32[B]}, or {'images': uint8[S or 1, B, H, W, C], 'labels': int32[B]}) and a key.
    """
    views_spec = sharding.shared_view if shared_view else sharding.views

    def local(resident: dict, batch: dict, key: Array) -> dict:
        view_key, lam_key, pair_key = jax.random.split(key, 3)
        if streamed:
            images, labels = batch["images"], batch["labels"]
        else:
            images = resident["images"][batch["index"]]
            labels = resident["labels"][batch["index"]]
        num_views = 1 if shared_view else num_networks // sharding.net_devices
        views = augment.make_views(
            ops,
            view_key,
            images,
            num_views=num_views,
            first_network=0 if shared_view else first_network(num_views),
            first_example=first_example(labels.shape[0]),
        )
        if not (mixup or cutmix):
            return {"views": views, "labels": labels}
        # Each device pairs images of its own part of the batch: nothing crosses devices.
        pair_key = fold_in_data(pair_key)
        views, partner, lam = augment.mixup_or_cutmix(
            lam_key,
            pair_key,
            views,
            labels,
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            switch=mix_switch,
        )
        return {"views": views, "labels": labels, "partner": partner, "lam": lam}

    if streamed:
        batch_spec = {"images": views_spec, "labels": sharding.batch}
    else:
        batch_spec = {"index": sharding.batch}
    out_spec = {"views": views_spec, "labels": sharding.batch}
    if mixup or cutmix:
        out_spec |= {"partner": sharding.batch, "lam": sharding.replicated}
    return sharding.map(local, (sharding.replicated, batch_spec, sharding.replicated), out_spec)


def check_accumulate(accumulate: int, batch_size: int, sharding: Sharding) -> None:
    """Makes sure that each device's part of a batch can be cut in `accumulate` equal parts.

    Raises:
      ConfigError: it cannot.
    """
    local = batch_size // sharding.data_devices
    if accumulate < 1 or local % accumulate:
        raise ConfigError(
            f"optim.accumulate={accumulate}: must divide the {local} images of a device "
            f"(batch_size={batch_size} over mesh.data={sharding.data_devices})"
        )


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    inputs: Callable[[dict, dict, Array], dict],
    *,
    accumulate: int = 1,
    sharding: Sharding | None = None,
    ema: float = 0.0,
    ema_warmup: bool = False,
) -> Callable[[TrainState, metrics.Totals, dict, dict], tuple[TrainState, metrics.Totals]]:
    """Makes (state, totals, resident, batch) -> (new state, totals with this step's metrics).

    With `accumulate` = k the step cuts the batch in k micro-batches, runs their forward and
    backward passes one after another, and takes the mean of their gradients and metrics. Except on
    CPU it needs the memory of one micro-batch. Views and mixing are drawn for the whole batch
    before, so they do not depend on k. Each micro-batch updates BatchNorm's statistics in turn
    and has its own dropout noise.

    Args:
      method: its loss is a mean over the batch.
      optimizer: of all parameters.
      inputs: from `make_inputs`.
      accumulate: k; divides each device's part of the batch.
      sharding: the mesh; needed if k > 1.
      ema: decay of `state.ema`, the average of parameters and statistics (Polyak averaging, as in
        timm's ModelEmaV3: ema = decay * ema + (1 - decay) * new, buffers too); 0: no average.
      ema_warmup: whether the decay is warmed up; see `averaging`.
    """

    def gradients(params, stats, batch, key, progress):
        def loss(params):
            return method.loss({"params": params, "batch_stats": stats}, batch, key, progress)

        (value, (stats, values)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, stats, value, values

    def accumulated(params, stats, batch, key, progress):
        if sharding is None:
            raise ValueError(f"accumulate={accumulate}: needs `sharding`")

        def add(carry, micro):
            total, stats = carry
            i, batch = micro
            micro_key = jax.random.fold_in(key, i)
            grads, stats, *outs = gradients(params, stats, batch, micro_key, progress)
            return (jax.tree.map(jnp.add, total, grads), stats), outs

        batches = cut_batch(batch, accumulate, sharding)
        start = (jax.tree.map(jnp.zeros_like, params), stats)
        # XLA:CPU runs convolution gradients 100x slower inside loops, so unroll; this forfeits the
        # memory saving.
        unroll = sharding.platform == "cpu"
        numbers = jnp.arange(accumulate)
        (total, stats), outs = jax.lax.scan(add, start, (numbers, batches), unroll=unroll)
        value, values = jax.tree.map(lambda x: x.mean(0), outs)
        return jax.tree.map(lambda x: x / accumulate, total), stats, value, values

    # Traced once, although `train_step` is traced with several totals: tracing a deep network takes
    # as long as loading its compiled program.
    @functools.partial(jax.jit, inline=True)
    def advance(state, resident, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        input_key, network_key = jax.random.split(key)
        batch = inputs(resident, batch, input_key)
        grads, stats, value, values = (gradients if accumulate == 1 else accumulated)(
            state.params, state.batch_stats, batch, network_key, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        )
        if ema:
            share = averaging.replaced(ema, state.step, warmup=ema_warmup)
            new = new.replace(ema=optax.incremental_update(new.raw, state.ema, share))
        # The norm overflows long before the weights do, so no diverged state is saved.
        return new, values, jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))

    def train_step(state, totals, resident, batch):
        new, values, finite = advance(state, resident, batch)
        return new, metrics.add(totals, values, finite, state.step)

    return train_step


def cut_batch(batch: dict, parts: int, sharding: Sharding) -> dict:
    """Cuts the output of `make_inputs` in equal parts on a new leading axis, on each device.

    Args:
      batch: `views` [S or 1, B, ...], arrays [B, ...], and scalars, which every part gets.
      parts: divides each device's part of the batch.
      sharding: the mesh.

    Returns:
      `views` [parts, S or 1, B / parts, ...], the others [parts, B / parts, ...] or [parts].
    """

    def spec(name: str, x: Array) -> P:
        if x.ndim == 0:
            return sharding.replicated
        if name != "views":
            return sharding.batch
        return sharding.shared_view if x.shape[0] == 1 else sharding.views

    def cut(name: str, x: Array) -> Array:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        axis = int(name == "views")
        shape = (*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    specs = {name: spec(name, x) for name, x in batch.items()}
    return sharding.map(
        lambda batch: {name: cut(name, x) for name, x in batch.items()},
        (specs,),
        {name: P(None, *spec) for name, spec in specs.items()},
    )(batch)
