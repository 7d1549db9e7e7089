"""How long a batch takes: the undivided network beside the networks that replace it.

Time runs from uint8 images in host memory to probabilities in host memory. All programs of a batch
size take turns, after a call of each that compiles and warms up.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jaxsplit import __version__, augment, compiler, costs, losses, models, sharding, stack
from jaxsplit import config as config_lib
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.inference import timing
from jaxsplit.inference.predictor import Predictor
from jaxsplit.workdir import files

NAME = "latency.json"
FORMAT = 1
UNDIVIDED, ONE, CASCADE = "undivided", "one network", "cascade"
# Of the networks, then of the machine; `_facts` has their values.
_FACTS = ("arch", "split", "method", "dtype", "image_shape", "num_classes")
_FACTS += ("platform", "device", "cores", "devices", "seconds", "jax", "jaxsplit")
_PATIENCE = 5  # a call that would take so many budgets is left out


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Networks that are timed.

    networks: how many answer together. lowering: of `stack.LOWERINGS`. devices: that share out the
    networks. params, macs: of all of them, macs of one image; None: they depend on it.
    """

    name: str
    arch: str
    networks: int
    lowering: str
    devices: int
    params: int
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """A candidate at a batch size; `times` None: it was left out, because of `reason`."""

    candidate: str
    batch: int
    times: timing.Times | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """All that was measured, and where."""

    candidates: tuple[Candidate, ...]
    batches: tuple[int, ...]
    cells: tuple[Cell, ...]
    facts: dict[str, Any]


Call = Callable[[np.ndarray], np.ndarray]  # uint8[B, H, W, C] -> probabilities float32[B, K]


def measure(
    config: ConfigDict,
    batches: Sequence[int],
    *,
    seconds: float = 2.0,
    lowerings: Sequence[str] = stack.LOWERINGS[1:],
    predictor: Predictor | None = None,
    images: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> Found:
    """Times all candidates of a config at all batch sizes.

    Args:
      config: names the architecture and its division.
      batches: images of a call.
      seconds: to measure a candidate at a batch size, without compilation. What would take five
        times as long for one call is left out.
      lowerings: names in `stack.LOWERINGS` in which the stack is timed.
      predictor: of a run of the config, for its image size; if it is a cascade, it is timed too.
      images: uint8[N, H, W, C] that the cascade is timed on, whose time depends on them.
      say: gets a line about each batch size.

    Raises:
      ConfigError: a cascade without images, an unknown lowering, or a config whose networks cannot
        be built.
    """
    known = facts.of_config(config.data) if predictor is None else predictor.restored.facts
    made = candidates(config, known, lowerings)
    if predictor is not None and predictor.is_cascade:
        if images is None or not len(images):
            raise ConfigError("cascade: needs images of the data set to be timed on")
        made.append(_cascade(predictor, known))
    rng, cells = np.random.default_rng(0), []
    last: dict[str, tuple[int, float]] = {}
    for batch in sorted(set(batches)):
        random = rng.integers(0, 256, (batch, *known.image_shape), dtype=np.uint8)
        programs, left_out = {}, []
        for candidate, call in made:
            before, took = last.get(candidate.name, (batch, 0.0))
            if (expected := took * batch / before) > _PATIENCE * seconds:
                reason = f"a call would take about {expected:.0f} s"
                left_out.append(Cell(candidate.name, batch, None, reason))
                continue
            shown = random
            if candidate.name == CASCADE and images is not None:
                shown = np.resize(images, random.shape)
            programs[candidate.name] = lambda call=call, shown=shown: call(shown)
        times = timing.alternating(programs, seconds)
        cells += [Cell(name, batch, found) for name, found in times.items()] + left_out
        last |= {name: (batch, found.median) for name, found in times.items()}
        told = ", ".join(f"{name} {_duration(found.median)}" for name, found in times.items())
        say(f"batch {batch}: {told or 'all left out'}")
    return Found(
        tuple(candidate for candidate, _ in made),
        tuple(sorted(set(batches))),
        tuple(cells),
        _facts(config, known, seconds),
    )


def _facts(config: ConfigDict, known: facts.Facts, seconds: float) -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {
        "arch": config.arch,
        "split": config.split,
        "method": config.method,
        "dtype": config.dtype,
        "image_shape": list(known.image_shape),
        "num_classes": known.num_classes,
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "devices": len(jax.local_devices()),
        "seconds": seconds,
        "jax": jax.__version__,
        "jaxsplit": __version__,
    }


def candidates(
    config: ConfigDict, known: facts.Facts, lowerings: Sequence[str] = stack.LOWERINGS[1:]
) -> list[tuple[Candidate, Call]]:
    """What is timed of a config, without a cascade: (candidate, its function)."""
    resolved, devices = config_lib.resolve(config), jax.local_devices()
    whole, small, count = models.divided(config.arch, 1), resolved.spec, resolved.num_networks
    wanted = [(UNDIVIDED, whole, 1, "auto", 1, "")]
    if small != whole or count > 1 or resolved.heads > 1:
        wanted.append((ONE, small, 1, "auto", 1, ""))
    if count > 1:
        platform = devices[0].platform
        chosen = [stack.choose_lowering(one, count, platform, small) for one in lowerings]
        if not resolved.unrolls:  # a stack then takes `dense` instead
            chosen = ["dense" if one == "unrolled" else one for one in chosen]
        for lowering in dict.fromkeys(chosen):
            wanted.append((lowering, small, count, lowering, 1, resolved.trunk))
        shared = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        if shared > 1:
            name = f"{shared} devices"
            wanted.append((name, small, count, "auto", shared, resolved.trunk))
    found = []
    classes, shape = known.num_classes, known.image_shape
    for name, spec, n, lowering, over, trunk in wanted:
        heads = resolved.heads if name == ONE else 1
        mesh = sharding.make(1, over, num_networks=n, devices=devices[:over])
        networks = stack.make(
            spec,
            n,
            heads * classes,
            mesh,
            lowering=lowering,
            dtype=config.dtype,
            trunk=trunk,
            tying=resolved.tying if n > 1 else stack.NOTHING,
        )
        wide = (*shape[:2], heads * shape[2])
        each = costs.cost(spec, num_classes=heads * classes, image_shape=wide)
        params, macs = each.params, each.macs
        if n > 1:
            sizes = dict(num_classes=classes, image_shape=shape)
            params, macs = costs.own_costs(config, resolved, each, **sizes)[costs.ALL]
        lowering = stack.choose_lowering(lowering, n // over, mesh.platform, spec)
        candidate = Candidate(name, config.arch, n, lowering, over, params, macs)
        found.append((candidate, _call(networks, known, config.eval.ensemble, heads)))
    return found


def _cascade(predictor: Predictor, known: facts.Facts) -> tuple[Candidate, Call]:
    names, spec = predictor.voters, config_lib.resolve(predictor.config).spec
    each = costs.cost(spec, num_classes=known.num_classes, image_shape=known.image_shape)
    arch = predictor.config.arch
    count = len(names)
    candidate = Candidate(CASCADE, arch, count, "", 1, count * each.params, None)
    return candidate, predictor


def _call(networks: stack.Stack, known: facts.Facts, how: str, heads: int) -> Call:
    """Random networks as a function from host memory to host memory.

    Each sees an image `heads` times side by side, and answers as often.
    """
    mesh = networks.sharding
    height, width, channels = known.image_shape
    drawn = _drawn(networks, (height, width, heads * channels))
    variables = stack.merge(
        mesh.put(networks.of_networks(drawn), mesh.networks),
        mesh.put(networks.of_trunk(drawn), mesh.replicated),
    )

    def probabilities(variables: dict, images: Array) -> Array:
        views = augment.eval_view(images, known.mean, known.std)
        views = jnp.tile(views, heads)
        logits, _, _ = networks.apply(variables, views[None], train=False)
        if heads > 1:
            logits = jnp.stack(jnp.split(logits[0], heads, -1))
        together = losses.ensemble(logits, how) if len(logits) > 1 else logits[0]
        return jax.nn.softmax(together.astype(jnp.float32))

    program = jax.jit(probabilities, compiler_options=compiler.options(mesh.platform))

    def call(images: np.ndarray) -> np.ndarray:
        return np.asarray(program(variables, mesh.put_local(images, mesh.batch)))

    return call


def _drawn(networks: stack.Stack, image_shape: tuple[int, int, int]) -> dict:
    """Variables drawn by numpy: nothing is compiled. Their values do not change the time."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: networks.init(key, image_shape), jax.random.key(0))

    def draw(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("var", "scale"):
            return np.ones(like.shape, like.dtype)
        fan_in = max(1, int(np.prod(like.shape[1:-1])))
        return (rng.standard_normal(like.shape) / np.sqrt(fan_in)).astype(like.dtype)

    found = jax.tree.map_with_path(draw, shapes)
    return {"params": found["params"], "batch_stats": found.get("batch_stats", {})}


def write(found: Found, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes WORKDIR/latency.json, whose keys docs/export.md lists; returns its path."""
    path = files.path_of(workdir) / NAME
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
    candidates = [dataclasses.asdict(candidate) for candidate in found.candidates]
    cells = []
    for cell in found.cells:
        row: dict[str, Any] = {"candidate": cell.candidate, "batch": cell.batch}
        if cell.times is None:
            row["left_out"] = cell.reason
        else:
            row["seconds"] = dataclasses.asdict(cell.times)
            row["images_per_second"] = cell.batch / cell.times.median
        cells.append(row)
    record = {
        "format": FORMAT,
        **found.facts,
        "batches": list(found.batches),
        "candidates": candidates,
        "cells": cells,
    }
    files.write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def read(workdir: str | pathlib.Path) -> Found | None:
    """What `write` has written to a workdir; None: nothing.

    Raises:
      ConfigError: the file is broken, or another version of jaxsplit has written it.
    """
    path = files.path_of(workdir) / NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("must hold an object of JSON")
        if record.get("format") != FORMAT:
            raise ValueError(f"format={record.get('format')!r}: must be {FORMAT}")
        return _of_record(record)
    except KeyError as error:
        why = f"{error.args[0]} is missing"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise ConfigError(f"{path}: cannot be read ({why}); `jaxsplit latency` writes it anew")


def _of_record(record: dict[str, Any]) -> Found:
    """Raises KeyError, TypeError or ValueError where a key or its value is wrong."""
    about = {name: record[name] for name in _FACTS}
    if not isinstance(about["image_shape"], list):
        raise ValueError(f"image_shape={about['image_shape']!r}: must be a list")
    fields = [field.name for field in dataclasses.fields(Candidate)]
    made = [Candidate(**{name: row[name] for name in fields}) for row in record["candidates"]]
    for one in made:
        if not isinstance(one.name, str):
            raise ValueError(f"name={one.name!r}: must be text")
        for name in ("networks", "devices"):
            _at_least_one(name, getattr(one, name))
    cells = []
    for row in record["cells"]:
        times = None if "left_out" in row else _times(row["seconds"])
        reason = str(row.get("left_out", ""))
        cells.append(Cell(row["candidate"], _at_least_one("batch", row["batch"]), times, reason))
    batches = tuple(_at_least_one("batches", batch) for batch in record["batches"])
    wanted = {(one.name, batch) for one in made for batch in batches}
    if UNDIVIDED not in {one.name for one in made} or not batches:
        raise ValueError("must hold the undivided network at one batch size or more")
    if wanted != {(cell.candidate, cell.batch) for cell in cells}:
        raise ValueError("cells: must be those of all candidates at all batch sizes")
    return Found(tuple(made), tuple(sorted(batches)), tuple(cells), about)


def _at_least_one(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of 1 or more")
    return value


def _times(row: Any) -> timing.Times:
    found = {field.name: row[field.name] for field in dataclasses.fields(timing.Times)}
    for name, value in found.items():
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: must be a number above 0")
    if not found["lower"] <= found["median"] <= found["upper"]:
        raise ValueError(f"median={found['median']!r}: must lie between the quartiles")
    return timing.Times(**found)


def table(found: Found) -> str:
    """Rows of text: the median of every candidate, its quartiles, and images/s, by batch size."""
    at = {(cell.candidate, cell.batch): cell for cell in found.cells}
    about = found.facts
    where = about["device"] + (f", {about['cores']} cores" if about["platform"] == "cpu" else "")
    lines = [
        f"{about['arch']} in {about['split']}, images {'x'.join(map(str, about['image_shape']))}, "
        f"{about['dtype']}, {where}",
        "ms a batch: median (quartiles), images/s",
    ]
    width = max(len(candidate.name) for candidate in found.candidates)
    for batch in found.batches:
        lines.append(f"batch {batch}")
        base = at[UNDIVIDED, batch].times
        for candidate in found.candidates:
            cell = at[candidate.name, batch]
            if (times := cell.times) is None:
                lines.append(f"  {candidate.name:{width}}  left out: {cell.reason}")
                continue
            spread = f"({times.lower * 1e3:.2f} - {times.upper * 1e3:.2f})"
            ratio = f"  x{times.median / base.median:.2f}" if base else ""
            lines.append(
                f"  {candidate.name:{width}}  {times.median * 1e3:9.2f}  {spread:>20}  "
                f"{batch / times.median:10,.0f}{ratio}"
            )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
