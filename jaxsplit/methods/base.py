"""What a method is, and what all methods over one stack share."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsplit import losses
from jaxsplit.stack import Stack


class Method(NamedTuple):
    """A way of training several networks: pure functions over a tree of variables.

    Variables are {'params': {part: ...}, 'batch_stats': {part: ...}}; the part `stack` carries a
    leading network axis. A batch is a dict with `views` float[S, B, H, W, C] (or [1, B, ...] for
    all), `labels` int[B] and, when mixed, `partner` int[B] and `lam`.
    """

    init: Callable[[Array, tuple[int, int, int]], dict]
    """(key, (H, W, C)) -> variables."""
    loss: Callable[[dict, dict, Array, Array], tuple[Array, tuple[dict, dict[str, Array]]]]
    """(variables, batch, key, progress) -> (scalar, (new batch_stats, metrics)); `progress` counts
    the steps done; metrics are scalars, or float[S] with one value a network."""
    predict: Callable[[dict, Array], dict[str, Array]]
    """(variables, images float[B, H, W, C]) -> name -> logits float[B, K]; net0 ... first."""
    group: Callable[[tuple[str, ...]], str]
    """Path of a parameter -> label of its optimizer, for methods that train parts differently."""
    answer: str
    """The name in `predict` that is the method's answer; `best` is chosen on it."""


def network_names(logits: dict[str, Array]) -> list[str]:
    """Those of `predict` that are single networks of the stack."""
    return [name for name in logits if name.startswith("net")]


def over_stack(
    stack: Stack,
    exchange: Callable[[Array, Array], dict[str, Array]] | None = None,
    *,
    label_smoothing: float = 0.0,
    ensemble: str = "mean_logits",
) -> Method:
    """Cross-entropy summed over the networks of a stack, plus what they exchange.

    Args:
      stack: the networks.
      exchange: (logits float[S, B, K], progress) -> metrics; their `exchange` is added to the loss.
      label_smoothing: of the cross-entropy.
      ensemble: how the networks answer together, a name in `losses.ENSEMBLES`.
    """
    several = stack.num_networks > 1

    def init(key: Array, image_shape: tuple[int, int, int]) -> dict:
        variables = stack.init(key, image_shape)
        # A backbone without BatchNorm has no statistics.
        return {c: {"stack": variables.get(c, {})} for c in ("params", "batch_stats")}

    def of_stack(variables: dict) -> dict:
        return {collection: tree["stack"] for collection, tree in variables.items()}

    def loss(variables: dict, batch: dict, key: Array, progress: Array):
        logits, _, stats = stack.apply(of_stack(variables), batch["views"], train=True, key=key)
        cross_entropy = losses.cross_entropy(
            logits,
            batch["labels"],
            label_smoothing=label_smoothing,
            partner=batch.get("partner"),
            lam=batch.get("lam"),
        )
        total = cross_entropy.sum()
        metrics = {"cross_entropy": cross_entropy, "top1": _top1(logits, batch["labels"])}
        if several:
            metrics["ensemble/top1"] = _top1(
                losses.ensemble(logits, ensemble)[None], batch["labels"]
            )[0]
        if exchange is not None:
            metrics |= exchange(logits, progress)
            total = total + metrics["exchange"]
        return total, ({"stack": stats}, metrics | {"loss": total})

    def predict(variables: dict, images: Array) -> dict[str, Array]:
        logits, _, _ = stack.apply(of_stack(variables), images[None], train=False)
        named = {f"net{i}": logits[i] for i in range(stack.num_networks)}
        if several:
            named["ensemble"] = losses.ensemble(logits, ensemble)
        return named

    def group(path: tuple[str, ...]) -> str:
        return path[0]

    return Method(init, loss, predict, group, "ensemble" if several else "net0")


def _top1(logits: Array, labels: Array) -> Array:
    """Share of right answers of every network, float[S]; logits float[S, B, K], labels int[B]."""
    hit = logits.argmax(-1) == labels[None]
    return hit.astype(jnp.float32).mean(-1)
