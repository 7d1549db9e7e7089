"""StableHLO through `jax.export`: one file with the program and its weights, which jax loads alone.

The program takes uint8[b, H, W, C] and gives the probabilities float32[b, K] of one answer, for any
b, on a CPU, an NVIDIA GPU and a TPU. Each of them has its own lowering in the file, because what is
fast on one is slow on another (`conv.py`); the weights are stored once.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsplit import sharding
from jaxsplit.inference.export import target
from jaxsplit.inference.predictor import Predictor, load
from jaxsplit.inference.restore import Restored

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


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
    load_it = f"jax.export.deserialize(open({str(path)!r}, 'rb').read())"
    return target.Written(
        path,
        (
            f"{of} of checkpoint {predictor.step}: {path} ({target.size(len(data))}), and "
            f"{path.name}.json",
            f"largest difference to `jaxsplit predict` on {len(images)} random images: "
            f"{difference:.1e}",
            f'load: python -c "from jax import export; print({load_it[4:]})"',
        ),
        difference,
    )


def program(predictor: Predictor, of: str) -> jax.export.Exported:
    """The answer `of` as a program: uint8[b, H, W, C] -> probabilities float32[b, K]."""
    restored = predictor.restored
    shape = restored.facts.image_shape
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    leaves, tree = jax.tree.flatten(jax.device_get(restored.variables))
    temperature = predictor.temperature_of_answer
    ways = {
        platform: _probabilities(restored, of, tree, temperature, platform)
        for platform in ("cpu", "gpu")
    }
    needed = _needed(ways["gpu"], leaves, images)
    kept = [jnp.asarray(leaves[i]) for i in needed]

    def filled(way: Callable[[Sequence[Any], Array], Array]) -> Callable[..., Array]:
        """`way` of the needed leaves; the others reach no output."""

        def of_needed(kept: Sequence[Array], images: Array) -> Array:
            every = [jnp.zeros(x.shape, x.dtype) for x in leaves]
            for i, leaf in zip(needed, kept, strict=True):
                every[i] = leaf
            return way(every, images)

        return of_needed

    def answer(images: Array) -> Array:
        return lax.platform_dependent(
            kept, images, cpu=filled(ways["cpu"]), default=filled(ways["gpu"])
        )

    return jax.export.export(jax.jit(answer), platforms=PLATFORMS)(images)


def _probabilities(
    restored: Restored, of: str, tree: Any, temperature: float, platform: str
) -> Callable[[Sequence[Any], Array], Array]:
    """(leaves of the variables, images) -> probabilities, as a program for a platform."""
    alone = restored.on(sharding.Unmapped(restored.sharding.mesh, traced_for=platform))

    def probabilities(leaves: Sequence[Any], images: Array) -> Array:
        logits = alone.predict(jax.tree.unflatten(tree, leaves), images)[of]
        return jax.nn.softmax(logits.astype(jnp.float32) / temperature)

    return probabilities


def _needed(
    way: Callable[[Sequence[Any], Array], Array],
    leaves: Sequence[np.ndarray],
    images: jax.ShapeDtypeStruct,
) -> list[int]:
    """Which leaves the answer depends on: of net0 not those of the other parts."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    exported = jax.export.export(jax.jit(way))(shapes, images)
    return [i for i in exported.module_kept_var_idx if i < len(leaves)]
