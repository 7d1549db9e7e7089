"""One step of training and one of evaluation, as pure functions of arrays."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsplit import augment, losses, metrics
from jaxsplit.augment.ops import Op
from jaxsplit.methods.base import Method, network_names
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
) -> Callable[[dict, dict, Array], dict]:
    """(resident, batch, key) -> what a method's `loss` takes; each device makes its own part.

    Args:
      sharding: the mesh.
      ops: of `augment.pipeline`.
      num_networks: S.
      shared_view: all networks see one view of an image.
      streamed: a batch holds images and labels, not indices into the resident split.
      mixup: alpha; 0 is off.

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
        if not mixup:
            return {"views": views, "labels": labels}
        # Images are paired within a device's part of the batch: nothing crosses devices.
        pair_key = fold_in_data(pair_key)
        views, partner, lam = augment.mixup(lam_key, pair_key, views, labels, mixup)
        return {"views": views, "labels": labels, "partner": partner, "lam": lam}

    if streamed:
        batch_spec = {"images": views_spec, "labels": sharding.batch}
    else:
        batch_spec = {"index": sharding.batch}
    out_spec = {"views": views_spec, "labels": sharding.batch}
    if mixup:
        out_spec |= {"partner": sharding.batch, "lam": sharding.replicated}
    return sharding.map(local, (sharding.replicated, batch_spec, sharding.replicated), out_spec)


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    inputs: Callable[[dict, dict, Array], dict],
) -> Callable[[TrainState, metrics.Totals, dict, dict], tuple[TrainState, metrics.Totals]]:
    """(state, totals, resident, batch) -> (new state, totals with this step's metrics)."""

    def train_step(state, totals, resident, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        input_key, network_key = jax.random.split(key)
        batch = inputs(resident, batch, input_key)

        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            return method.loss(variables, batch, network_key, state.step)

        (value, (stats, values)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        )
        # The norm overflows long before the weights do, so that no diverged state is saved.
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))
        return new, metrics.add(totals, values, finite, state.step)

    return train_step


def make_eval_step(
    method: Method, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict, dict], dict[str, Array]]:
    """(variables, batch) -> sums over the real examples of a padded batch, and their `count`.

    A batch is {'images': uint8[B, H, W, C], 'labels': int32[B], 'mask': float32[B]}. For every name
    in `method.predict`: <name>/top1, <name>/top5 (hits), <name>/nll (nats); and `disagreement`.
    """

    def eval_step(variables, batch):
        images = augment.eval_view(batch["images"], mean, std)
        labels, mask = batch["labels"], batch["mask"]
        named = method.predict(variables, images)
        sums = {"count": mask.sum()}
        for name, logits in named.items():
            # Rank of the true class; of equals the first counts as higher, as in argmax.
            true = jnp.take_along_axis(logits, labels[:, None], 1)
            earlier = jnp.arange(logits.shape[1])[None] < labels[:, None]
            rank = ((logits > true) | ((logits == true) & earlier)).sum(1)
            rank = jnp.where(jnp.isnan(logits).any(1), logits.shape[1], rank)
            log_p = jax.nn.log_softmax(logits)
            nll = -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
            sums |= {
                f"{name}/top1": ((rank < 1) * mask).sum(),
                f"{name}/top5": ((rank < 5) * mask).sum(),
                f"{name}/nll": jnp.where(mask > 0, nll, 0.0).sum(),
            }
        networks = network_names(named)
        if len(networks) > 1:
            stacked = jnp.stack([named[n] for n in networks])
            sums["disagreement"] = (losses.pairwise_disagreement(stacked) * mask).sum()
        return sums

    return eval_step
