"""Measures the memory that a run of a config needs, with nothing trained and no data read.

What lies on the devices between the steps is counted in the shapes of the arrays, exactly. What the
steps need besides is XLA's own count, for which they have to be compiled.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxsplit import compiler, evaluation, experiment, sharding
from jaxsplit import config as config_lib
from jaxsplit.config import limits
from jaxsplit.data import stand_in
from jaxsplit.report import memory
from jaxsplit.report.memory import Bytes, Program
from jaxsplit.sharding import Sharding


def of_config(config: ConfigDict) -> str:
    """Text with the bytes of the training state and of the training set on a device.

    Raises:
      ConfigError: a field has a wrong value.
    """
    config = config_lib.check(config)
    sharding.check_net(config.mesh.net, config_lib.resolve(config).num_networks)
    exp = _on_one_device(config)
    rows = of_state(exp, config.mesh.net)
    split, notes = exp.feed.resident, []
    if split is not None:
        count = _bytes(split.images) + _bytes(split.labels)
        rows["training set"] = Bytes(count, count)
        notes.append(f"the training set has {len(split):,} images, and lies on each device whole")
    else:
        notes.append(_streamed(exp))
    return memory.held(rows, config.mesh.net, notes)


def of_programs(config: ConfigDict) -> Iterator[str]:
    """Texts with XLA's count of the compiled training and evaluation steps, on this machine.

    Each step is compiled when its text is asked for.

    Raises:
      ConfigError: a field has a wrong value, or the mesh does not fit the devices; at once.
    """
    return _of_programs(_experiment(config_lib.check(config), jax.devices()))


def _of_programs(exp: experiment.Experiment) -> Iterator[str]:
    mesh = exp.sharding
    count = mesh.data_devices * mesh.net_devices
    where = f"{count} {mesh.platform} device{'s' * (count > 1)}"
    rows = exp.config.batch_size
    yield memory.program(f"the training step of {rows:,} images, {where}", of_training(exp))
    rows = _evaluated_rows(exp)
    yield memory.program(f"the evaluation step of {rows:,} images, {where}", of_evaluation(exp))
    note = "while a run evaluates, the rest of its training state stays on the devices"
    yield f"{note}\n{_there(mesh)}"


def of_state(exp: experiment.Experiment, net: int) -> dict[str, Bytes]:
    """Name -> bytes of each part of the training state, where `net` groups divide the networks."""
    shapes = exp.state_shapes()
    parts = {
        "parameters": shapes.params,
        "batch statistics": shapes.batch_stats,
        "optimizer state": shapes.opt_state,
        "average of the weights": shapes.ema,
        "step, random key": (shapes.step, shapes.key),
    }
    return {
        name: sum((_share(x, exp.sharding, net) for x in leaves), Bytes(0, 0))
        for name, tree in parts.items()
        if (leaves := jax.tree.leaves(tree))
    }


def of_training(exp: experiment.Experiment) -> Program | None:
    """XLA's count for the training step; None where it gives none."""
    lowered, _ = experiment.lower_step(exp, *experiment.step_arguments(exp))
    return _counted(lowered.compile(compiler_options=compiler.options(exp.sharding.platform)))


def of_evaluation(exp: experiment.Experiment) -> Program | None:
    """XLA's count for the evaluation step; None where it gives none."""
    rows, where = _evaluated_rows(exp), exp.sharding.named(exp.sharding.batch)
    shapes = {
        "images": ((rows, *exp.dataset.image_shape), "uint8"),
        "labels": ((rows,), "int32"),
        "mask": ((rows,), "float32"),
    }
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        for name, (shape, dtype) in shapes.items()
    }
    jitted: Any = exp.eval_step
    return _counted(jitted.lower(exp.state_shapes().variables, batch).compile())


# ---- Details


def _on_one_device(config: ConfigDict) -> experiment.Experiment:
    """The experiment on a single device: its arrays have the same shapes on any mesh."""
    alone = config.copy_and_resolve_references()
    alone.mesh.data = alone.mesh.net = 1
    return _experiment(alone, jax.devices()[:1])


def _experiment(config: ConfigDict, devices: list[jax.Device]) -> experiment.Experiment:
    made_up = stand_in.dataset(config.data, at_least=config.batch_size)
    return experiment.build(config, dataset=made_up, devices=devices)


def _streamed(exp: experiment.Experiment) -> str:
    config, views = exp.config, exp.resolved.num_views
    count = stand_in.train_examples(config.data)
    images = "" if count is None else f" ({count:,} images)"
    batch = views * config.batch_size * math.prod(exp.dataset.image_shape)
    each = f" in {views} views" if views > 1 else ""
    return (
        f"the training set{images} is streamed; a batch of {config.batch_size:,} images{each} has\n"
        f"{batch:,} bytes ({memory.mebibytes(batch)}), divided among the devices, where two may lie"
    )


def _evaluated_rows(exp: experiment.Experiment) -> int:
    how = evaluation.EvalPass(exp.dataset.image_shape, exp.plan.eval_batch_size, exp.sharding)
    return how.rows


def _share(x: jax.ShapeDtypeStruct, mesh: Sharding, net: int) -> Bytes:
    divided = x.sharding.spec == mesh.networks
    return Bytes(_bytes(x), _bytes(x) // (net if divided else 1))


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _counted(compiled: jax.stages.Compiled) -> Program | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Program(
        arguments=found.argument_size_in_bytes,
        results=found.output_size_in_bytes,
        in_place=found.alias_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def _there(mesh: Sharding) -> str:
    """The memory that there is."""
    device = mesh.mesh.local_devices[0]
    if own := limits.device_memory(device):
        return f"a device ({device.device_kind}) has {own / 2**30:,.1f} GiB"
    host = limits.host_memory()
    if host is None:
        return "the memory of this machine is not known"
    return f"this machine, whose devices share its memory, has {host / 2**30:,.1f} GiB"
