"""Exported files: reloaded without jaxsplit, equal to the Predictor, read back bit for bit."""

import hashlib
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxsplit
from jaxsplit.checkpoints import read
from jaxsplit.errors import ConfigError
from jaxsplit.export import export, onnx, target
from jaxsplit.export.target import FOLDER
from jaxsplit.weights import native, torch_import, warm_start
from tests.support.inference import write_untrained
from tests.support.runs import assert_same_bits
from tests.support.runs import tiny as smallest
from tests.support.samples import first


def tiny(**fields):
    """A run that another process can build from its files: of a built-in architecture."""
    return smallest(**{"arch": "wide_resnet10_1"} | fields)


# A process in which jaxsplit and what it is made with cannot be imported.
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxsplit", "flax", "orbax", "optax", "ml_collections"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
found = [np.asarray(program.call(part)) for part in (images, images[:3])]
np.savez(sys.argv[3], whole=found[0], part=found[1])
print(program.platforms, sorted(m for m in ("jaxsplit", "flax") if m in sys.modules))
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    write_untrained(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def ffsd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "ffsd"
    config = tiny(method="ffsd", arch="resnet20", split=2, divide=False, divide_anyway=False)
    write_untrained(config, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(workdir):
    return jaxsplit.load(workdir)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.slow
def test_stablehlo_in_a_process_without_jaxsplit(workdir, predictor, images, tmp_path):
    written = export(workdir, "stablehlo", to=tmp_path / "a.stablehlo", temperature=0.01)
    np.save(tmp_path / "images.npy", images)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    files = (written.path, tmp_path / "images.npy", tmp_path / "out.npz")
    command = [sys.executable, "-c", ALONE, *map(str, files)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('cpu', 'cuda', 'tpu') []"
    wanted = predictor(images, temperature=0.01)
    assert np.ptp(wanted) > 0.03 and np.ptp(wanted, axis=0).max() > 1e-4  # not all are equal
    with np.load(files[2]) as found:
        np.testing.assert_allclose(found["whole"], wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["part"], wanted[:3], rtol=0, atol=1e-6)
        assert found["whole"].dtype == np.float32


def test_what_stands_beside_the_file(workdir, predictor, tmp_path):
    written = export(workdir, "stablehlo", of="net1", to=tmp_path)
    assert written.path == tmp_path / "net1-0.stablehlo"
    beside = json.loads((tmp_path / "net1-0.stablehlo.json").read_text())
    assert beside["sha256"] == hashlib.sha256(written.path.read_bytes()).hexdigest()
    assert (beside["of"], beside["step"], beside["kind"]) == ("net1", 0, "stablehlo")
    assert beside["class_names"] == list(predictor.class_names)
    assert beside["input"]["shape"] == ["batch", 8, 8, 3]
    assert beside["difference"] == written.difference < 1e-6
    assert str(written.path) in str(written)
    # The weights of one network only, and of it only one copy.
    both = sum(x.nbytes for x in jax.tree.leaves(predictor.restored.variables))
    assert both / 2 < written.path.stat().st_size < 0.75 * both


@pytest.mark.slow
@pytest.mark.parametrize("of, temperature", [("leader", 1e5), ("fusion", 2e4)])
def test_stablehlo_of_ffsd(ffsd, of, temperature, tmp_path):
    written = export(ffsd, "stablehlo", of=of, to=tmp_path, temperature=temperature)
    predictor = jaxsplit.load(ffsd, temperature=temperature)
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found = jax.export.deserialize(bytearray(written.path.read_bytes())).call(images)
    wanted = predictor(images, networks=of)
    assert len(np.unique(wanted.round(6))) > 10 and np.ptp(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    whole = sum(x.nbytes for x in jax.tree.leaves(predictor.restored.variables))
    assert written.path.stat().st_size < whole


def test_safetensors_start_a_run_with_the_same_bits(workdir, predictor, tmp_path):
    written = export(workdir, "safetensors", to=tmp_path)
    variables = jax.tree.map(np.asarray, predictor.restored.variables)
    found = native.read(written.path)
    assert_same_bits(found.variables, variables)
    assert found.header["arch"] == "wide_resnet10_1" and found.header["of"] == "ensemble"
    assert json.loads(found.header["dataset"])["image_shape"] == [8, 8, 3]
    config = tiny(init_from=str(written.path))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), variables)
    start = warm_start.read(config, like)
    assert_same_bits(jax.device_get(start.taken), variables)
    with pytest.raises(ConfigError, match="holds 2 networks of wide_resnet10_1, config has split"):
        warm_start.read(tiny(split=1, method="single", init_from=str(written.path)), like)


def test_safetensors_become_a_workdir(workdir, predictor, tmp_path):
    written = export(workdir, "safetensors", of="net1", to=tmp_path)
    names = set(flatten_dict(native.read(written.path).variables, sep="."))
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(written.path)
    assert len(tensors) == len(names) and all(name.startswith("net0.") for name in tensors)
    wanted = jax.device_get(predictor.restored.network("net1"))
    kernel = tensors["net0.params.head.kernel"]
    assert kernel.tobytes() == np.asarray(wanted["params"]["head"]["kernel"]).tobytes()
    config = tiny(split=1, method="single", divide_in=2)
    torch_import.import_checkpoint(config, [str(written.path)], tmp_path / "run")
    assert read.Reader(tmp_path / "run").find("latest") == 0
    images = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    again = jaxsplit.load(tmp_path / "run")(images)
    np.testing.assert_allclose(again, predictor(images, networks=1), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="holds 1 network of wide_resnet10_1, config has"):
        torch_import.import_checkpoint(tiny(), [str(written.path)], tmp_path / "other")


def test_nothing_is_replaced(workdir, tmp_path):
    (tmp_path / "a.safetensors.json").write_text("mine")
    with pytest.raises(ConfigError, match="a.safetensors.json': exists; choose another"):
        export(workdir, "safetensors", to=tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is not empty; choose another with --to"):
        export(workdir, "workdir", of="net0", to=tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_damaged_safetensors_are_named(workdir, tmp_path):
    written = export(workdir, "safetensors", to=tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(written.path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="cut.safetensors: cannot be read"):
        native.read(cut)
    one = tmp_path / "one.safetensors"
    variables = native.read(written.path).variables
    one.write_bytes(native.to_bytes(variables, {}).replace(b"net1.", b"net7."))
    with pytest.raises(ConfigError, match=r"is of networks \[0, 7\], must be of 2"):
        native.read(one)


def test_a_workdir_of_one_network(workdir, predictor, images, tmp_path):
    written = export(workdir, "workdir", of="net1", to=tmp_path / "net1")
    assert "jaxsplit eval" in str(written)
    found = jaxsplit.load(tmp_path / "net1")(images)
    np.testing.assert_allclose(found, predictor(images, networks=1), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_folder_for_onnx(workdir, predictor, monkeypatch):
    monkeypatch.delenv(onnx.PYTHON, raising=False)
    written = export(workdir, "onnx")
    folder = written.path
    assert folder == workdir / FOLDER / "ensemble-0.onnx-convert"
    assert f"pip install -r {folder}/requirements.txt" in str(written)
    assert f"{folder}/convert.py {workdir / FOLDER / 'ensemble-0.onnx'}" in str(written)
    # What it copies of jaxsplit defines the networks alone, and computes what the Predictor does.
    check = """
import sys, json, pickle, pathlib
import numpy as np
import convert
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("orbax", "ml_collections", "tensorflow", "absl", "etils"):
            raise ImportError(name)
folder = pathlib.Path("networks.json").parent
facts = json.loads((folder / "networks.json").read_text())
specs = pickle.loads((folder / "networks.pickle").read_bytes())
run = convert.program(facts, specs, dict(np.load("networks.npz")))
import jaxsplit
assert jaxsplit.__file__.startswith(str(folder.resolve())), jaxsplit.__file__
check = np.load("check.npz")
found = np.asarray(run(check["images"]))
print(np.abs(found - check["probabilities"]).max())
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6
    with pytest.raises(ConfigError, match="onnx-convert'?: exists|exists; choose another"):
        export(workdir, "onnx")
    shutil.rmtree(folder)


def test_a_relative_path_of_the_other_python(workdir, monkeypatch, tmp_path):
    """It starts where the command is typed, and a link in a venv is not followed."""
    python, base = tmp_path / ".venv" / "bin" / "python", tmp_path / "base"
    python.parent.mkdir(parents=True)
    base.write_text('#!/bin/sh\necho "this is $0" >&2\nexit 1\n')
    base.chmod(0o755)
    python.symlink_to(base)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(onnx.PYTHON, ".venv/bin/python")
    monkeypatch.setattr(onnx, "_write_folder", lambda *_: None)
    with pytest.raises(ConfigError, match=f"conversion failed: this is {python}$"):
        export(workdir, "onnx", to=tmp_path / "a.onnx")
    python.parent.joinpath("bare").symlink_to(base)
    monkeypatch.setenv("PATH", str(python.parent), prepend=os.pathsep)
    monkeypatch.setenv(onnx.PYTHON, "bare")
    with pytest.raises(ConfigError, match="conversion failed: this is .*bare$"):
        export(workdir, "onnx", to=tmp_path / "a.onnx")


@pytest.fixture
def convert(monkeypatch):
    """What runs in the other environment; it changes the path of modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return importlib.import_module("jaxsplit.export.onnx_convert")


def test_a_conversion_elsewhere_describes_its_file_as_an_export_does(convert, tmp_path):
    files = [tmp_path / where / "a.onnx" for where in ("here", "elsewhere")]
    for write, path in zip((target.write_with_description, convert.write), files, strict=True):
        path.parent.mkdir()
        write(path, b"program", {"of": "net0", "class_names": ["\N{DOG}"]})
    here, elsewhere = ([p.read_bytes() for p in sorted(f.parent.iterdir())] for f in files)
    assert here == elsewhere and len(here) == 2
    files[0].unlink()
    for path in (files[0], files[1]):
        with pytest.raises(SystemExit, match="exists; choose another name, or remove it"):
            convert.new(path)


def test_the_folder_holds_a_leader_of_the_stack_once(convert, tmp_path, monkeypatch):
    """And its description goes beside the file; jax2onnx and onnxruntime are stood in for."""
    monkeypatch.delenv(onnx.PYTHON, raising=False)
    write_untrained(tiny(arch=smallest().arch, method="okddip", split=3), tmp_path / "run")
    monkeypatch.setattr(onnx, "_CODE", ())  # the code is copied in another test
    to = tmp_path / "a.onnx"
    folder = export(tmp_path / "run", "onnx", of="ensemble", to=to).path
    monkeypatch.setattr(convert, "HERE", folder)
    facts = json.loads((folder / "networks.json").read_text())
    assert facts["networks"] == ["net0", "net1", "net2"]
    with np.load(folder / "check.npz") as check:
        parts = [check["probabilities"][:1], check["probabilities"][1:]]
    model = types.SimpleNamespace(
        metadata_props=types.SimpleNamespace(add=types.SimpleNamespace),
        SerializeToString=lambda: b"program",
    )
    session = types.SimpleNamespace(run=lambda *_: [parts.pop(0)])
    stand_ins = {
        "jax2onnx": types.SimpleNamespace(to_onnx=lambda *_, **__: model),
        "onnxruntime": types.SimpleNamespace(InferenceSession=lambda *_, **__: session),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    convert.main(to)
    beside = json.loads((tmp_path / "a.onnx.json").read_text())
    its = {"file": "a.onnx", "bytes": 7, "sha256": hashlib.sha256(b"program").hexdigest()}
    assert beside == facts["description"] | its | {"difference": 0.0}
    assert beside["input"]["name"] == "images" and beside["opset"] == onnx.OPSET


@pytest.mark.parametrize("of", first(1, ["net1", "ensemble"]))
def test_outputs_of_one_network_for_onnx(convert, of, tmp_path, monkeypatch):
    monkeypatch.delenv(onnx.PYTHON, raising=False)
    config = tiny(arch=smallest().arch, method="mimo", split=3)
    config.eval.ensemble = "mean_probs"
    write_untrained(config, tmp_path / "run")
    monkeypatch.setattr(onnx, "_CODE", ())  # the code is copied in another test
    folder = export(tmp_path / "run", "onnx", of=of, to=tmp_path / "a.onnx").path
    facts = json.loads((folder / "networks.json").read_text())
    specs = pickle.loads((folder / "networks.pickle").read_bytes())
    with np.load(folder / "networks.npz") as arrays:
        run = convert.program(facts, specs, dict(arrays))
    with np.load(folder / "check.npz") as check:
        found = run(check["images"])
        np.testing.assert_allclose(found, check["probabilities"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_other_environment_fails_in_one_line(workdir, monkeypatch, tmp_path):
    monkeypatch.setenv(onnx.PYTHON, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="JAXSPLIT_ONNX_PYTHON=.*: cannot be run"):
        export(workdir, "onnx", to=tmp_path / "a.onnx")
    monkeypatch.setenv(onnx.PYTHON, sys.executable)  # it has no jax2onnx
    with pytest.raises(ConfigError, match="the conversion failed: ModuleNotFoundError"):
        export(workdir, "onnx", to=tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_onnxruntime_gives_the_same_probabilities(workdir, ffsd, tmp_path):
    """`convert.py` compares with onnxruntime; without its environment nothing is converted."""
    for folder, of, temperature in ((workdir, "ensemble", 0.01), (ffsd, "leader", 1e5)):
        to = tmp_path / f"{of}.onnx"
        written = export(folder, "onnx", of=of, to=to, temperature=temperature)
        if os.environ.get(onnx.PYTHON):
            assert written.path.suffix == ".onnx" and 0 <= written.difference < 1e-4
            beside = json.loads((tmp_path / f"{of}.onnx.json").read_text())
            assert beside["opset"] == onnx.OPSET
        else:
            assert (written.path / "convert.py").exists() and "pip install" in str(written)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(form="pb"), "format='pb': must be one of stablehlo, onnx, safetensors, workdir"),
        (dict(form="stablehlo", of="leader"), "of='leader': method='cotrain' has net0, net1, ens"),
        (dict(form="onnx", of="fusion"), "of='fusion': method='cotrain' has net0, net1, ensemble"),
        (dict(form="workdir"), "has no network 'ensemble'; there are net0, net1"),
        (dict(form="safetensors", temperature=2.0), "temperature=2.0: only of the formats stable"),
        (dict(form="stablehlo", to=__file__), "exists; choose another with --to"),
        (dict(form="stablehlo", which=7), "7"),
    ],
)
def test_bad_input(workdir, options, message):
    with pytest.raises(ConfigError, match=message):
        export(workdir, **options)
