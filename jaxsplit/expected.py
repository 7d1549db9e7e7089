"""What a run will cost, before it starts: multiply-adds exactly, seconds by a few steps of it.

No data is read: a stand-in of the same shape takes the place of the data set.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxsplit import compiler, costs, data, early_stop, experiment, methods, metrics
from jaxsplit import config as config_lib
from jaxsplit.compare.grid import Cost
from jaxsplit.data import stand_in
from jaxsplit.errors import ConfigError

_STEPS = 3  # that are timed, after one that warms up


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a run trains: seconds of a step, of its compilation, and the number of steps."""

    step: float
    compilation: float
    steps: int


def cost(config: ConfigDict) -> Cost:
    """The costs of a run of a config: of what it deploys, and of all that trains.

    A method that learns from another run counts without that teacher.

    Raises:
      ConfigError: the run would be refused when it starts.
    """
    config = _without_teacher(config_lib.check(config))
    if config.lowering == "packed":  # its products with zeros would count
        config.lowering = "dense"
    resolved = config_lib.resolve(config)
    exp = _experiment(config, jax.devices()[:1])
    early_stop.make(exp)
    known = dict(num_classes=exp.dataset.num_classes, image_shape=exp.dataset.image_shape)
    small, _ = costs.config_costs(config, resolved, **known)
    named = costs.own_costs(config, resolved, small, **known)
    params, macs = costs.of_answer(resolved.entry.deployed, small, named)
    _, answered = costs.of_answer(resolved.entry.answer, small, named)
    return Cost(params, macs, training_macs(exp), answered if answered > macs else 0)


def training_macs(exp: experiment.Experiment) -> int:
    """Multiply-adds of one image's forward pass and losses in training; traced, never compiled.

    What a step does once, whatever the batch (OKDPH mixes weights), does not count.
    """
    method, shape = exp.method, exp.dataset.image_shape
    variables = exp.state_shapes().variables
    key = jax.eval_shape(lambda: jax.random.key(0))
    progress = jax.ShapeDtypeStruct((), jnp.int32)

    def of(images: int) -> int:
        batch = {
            "views": jax.ShapeDtypeStruct((exp.resolved.num_views, images, *shape), jnp.float32),
            "labels": jax.ShapeDtypeStruct((images,), jnp.int32),
        }
        return costs.traced(lambda *given: method.loss(*given)[0], variables, batch, key, progress)

    return of(2) - of(1)


def pace(config: ConfigDict) -> Pace:
    """Compiles the training step of a config and times a few steps of it, on this machine.

    Raises:
      ConfigError: a field has a wrong value, the number of training examples is not known, or the
        run learns from another one.
    """
    config = config_lib.check(config)
    if stand_in.train_examples(config.data) is None:
        raise ConfigError(f"data.name={config.data.name!r}: the number of its images is not known")
    if methods.METHODS[config.method].teacher:
        raise ConfigError(f"method={config.method!r}: is not measured without its teacher")
    exp = _experiment(config, jax.devices())
    lowered, shapes = experiment.lower_step(exp, *experiment.step_arguments(exp))
    began = time.monotonic()
    step = lowered.compile(compiler_options=compiler.options(exp.sharding.platform))
    compilation = time.monotonic() - began
    state, resident, batch = (_blank(tree) for tree in experiment.step_arguments(exp))
    totals = exp.sharding.put(metrics.zeros(shapes), exp.sharding.replicated)
    spent = []
    for _ in range(1 + _STEPS):
        began = time.monotonic()
        state, totals = step(state, totals, resident, batch)
        jax.block_until_ready(totals)
        spent.append(time.monotonic() - began)
    return Pace(float(np.median(spent[1:])), compilation, exp.plan.total_steps)


def steps(config: ConfigDict) -> int | None:
    """The number of training steps of a config; None: its data set is not known yet."""
    if stand_in.train_examples(config.data) is None:
        return None
    config = config_lib.check(_without_teacher(config))
    return _experiment(config, jax.devices()[:1]).plan.total_steps


def _without_teacher(config: ConfigDict) -> ConfigDict:
    """The config, or a copy without the run that it learns from, which may not be trained yet."""
    if not methods.METHODS[config.method].teacher:
        return config
    alone = config.copy_and_resolve_references()
    alone.method = methods.ALONE
    return alone


def _experiment(config: ConfigDict, devices: list[jax.Device]) -> experiment.Experiment:
    alone = config.copy_and_resolve_references()
    if len(devices) == 1:
        alone.mesh.data = alone.mesh.net = 1
    made_up: data.Dataset = stand_in.dataset(config.data, at_least=config.batch_size)
    return experiment.build(alone, dataset=made_up, devices=devices)


def _blank(tree: Any) -> Any:
    """Zeros of these shapes, placed as they say."""
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), tree)
