"""Converts the networks in this folder to ONNX; it runs where jax2onnx is, not where jaxsplit is.

python convert.py [FILE.onnx]

It writes FILE.onnx, and FILE.onnx.json that describes it; neither may exist.
`jaxsplit export --format=onnx` has written the folder: networks.npz holds the weights,
networks.json what they are, networks.pickle the Specs, check.npz images and the probabilities that
they should get, and jaxsplit/ the modules that define networks. requirements.txt lists what the
environment needs.
"""

import hashlib
import json
import os
import pathlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

TOLERANCE = 1e-4  # between probabilities
_reduce_window = jax.lax.reduce_window


def _pool(x, init, computation, window, strides, padding):
    """`lax.reduce_window` of [B, H, W, C] as one of [B * C, H, W].

    jax2onnx makes a pooling over every axis, and onnxruntime pools over three at most.
    """
    b, h, w, c = x.shape
    flat = x.transpose(0, 3, 1, 2).reshape(b * c, h, w)
    pads = padding if isinstance(padding, str) else list(padding)[:3]
    out = _reduce_window(flat, init, computation, window[:3], strides[:3], pads)
    return out.reshape(b, c, *out.shape[1:]).transpose(0, 2, 3, 1)


def _tree(arrays, prefix):
    """Arrays 'net0/params/stem/kernel' -> {'params': {'stem': {'kernel': ...}}} of a network."""
    tree = {"params": {}, "batch_stats": {}}
    for name, value in arrays.items():
        if name.startswith(prefix + "/"):
            *path, leaf = name.split("/")[1:]
            at = tree
            for key in path:
                at = at.setdefault(key, {})
            at[leaf] = value
    return tree


def program(
    facts: dict, specs: Sequence[Any], arrays: Mapping[str, np.ndarray]
) -> Callable[[Any], jax.Array]:
    """uint8[b, H, W, C] -> probabilities float32[b, K]."""
    from jaxsplit import conv, losses, models

    about = facts["description"]
    std = np.asarray(about["std"], np.float64)
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-np.asarray(about["mean"], np.float64) / std).astype(np.float32)
    heads = facts["heads"]
    networks = [
        (models.build(spec, heads * about["num_classes"]), _tree(arrays, name))
        for name, spec in zip(facts["networks"], specs, strict=True)
    ]

    def probabilities(images):
        wide = (1, 1, 1, -1)
        views = images.astype(jnp.float32) * scale.reshape(wide) + shift.reshape(wide)
        views = jnp.concatenate([views] * heads, -1)
        said = []
        # Plain convolutions, calls of compiled functions written out: what jax2onnx knows.
        with conv.lowered("grouped"), jax.disable_jit():
            with mock.patch.object(jax.lax, "reduce_window", _pool):
                for module, variables in networks:
                    logits, _ = module.apply(variables, views, False, None)
                    outputs = jnp.split(logits.astype(jnp.float32), heads, -1)
                    said.extend(outputs[i] for i in facts["outputs"])
            together = said[0]
            if len(said) > 1:
                together = losses.ensemble(jnp.stack(said), facts["combine"])
            return jax.nn.softmax(together / about["temperature"])

    return probabilities


def new(out: pathlib.Path) -> None:
    """Ends the program if `out` or its description exists."""
    for path in (out, beside(out)):
        if path.exists():
            sys.exit(f"error: {path}: exists; choose another name, or remove it")


def beside(out: pathlib.Path) -> pathlib.Path:
    """The file of the description."""
    return out.with_name(out.name + ".json")


def write(out: pathlib.Path, data: bytes, description: dict[str, Any]) -> None:
    """Writes a file and its description, as an export does where jaxsplit is."""
    out.write_bytes(data)
    checksum = hashlib.sha256(data).hexdigest()
    description = description | {"file": out.name, "bytes": len(data), "sha256": checksum}
    text = json.dumps(description, indent=2, ensure_ascii=False)
    beside(out).write_text(text + "\n", encoding="utf-8")


def main(out: pathlib.Path) -> None:
    """Converts, compares with check.npz and writes `out` and its description."""
    new(out)
    import onnxruntime
    from jax2onnx import to_onnx

    facts = json.loads((HERE / "networks.json").read_text(encoding="utf-8"))
    description = facts["description"]
    with open(HERE / "networks.pickle", "rb") as file:
        specs = pickle.load(file)
    with np.load(HERE / "networks.npz") as arrays:
        run = program(facts, specs, dict(arrays))
    (batch,) = jax.export.symbolic_shape("batch")
    shape = (batch, *description["image_shape"])
    model = to_onnx(
        run,
        [jax.ShapeDtypeStruct(shape, jnp.uint8)],
        opset=description["opset"],
        model_name="jaxsplit",
        input_names=["images"],
        output_names=["probabilities"],
    )
    for key in ("class_names", "arch", "method", "of", "step"):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(description[key], ensure_ascii=False)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with np.load(HERE / "check.npz") as check:
        images, wanted = check["images"], check["probabilities"]
    # Twice, so that the batch is seen to be free.
    found = [session.run(None, {"images": part})[0] for part in (images[:1], images[1:])]
    difference = float(np.abs(np.concatenate(found) - wanted).max())
    if not difference <= TOLERANCE:
        sys.exit(f"error: probabilities differ by {difference:.1e}, more than {TOLERANCE}")
    write(out, data, description | {"difference": difference})
    print(json.dumps({"file": str(out), "bytes": len(data), "difference": difference}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "networks.onnx")
