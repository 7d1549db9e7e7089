"""Distillation losses between logits, for every method in which networks learn from logits.

`make` builds the loss that a config describes: a name in `LOSSES`, a temperature, a weight, and
whether logits are standardised first. The end of this file has further losses, for co-training.

Each loss in `LOSSES` takes (student float[S, B, K], teacher float[S or 1, B, K], labels int[B],
temperature T) and returns float[S]: the mean over the batch, times T^2 so that the gradients' size
does not depend on T. Only `dkd` reads the labels; with mixup and CutMix they are those of the
images before mixing. Teachers are detached unless `detach=False`. Logits narrower than float32 are
widened first. Values and gradients are finite for any finite logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.models.layers import widen

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Added to a sum of squares before the root, whose gradient is infinite at zero.
_TINY = 1e-12


def kl(
    student: Array, teacher: Array, labels: Array, temperature: float = 1.0, *, detach: bool = True
) -> Array:
    """T^2 KL(p || q), with p = softmax(teacher / T), q = softmax(student / T).

    Hinton et al. 2015 (arXiv 1503.02531), section 2, with the divergence in place of their
    cross-entropy. The module's docstring gives the shapes.

    Example:
        >>> z = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
        >>> round(float(kl(z[:1], z[1:], jnp.array([0]))[0]), 4)  # 0.9 log 1.8 + 0.1 log 0.2
        0.3681
    """
    log_p, log_q = (jax.nn.log_softmax(z / temperature) for z in _wide(student, teacher, detach))
    return temperature**2 * _kl(log_p, log_q).mean(-1)


def dkd(
    student: Array,
    teacher: Array,
    labels: Array,
    temperature: float = 1.0,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    detach: bool = True,
) -> Array:
    """Decoupled distillation: T^2 (alpha TCKD + beta NCKD).

    Zhao et al. 2022 (arXiv 2203.08679), Eq. (7). TCKD is the KL of the binary choice between the
    label and all other classes. NCKD is the KL among the other classes; `beta` replaces its weight
    in `kl`, the teacher's 1 - p_label. The module's docstring gives the shapes.
    """
    log_p, log_q = (jax.nn.log_softmax(z / temperature) for z in _wide(student, teacher, detach))
    is_label = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)[None]

    def parts(log_p: Array) -> tuple[Array, Array]:
        """Logarithms of (p_label, p_other) [..., 2], and of the other classes' shares [..., K].

        p_other is a sum over the other classes: 1 - p_label would round to 0 if a network is
        certain. The entry of the label among the shares is 0.
        """
        others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, log_p), -1)
        label = jnp.where(is_label, log_p, 0).sum(-1)
        among = jnp.where(is_label, 0, log_p - others[..., None])
        return jnp.stack([label, others], -1), among

    (binary_p, among_p), (binary_q, among_q) = parts(log_p), parts(log_q)
    p = jnp.exp(jnp.where(is_label, -jnp.inf, among_p))
    nckd = (p * (among_p - among_q)).sum(-1)
    return temperature**2 * (alpha * _kl(binary_p, binary_q) + beta * nckd).mean(-1)


def dist(
    student: Array,
    teacher: Array,
    labels: Array,
    temperature: float = 1.0,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    detach: bool = True,
) -> Array:
    """T^2 (beta mean(1 - rho of an example) + gamma mean(1 - rho of a class)).

    Huang et al. 2022 (arXiv 2205.10536), L_inter and L_intra: rho is Pearson's correlation of the
    two networks' probabilities, over the classes of an example ("inter-class relation") or over
    the examples of the batch in a class ("intra-class"). If the probabilities do not vary, as in a
    batch of one example, rho is 0. The module's docstring gives the shapes.
    """
    p, q = (jax.nn.softmax(z / temperature) for z in _wide(student, teacher, detach))
    by_example = 1 - _correlation(p, q, axis=-1).mean(-1)
    by_class = 1 - _correlation(p, q, axis=-2).mean(-1)
    return temperature**2 * (beta * by_example + gamma * by_class)


LOSSES: dict[str, Callable[..., Array]] = {"kl": kl, "dkd": dkd, "dist": dist}


def standardize(logits: Array) -> Array:
    """Logits float[..., K] minus their mean over the classes, over their standard deviation.

    Sun et al. 2024 (arXiv 2403.01427), Algorithm 1, before the division by the temperature: the
    student need not match the scale of the teacher's logits. The variance divides by K, as in the
    paper (the authors' code divides by K - 1). Equal logits become zeros.
    """
    return _unit(widen(logits), -1, logits.shape[-1])


@dataclass(frozen=True)
class Distill:
    """A distillation loss with the settings of a config; see `make`."""

    loss: str  # a name in `LOSSES`
    temperature: float
    weight: float = 1.0
    standardize: bool = False
    fields: tuple[tuple[str, float], ...] = ()  # arguments of the loss: alpha, beta, gamma

    def __call__(
        self, student: Array, teacher: Array, labels: Array, *, detach: bool = True
    ) -> Array:
        """weight * loss of every student.

        Args:
          student: float[S, B, K].
          teacher: float[S, B, K], or float[1, B, K] for all students.
          labels: int[B].
          detach: whether to stop the gradient of the teacher.

        Returns:
          float[S].
        """
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        loss = LOSSES[self.loss]
        fields = dict(self.fields)
        value = loss(student, teacher, labels, self.temperature, detach=detach, **fields)
        return self.weight * value

    def pairwise(self, logits: Array, labels: Array) -> Array:
        """weight * each network's mean loss towards the other networks.

        Args:
          logits: float[S, B, K].
          labels: int[B].

        Returns:
          float[S]; zeros where S = 1.
        """
        networks = logits.shape[0]
        if networks == 1:
            return jnp.zeros(1, widen(logits).dtype)
        if self.loss != "kl":
            rolled = [self(logits, jnp.roll(logits, -i, 0), labels) for i in range(1, networks)]
            return jnp.asarray(sum(rolled)) / (networks - 1)
        if self.standardize:
            logits = standardize(logits)
        # For a given student the KL is linear in the teachers: their sum replaces a loop.
        log_q = jax.nn.log_softmax(widen(logits) / self.temperature)
        log_p = jax.lax.stop_gradient(log_q)
        p = jnp.exp(log_p)
        entropies = (p * log_p).sum(-1)
        own = _others(entropies) - (_others(p) * log_q).sum(-1)
        return self.weight * self.temperature**2 * own.mean(-1) / (networks - 1)


def make(config: "ConfigDict", default_temperature: float) -> Distill:
    """The loss that `config.distill` describes.

    Args:
      config: `config.distill`.
      default_temperature: the temperature of the method's paper, used if the config says 'paper'.

    Raises:
      ConfigError: an unknown loss, or a value out of range.
    """
    if config.loss not in LOSSES:
        raise ConfigError(f"distill.loss={config.loss!r}: must be one of {', '.join(LOSSES)}")
    for field in ("weight", "dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma"):
        if not (value := getattr(config, field)) >= 0:
            raise ConfigError(f"distill.{field}={value!r}: must be 0 or more")
    temperature = config.temperature
    if temperature == "paper":
        temperature = default_temperature
    elif not temperature > 0:
        raise ConfigError(f"distill.temperature={temperature!r}: must be 'paper' or above 0")
    fields = {
        "dkd": (("alpha", config.dkd_alpha), ("beta", config.dkd_beta)),
        "dist": (("beta", config.dist_beta), ("gamma", config.dist_gamma)),
    }
    return Distill(
        config.loss,
        temperature,
        config.weight,
        config.standardize,
        fields.get(config.loss, ()),
    )


# ---- Further losses for co-training: float[S, B, K] -> float[], a sum over the networks; 0 for
# S = 1. Targets are detached. The reference lists these losses in its options but lacks their code.


def kl_mean(logits: Array) -> Array:
    """Sum over networks i of the batch mean of KL(mean of the other networks' p || p_i)."""
    if logits.shape[0] == 1:
        return jnp.zeros((), widen(logits).dtype)
    log_p = jax.nn.log_softmax(widen(logits))
    target = _mean_of_others(jnp.exp(log_p))
    return (jax.scipy.special.xlogy(target, target) - target * log_p).sum((0, 2)).mean()


def mse(logits: Array) -> Array:
    """1 / (S - 1) * sum over ordered pairs (i, j) of the mean over B and K of (p_i - p_j)^2."""
    return _to_each(jnp.square, logits)


def mse_mean(logits: Array) -> Array:
    """As `mse`, against the mean of the other networks' p: no sum over j."""
    return _to_mean(jnp.square, logits)


def smooth_l1(logits: Array) -> Array:
    """As `mse`, with d^2 / 2 up to |d| = 1 and |d| - 1/2 beyond, d = p_i - p_j (1504.08083, Eq. 3).

    Probabilities never differ by more than 1, so this loss is half of `mse`.
    """
    return _to_each(_huber, logits)


def smooth_l1_mean(logits: Array) -> Array:
    """As `smooth_l1`, against the mean of the other networks' p."""
    return _to_mean(_huber, logits)


def _huber(d: Array) -> Array:
    return jnp.where(jnp.abs(d) < 1, 0.5 * jnp.square(d), jnp.abs(d) - 0.5)


def _to_each(distance: Callable[[Array], Array], logits: Array) -> Array:
    p = jax.nn.softmax(widen(logits))
    networks = p.shape[0]
    if networks == 1:
        return jnp.zeros((), p.dtype)
    fixed = jax.lax.stop_gradient(p)
    rolled = (distance(p - jnp.roll(fixed, -i, 0)) for i in range(1, networks))
    return jnp.asarray(sum(rolled)).mean((1, 2)).sum() / (networks - 1)


def _to_mean(distance: Callable[[Array], Array], logits: Array) -> Array:
    p = jax.nn.softmax(widen(logits))
    if p.shape[0] == 1:
        return jnp.zeros((), p.dtype)
    return distance(p - _mean_of_others(p)).mean((1, 2)).sum()


def _mean_of_others(p: Array) -> Array:
    """For each network the mean of the other networks' probabilities, detached."""
    p = jax.lax.stop_gradient(p)
    return jnp.maximum(_others(p), 0) / (p.shape[0] - 1)  # rounding could make it negative


# ---- Helpers


def _wide(student: Array, teacher: Array, detach: bool) -> tuple[Array, Array]:
    """(teacher, student), widened."""
    teacher = jax.lax.stop_gradient(teacher) if detach else teacher
    return widen(teacher), widen(student)


def _others(x: Array) -> Array:
    """For each network the sum over the other networks of float[S, ...]."""
    return x.sum(0, keepdims=True) - x


def _kl(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) over the last axis."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _correlation(p: Array, q: Array, axis: int) -> Array:
    """Pearson's correlation over an axis."""
    return (_unit(p, axis, 1) * _unit(q, axis, 1)).sum(axis)


def _unit(x: Array, axis: int, square: float) -> Array:
    """`x` minus its mean over an axis, scaled so that its sum of squares is `square`."""
    x = x - x.mean(axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) / square + _TINY)
