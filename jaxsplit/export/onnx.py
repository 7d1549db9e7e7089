"""ONNX by jax2onnx, which needs an environment of its own: its releases do not allow our orbax.

This writes a folder that such an environment converts without jaxsplit being installed there. If
JAXSPLIT_ONNX_PYTHON names its Python, the conversion runs at once, and only the file is left.
"""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import jaxsplit
from jaxsplit import config as config_lib
from jaxsplit.errors import ConfigError
from jaxsplit.export import target
from jaxsplit.inference.predictor import Predictor, load
from jaxsplit.weights import extract

SUFFIX = ".onnx"
PYTHON = "JAXSPLIT_ONNX_PYTHON"  # environment variable: the Python of the other environment
OPSET = 18
# Versions that the conversion was tested with; Python 3.12 or newer.
REQUIREMENTS = ("jax2onnx==0.17.1", "jax==0.12.0.1", "flax==0.12.12", "onnxruntime==1.32.0")
# What defines networks; `tests/export/test_export.py` holds that it imports nothing else of ours.
_CODE = (
    "__init__.py",
    "compiler.py",
    "conv.py",
    "errors.py",
    "sharding.py",
    "losses/__init__.py",
    "losses/labels.py",
    "losses/logits.py",
    "models/*.py",
)


def write(
    workdir: str | pathlib.Path,
    of: str = "",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
    *,
    temperature: float | str = 1.0,
    **options: Any,
) -> target.Written:
    """Writes the file and its description, or the folder for another environment.

    Arguments and errors as `export`. Single networks, the outputs of MIMO's one network, and the
    ensemble of either can be written.

    Raises:
      ConfigError: JAXSPLIT_ONNX_PYTHON cannot run the conversion.
    """
    predictor = load(workdir, which, **options)
    several = ("ensemble",) * ("ensemble" in predictor.forward.answers)
    of = target.answer(predictor, of, (*predictor.restored.voters, *several))
    predictor = target.using(predictor, of, temperature)
    python = os.environ.get(PYTHON, "")
    path = target.new_file(predictor, of, to, SUFFIX)
    if python:
        with tempfile.TemporaryDirectory() as folder:
            _write_folder(predictor, of, pathlib.Path(folder))
            return _converted(predictor, of, python, pathlib.Path(folder), path)
    folder = path.with_name(path.name + "-convert")
    if folder.exists():
        raise ConfigError(f"to={str(folder)!r}: exists; choose another with --to, or remove it")
    folder.mkdir()
    try:
        _write_folder(predictor, of, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return target.Written(
        folder,
        (
            f"{of} of checkpoint {predictor.step}, ready to convert in another environment: "
            f"{folder}",
            "make the environment, with Python 3.12 or newer: python3.12 -m venv .venv-onnx && "
            f".venv-onnx/bin/pip install -r {folder}/requirements.txt",
            f"convert: .venv-onnx/bin/python {folder}/convert.py {path}",
            f"or at once next time: {PYTHON}=.venv-onnx/bin/python jaxsplit export ...",
        ),
    )


def _write_folder(predictor: Predictor, of: str, folder: pathlib.Path) -> None:
    """Everything that `onnx_convert.py` reads."""
    restored = predictor.restored
    heads = config_lib.resolve(restored.config).heads
    if heads == 1:
        names = restored.members if of == "ensemble" else (of,)
        networks = {name: restored.network(name) for name in names}
        configs = [extract.config_of(restored.config, name) for name in names]
        outputs = [0]
    else:
        networks = {"network": restored.stack.take(restored.take([0]), 0)}
        configs = [restored.config]
        outputs = [*range(heads)] if of == "ensemble" else [restored.voters.index(of)]
    arrays: dict[str, np.ndarray] = {}
    for name, variables in networks.items():
        flat = flatten_dict(jax.device_get(variables), sep="/")
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in flat.items()}
    specs = [config_lib.resolve(config).spec for config in configs]
    if foreign := [s for s in specs if not type(s).__module__.startswith("jaxsplit.")]:
        raise ConfigError(
            f"format='onnx': arch={foreign[0].arch!r} is a backbone of your own, which the other "
            "environment does not know; export it as stablehlo"
        )
    facts = {
        "description": _description(predictor, of),
        "networks": list(networks),
        # Each network sees the image so often side by side, and has as many outputs.
        "heads": heads,
        "outputs": outputs,
        "combine": restored.config.eval.ensemble,
    }
    images = target.random_images(predictor)
    _save(folder / "networks.npz", arrays)
    _save(folder / "check.npz", {"images": images, "probabilities": predictor(images)})
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / "networks.json").write_text(text + "\n", encoding="utf-8")
    (folder / "networks.pickle").write_bytes(pickle.dumps(specs))
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n")
    shutil.copyfile(pathlib.Path(__file__).with_name("onnx_convert.py"), folder / "convert.py")
    package = pathlib.Path(jaxsplit.__file__).parent
    for pattern in _CODE:
        for source in package.glob(pattern):
            copy = folder / "jaxsplit" / source.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def _description(predictor: Predictor, of: str) -> dict[str, Any]:
    """What is known of the file before it is made."""
    facts = target.described(predictor, of, "onnx") | target.interface(predictor)
    return facts | {"temperature": predictor.temperature_of_answer, "opset": OPSET}


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=False, **arrays)  # pyrefly: ignore[bad-argument-type]


def _converted(
    predictor: Predictor, of: str, python: str, folder: pathlib.Path, path: pathlib.Path
) -> target.Written:
    """Runs the conversion in the other environment and writes what it gives.

    Raises:
      ConfigError: it cannot run, or fails.
    """
    made = folder / "made.onnx"
    hidden = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["JAX_PLATFORMS"] = "cpu"
    # A path is one from here, not from the folder; links are kept, as they lead out of a venv.
    program = os.path.abspath(python) if os.path.dirname(python) else python
    command = [program, str(folder / "convert.py"), str(made)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    except OSError as error:
        raise ConfigError(f"{PYTHON}={python!r}: cannot be run ({error.strerror})") from None
    if done.returncode or not made.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise ConfigError(f"{PYTHON}={python!r}: the conversion failed: {lines[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    data = made.read_bytes()
    description = _description(predictor, of) | {"difference": found["difference"]}
    target.write_with_description(path, data, description)
    return target.Written(
        path,
        (
            f"{of} of checkpoint {predictor.step}: {path} ({target.size(len(data))}), and "
            f"{path.name}.json",
            "largest difference between onnxruntime and `jaxsplit predict` on random images: "
            f"{found['difference']:.1e}",
            f"load: onnxruntime.InferenceSession({str(path)!r})",
        ),
        found["difference"],
    )
