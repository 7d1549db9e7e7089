"""The networks of a workdir, restored on devices, with all that it takes to apply them."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from jaxsplit import augment, durations, losses, methods, sharding, stack, state
from jaxsplit import config as config_lib
from jaxsplit.checkpoints import folder, read
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files


@dataclasses.dataclass(frozen=True)
class Restored:
    """The networks of a checkpoint.

    config: of the run. step: of the checkpoint. facts: of `dataset.json`.
    variables: {'params', 'batch_stats'} on the devices of `sharding`, as `method.predict` takes.
    metrics: of an evaluation, that lie in the checkpoint.
    """

    workdir: pathlib.Path
    step: int
    config: ConfigDict
    facts: facts.Facts
    sharding: sharding.Sharding
    stack: stack.Stack
    method: methods.Method
    variables: dict
    metrics: Mapping[str, float]

    def by_accuracy(self) -> tuple[str, ...]:
        """The networks of the stack, the best on the validation set first where that is known."""
        known = {n: self.metrics.get(f"validation/{n}/top1", 0.0) for n in self.members}
        return tuple(sorted(self.members, key=lambda name: -known[name]))

    @property
    def singles(self) -> Mapping[str, methods.Single]:
        """Name -> where it lies, of the single networks."""
        return methods.METHODS[self.config.method].networks(self.config)

    @property
    def voters(self) -> tuple[str, ...]:
        """The single networks, or, where there are none, the outputs of the one network."""
        outputs = tuple(f"net{i}" for i in range(self.config.split))
        return tuple(self.singles) or outputs

    @property
    def members(self) -> tuple[str, ...]:
        """Of `voters` those that an ensemble combines: the networks of the stack, each once.

        OKDDip's leader is the last of them by another name.
        """
        found: dict[int, str] = {}
        for name, single in self.singles.items():
            if single.part == "stack":
                found.setdefault(single.index, name)
        return tuple(found.values()) if self.singles else self.voters

    def answers(self) -> tuple[str, ...]:
        """The names that the method predicts: net0, ..., then ensemble, leader, fusion, ..."""
        shape = (self.sharding.data_devices, *self.facts.image_shape)
        images, names = jax.ShapeDtypeStruct(shape, np.uint8), []

        def listed(variables: dict, images: Array) -> dict[str, Array]:
            named = self.predict(variables, images)
            names.extend(named)  # here, as transformations sort them
            return named

        jax.eval_shape(listed, self.variables, images)
        return tuple(names)

    def predict(self, variables: dict, images: Array) -> dict[str, Array]:
        """Every answer: (variables, uint8[B, H, W, C]) -> name -> logits float[B, K]; pure."""
        views = augment.eval_view(images, self.facts.mean, self.facts.std)
        return self.method.predict(variables, views)

    def predict_stack(self, layers: dict, images: Array) -> Array:
        """Networks of the stack alone: (what `take` gives, uint8[B, H, W, C]) -> logits
        float[n, B, K]; pure."""
        views = augment.eval_view(images, self.facts.mean, self.facts.std)
        return self.stack.apply(layers, views[None], train=False)[0]

    def on(self, mesh: sharding.Sharding) -> "Restored":
        """The same with the functions of another mesh; the variables stay where they are."""
        networks, method = _networks(self.config, self.facts, mesh)
        return dataclasses.replace(self, sharding=mesh, stack=networks, method=method)

    def network(self, name: str) -> dict:
        """The variables {'params', 'batch_stats'} of a single network, without network axis."""
        single = self.singles[name]
        if single.part == "stack":
            return self.stack.take(self.take([single.index]), 0)
        if single.part == methods.MEAN:
            every = self.take(range(self.config.split))
            own = jax.tree.map(lambda x: x.mean(0), self.stack.of_networks(every))
            return stack.merge(own, self.stack.of_trunk(every))
        return {c: parts.get(single.part, {}) for c, parts in self.variables.items()}

    def take(self, indices: Sequence[int]) -> dict:
        """The variables of some networks of the stack, with those that all share."""
        chosen = np.asarray(indices)
        return {
            collection: stack.merge(
                jax.tree.map(lambda x: x[chosen], parts["stack"]), parts.get("trunk", {})
            )
            for collection, parts in self.variables.items()
        }


def restore(
    workdir: str | pathlib.Path,
    which: str | int = "latest",
    *,
    config: ConfigDict | None = None,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] = print,
) -> Restored:
    """Restores the networks of a checkpoint; neither data set nor optimizer is needed.

    Args:
      workdir: of a run, or one that was imported or exported.
      which: checkpoint, 'latest', 'best' or a step.
      config: of the run, with fields changed that may differ in an evaluation; None: its own.
      devices: the images of a batch are shared out over them; None: the first of this process.
      say: gets the line about a workdir without `dataset.json`.

    Raises:
      ConfigError: no such run or checkpoint, or what is there does not fit.
      DamagedError: the checkpoint is not what was saved.
    """
    path = files.path_of(workdir)
    own = config_lib.load(workdir)
    if not folder.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    # The run has checked all else; of most data sets that takes what lies in data.dir.
    config = config_lib.check_types(own if config is None else config)
    if (how := config.eval.ensemble) not in losses.ENSEMBLES:
        allowed = ", ".join(losses.ENSEMBLES)
        raise ConfigError(f"eval.ensemble={how!r}: must be one of {allowed}")
    config_lib.check_evaluation(own, config, workdir)
    checkpoints = read.Reader(path, config_lib.resolve(config).best_metric)
    step = checkpoints.find(which)
    saved = read.model_shapes(checkpoints.path(step))
    known = facts.of_workdir(path, config.data, saved, say)
    devices = jax.local_devices()[:1] if devices is None else devices
    count = config_lib.resolve(config).num_networks
    mesh = sharding.make(len(devices), 1, num_networks=count, devices=devices)
    networks, method = _networks(config, known, mesh)
    # An average of the weights lies where those of other runs do.
    like = state.shapes(method, optax.identity(), known.image_shape, mesh)
    return Restored(
        workdir=path,
        step=step,
        config=config,
        facts=known,
        sharding=mesh,
        stack=networks,
        method=method,
        variables=read.restore_model(checkpoints.path(step), like),
        metrics=checkpoints.metrics(step) or {},
    )


def _networks(
    config: ConfigDict, known: facts.Facts, mesh: sharding.Sharding
) -> tuple[stack.Stack, methods.Method]:
    resolved = config_lib.resolve(config)
    classes = known.num_classes
    networks = stack.of_config(config, resolved, classes, mesh)
    # Lengths of training matter to the loss alone, and those in epochs follow from the data set.
    shortened = config.copy_and_resolve_references()
    shortened.duration, shortened.schedule.warmup = "100 steps", "0 steps"
    return networks, methods.make(shortened, durations.plan(shortened, 1), networks)
