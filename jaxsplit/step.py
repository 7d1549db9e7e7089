"""The training step, as pure functions of arrays."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

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

BatchOf: TypeAlias = Literal["indices", "images"]


def make_inputs(
    sharding: Sharding,
    ops: Sequence[tuple[str, Op]],
    *,
    num_networks: int,
    shared_view: bool,
    batch_of: BatchOf,
    mixup: float,
    cutmix: float = 0.0,
    mix_switch: float = 0.5,
) -> Callable[[dict, dict, Array], dict]:
    """Makes the function that turns a batch into the input of a method's `loss`.

    Each device makes its own part of the input.

    Args:
      sharding: the mesh.
      ops: the augmentations, from `augment.pipeline`.
      num_networks: S.
      shared_view: whether all networks see the same view of an image.
      batch_of: whether a batch holds images and labels, or indices into `resident`.
      mixup: alpha of mixup; 0: off.
      cutmix: alpha of CutMix; 0: off.
      mix_switch: the probability of CutMix in a step, if both are on.

    Returns:
      A function of `resident` ({'images': uint8[N, H, W, C], 'labels': int32[N]}, or {}), `batch`
      ({'index': int32[B]}, or {'images': uint8[S or 1, B, H, W, C], 'labels': int32[B]}) and a key.
    """
    num_views = 1 if shared_view else num_networks // sharding.net_devices
    mixes = bool(mixup or cutmix)

    def local(resident: dict, batch: dict, key: Array) -> dict:
        view_key, lam_key, pair_key = jax.random.split(key, 3)
        images, labels = _examples(resident, batch, batch_of)
        views = augment.make_views(
            ops,
            view_key,
            images,
            num_views=num_views,
            first_network=0 if shared_view else first_network(num_views),
            first_example=first_example(labels.shape[0]),
        )
        if not mixes:
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

    batch_spec, out_spec = _input_specs(sharding, shared_view, batch_of, mixes)
    return sharding.map(local, (sharding.replicated, batch_spec, sharding.replicated), out_spec)


def _examples(resident: dict, batch: dict, batch_of: BatchOf) -> tuple[Array, Array]:
    """The images and labels of a batch."""
    if batch_of == "images":
        return batch["images"], batch["labels"]
    index = batch["index"]
    return resident["images"][index], resident["labels"][index]


def _input_specs(
    sharding: Sharding, shared_view: bool, batch_of: BatchOf, mixes: bool
) -> tuple[dict[str, P], dict[str, P]]:
    """The PartitionSpecs of a batch, and of the input that is made from it."""
    views_spec = sharding.shared_view if shared_view else sharding.views
    if batch_of == "images":
        batch_spec = {"images": views_spec, "labels": sharding.batch}
    else:
        batch_spec = {"index": sharding.batch}
    out_spec = {"views": views_spec, "labels": sharding.batch}
    if mixes:
        out_spec |= {"partner": sharding.batch, "lam": sharding.replicated}
    return batch_spec, out_spec


def check_accumulate(accumulate: int, batch_size: int, sharding: Sharding) -> None:
    """Checks that `accumulate` divides each device's part of a batch.

    Raises:
      ConfigError: it does not.
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

    With `accumulate` = k the step cuts the batch into k micro-batches, runs their forward and
    backward passes one after another, and takes the mean of their gradients and metrics. Except on
    CPU it needs the memory of one micro-batch. Views and mixing are drawn for the whole batch
    first, so they do not depend on k. Each micro-batch updates BatchNorm's statistics in turn
    and has its own dropout noise.

    Args:
      method: its loss is a mean over the batch.
      optimizer: updates all parameters.
      inputs: from `make_inputs`.
      accumulate: k; must divide each device's part of the batch.
      sharding: the mesh; needed if k > 1.
      ema: decay of `state.ema`, the average of parameters and statistics (Polyak averaging, as in
        timm's ModelEmaV3: ema = decay * ema + (1 - decay) * new, buffers too); 0: no average.
      ema_warmup: whether the decay is warmed up; see `averaging`.
    """
    gradients = _gradients(method)
    if accumulate != 1:
        gradients = _accumulated(gradients, accumulate, sharding)

    # Traced once, although `train_step` is traced with several totals: tracing a deep network takes
    # as long as loading its compiled program.
    @functools.partial(jax.jit, inline=True)
    def advance(state, resident, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        input_key, network_key = jax.random.split(key)
        batch = inputs(resident, batch, input_key)
        grads, stats, value, values = gradients(
            state.params, state.batch_stats, batch, network_key, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = state.replace(step=state.step + 1, batch_stats=stats, opt_state=opt_state)
        new = new.replace(params=optax.apply_updates(state.params, updates))
        if method.after is not None:
            new = new.replace(**method.after(new.raw, network_key, new.step))
        if ema:
            share = averaging.replaced(ema, state.step, warmup=ema_warmup)
            new = new.replace(ema=optax.incremental_update(new.raw, state.ema, share))
        # The norm overflows long before the weights do, so no diverged state is saved.
        return new, values, jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))

    def train_step(state, totals, resident, batch):
        new, values, finite = advance(state, resident, batch)
        return new, metrics.add(totals, values, finite, state.step)

    return train_step


# (params, batch_stats, batch, key, step) -> (gradients, new batch_stats, loss, metrics)
_Gradients: TypeAlias = Callable[[dict, dict, dict, Array, Array], tuple[dict, dict, Array, dict]]


def _gradients(method: Method) -> _Gradients:
    """The gradients of a method's loss on a whole batch."""

    def gradients(params, stats, batch, key, progress):
        def loss(params):
            return method.loss({"params": params, "batch_stats": stats}, batch, key, progress)

        (value, (stats, values)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, stats, value, values

    return gradients


def _accumulated(gradients: _Gradients, parts: int, sharding: Sharding | None) -> _Gradients:
    """The mean of `gradients` over `parts` micro-batches that are computed one after another."""
    if sharding is None:
        raise ValueError(f"accumulate={parts}: needs `sharding`")

    def accumulated(params, stats, batch, key, progress):
        def add(carry, micro):
            total, stats = carry
            i, batch = micro
            micro_key = jax.random.fold_in(key, i)
            grads, stats, *outs = gradients(params, stats, batch, micro_key, progress)
            return (jax.tree.map(jnp.add, total, grads), stats), outs

        batches = cut_batch(batch, parts, sharding)
        start = (jax.tree.map(jnp.zeros_like, params), stats)
        # XLA:CPU runs convolution gradients 100x slower inside loops, so unroll; this forfeits the
        # memory saving.
        unroll = sharding.platform == "cpu"
        numbers = jnp.arange(parts)
        (total, stats), outs = jax.lax.scan(add, start, (numbers, batches), unroll=unroll)
        value, values = jax.tree.map(lambda x: x.mean(0), outs)
        return jax.tree.map(lambda x: x / parts, total), stats, value, values

    return accumulated


def cut_batch(batch: dict, parts: int, sharding: Sharding) -> dict:
    """Cuts the output of `make_inputs` into equal parts on a new leading axis, on each device.

    Args:
      batch: `views` [S or 1, B, ...], arrays [B, ...], and scalars, which are repeated.
      parts: the number of parts; must divide each device's part of the batch.
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
