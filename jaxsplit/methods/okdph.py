"""OKDPH: a network whose weights are a random mixture of the students' learns with them.

Zhang et al. 2023, "Generalization Matters: Loss Minima Flattening via Parameter Hybridization for
Efficient Online Knowledge Distillation" (arXiv 2303.14666). The hybrid has the weights
w_h = sum_i r_i w_i; r is drawn anew at each step, uniform over all convex combinations
(Dirichlet(1, ..., 1)), or is 1 / S. With the logits z_i of the students and z_h of the hybrid, and
their detached mean z = (sum_i z_i + z_h) / (S + 1), the loss is

  sum_i (omega CE_i + beta T^2 KL(softmax(z / T) || softmax(z_i / T))) + (1 - omega) CE_h

The gradient of CE_h with respect to w_i is r_i times that with respect to w_h: the hybrid's loss
reaches all students. From time to time the students are drawn to the hybrid,
w_i <- (1 - gamma) w_i + gamma w_h; so they stay so near each other that a mixture of them is a good
network. As in the authors' code, the students start with the same weights, each network sees views
of its own (here the hybrid sees the first student's), running statistics are mixed as weights are,
and the hybrid normalises by the batch when it learns. In that code CE_h does not reach the
students; here it does, as in the paper.

What is kept is the hybrid with r_i = 1 / S, the mean of the students. Its running statistics are
the mean of theirs.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.costs import Networks
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss
from jaxsplit.losses import distill as distill_lib
from jaxsplit.methods.base import Method, Pass, over_stack, top1
from jaxsplit.methods.entry import MEAN, Entry, Single, of_stack
from jaxsplit.section import Section
from jaxsplit.stack import Stack

HYBRID = "hybrid"
COEFFICIENTS = ("dirichlet", "mean")


def coefficients(name: str, key: Array, count: int) -> Array:
    """r, float[count]: 'mean' gives 1 / count, 'dirichlet' a draw from Dirichlet(1, ..., 1)."""
    if name == "mean":
        return jnp.full(count, 1 / count)
    # Exponential draws over their sum are Dirichlet(1, ..., 1).
    drawn = jax.random.exponential(jax.random.fold_in(key, 0), (count,))
    return drawn / drawn.sum()


def mixed(tree: Any, r: Array) -> Any:
    """sum_i r_i x_i of every array float[S, ...] of a tree; r is float[S]."""
    return jax.tree.map(lambda x: jnp.tensordot(r.astype(x.dtype), x, 1), tree)


def make(
    stack: Stack,
    *,
    distill: distill_lib.Distill,
    omega: float = 0.8,
    beta: float = 0.8,
    gamma: float = 0.5,
    every: int = 1,
    r: str = "dirichlet",
    label_loss: LabelLoss = CROSS_ENTROPY,
    ensemble: str = "mean_logits",
) -> Method:
    """OKDPH over a stack of S >= 2 students; the answer is `hybrid`.

    Args:
      stack: the students. If they share a trunk, it is the hybrid's, too.
      distill: the loss between logits; in the paper T^2 KL with T = 4.
      omega: weight of the students' cross-entropy; 1 - omega is that of the hybrid's.
      beta: weight of `distill`.
      gamma: share of the hybrid in a student that is drawn to it; 0: never.
      every: steps between two such moves.
      r: a name in `COEFFICIENTS`.
      label_loss, ensemble: see `over_stack`.
    """
    lessons = _Lessons(distill, omega, beta, r, label_loss)
    fields: dict[str, Any] = dict(label_loss=label_loss, ensemble=ensemble)
    made = over_stack(
        stack,
        lessons.exchange,
        answers=lessons.answers,
        answer=HYBRID,
        label_weight=omega,
        **fields,
    )

    def init(key: Array, image_shape: tuple[int, int, int]) -> dict:
        """The students' variables, all those of the first; the hybrid has none of its own."""
        drawn = over_stack(stack, **fields).init(key, image_shape)
        same = lambda x: jnp.broadcast_to(x[:1], x.shape)  # noqa: E731
        return {c: t | {"stack": jax.tree.map(same, t["stack"])} for c, t in drawn.items()}

    def after(variables: dict, key: Array, step: Array) -> dict:
        """Draws the students to the hybrid after every `every` steps."""

        def drawn(students: dict) -> dict:
            hybrid = mixed(students, coefficients(r, key, stack.num_networks))
            return jax.tree.map(lambda x, h: x + gamma * (h[None] - x), students, hybrid)

        students = {c: tree["stack"] for c, tree in variables.items()}
        moved = jax.lax.cond(step % every == 0, drawn, lambda students: students, students)
        return {c: tree | {"stack": moved[c]} for c, tree in variables.items()}

    return made._replace(init=init, after=after if gamma else None)


@dataclasses.dataclass(frozen=True)
class _Lessons:
    """What the students and the hybrid learn in one step; `make` describes the fields."""

    distill: distill_lib.Distill
    omega: float
    beta: float
    r: str
    label_loss: LabelLoss

    def exchange(self, this: Pass) -> dict[str, Array]:
        """Losses and metrics of one training step; `exchange` is the loss to add."""
        labels, z = this.batch["labels"], this.logits
        hybrid = _hybrid(this, coefficients(self.r, this.key, z.shape[0]))[None]
        (own,) = self.label_loss(hybrid, this.batch)
        together = jnp.concatenate([z, hybrid]).mean(0, keepdims=True)
        taught = self.beta * self.distill(z, together, labels)
        return {
            "exchange": taught.sum() + (1 - self.omega) * own,
            "distill": taught,
            f"hybrid/{self.label_loss.metric}": own,
            "hybrid/top1": top1(hybrid, labels)[0],
        }

    def answers(self, this: Pass) -> dict[str, Array]:
        """Logits of the mean of the students."""
        return {HYBRID: _hybrid(this, coefficients("mean", this.key, this.logits.shape[0]))}


def _hybrid(this: Pass, r: Array) -> Array:
    """Logits float[B, K] of the network that mixes the students' variables by r."""
    own = {
        collection: tree | {HYBRID: mixed(tree["stack"], r) | tree.get("trunk", {})}
        for collection, tree in this.variables.items()
    }
    view = this.batch["views"][0]
    mixture = dataclasses.replace(this, variables=own, new_stats={})  # it keeps no statistics
    logits, _ = mixture.network(HYBRID, lambda **fields: this.stack.module, view)
    return logits


# ---- What `config.method='okdph'` stands for


def _make(config, plan, stack: Stack, **fields) -> Method:
    its = config.okdph
    return make(
        stack,
        distill=distill_lib.make(config.distill, 4.0),
        omega=its.omega,
        beta=its.beta,
        gamma=its.gamma,
        every=max(1, plan.method_steps["okdph.every"]),
        r=its.coefficients,
        **fields,
    )


def _check(section: Section) -> None:
    for field in ("omega", "gamma"):
        section.need(field, "in [0, 1]", 0 <= section.given[field] <= 1)
    section.at_least_zero("beta")
    section.one_of("coefficients", COEFFICIENTS)


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    return {HYBRID: (networks.small.params, networks.small.macs)}


def _advice(config, plan) -> Iterator[str]:
    if config.views == "same" and config.okdph.coefficients == "mean":
        yield (
            "views='same', okdph.coefficients='mean': the students start equal and learn the same, "
            "so that they stay equal unless the backbone has dropout"
        )
    every, total = plan.method_steps["okdph.every"], plan.total_steps
    if config.okdph.gamma and every > total:
        yield (
            f"okdph.every={config.okdph.every!r}: longer than the run of {total} steps, so that "
            "the students are never drawn to the hybrid"
        )


ENTRY = Entry(
    _make,
    views="different",
    answer=HYBRID,
    whole=True,
    fields={
        "omega": 0.8,  # weight of the students' cross-entropy, in [0, 1]; the hybrid's: 1 - omega
        "beta": 0.8,  # weight of the loss between logits, besides distill.weight
        "gamma": 0.5,  # share of the hybrid in a student after a move towards it, in [0, 1]
        "every": "1 epochs",  # duration between two such moves
        # Of the mixture, at each step: dirichlet (uniform over convex combinations) | mean.
        "coefficients": "dirichlet",
    },
    check=_check,
    durations=("every",),
    networks=lambda config: of_stack(config) | {HYBRID: Single(MEAN)},
    costs=_costs,
    advice=_advice,
    as_published=lambda config: not config.divide,
)
