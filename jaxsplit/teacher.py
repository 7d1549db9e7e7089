"""A fixed teacher: the answer of a finished run, which a method teaches to other networks.

Its variables are constants of the training step. They are no part of the training state: no
checkpoint, optimizer or average of weights holds them. A run that resumes loads them again, and
`teacher.json` in its workdir tells whether they are still the same.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import costs, data, sharding
from jaxsplit.checkpoints import checksums
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.hosts import processes
from jaxsplit.inference.restore import Restored, restore
from jaxsplit.workdir import files

NAME = "teacher.json"  # in the workdir of the student
PART = "teacher"  # its variables among the constants of a step, and its logits in a batch


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A run whose answer is taught.

    field: of the config that names it, as <method>.<field>.
    variables: {'params', 'batch_stats'} of numpy arrays.
    identity: what makes it this teacher, wherever its workdir lies; JSON values.
    """

    field: str
    restored: Restored
    variables: dict
    identity: dict[str, Any]

    @property
    def answer(self) -> str:
        """The name of what is taught: 'ensemble', 'leader', 'net0' ..."""
        return self.restored.method.answer

    def logits(self, mesh: sharding.Sharding, mean: Any, std: Any) -> Callable:
        """The function that makes the teacher's logits.

        Args:
          mesh: of the student; each group of devices along `net` computes the whole teacher.
          mean, std: by which the student's views are normalised; each network sees its own.

        Returns:
          (variables, views float[V, B, H, W, C]) -> float[B, V, K], on the mesh.
        """
        there = self.restored.on(mesh.whole_networks())
        own = self.restored.facts
        channels = [np.asarray(x, np.float32) for x in (mean, std, own.mean, own.std)]

        def teach(variables: dict, views: Array) -> Array:
            if (tuple(mean), tuple(std)) != (own.mean, own.std):
                m, s, own_m, own_s = (x.reshape(1, 1, 1, 1, -1) for x in channels)
                views = (views * s + m - own_m) / own_s
            predict = there.method.predict
            said = [predict(variables, view)[self.answer] for view in views]
            return jax.lax.stop_gradient(jnp.stack(said, 1))

        return teach


def field_of(config: ConfigDict) -> str:
    """The field of the config that names the workdir of its teacher; '': the method has none."""
    name = config_lib.resolve(config).entry.teacher
    return f"{config.method}.{name[0]}" if name else ""


def load(config: ConfigDict, dataset: data.Dataset) -> Teacher | None:
    """The teacher that a config names; None: its method has none.

    Raises:
      ConfigError: there is no such run or checkpoint, or its images or classes are others.
    """
    if not (field := field_of(config)):
        return None
    named, which = _names(config)
    try:
        restored = restore(named, which, say=lambda line: None)
    except ConfigError as error:
        raise ConfigError(f"{field}={named!r}: {error}") from None
    own = restored.facts
    for what, here, there in (
        ("classes", dataset.num_classes, own.num_classes),
        ("(height, width, channels) of images", dataset.image_shape, own.image_shape),
    ):
        if here != there:
            raise ConfigError(
                f"{field}={named!r}: has {there} {what}, must have {here} as the data"
            )
    variables = jax.device_get(restored.variables)
    identity = _identity(restored, variables)
    processes.check_same({f"{field}, its checksum": identity["checksum"]})
    return Teacher(field, restored, variables, identity)


def _identity(restored: Restored, variables: dict) -> dict[str, Any]:
    """What identifies a teacher. Collective."""
    config, known = restored.config, restored.facts
    return {
        "step": restored.step,
        "arch": config.arch,
        "split": config.split,
        "method": config.method,
        "answer": restored.method.answer,
        "ensemble": config.eval.ensemble,
        "mean": list(known.mean),
        "std": list(known.std),
        "checksum": checksums.of_json(checksums.of_arrays(variables)),
    }


def _names(config: ConfigDict) -> tuple[str, str]:
    """(workdir, checkpoint) of the teacher."""
    fields = config_lib.resolve(config).entry.teacher
    workdir, checkpoint = (config[config.method][name] for name in fields)
    return workdir, checkpoint


def write(workdir: pathlib.Path, teacher: Teacher) -> None:
    """Writes teacher.json."""
    files.write_text(workdir / NAME, json.dumps(teacher.identity, indent=2) + "\n")


def check_same(workdir: pathlib.Path, teacher: Teacher) -> None:
    """Checks that a run that resumes has the teacher that it started with. Collective.

    Raises:
      ConfigError: it has another one, or teacher.json is missing or damaged.
    """
    try:
        before = json.loads((workdir / NAME).read_text())
    except (OSError, ValueError):
        before = None
    before, now = processes.broadcast(before), teacher.identity
    given = f"{teacher.field}={str(teacher.restored.workdir)!r}"
    if not isinstance(before, dict):
        raise ConfigError(f"{given}: cannot be compared; {workdir / NAME} is missing or damaged")
    if changed := [name for name in now if before.get(name) != now[name]]:
        told = "; ".join(f"{name}: {before.get(name)!r} -> {now[name]!r}" for name in changed)
        raise ConfigError(
            f"{given}: must be the teacher that the run in workdir={str(workdir)!r} started with; "
            f"changed are {told}"
        )


class Cost(NamedTuple):
    """What a teacher costs for one view, in training only."""

    answer: str
    params: int
    macs: int


def cost(config: ConfigDict) -> Cost | None:
    """The cost of the teacher that a config names; reads none of its weights. None: it has none.

    Raises:
      ConfigError: there is no such run.
    """
    if not (field := field_of(config)):
        return None
    named, _ = _names(config)
    try:
        own = config_lib.load(named)
        known = facts.read(named) or facts.of_config(own.data)
    except ConfigError as error:
        raise ConfigError(f"{field}={named!r}: {error}") from None
    resolved = config_lib.resolve(own)
    sizes = dict(num_classes=known.num_classes, image_shape=known.image_shape)
    small, _ = costs.config_costs(own, resolved, **sizes)
    every = costs.own_costs(own, resolved, small, **sizes)
    answer = resolved.entry.answer
    return Cost(answer, *costs.of_answer(answer, small, every))
