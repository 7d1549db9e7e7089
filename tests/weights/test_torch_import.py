"""PyTorch weights: names, layouts, files, workdirs made from them, errors that name the tensor.

What only PyTorch itself can show is collected where it is installed (the extra `torch`); elsewhere
the files of that format are read by a stand-in for `torch.load`.
"""

import argparse
import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import save_file

import jaxsplit
from configs import digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import experiment, loop, models
from jaxsplit.checkpoints import read
from jaxsplit.cli import import_torch, run_flags
from jaxsplit.errors import ConfigError
from jaxsplit.models import fusion, resnet, senet
from jaxsplit.report import summary
from jaxsplit.weights import torch_files, torch_import, torch_network, torch_wrappers
from tests.support import shell
from tests.support.paths import ROOT
from tests.support.torch_states import numbered, random_variables, state_of

K = 5
SPECS = {
    "resnet": dataclasses.replace(resnet.SPECS["resnet50"], blocks=(1, 2), width=4, stem=(3, 4, 6)),
    "wide_resnet": dataclasses.replace(
        models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=4, stem=(3,)
    ),
    "resnext": dataclasses.replace(
        resnet.SPECS["resnext29_8x64d"], blocks=(1,), width=4, stem=(6,), groups=2
    ),
    "se_resnet": dataclasses.replace(
        senet.SPECS["se_resnet50"], blocks=(1, 1), width=4, stem=(3, 4, 6), se_reduction=4
    ),
}
COUNTER = "layer0.1.num_batches_tracked"  # what no computation reads


def random_state(spec) -> tuple[dict, dict]:
    """(variables, the `state_dict` that PyTorch would have for them)."""
    variables = random_variables(spec, K)
    return variables, state_of(spec, variables)


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name):
    variables, state = random_state(SPECS[name])
    got = torch_network.from_state_dict(SPECS[name], state, K)
    assert jax.tree.structure(got) == jax.tree.structure(variables)
    for g, v in zip(jax.tree.leaves(got), jax.tree.leaves(variables), strict=True):
        assert g.dtype == np.float32
        np.testing.assert_array_equal(g, v)


def test_kernel_layout_by_hand():
    kernel = np.zeros((7, 5, 3, 2), np.float32)  # out, in, h, w
    kernel[6, 4, 2, 1] = 1.0
    path = (jax.tree_util.DictKey("conv1"), jax.tree_util.DictKey("kernel"))
    got = torch_network.to_jax(kernel, path)
    assert got.shape == (3, 2, 5, 7) and got[2, 1, 4, 6] == 1.0
    assert torch_network.to_jax(np.zeros((7, 5)), path).shape == (5, 7)
    bias = np.arange(3.0)
    assert torch_network.to_jax(bias, (jax.tree_util.DictKey("bias"),)) is bias


def test_names():
    """Some of every kind, as the reference's own networks have them."""
    names = {name: set(random_state(spec)[1]) for name, spec in SPECS.items()}
    norm = ("weight", "bias", "running_mean", "running_var")
    assert names["resnet"] >= {
        *(f"layer0.{i}.weight" for i in (0, 3, 6)),  # convolutions of the stem
        *(f"layer0.{i}.{leaf}" for i in (1, 4, 7) for leaf in norm),
        *(
            f"layer{s}.0.{kind}{i}.weight"
            for s in (1, 2)
            for kind in ("conv", "bn")
            for i in (1, 2, 3)
        ),
        *(f"layer1.0.downsample.1.{leaf}" for leaf in norm),
        "layer1.0.downsample.0.weight",  # no average pool before it
        "layer2.0.downsample.1.weight",
        "layer2.0.downsample.2.running_var",
        "layer2.1.conv1.weight",
        "fc.weight",
        "fc.bias",
    }
    assert not any(name.startswith("layer2.1.downsample") for name in names["resnet"])
    assert names["wide_resnet"] >= {"layer0.0.weight", "layer0.1.bias", "layer2.0.conv2.weight"}
    assert "layer2.0.conv3.weight" not in names["wide_resnet"]
    assert names["se_resnet"] >= {
        "layer0.conv1.weight",
        "layer0.bn3.running_mean",
        "layer1.0.se_module.fc1.weight",
        "layer1.0.se_module.fc2.bias",
        "layer2.0.downsample.1.weight",
        "last_linear.weight",
        "last_linear.bias",
    }


def test_dtype_and_counters():
    spec = SPECS["resnext"]
    _, state = random_state(spec)
    state = {name: value.astype(np.float16) for name, value in state.items()}
    state[COUNTER] = np.int64(7)
    for dtype in (np.float32, np.float64):
        leaves = jax.tree.leaves(torch_network.from_state_dict(spec, state, K, dtype))
        assert {v.dtype for v in leaves} == {np.dtype(dtype)}
        total = sum(v.astype(np.float64).sum() for n, v in state.items() if n != COUNTER)
        assert sum(v.astype(np.float64).sum() for v in leaves) == pytest.approx(total, rel=1e-12)


def test_missing_and_left_over_tensors_are_named():
    spec = SPECS["resnet"]
    _, state = random_state(spec)
    for name in ("fc.bias", "layer2.1.bn3.running_var"):
        del state[name]
    state |= {"layer3.0.conv1.weight": np.zeros(3), "aux.weight": np.zeros(2), COUNTER: np.int64(0)}
    with pytest.raises(ConfigError) as error:
        torch_network.from_state_dict(spec, state, K)
    assert str(error.value) == (
        "state_dict does not fit resnet50: missing ['fc.bias', 'layer2.1.bn3.running_var'], "
        "left over ['aux.weight', 'layer3.0.conv1.weight']"
    )


@pytest.mark.parametrize(
    "name, shape", [("layer1.0.conv2.weight", (4, 4, 3, 1)), ("fc.weight", (K + 1, 32))]
)
def test_a_tensor_of_another_shape_is_named(name, shape):
    spec = SPECS["resnet"]
    _, state = random_state(spec)
    state[name] = np.zeros(shape, np.float32)
    with pytest.raises(ConfigError, match=rf"^{name}: shape \(.*\) where resnet50 has \(.*\)$"):
        torch_network.from_state_dict(spec, state, K)


def test_another_number_of_classes_is_an_error():
    spec = SPECS["wide_resnet"]
    _, state = random_state(spec)
    with pytest.raises(ConfigError, match="^fc.(weight|bias): shape"):
        torch_network.from_state_dict(spec, state, K + 1)


def test_many_tensors_are_counted_not_listed():
    spec = SPECS["resnet"]
    _, state = random_state(spec)
    with pytest.raises(
        ConfigError, match=r"missing \[('[\w.]+', ){5}'[\w.]+'\] and \d+ more, left over"
    ):
        torch_network.from_state_dict(spec, {"fc.bias": state["fc.bias"]}, K)


# ---- Files


TORCH = importlib.util.find_spec("torch") is not None
DIGITS = f"--config={ROOT / 'configs' / 'digits_wrn16_4_x4.py'}"
TINY = dict(arch="wide_resnet10_1", split=2, divide_anyway=True, batch_size=16, duration="2 steps")


def tiny(**fields):
    """The digits config with two small networks on one device."""
    config = digits_wrn16_4_x4.get_config()
    config.mesh.data = 1
    for name, value in (TINY | fields).items():
        setattr(config, name, value)
    return config


def networks(n: int, config=None, classes: int = 10) -> list[dict]:
    """Random `state_dict`s of the networks of a config, each another."""
    spec = config_lib.resolve(config or tiny()).spec
    return [state_of(spec, random_variables(spec, classes, 1, seed)) for seed in range(n)]


@pytest.fixture(params=["stand-in", *["torch"] * TORCH])
def save(request, monkeypatch, tmp_path):
    """A function that writes what PyTorch would save, by PyTorch where there is one."""
    contents = {}

    def tensors(value):
        import torch

        if isinstance(value, dict):
            return {k: tensors(v) for k, v in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    def save_(name: str, content) -> pathlib.Path:
        path = tmp_path / name
        if request.param == "torch":
            import torch

            torch.save(tensors(content), path)
        else:
            path.touch()
            contents[path] = content
        return path

    if request.param == "stand-in":
        monkeypatch.setattr(torch_files, "read_torch", contents.__getitem__)
    return save_


def assert_states(got, wanted) -> None:
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.keys() == w.keys()
        for name in w:
            assert isinstance(g[name], np.ndarray)
            np.testing.assert_array_equal(g[name], w[name])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_divide_and_cotraining_layout(save, prefix):
    states = networks(2)
    content = {
        "epoch": 300,
        "arch": "wide_resnet10_1",
        "state_dict": numbered(states, prefix),
        "best_acc1": np.float64(76.5),
        "optimizer": {"param_groups": [{"lr": 0.1}]},
    }
    weights = torch_files.read([save("model.pth.tar", content)])
    assert_states(weights.networks, states)
    assert (weights.arch, weights.epoch, weights.top1) == ("wide_resnet10_1", 300, 0.765)
    assert not weights.trans_fusion


def test_ffsd_layout(save):
    """A file a network; their order is that of the arguments."""
    states = networks(3)
    paths = [save(f"model{i}.pth", {"weight": states[i]}) for i in range(3)]
    weights = torch_files.read([paths[2], paths[0], paths[1]])
    assert_states(weights.networks, [states[2], states[0], states[1]])
    assert (weights.arch, weights.epoch, weights.top1) == ("", None, None)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_layout(save, prefix):
    (state,) = networks(1)
    weights = torch_files.read([save("net.pt", {prefix + k: v for k, v in state.items()})])
    assert_states(weights.networks, [state])


@pytest.mark.parametrize("many", [False, True])
def test_npz_and_safetensors(tmp_path, many):
    states = networks(1 + many)
    content = numbered(states) if many else states[0]
    np.savez(tmp_path / "a.npz", **content)
    save_file(content, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        assert_states(torch_files.read([tmp_path / name]).networks, states)


def test_npz_of_a_fixture(tmp_path):
    (state,) = networks(1)
    fixture = {f"state/{name}": value for name, value in state.items()}
    np.savez(tmp_path / "a.npz", **fixture, **{"meta/arch": "x", "x": np.zeros(3)})
    assert_states(torch_files.read([tmp_path / "a.npz"]).networks, [state])
    np.savez(tmp_path / "b.npz", **state, x=np.zeros(3))  # only there are other keys no weights
    assert "x" in torch_files.read([tmp_path / "b.npz"]).networks[0]


def leader(channels: int = 32, networks_: int = 3) -> tuple[dict, dict]:
    """(variables, tensors) of a trans-fusion module."""
    module = fusion.TransFusion(networks_ * channels)
    x = jax.ShapeDtypeStruct((1, 8, 8, channels), "float32")
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    params, stats = variables["params"], variables["batch_stats"]
    state = {}
    for ours, theirs in (("1", "1"), ("2", "1_1")):
        kernel = params[f"conv{ours}"]["kernel"]
        state[f"trans_fusion_module.conv{theirs}.weight"] = np.einsum("hwio->oihw", kernel)
        bn, prefix = f"bn{ours}", f"trans_fusion_module.bn{theirs}"
        state[f"{prefix}.weight"] = params[bn]["scale"]
        state[f"{prefix}.bias"] = params[bn]["bias"]
        state[f"{prefix}.running_mean"] = stats[bn]["mean"]
        state[f"{prefix}.running_var"] = stats[bn]["var"]
        state[f"{prefix}.num_batches_tracked"] = np.int64(3)
    return variables, {name: np.asarray(value) for name, value in state.items()}


@pytest.mark.slow
def test_leader(save, tmp_path, capsys):
    """Its module becomes a part of the checkpoint that `single`, which has none, leaves alone."""
    config = tiny(split=1, method="single")
    (state,) = networks(1, config)
    wanted, module = leader()
    path = save("modelleader_best.pth", {"weight": state | module})
    torch_import.import_checkpoint(config, [path], tmp_path / "run")
    with_module = read.Reader(tmp_path / "run")
    names = read.model_shapes(with_module.path(0))
    assert names["params/trans_fusion/conv2/kernel"] == (1, 1, 32, 96)
    assert names["params/stack/head/kernel"] == (1, 64, 10)
    like = {k: {"trans_fusion": v} for k, v in wanted.items()}
    got = read.restore_some(with_module.path(0), like)
    jax.tree.map(np.testing.assert_array_equal, got, like)
    exp = experiment.build(config)
    variables = read.restore_model(with_module.path(0), exp.state_shapes())
    assert variables["params"].keys() == variables["batch_stats"].keys() == {"stack"}
    torch_import.import_checkpoint(
        config, [save("student.pth", {"weight": state})], tmp_path / "without"
    )
    results = [loop.evaluate_checkpoint(config, tmp_path / w) for w in ("run", "without")]
    predictor = jaxsplit.load(tmp_path / "run")
    top1 = (predictor(exp.dataset.test.images).argmax(-1) == exp.dataset.test.labels).mean()
    assert top1 == pytest.approx(results[0]["test/net0/top1"])
    assert results[0] == results[1] and results[0]["test/net0/nll"] > 0


def test_bad_leader(save, tmp_path):
    config = tiny(split=1, method="single")
    (state,) = networks(1, config)
    _, module = leader()
    run = tmp_path / "run"
    gone = dict(module)
    del gone["trans_fusion_module.bn1.bias"]
    path = save("a.pth", {"weight": state | gone})
    with pytest.raises(ConfigError, match=r"missing \['trans_fusion_module.bn1.bias'\]"):
        torch_import.import_checkpoint(config, [path], run)
    path = save("b.pth", {"weight": numbered([state] * 2) | module})
    with pytest.raises(ConfigError, match="leader with its trans-fusion module.*has split=2"):
        torch_import.import_checkpoint(tiny(), [path], run)
    path = save("c.pth", {"weight": state | module})
    with pytest.raises(ConfigError, match="c.pth: holds a leader; each of several files must"):
        torch_files.read([path, path])
    path = save("d.pth", {"weight": state | {"trans_fusion_module.conv1.weight": np.zeros(3)}})
    with pytest.raises(ConfigError, match="the trans-fusion module has 0 convolutions"):
        torch_import.import_checkpoint(config, [path], run)
    assert not run.exists()


def test_what_is_no_checkpoint(save, tmp_path):
    def message(path) -> str:
        with pytest.raises(ConfigError) as caught:
            torch_files.read([path])
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ")

    assert message(tmp_path / "none.pth") == "no such file"
    assert message(tmp_path) == "is a directory, must be a file of PyTorch weights"
    for content in ({}, [1, 2], {"state_dict": {}}):
        assert message(save("a.pth", content)) == "holds no state_dict"
    numbers = message(save("a.pth", {"epoch": 3, "best": 0.5}))
    assert numbers == "holds no state_dict: not tensors: ['epoch', 'best']"
    states = networks(2)
    odd = numbered(states) | {"extra.weight": np.zeros(2)}
    wanted = "tensors that belong to no models.<i>: ['extra.weight']"
    assert message(save("a.pth", {"state_dict": odd})) == wanted
    gap = {k.replace("models.1", "models.3"): v for k, v in numbered(states).items()}
    assert message(save("a.pth", gap)) == "networks are numbered [0, 3], should be from 0"
    two = save("two.pth", numbered(states))
    with pytest.raises(ConfigError, match="two.pth: holds 2 networks; each of several files must"):
        torch_files.read([two, two])


@pytest.mark.parametrize("kind", ["npz", "safetensors", *["pth"] * TORCH])
def test_damaged_files(tmp_path, kind):
    (state,) = networks(1)
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **state)
    elif kind == "safetensors":
        save_file(state, path)
    else:
        import torch

        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[: len(whole) // 2], b"<html>not found</html>\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            torch_files.read([path])
        assert str(caught.value).startswith(f"{path}: cannot be read as a checkpoint (")
        assert len(str(caught.value).splitlines()) == 1


def test_npz_of_objects_runs_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([argparse.Namespace()], object))
    with pytest.raises(ConfigError, match="a.npz: cannot be read as a checkpoint .*pickle"):
        torch_files.read([tmp_path / "a.npz"])


@pytest.mark.parametrize(
    "library, name", [("torch", "a.pth"), ("torch", "a.pth.tar"), ("safetensors", "a.safetensors")]
)
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, library, name):
    for module in ("torch", "safetensors", "safetensors.numpy"):
        if module.startswith(library):
            monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        torch_files.read([tmp_path / name])
    message = str(caught.value)
    assert f"{name}: to read it install " in message and "pip install -e '.[torch]'" in message
    assert message.endswith("or convert it to .npz" + " or .safetensors" * (library == "torch"))


if TORCH:

    def test_objects_in_a_file_of_pytorch_are_not_loaded(tmp_path):
        import torch

        torch.save({"args": pathlib.PurePath("a"), "state_dict": {}}, tmp_path / "a.pth")
        with pytest.raises(ConfigError, match="holds pathlib.*Path, and only tensors"):
            torch_files.read([tmp_path / "a.pth"])

    def test_half_precision(tmp_path):
        import torch

        values = torch.tensor([1.5, -2.0])
        content = {"a": values.bfloat16(), "b": values.half(), "c": torch.tensor(7)}
        content["d"] = torch.tensor([1.5, 1e-300], dtype=torch.float64)
        torch.save(content, tmp_path / "a.pth")
        (state,) = torch_files.read([tmp_path / "a.pth"]).networks
        assert state["a"].tolist() == state["b"].tolist() == [1.5, -2.0] and state["c"] == 7
        assert state["d"].tolist() == [1.5, 1e-300]

    def test_tensors_that_numpy_cannot_hold_are_named(tmp_path):
        import torch

        for bad in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
            torch.save({"a": torch.zeros(2), "b": bad}, tmp_path / "a.pth")
            with pytest.raises(ConfigError, match="a.pth: b: is not a dense tensor of numbers"):
                torch_files.read([tmp_path / "a.pth"])

    def test_state_dicts_of_wrapped_modules(tmp_path):
        """As PyTorch itself names and saves them, beside what timm saves."""
        import torch
        from torch.optim import swa_utils

        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        wanted = {name: value.numpy() for name, value in net.state_dict().items()}
        compiled, parallel = torch.compile(net), torch.nn.DataParallel(net)
        averaged = swa_utils.AveragedModel(compiled)
        optimizer = torch.optim.SGD(net.parameters(), 0.1).state_dict()
        facts = {"args": argparse.Namespace(lr=0.1), "optimizer": optimizer, "epoch": 3}
        for content in (
            compiled.state_dict(),
            parallel.state_dict(),
            torch.compile(parallel).state_dict(),
            averaged.state_dict(),
            {"model": torch.nn.DataParallel(averaged).state_dict(), **facts},
        ):
            torch.save(content, tmp_path / "a.pth")
            assert_states(torch_files.read([tmp_path / "a.pth"]).networks, [wanted])


# ---- A workdir from a file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(results, `state_dict` of every network) of a run of two steps on the digits."""
    workdir = tmp_path_factory.mktemp("trained")
    config = tiny()
    results = loop.train_and_evaluate(config, workdir)
    checkpoints = read.Reader(workdir)
    variables = read.restore_model(checkpoints.path(2), experiment.build(config).state_shapes())
    stack = {collection: parts["stack"] for collection, parts in variables.items()}
    states = []
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), stack)
        states.append(state_of(config_lib.resolve(config).spec, one))
    return results, states


@pytest.fixture
def run(monkeypatch):
    """A function that runs the command with arguments, in this process, as the shell would."""

    def program(argv: list[str]) -> None:
        assert run_flags.CONFIG.name in flags.FLAGS
        import_torch.command(import_torch.parse(argv))

    def run_(*args: str) -> None:
        shell.run(monkeypatch, program, "torch_import.py", *args)

    return run_


OVERRIDES = (
    DIGITS,
    "--config.arch=wide_resnet10_1",
    "--config.split=2",
    "--config.divide_anyway=True",
    "--config.batch_size=16",
    "--config.mesh.data=1",
)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    "layout",
    [
        "splitnet",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("ffsd", "parallel", "npz", "safetensors")
        ),
    ],
)
def test_an_imported_workdir_evaluates_as_the_run_did(layout, trained, save, run, tmp_path, capsys):
    results, states = trained
    counters = {"layer0.1.num_batches_tracked": np.array(2)}
    states = [state | counters for state in states]
    if layout == "ffsd":
        paths = [save(f"model{i}.pth", {"weight": state}) for i, state in enumerate(states)]
    elif layout in ("npz", "safetensors"):
        paths = [tmp_path / f"a.{layout}"]
        content = {name: np.asarray(value) for name, value in numbered(states).items()}
        np.savez(paths[0], **content) if layout == "npz" else save_file(content, paths[0])
    else:
        content = numbered(states, "module." * (layout == "parallel"))
        paths = [
            save("a.pth.tar", {"state_dict": content, "epoch": 3, "best_acc1": np.array(12.5)})
        ]
    workdir = tmp_path / "run"
    run(*map(str, paths), *OVERRIDES, f"--workdir={workdir}")
    said = capsys.readouterr().out
    facts = ", epoch 3, test top-1 12.50% according to the file"
    facts *= layout in ("splitnet", "parallel")
    assert said.startswith(f"imported wide_resnet10_1 divided in 2{facts}, into {workdir}\n")
    config = config_lib.load(workdir)
    assert (config.arch, config.split, config.data.name) == ("wide_resnet10_1", 2, "digits")
    got = loop.evaluate_checkpoint(config, workdir)
    for key in ("ensemble/top1", "net0/nll", "net1/nll", "ensemble/nll", "disagreement"):
        assert got[f"test/{key}"] == results[f"test/{key}"], key
    assert got["step"] == 0
    if facts:
        assert loop.evaluate_checkpoint(config, workdir, "best")["best/test/ensemble/top1"] == 0.125
        assert "reported by its source: ensemble top-1 12.50%" in capsys.readouterr().out
    else:
        with pytest.raises(ConfigError, match="checkpoint='best'.* one of: 0"):
            loop.evaluate_checkpoint(config, workdir, "best")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_average_by_the_command(run, save, tmp_path, capsys):
    states, averages = networks(2), networks(4)[2:]
    content = {"state_dict": numbered(states), "state_dict_ema": numbered(averages, "module.")}
    path = save("a.pth", content)
    for flags_, wanted, line in (
        ((), states, "weights in 'state_dict' are taken; it also holds averaged weights in "),
        (("--ema",), averages, "averaged weights in 'state_dict_ema' are taken; it also holds "),
    ):
        workdir = tmp_path / f"run{len(flags_)}"
        run(str(path), *OVERRIDES, f"--workdir={workdir}", *flags_)
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"{path}: {line}") and said[1].startswith("imported ")
        assert said[2:] == [f"next: jaxsplit eval --workdir={workdir}"]
        checkpoints = read.Reader(workdir)
        shape = read.model_shapes(checkpoints.path(0))["params/stack/head/bias"]
        like = {
            "params": {
                "stack": {
                    "head": {
                        "bias": jax.ShapeDtypeStruct(
                            shape,
                            np.float32,
                            sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
                        )
                    }
                }
            }
        }
        bias = read.restore_some(checkpoints.path(0), like)["params"]["stack"]["head"]["bias"]
        np.testing.assert_array_equal(bias, np.stack([state["fc.bias"] for state in wanted]))


@pytest.fixture
def refused(run, capsys):
    """A function that runs the command, which must end with status 2, and returns its one line."""

    def refused_(*args) -> str:
        with pytest.raises(SystemExit) as caught:
            run(*map(str, args))
        assert caught.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return line.removeprefix("error: ")

    return refused_


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_bad_input_of_the_command(refused, tmp_path):
    npz, workdir = tmp_path / "a.npz", f"--workdir={tmp_path / 'run'}"
    np.savez(npz, **numbered(networks(2)))
    assert refused(npz, workdir) == "config: must be given: --config=NAME or --config=FILE.py"
    must = "files and --workdir must be given: CHECKPOINT... --workdir=DIR"
    assert refused(npz, *OVERRIDES) == refused(*OVERRIDES, workdir) == must
    assert refused(npz, *OVERRIDES, workdir, "--config.splt=3").startswith("splt='3': no such")
    assert refused(npz, *OVERRIDES, workdir, "--force").startswith("Unknown command line flag")
    assert refused(npz, *OVERRIDES, workdir, "--config.split=3").startswith("split=3: ")
    assert refused(tmp_path / "b.npz", *OVERRIDES, workdir) == f"{tmp_path / 'b.npz'}: no such file"
    assert refused(npz, *OVERRIDES, workdir, "--config.split=4") == (
        "the checkpoint holds 2 networks, config has split=4, arch='wide_resnet10_1'"
    )
    line = refused(npz, *OVERRIDES, workdir, "--config.data.name=cifar100")
    assert line == (
        "the checkpoint's networks have 10 classes, data.name='cifar100' has 100; "
        "import with a config of 10 classes, then use --init_from"
    )
    line = refused(npz, *OVERRIDES, workdir, "--config.arch=resnet110")
    assert line.startswith("state_dict does not fit resnet110 divided in 2: missing ")
    line = refused(npz, *OVERRIDES, workdir, "--config.data.name=cifar10")  # three channels
    assert line == (
        "layer0.0.weight: shape (16, 1, 3, 3) where wide_resnet10_1 divided in 2 has (16, 3, 3, 3)"
        "; data.name='cifar10' has images of 32 x 32 pixels with 3 channels: give the file to "
        "--init_from, which takes weights for another number of channels or of patches"
    )
    line = refused(npz, *OVERRIDES, workdir, "--ema")
    assert line.startswith(f"{npz}: holds no averaged weights; searched: ")
    assert not (tmp_path / "run").exists()


def test_another_architecture_or_split_names_both(save):
    def refused(config, **content) -> str:
        with pytest.raises(ConfigError) as caught:
            torch_import.import_checkpoint(config, [save("a.pth", content)], "unused")
        return str(caught.value)

    states = networks(2)
    assert refused(tiny(split=4), arch="resnet110", state_dict=numbered(states)) == (
        "the checkpoint holds 2 networks of resnet110, config has split=4, arch='wide_resnet10_1'"
    )
    # Other networks of the same tensors' shapes are found by what the file says.
    assert refused(tiny(), arch="wide_resnet10_2", state_dict=numbered(states)) == (
        "the checkpoint holds 2 networks of wide_resnet10_2, config has split=2, "
        "arch='wide_resnet10_1'"
    )
    single = tiny(split=1, method="single")
    assert refused(single, arch="resnet164", state_dict=states[0]).startswith(
        "the checkpoint holds 1 network of resnet164, config has split=1"
    )


def test_wrapped_names_that_are_mixed():
    (state,) = networks(1)
    half = {f"module.{n}" if n.startswith("layer") else n: v for n, v in state.items()}
    config = tiny(split=1, method="single", divide=False)
    with pytest.raises(ConfigError) as caught:
        torch_import.to_variables(config, torch_files.Weights([half], {}), 10)
    assert str(caught.value).startswith(
        "state_dict does not fit wide_resnet10_1: some names have the prefix 'module.', "
        "['module.layer0.0.weight', "
    )
    assert str(caught.value).endswith("some do not, ['fc.bias', 'fc.weight']")


@pytest.mark.parametrize("parts", [("model.",), ("model.", "")])
def test_own_names_that_are_those_of_wrappers(monkeypatch, parts):
    """All parts of a network of ours are called so, or some."""
    spec = SPECS["wide_resnet"]
    variables, state = random_state(spec)
    family = models.known(spec.arch)[0]
    plain = family.torch_name

    def own(name: str) -> str:
        return f"{parts[0]}{name}" if name.startswith("layer") else f"{parts[-1]}{name}"

    name = next(name for name, known in models.FAMILIES.items() if known is family)
    other = dataclasses.replace(family, torch_name=lambda spec, path: own(plain(spec, path)))
    monkeypatch.setitem(models.FAMILIES, name, other)
    for prefix in ("", "module.", "model._orig_mod."):
        wrapped = {prefix + own(name): value for name, value in state.items()}
        read = torch_wrappers.unwrapped(wrapped)
        assert torch_import._num_classes(spec, read) == K
        for names in (wrapped, read):
            got = torch_network.from_state_dict(spec, names, K)
            jax.tree.map(np.testing.assert_array_equal, got, variables)


def test_the_name_in_the_file():
    """It is ours, or the reference's for ours; one that is none of ours says nothing."""
    states = networks(2)
    for arch in ("", "wide_resnet10_1", "ours", "wide_resnet10", "vgg16"):
        weights = torch_files.Weights(states, {}, arch=arch)
        assert torch_import.to_variables(tiny(), weights, 10)["params"].keys() == {"stack"}
    for arch in ("wide_resnet10_2", "efficientnetb0", "wideresnet4002"):
        weights = torch_files.Weights(states, {}, arch=arch)
        with pytest.raises(ConfigError, match=f"holds 2 networks of {arch}, config has split=2"):
            torch_import.to_variables(tiny(), weights, 10)
    same = {
        "efficientnetb0": {"efficientnetb0", "efficientnetb0_cifar", "efficientnetb0_lightnetpp"},
        "resnet18": {"resnet18", "ffsd_resnet18"},
        "wideresnet4002": {"ffsd_wide_resnet40_2"},
        "se_resnet50": {"se_resnet50"},  # not se_resnet50_B, whose tensors are the same
    }
    for arch, ours in same.items():
        known = set(summary.architectures()) & torch_import._names_here(arch)
        assert known == ours


def test_a_checkpoint_of_timms_trainer(save):
    """Its `arch` is timm's name; names and shapes of the tensors are checked all the same."""
    config = tiny(arch="vit_ti16", split=1, method="single", divide=False)
    config.data.image_size = 32
    (state,) = networks(1, config)

    def of(state, arch="vit_tiny_patch16_224"):
        content = {"state_dict": state, "arch": arch, "epoch": 3, "version": 2}
        weights = torch_files.read([save("a.pth", content)])
        return torch_import.to_variables(config, weights, 10)["params"]["stack"]

    np.testing.assert_array_equal(of(state)["head"]["bias"][0], state["head.bias"])
    with pytest.raises(ConfigError, match="does not fit vit_ti16: missing .'head.bias'"):
        of({name: value for name, value in state.items() if name != "head.bias"})
    with pytest.raises(ConfigError, match="holds 1 network of vit_s16, config has split=1"):
        of(state, "vit_s16")


def test_values_that_are_no_numbers_are_named():
    spec = SPECS["resnet"]
    finite, floating = "values that are not all finite numbers", "values, must be floating-point"
    for bad, reason in (
        (np.full(K, np.nan), f"float64 {finite}"),
        (np.full(K, np.inf, np.float16), f"float16 {finite}"),
        (np.full(K, -np.inf, jnp.bfloat16), f"bfloat16 {finite}"),
        (np.full(K, 1e39), f"float64 {finite}"),  # in float32
        (np.full(K, "a"), f"<U1 {floating}"),
        (np.ones(K, np.int8), f"int8 {floating}"),  # of a quantised network, without its scales
        (np.ones(K, np.complex64), f"complex64 {floating}"),
        (np.ones(K, jnp.float8_e4m3fn), f"float8_e4m3fn {floating}"),
    ):
        _, state = random_state(spec)
        state["fc.bias"] = bad
        with pytest.raises(ConfigError) as caught:
            torch_network.from_state_dict(spec, state, K)
        assert str(caught.value).startswith(f"fc.bias: {reason}")


def test_files_of_different_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch_files,
        "read_torch",
        lambda path: {"state_dict": {"fc.bias": np.zeros(3)}, "arch": path.stem},
    )
    for name in ("resnet110", "resnet164"):
        (tmp_path / f"{name}.pth").touch()
    with pytest.raises(ConfigError, match="of different kinds: resnet110, resnet164"):
        torch_files.read(sorted(tmp_path.iterdir()))
    with pytest.raises(ConfigError, match="is a directory, must be a file"):
        torch_files.read([tmp_path])


def test_whole_networks(tmp_path):
    """config.divide=False: each of the S networks has the width of the whole."""
    config = tiny(arch="wide_resnet10_2", divide=False)
    np.savez(tmp_path / "a.npz", **numbered(networks(2, config)))
    torch_import.import_checkpoint(config, [tmp_path / "a.npz"], tmp_path / "run")
    with pytest.raises(ConfigError, match="undivided networks .* --config.divide=False$"):
        torch_import.import_checkpoint(
            tiny(arch="wide_resnet10_2"), [tmp_path / "a.npz"], tmp_path / "other"
        )


def test_nothing_is_overwritten_nor_trained_on(tmp_path):
    config = tiny()
    np.savez(tmp_path / "a.npz", **numbered(networks(2)))
    run = tmp_path / "run"
    torch_import.import_checkpoint(config, [tmp_path / "a.npz"], run)
    before = sorted(run.rglob("*"))
    with pytest.raises(ConfigError, match="holds checkpoints already; choose another"):
        torch_import.import_checkpoint(config, [tmp_path / "a.npz"], run)
    with pytest.raises(ConfigError, match=f"holds weights only, .* --init_from={run}$"):
        loop.train_and_evaluate(config, run)
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_the_command_in_the_shell(tmp_path):
    np.savez(tmp_path / "a.npz", **numbered(networks(2)))
    command = [sys.executable, "-m", "jaxsplit.torch_import", str(tmp_path / "a.npz"), *OVERRIDES]
    command += ["--workdir", str(tmp_path / "run")]
    for status, out in ((0, "imported wide_resnet10_1 divided in 2, into "), (2, "")):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr
        assert done.stdout.startswith(out) and bool(done.stdout) == bool(out)
        assert len(done.stderr.splitlines()) == (status == 2), done.stderr
