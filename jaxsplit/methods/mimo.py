"""MIMO: one network with M inputs and M outputs, which are trained to be independent.

Havasi et al. 2021, "Training Independent Subnetworks for Robust Prediction" (arXiv 2010.06610),
Eqs. (1) and (2). The network f sees M images side by side on the channels, and has M outputs; only
its first convolution and its classifier are wider. In training the images are drawn independently:

  loss = mean over the batch of sum_m CE(f_m(x_1 ... x_M), y_m)

and at test all M are the same image, of which the M predictions are averaged.

As in the authors' code (uncertainty-baselines, `mimo.py`) a batch is repeated, then shuffled once
for every input; the last rows of the shuffled batch, a share rho, are the same for all inputs
(input repetition). Each device shuffles its own part of the batch, as they do. They cut the batch
by the number of repetitions so that a step costs the same; here it has `batch_size` images, and a
step costs as many times more. The paper averages probabilities: `config.eval.ensemble=mean_probs`.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit import losses
from jaxsplit.errors import ConfigError
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss
from jaxsplit.methods.base import Method
from jaxsplit.methods.entry import Entry
from jaxsplit.section import Section
from jaxsplit.sharding import fold_in_data
from jaxsplit.stack import Stack


def make(
    stack: Stack,
    *,
    heads: int,
    input_repetition: float = 0.0,
    batch_repetitions: int = 4,
    label_loss: LabelLoss = CROSS_ENTROPY,
    ensemble: str = "mean_logits",
) -> Method:
    """MIMO over a stack of one network without a trunk, made for M times as many classes.

    Its answers are net0 ..., the M outputs, and their `ensemble`.

    Args:
      stack: one network; `init` gives it images of M times as many channels.
      heads: M.
      input_repetition: rho in [0, 1], the share of rows with one image for all inputs.
      batch_repetitions: how often each image is in a batch.
      label_loss: CE.
      ensemble: how the outputs are combined, a name in `losses.ENSEMBLES`.

    Raises:
      ValueError: the stack has several networks, or a trunk.
    """
    if stack.num_networks != 1 or stack.shares:
        raise ValueError("mimo: needs a stack of 1 network that shares nothing")
    its = _Inputs(stack, heads, input_repetition, batch_repetitions, label_loss, ensemble)
    answer = "ensemble" if heads > 1 else "net0"
    return Method(its.init, its.loss, its.predict, lambda path: "", answer)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """A network of several inputs and how to train it; `make` describes the fields."""

    stack: Stack
    heads: int
    input_repetition: float
    batch_repetitions: int
    label_loss: LabelLoss
    ensemble: str

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> dict:
        """As `Method.init`."""
        height, width, channels = image_shape
        variables = self.stack.init(key, (height, width, self.heads * channels))
        return {c: {"stack": variables.get(c, {})} for c in ("params", "batch_stats")}

    def loss(self, variables: dict, batch: dict, key: Array, progress: Array):
        """As `Method.loss`."""
        views, targets = side_by_side(
            self.stack,
            batch,
            jax.random.fold_in(key, zlib.crc32(b"mimo")),
            heads=self.heads,
            input_repetition=self.input_repetition,
            batch_repetitions=self.batch_repetitions,
        )
        logits, stats = self._apply(variables, views, train=True, key=key)
        mixed = {"lam": batch["lam"]} if "lam" in batch else {}
        parts = []
        for m in range(self.heads):
            own = mixed | {name: x[m] for name, x in targets.items()}
            parts.append(self.label_loss(logits[m][None], own))
        by_head = jnp.concatenate(parts)
        hit = logits.argmax(-1) == targets["labels"]
        top1, total = hit.astype(jnp.float32).mean(-1), by_head.sum()
        return total, (stats, {self.label_loss.metric: by_head, "top1": top1, "loss": total})

    def predict(self, variables: dict, images: Array) -> dict[str, Array]:
        """As `Method.predict`."""
        logits, _ = self._apply(variables, jnp.tile(images, self.heads)[None], train=False)
        named = {f"net{m}": logits[m] for m in range(self.heads)}
        if self.heads > 1:
            named["ensemble"] = losses.ensemble(logits, self.ensemble)
        return named

    def _apply(self, variables: dict, views: Array, **options: Any) -> tuple[Array, dict]:
        """(logits float[M, B, K], new statistics)."""
        layers = {c: parts["stack"] for c, parts in variables.items()}
        logits, _, stats = self.stack.apply(layers, views, **options)
        return jnp.stack(jnp.split(logits[0], self.heads, -1)), {"stack": stats}


def side_by_side(
    stack: Stack,
    batch: dict,
    key: Array,
    *,
    heads: int,
    input_repetition: float,
    batch_repetitions: int,
) -> tuple[Array, dict[str, Array]]:
    """Draws the images of every input: (views float[1, R B, H, W, M C], targets [M, R B]).

    Targets are those of `batch`: `labels`, and `partner` of mixed images. Arguments as of `make`.
    """
    targets = {name: batch[name] for name in ("labels", "partner") if name in batch}

    def local(views: Array, targets: dict, key: Array):
        images, keys = views[0], jax.random.split(fold_in_data(key), heads + 1)
        rows = jnp.tile(jnp.arange(images.shape[0]), batch_repetitions)
        rows = jax.random.permutation(keys[0], rows)
        apart = int(rows.shape[0] * (1 - input_repetition))
        chosen = [
            jnp.concatenate([jax.random.permutation(k, rows[:apart]), rows[apart:]])
            for k in keys[1:]
        ]
        wide = jnp.concatenate([images[i] for i in chosen], -1)
        return wide[None], {n: jnp.stack([x[i] for i in chosen]) for n, x in targets.items()}

    mesh = stack.sharding
    in_specs = (mesh.shared_view, mesh.batch, mesh.replicated)
    mapped = mesh.map(local, in_specs, (mesh.shared_view, mesh.shared_view))
    return mapped(batch["views"], targets, key)


# ---- What `config.method='mimo'` stands for


def _make(config, plan, stack: Stack, **fields) -> Method:
    its = config.mimo
    return make(
        stack,
        heads=config.split,
        input_repetition=its.input_repetition,
        batch_repetitions=its.batch_repetitions,
        **fields,
    )


def _check(section: Section) -> None:
    given, config = section.given, section.config
    section.need("input_repetition", "in [0, 1]", 0 <= given["input_repetition"] <= 1)
    section.need("batch_repetitions", "at least 1", given["batch_repetitions"] >= 1)
    if config.method == "mimo" and config.views == "different":
        raise ConfigError(
            f"views={config.views!r}: must be same or paper with method='mimo', whose inputs see "
            "different images"
        )


ENTRY = Entry(
    _make,
    trunk="never",
    labels_only=True,
    fields={
        "input_repetition": 0.0,  # rho, the share of rows with one image for all inputs
        "batch_repetitions": 4,  # how often each image is in a batch; the step costs as much more
    },
    check=_check,
    heads=lambda config: max(config.split, 1),
    whole=True,
    networks=lambda config: {},  # its outputs have no parameters of their own but the last layer's
    as_published=lambda config: False,
)
