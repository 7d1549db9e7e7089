"""StableHLO through `jax.export`: one file with the program and its weights, which jax loads alone.

The program takes uint8[b, H, W, C] and gives the probabilities float32[b, K] of one answer, for any
b, on a CPU, an NVIDIA GPU and a TPU. Each of them has its own lowering in the file, because what is
fast on one is slow on another (`conv.py`); the weights are stored once.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsplit import sharding
from jaxsplit.export import target
from jaxsplit.inference.predictor import Predictor, load
from jaxsplit.inference.restore import Restored

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_Way: TypeAlias = Callable[[Sequence[Any], Array], Array]  # leaves, images -> probabilities


def write(
    workdir: str | pathlib.Path,
    of: str = "",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
    *,
    temperature: float | str = 1.0,
    **options: Any,
) -> target.Written:
    """Writes the file and its description; arguments and errors as `export`."""
    predictor = load(workdir, which, **options)
    of = target.answer(predictor, of)
    predictor = target.using(predictor, of, temperature)
    path = target.new_file(predictor, of, to, SUFFIX)
    exported = program(predictor, of)
    data = bytes(exported.serialize())
    images = target.random_images(predictor)
    reloaded = jax.export.deserialize(bytearray(data))
    found = np.asarray(jax.jit(reloaded.call)(images))
    difference = float(np.abs(found - predictor(images)).max())
    description = target.described(predictor, of, "stablehlo") | target.interface(predictor)
    description |= {
        "temperature": predictor.temperature_of_answer,
        "platforms": list(PLATFORMS),
        "calling_convention_version": exported.calling_convention_version,
        "difference": difference,
    }
    target.write_with_description(path, data, description)
    return target.Written(
        path,
        (
            f"{of} of checkpoint {predictor.step}: {path} ({target.size(len(data))}), and "
            f"{path.name}.json",
            f"largest difference to `jaxsplit predict` on {len(images)} random images: "
            f"{difference:.1e}",
            f"load: jax.export.deserialize(open({str(path)!r}, 'rb').read()).call(images)",
        ),
        difference,
    )


def program(predictor: Predictor, of: str) -> jax.export.Exported:
    """The answer `of` as a program: uint8[b, H, W, C] -> probabilities float32[b, K]."""
    restored, temperature = predictor.restored, predictor.temperature_of_answer
    single = restored.singles.get(of)
    alone = single is not None and single.part == "stack"
    variables = restored.take([single.index]) if single and alone else restored.variables
    leaves, tree = jax.tree.flatten(jax.device_get(variables))

    def way(platform: str) -> _Way:
        mesh = sharding.Unmapped(restored.sharding.mesh, traced_for=platform)
        return _probabilities(restored.on(mesh), "" if alone else of, tree, temperature)

    (batch,) = jax.export.symbolic_shape("b")
    shape = restored.facts.image_shape
    needed = _needed(way("gpu"), leaves, jax.ShapeDtypeStruct((1, *shape), np.uint8))
    kept = [jnp.asarray(leaves[i]) for i in needed]

    def filled(way: _Way) -> Callable[..., Array]:
        """`way` of the needed leaves; the others reach no output."""

        def of_needed(kept: Sequence[Array], images: Array) -> Array:
            every: list[Any] = [jnp.zeros(x.shape, x.dtype) for x in leaves]
            for i, leaf in zip(needed, kept, strict=True):
                every[i] = leaf
            return way(every, images)

        return of_needed

    def answer(images: Array) -> Array:
        return lax.platform_dependent(
            kept, images, cpu=filled(way("cpu")), default=filled(way("gpu"))
        )

    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    return jax.export.export(jax.jit(answer), platforms=PLATFORMS)(images)


def _probabilities(restored: Restored, of: str, tree: Any, temperature: float) -> _Way:
    """The probabilities of an answer; `of` '': of the one network that the leaves are."""

    def probabilities(leaves: Sequence[Any], images: Array) -> Array:
        variables = jax.tree.unflatten(tree, leaves)
        if of:
            logits = restored.predict(variables, images)[of]
        else:
            logits = restored.predict_stack(variables, images)[0]
        return jax.nn.softmax(logits.astype(jnp.float32) / temperature)

    return probabilities


def _needed(way: _Way, leaves: Sequence[np.ndarray], images: jax.ShapeDtypeStruct) -> list[int]:
    """Which leaves the answer depends on: the leader's not on the students."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    jaxpr = jax.make_jaxpr(way)(shapes, images).jaxpr
    live = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if not live.isdisjoint(equation.outvars):
            live.update(v for v in equation.invars if not hasattr(v, "val"))  # no constants
    return [i for i, var in enumerate(jaxpr.invars[: len(leaves)]) if var in live]
