"""Builds what a config describes: data, networks, method, optimizer, and the compiled step."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxsplit import (
    augment,
    compiler,
    data,
    durations,
    evaluation,
    methods,
    metrics,
    optim,
    schedules,
    sharding,
    stack,
    state,
    step,
    trackers,
)
from jaxsplit import config as config_lib
from jaxsplit import teacher as teachers
from jaxsplit.config import limits
from jaxsplit.hosts import processes


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a config describes; no device arrays yet."""

    config: ConfigDict
    resolved: config_lib.Resolved
    dataset: data.Dataset
    feed: data.TrainFeed
    plan: durations.Plan
    sharding: sharding.Sharding
    method: methods.Method
    optimizer: optax.GradientTransformation
    schedule: schedules.Schedule
    eval_step: Callable[[dict, dict], dict[str, dict[str, jax.Array]]]
    teacher: teachers.Teacher | None = None  # that the method needs in training

    @property
    def eval_split(self) -> tuple[str, Any]:
        """(name, examples) of the split whose evaluation selects the best checkpoint."""
        if self.dataset.validation is not None:
            return "validation", self.dataset.validation
        return "test", self.dataset.test

    @property
    def best_metric(self) -> str:
        """The metric that selects the best checkpoint."""
        return self.resolved.best_metric

    def state_shapes(self) -> state.TrainState:
        """The training state as `jax.ShapeDtypeStruct`s with shardings; computes nothing."""
        return state.shapes(
            self.method,
            self.optimizer,
            self.dataset.image_shape,
            self.sharding,
            averaged=self.config.ema > 0,
        )


def build(
    config: ConfigDict,
    *,
    dataset: data.Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Checks a config and builds what it describes; reads the data set, compiles nothing.

    Args:
      config: the experiment. It is not changed; the Experiment holds a checked copy.
      dataset: replaces the data set that the config names.
      devices: the devices of the mesh; None: all devices of the run. To compile only, devices of a
        `jax.experimental.topologies` description suffice.

    Raises:
      ConfigError: a field has a wrong value, or the batch does not fit the devices.
    """
    config = config_lib.check(config)
    if devices is None and jax.process_index() == 0:  # it alone has trackers
        trackers.check(config.trackers)
    resolved = config_lib.resolve(config)
    mesh = _mesh(config, resolved, config.batch_size, devices)
    step.check_accumulate(config.optim.accumulate, config.batch_size, mesh)
    dataset = dataset or data.load(config.data)
    feed = _feed(config, resolved, dataset, mesh)
    if devices is None:  # a described device computes nothing, and its memory is unknown
        limits.check_memory(config, dataset.image_shape, mesh)
    _check_same_examples(dataset, feed)
    plan = durations.plan(config, feed.steps_per_epoch)
    method, params = _method(config, resolved, dataset, plan, mesh)
    if devices is None:
        limits.check_weights(config, params, mesh)
    made = _assemble(config, resolved, dataset, feed, plan, mesh, method, params)
    return dataclasses.replace(made, teacher=teachers.load(config, dataset))


def build_for_evaluation(config: ConfigDict, *, dataset: data.Dataset | None = None) -> Experiment:
    """As `build`, to evaluate only: `batch_size` need not fit the devices.

    Args:
      config: the experiment. It is not changed; the Experiment holds a checked copy.
      dataset: replaces the data set that the config names.

    Raises:
      ConfigError: a field has a wrong value.
    """
    config = config_lib.check(config)
    resolved = config_lib.resolve(config)
    mesh = _mesh(config, resolved, None, None)
    dataset = dataset or data.load(config.data)
    feed = _feed(config, resolved, dataset, mesh)
    limits.check_evaluation_memory(config, dataset.image_shape, mesh)
    plan = durations.plan(config, feed.steps_per_epoch)
    method, params = _method(config, resolved, dataset, plan, mesh)
    limits.check_weights(config, params, mesh)
    return _assemble(config, resolved, dataset, feed, plan, mesh, method, params)


def _mesh(
    config: ConfigDict,
    resolved: config_lib.Resolved,
    batch_size: int | None,
    devices: Sequence[jax.Device] | None,
) -> sharding.Sharding:
    return sharding.make(
        config.mesh.data,
        config.mesh.net,
        num_networks=resolved.num_networks,
        batch_size=batch_size,
        devices=devices,
    )


def _feed(
    config: ConfigDict,
    resolved: config_lib.Resolved,
    dataset: data.Dataset,
    mesh: sharding.Sharding,
) -> data.TrainFeed:
    """The training batches that this process reads."""
    part, parts = mesh.part
    return data.train_feed(
        dataset,
        batch_size=config.batch_size,
        num_views=resolved.num_views,
        seed=config.seed,
        process_index=part,
        process_count=parts,
        threads=config.data.threads,
        scale_min=config.data.scale_min,
        repeats=config.augment.repeats,
    )


def _check_same_examples(dataset: data.Dataset, feed: data.TrainFeed) -> None:
    """Checks that all processes have the same training set, and so the same order of examples."""
    processes.check_same({"data.dir's training examples": len(dataset.train)})
    if feed.resident and processes.is_multiprocess():
        sums = [zlib.crc32(feed.resident.images), zlib.crc32(feed.resident.labels)]
        processes.check_same({"data.dir's training set, its checksums": sums})


def _method(
    config: ConfigDict,
    resolved: config_lib.Resolved,
    dataset: data.Dataset,
    plan: durations.Plan,
    mesh: sharding.Sharding,
) -> tuple[methods.Method, dict]:
    """The method over its stack of networks, and the shapes of its parameters."""
    classes = dataset.num_classes
    networks = stack.of_config(config, resolved, classes, mesh, remat=config.remat)
    method = methods.make(config, plan, networks)
    # Traced once, although the shapes and the values of a state, and programs of both, need it.
    init = jax.jit(method.init, static_argnums=1, inline=True)
    method = method._replace(init=init)
    variables = jax.eval_shape(lambda key: method.init(key, dataset.image_shape), jax.random.key(0))
    return method, variables["params"]


def _assemble(
    config: ConfigDict,
    resolved: config_lib.Resolved,
    dataset: data.Dataset,
    feed: data.TrainFeed,
    plan: durations.Plan,
    mesh: sharding.Sharding,
    method: methods.Method,
    params: dict,
) -> Experiment:
    """The Experiment of these parts, with its schedule, its optimizer and its evaluation step."""
    schedule = plan.schedule(config)
    return Experiment(
        config=config,
        resolved=resolved,
        dataset=dataset,
        feed=feed,
        plan=plan,
        sharding=mesh,
        method=method,
        optimizer=optim.build(
            config.optim,
            schedule,
            params,
            resolved.divided_in,
            group=method.group,
            groups=resolved.entry.optimizers(config),
        ),
        schedule=schedule,
        eval_step=jax.jit(
            evaluation.make_eval_step(method, dataset.mean, dataset.std),
            compiler_options=compiler.options(mesh.platform),
        ),
    )


def compile_step(
    exp: Experiment, train_state: state.TrainState, resident: dict, batch: dict
) -> tuple[jax.stages.Compiled, metrics.Totals]:
    """Compiles the training step. Returns it, and empty totals of its metrics on the devices."""
    lowered, shapes = lower_step(exp, train_state, resident, batch)
    totals = exp.sharding.put(metrics.zeros(shapes), exp.sharding.replicated)
    options = compiler.options(exp.sharding.platform)
    return lowered.compile(compiler_options=options), totals


def lower_step(
    exp: Experiment, train_state: state.TrainState, resident: dict, batch: dict
) -> tuple[jax.stages.Lowered, metrics.Totals]:
    """Lowers the training step without compiling it. Returns it, and the shapes of its metrics.

    The arguments may be trees of `ShapeDtypeStruct`s with shardings: nothing is put on a device.
    """
    config = exp.config
    train_step = step.make_train_step(
        exp.method,
        exp.optimizer,
        inputs(exp),
        accumulate=config.optim.accumulate,
        sharding=exp.sharding,
        ema=config.ema,
        ema_warmup=config.ema_warmup,
    )
    _, shapes = jax.eval_shape(train_step, train_state, metrics.empty(), resident, batch)
    everywhere = exp.sharding.named(exp.sharding.replicated)
    totals = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: metrics.zeros(shapes)),
    )
    where = state.shardings(train_state, exp.optimizer, exp.sharding)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(where, everywhere))
    return jitted.lower(train_state, totals, resident, batch), shapes


def step_arguments(exp: Experiment) -> tuple[state.TrainState, dict, dict]:
    """(state, resident, batch) of the training step as ShapeDtypeStructs with shardings."""
    mesh, split, rows = exp.sharding, exp.feed.resident, exp.config.batch_size
    taught = exp.teacher.variables if exp.teacher else {}
    everywhere = mesh.named(mesh.replicated)
    fixed = {teachers.PART: taught} if taught else {}
    fixed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), fixed
    )

    def array(shape: tuple[int, ...], dtype: Any, spec: sharding.P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh.named(spec))

    if split is not None:
        resident = {
            "images": array(split.images.shape, jnp.uint8, mesh.replicated),
            "labels": array(split.labels.shape, jnp.int32, mesh.replicated),
            **fixed,
        }
        return exp.state_shapes(), resident, {"index": array((rows,), jnp.int32, mesh.batch)}
    shape = (exp.resolved.num_views, rows, *exp.dataset.image_shape)
    views = mesh.shared_view if exp.resolved.shared_view else mesh.views
    batch = {
        "images": array(shape, jnp.uint8, views),
        "labels": array((rows,), jnp.int32, mesh.batch),
    }
    return exp.state_shapes(), fixed, batch


def constants(exp: Experiment) -> dict:
    """What stays the same in all steps, on the devices; the argument `resident` of the step.

    Returns:
      The training set {'images', 'labels'} unless it is streamed, and the `teacher`'s variables if
      there is one.
    """
    resident, mesh = exp.feed.resident, exp.sharding
    fixed: dict[str, Any] = {}
    if resident is not None:
        fixed |= dict(images=resident.images, labels=resident.labels)
    if exp.teacher is not None:
        fixed[teachers.PART] = exp.teacher.variables
    return mesh.put(fixed, mesh.replicated)


def inputs(exp: Experiment) -> Callable:
    """The function that makes views and targets from a batch; see `step.make_inputs`.

    If there is a teacher, its logits are in the result, too.
    """
    config = exp.config
    ops = augment.pipeline(
        config.augment,
        exp.dataset.mean,
        exp.dataset.std,
        crops_on=exp.feed.crops_on,
        scale_min=config.data.scale_min,
    )
    made = step.make_inputs(
        exp.sharding,
        ops,
        num_networks=exp.resolved.num_networks,
        shared_view=exp.resolved.shared_view,
        batch_of="images" if exp.feed.resident is None else "indices",
        mixup=config.augment.mixup,
        cutmix=config.augment.cutmix,
        mix_switch=config.augment.mix_switch,
    )
    if exp.teacher is None:
        return made
    teach = exp.teacher.logits(exp.sharding, exp.dataset.mean, exp.dataset.std)

    def with_teacher(fixed: dict, batch: dict, key: jax.Array) -> dict:
        resident = {name: x for name, x in fixed.items() if name != teachers.PART}
        batch = made(resident, batch, key)
        return batch | {teachers.PART: teach(fixed[teachers.PART], batch["views"])}

    return with_teacher


def put_batch(exp: Experiment, batch: dict) -> dict:
    """Puts this process's part of a host batch on the devices of the mesh."""
    mesh = exp.sharding
    views = mesh.shared_view if exp.resolved.shared_view else mesh.views
    cropped = exp.feed.crops_on == "host"
    placed = {
        name: mesh.put_local(value, views if name == "images" and cropped else mesh.batch)
        for name, value in batch.items()
    }
    if "images" in placed and not cropped:
        # Each image is sent once; the devices copy it for the S networks.
        copy = _copies(exp.resolved.num_views, mesh.named(views))
        placed["images"] = copy(placed["images"])
    return placed


@functools.lru_cache
def _copies(num_views: int, where: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    """A jitted function that repeats images: [B, ...] -> [num_views, B, ...]."""
    return jax.jit(
        lambda images: jnp.broadcast_to(images[None], (num_views, *images.shape)),
        out_shardings=where,
    )
