"""FFSD: students teach each other, a module fuses their features, and a leader learns from it.

Li et al. 2021, "Distilling a Powerful Student Model via Online Knowledge Distillation"
(arXiv 2103.14473), in the order and with the weights of the original code. The students are the
stack; the leader is the network that is kept. All losses of a step use the weights before the step:

  student i   CE + mean T^2 KL towards the other students + diversity of its attention from that of
              student i - 1 + self-distillation of its earlier maps
  fusion      CE + T^2 KL towards the mean of the students' logits, on their last maps
  leader      CE + T^2 KL towards the fusion module's logits + attention towards the fused map
              + attention of its trans-fusion module towards all students' maps
              + self-distillation of its earlier maps from the fused map
  self-distillation modules   predict a network's earlier maps from its last map

Every teacher is detached. One gradient of the summed loss therefore equals the gradients that the
original code computes with a backward pass for each network. Self-distillation modules normalise by
their running statistics when they teach, and by the batch when they learn.

The original code applies its diversity weight to the students' self-distillation too, and its
self-distillation weight only to the training of the modules. `Weights` has a name for each.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit import models
from jaxsplit.costs import Networks, cost, map_shape
from jaxsplit.errors import ConfigError
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss, attention
from jaxsplit.losses import distill as distill_lib
from jaxsplit.methods import self_distillation
from jaxsplit.methods.base import Method, Pass, over_stack, top1
from jaxsplit.methods.entry import Entry, Single, of_stack
from jaxsplit.models import fusion
from jaxsplit.section import Section
from jaxsplit.stack import Stack

# Labels of optimizers; the students use the config's optimizer.
LEADER, FUSION, SELF_DISTILLATION = "leader", "fusion", "self_distillation"


class Weights(NamedTuple):
    """Weights of all terms except cross-entropy and KL; the defaults are the published values."""

    diversity: float = 1e-5
    student_self_distillation: float = 1e-5
    fusion: float = 10.0
    trans_fusion: float = 10.0
    leader_self_distillation: float = 10.0
    train_self_distillation: float = 1000.0


def warmup(progress: Array | int, steps_per_epoch: int, warmup_steps: int) -> Array:
    """Factor of all `Weights`: exp(-5 (1 - e / E)^2) in epochs e = 1, 2 ... E, then 1."""
    epoch = jnp.asarray(progress) // steps_per_epoch + 1
    left = jnp.maximum(1 - epoch * steps_per_epoch / max(warmup_steps, 1), 0)
    return jnp.exp(-5 * jnp.square(left))


def make(
    stack: Stack,
    *,
    leader: models.Spec,
    distill: distill_lib.Distill,
    leader_remat: tuple[str, ...] = (),
    weights: Weights | None = None,
    steps_per_epoch: int = 1,
    warmup_steps: int = 0,
    label_loss: LabelLoss = CROSS_ENTROPY,
    ensemble: str = "mean_logits",
) -> Method:
    """FFSD over a stack of M >= 2 students.

    Variables have the parts `stack`, `leader`, `fusion`, `trans_fusion`, `sd_leader`, and `sd1` ...
    for each student but the first. With one view, students and leader all see it. With a view per
    student, the leader sees the first student's.

    Args:
      stack: the students.
      leader: the leader's Spec.
      distill: loss between logits; in the paper T^2 KL with T = 2.
      leader_remat: stages of the leader to recompute, from `models.remat_stages`.
      weights: weights of the other terms; None: the published ones.
      steps_per_epoch: steps per epoch; the warm-up changes once per epoch.
      warmup_steps: length of the warm-up of `weights`; 0: none.
      label_loss, ensemble: see `over_stack`.
    """
    lessons = _Lessons(
        leader,
        distill,
        leader_remat,
        weights or Weights(),
        steps_per_epoch,
        warmup_steps,
        label_loss,
    )
    return over_stack(
        stack,
        lessons.exchange,
        answers=lessons.answers,
        answer="leader",
        group=_group,
        label_loss=label_loss,
        ensemble=ensemble,
    )


def _group(path: tuple[str, ...]) -> str:
    """Label of the optimizer of the variable at `path`."""
    if path[0].startswith("sd"):
        return SELF_DISTILLATION
    return {"fusion": FUSION, "stack": ""}.get(path[0], LEADER)


class _Students(NamedTuple):
    """Losses of the students, float[M] each, and `learned`, their modules' own losses."""

    mutual: Array
    diversity: Array
    taught: Array
    learned: list[tuple[Array, Array]]


class _Leader(NamedTuple):
    """Scalar losses of the leader, and `learned`, its self-distillation module's own losses."""

    cross_entropy: Array
    distill: Array
    fusion: Array
    trans_fusion: Array
    taught: Array
    learned: tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class _Lessons:
    """What networks learn from each other in one step; `make` describes the fields."""

    leader: models.Spec
    distill: distill_lib.Distill
    leader_remat: tuple[str, ...]
    weights: Weights
    steps_per_epoch: int
    warmup_steps: int
    label_loss: LabelLoss

    def exchange(self, this: Pass) -> dict[str, Array]:
        """Losses and metrics of one training step; `exchange` is the loss to add."""
        labels, z = this.batch["labels"], this.logits
        w = warmup(this.progress, self.steps_per_epoch, self.warmup_steps)
        students = self._students(this)
        leader_logits, features = self._lead(this)
        maps = self_distillation.maps_of(features)
        joined, fusion_logits, fused = self._fuse(this, maps[-1].shape[-1])
        fusion_ce = self._label_loss(this, fusion_logits)
        fusion_kl = self._towards(this, fusion_logits, z.mean(0))
        teacher = (fusion_logits, joined, jax.lax.stop_gradient(fused))
        leader = self._leader(this, leader_logits, maps, *teacher)

        leader_loss = self._leader_loss(leader, w)
        learned = [*students.learned, leader.learned]
        by_map, by_attention = (
            self_distillation.total(terms) for terms in zip(*learned, strict=True)
        )
        modules = w * self.weights.train_self_distillation * (by_map + by_attention)
        student = self._student_loss(students, w)
        return {
            "exchange": student.sum() + fusion_ce + fusion_kl + leader_loss + modules,
            "distill": students.mutual,
            "diversity": students.diversity,
            "self_distillation": students.taught,
            f"fusion/{self.label_loss.metric}": fusion_ce,
            "fusion/distill": fusion_kl,
            "fusion/top1": top1(fusion_logits[None], labels)[0],
            "leader/loss": leader_loss,
            f"leader/{self.label_loss.metric}": leader.cross_entropy,
            "leader/distill": leader.distill,
            "leader/fusion": leader.fusion,
            "leader/trans_fusion": leader.trans_fusion,
            "leader/self_distillation": leader.taught,
            "leader/top1": top1(leader_logits[None], labels)[0],
            "self_distillation/maps": by_map,
            "self_distillation/attention": by_attention,
            "ffsd/warmup": w,
        }

    def answers(self, this: Pass) -> dict[str, Array]:
        """Logits of the fusion module and of the leader."""
        leader_logits, features = self._lead(this)
        fused = self._fuse(this, features["final"].shape[-1])
        return {"fusion": fused[1], "leader": leader_logits}

    def _lead(self, this: Pass) -> tuple[Array, dict[str, Array]]:
        """(logits, features) of the leader."""
        classes = this.logits.shape[-1]
        build = functools.partial(models.build, self.leader, classes, remat=self.leader_remat)
        return this.network("leader", build, this.batch["views"][0])

    def _fuse(self, this: Pass, features: int) -> tuple[Array, Array, Array]:
        """(the students' last maps concatenated, the fusion module's logits, the fused map).

        The fused map has `features` channels, as many as the leader's map, which learns from it. In
        the paper the students' maps have as many, too.
        """
        last = jax.lax.stop_gradient(this.features["final"])  # [M, B, h, w, C]
        joined = jnp.moveaxis(last, 0, -2).reshape(*last.shape[1:4], -1)
        module = functools.partial(fusion.Fusion, features, this.logits.shape[-1])
        return joined, *this.apply_module("fusion", module, joined)

    def _label_loss(self, this: Pass, logits: Array) -> Array:
        return self.label_loss(logits[None], this.batch)[0]

    def _towards(self, this: Pass, logits: Array, teacher: Array) -> Array:
        labels = this.batch["labels"]
        return self.distill(logits[None], jax.lax.stop_gradient(teacher)[None], labels)[0]

    def _students(self, this: Pass) -> _Students:
        maps, students = self_distillation.maps_of(this.features), this.logits.shape[0]
        maps_of = [[x[i] for x in maps] for i in range(students)]
        mutual = self.distill.pairwise(this.logits, this.batch["labels"])
        diversity, taught, learned = [jnp.zeros(())], [jnp.zeros(())], []
        for i in range(1, students):
            before, last = jax.lax.stop_gradient(maps_of[i - 1][-1]), maps_of[i][-1]
            target = attention.attention(before)
            diversity.append(attention.diversity_loss(attention.attention(last), target))
            target = attention.diversity_target(before).astype(before.dtype)
            taught.append(self_distillation.teach(this, f"sd{i}", maps_of[i], target))
            learned.append(self_distillation.learn(this, f"sd{i}", maps_of[i]))
        return _Students(mutual, jnp.stack(diversity), jnp.stack(taught), learned)

    def _leader(
        self,
        this: Pass,
        logits: Array,
        maps: list[Array],
        fusion_logits: Array,
        joined: Array,
        fused: Array,
    ) -> _Leader:
        """Losses of the leader; `fused` is detached."""
        module = functools.partial(fusion.TransFusion, joined.shape[-1])
        trans_fused = this.apply_module("trans_fusion", module, maps[-1])
        of_leader = attention.attention(maps[-1])
        # If the leader has another architecture, its map may have another size.
        shape = (*maps[-1].shape[:3], fused.shape[-1])
        resized = fused if fused.shape == shape else jax.image.resize(fused, shape, "linear")
        return _Leader(
            self._label_loss(this, logits),
            self._towards(this, logits, fusion_logits),
            attention.attention_loss(of_leader, attention.attention(fused)),
            attention.attention_loss(attention.attention(trans_fused), attention.attention(joined)),
            self_distillation.teach(this, "sd_leader", maps, resized),
            self_distillation.learn(this, "sd_leader", maps),
        )

    def _student_loss(self, of: _Students, w: Array) -> Array:
        """Each student's loss without its cross-entropy, float[M]; `w` is the warm-up factor."""
        weights = self.weights
        return of.mutual + w * (
            weights.diversity * of.diversity + weights.student_self_distillation * of.taught
        )

    def _leader_loss(self, of: _Leader, w: Array) -> Array:
        """The leader's loss, a scalar; `w` is the warm-up factor."""
        weights = self.weights
        return (
            of.cross_entropy
            + of.distill
            + w * weights.fusion * of.fusion
            + w * weights.trans_fusion * of.trans_fusion
            + w * weights.leader_self_distillation * of.taught
        )


# ---- What `config.method='ffsd'` stands for


def _leader(config, students: Any) -> Any:
    """The leader's Spec: the students' Spec unless `config.ffsd.leader` names another."""
    return models.divided(config.ffsd.leader, 1) if config.ffsd.leader else students


def _make(config, plan, stack: Stack, **fields) -> Method:
    its, leader = config.ffsd, _leader(config, stack.spec)
    return make(
        stack,
        leader=leader,
        leader_remat=models.remat_stages(leader, config.remat),
        distill=distill_lib.make(config.distill, 2.0),
        weights=Weights(**{name: its[name] for name in Weights._fields}),
        steps_per_epoch=plan.steps_per_epoch,
        warmup_steps=plan.method_steps["ffsd.warmup"],
        **fields,
    )


def _optimizers(config) -> dict[str, dict[str, Any]]:
    """Label -> the fields of `config.optim` that differ: see `Entry.optimizers`."""
    its = config.ffsd
    return {
        # Eq. (6) of divide and co-training lowers the weight decay of divided networks only.
        LEADER: dict(divide_weight_decay=False) if its.leader else {},
        FUSION: dict(weight_decay=its.fusion_weight_decay),
        SELF_DISTILLATION: dict(
            name="adam",
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            lr=its.self_distillation_lr,
            weight_decay=its.self_distillation_weight_decay,
        ),
    }


def _check(section: Section) -> None:
    decays = ("fusion_weight_decay", "self_distillation_weight_decay")
    section.at_least_zero(*Weights._fields, *decays)
    lr, leader = section.given["self_distillation_lr"], section.given["leader"]
    section.need("self_distillation_lr", "positive", lr > 0)
    if leader:
        try:
            models.remat_stages(models.divided(leader, 1), section.config.remat)
        except ConfigError as error:
            raise ConfigError(f"ffsd.leader={leader!r}: {error}") from None


def _networks(config) -> dict[str, Single]:
    leader = config.ffsd.leader
    changes = dict(arch=leader, divide=False, divide_in=0) if leader else {}
    return of_stack(config) | {"leader": Single("leader", changes=changes)}


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    shape, classes = networks.image_shape, networks.num_classes
    spec, leader = _leader(networks.config, networks.spec), networks.small
    if spec != networks.spec:
        leader = cost(spec, num_classes=classes, image_shape=shape)
    h, w, c = map_shape(networks.spec, shape)
    module = fusion.Fusion(map_shape(spec, shape)[-1], classes)
    return {
        "leader": (leader.params, leader.macs),
        "fusion": networks.and_module(module, h, w, networks.num_networks * c),
    }


def _advice(config, plan) -> Iterator[str]:
    total = plan.total_steps
    last = float(warmup(total - 1, plan.steps_per_epoch, plan.method_steps["ffsd.warmup"]))
    if last < 1:
        yield (
            f"ffsd.warmup={config.ffsd.warmup!r}: longer than the run of {total} steps, so "
            f"that the weights of config.ffsd end at {last:.1%} of their values"
        )


ENTRY = Entry(
    _make,
    answer="leader",
    whole=True,
    optimizers=_optimizers,
    fields={
        "leader": "",  # undivided architecture of the leader; '': the students' architecture
        # Six loss weights:
        "diversity": 1e-5,  # diversity of the students' attention
        "student_self_distillation": 1e-5,  # self-distillation of the students
        "fusion": 10.0,  # the leader's attention towards the fused map
        "trans_fusion": 10.0,  # its trans-fusion module's attention towards the students' maps
        "leader_self_distillation": 10.0,  # self-distillation of the leader
        "train_self_distillation": 1000.0,  # training of the self-distillation modules
        "warmup": "5 epochs",  # of these six weights
        "fusion_weight_decay": 1e-5,
        # Learning rate of the modules' Adam, at optim.base_batch_size; it follows `schedule`.
        "self_distillation_lr": 1e-3,
        "self_distillation_weight_decay": 1e-4,
    },
    check=_check,
    durations=("warmup",),
    fixed=("leader",),
    networks=_networks,
    costs=_costs,
    advice=_advice,
    as_published=lambda config: not (config.divide or config.ffsd.leader),
)
