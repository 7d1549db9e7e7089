"""config.init_from: a new run that starts from the weights of another, or of PyTorch files."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import experiment, loop, models, state
from jaxsplit.checkpoints import read
from jaxsplit.errors import ConfigError
from jaxsplit.export import export
from jaxsplit.weights import torch_import, torch_network, warm_start
from tests.support.inference import write_untrained
from tests.support.runs import tiny
from tests.support.samples import first
from tests.support.torch_states import numbered, random_variables, state_of

HEAD = ("params/stack/head/bias", "params/stack/head/kernel")


def make_config(**fields):
    """Two small networks on eight-pixel images of ten classes; one device."""
    config = digits_wrn16_4_x4.get_config()
    config.data.name, config.data.image_size = "synthetic", 8
    config.arch, config.split, config.batch_size = "wide_resnet10_1", 2, 16
    config.divide_anyway = True
    config.duration, config.mesh.data = "2 steps", 1
    config.eval.every = config.checkpoint.every = "1 steps"
    for field, value in fields.items():
        *group, name = field.split("__")
        setattr(config[group[0]] if group else config, name, value)
    return config


def like(config):
    """(experiment, what its variables are)."""
    exp = experiment.build(config)
    return exp, exp.state_shapes().variables


def leaves(tree) -> dict:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir of two networks for cifar100, the .npz that they came from, their variables)."""
    folder = tmp_path_factory.mktemp("source")
    config = make_config(data__name="cifar100", data__image_size=0)
    spec = config_lib.resolve(config).spec
    networks = [random_variables(spec, 100, seed=seed) for seed in range(2)]
    np.savez(folder / "a.npz", **numbered([state_of(spec, v) for v in networks]))
    torch_import.import_checkpoint(config, [folder / "a.npz"], folder / "run")
    stack = jax.tree.map(lambda *x: np.stack(x), *networks)
    return folder / "run", folder / "a.npz", {k: {"stack": v} for k, v in stack.items()}


@pytest.mark.parametrize("kind", ["run", "step", "file"])
def test_all_but_the_classifier_is_taken(source, kind):
    workdir, npz, variables = source
    path = {"run": workdir, "step": workdir / "checkpoints" / "0", "file": npz}[kind]
    config = make_config(init_from=str(path), mesh__data=4, mesh__net=2)
    _, shapes = like(config)
    start = warm_start.read(config, shapes)
    assert jax.tree.structure(start.taken, is_leaf=lambda x: x is None) == jax.tree.structure(
        shapes
    )
    taken, wanted, shapes = leaves(start.taken), leaves(variables), leaves(shapes)
    assert taken.keys() == wanted.keys() - set(HEAD)
    for name, value in taken.items():
        np.testing.assert_array_equal(value, wanted[name])
        assert value.sharding == shapes[name].sharding  # on the mesh, and its `net` axis
    assert any(name.startswith("batch_stats/") for name in taken)
    assert start.note.endswith(
        f": {len(taken)} arrays taken, not taken: params/stack/head/bias [2, 100] -> [2, 10], "
        "params/stack/head/kernel [2, 64, 100] -> [2, 64, 10]"
    )


def test_the_same_classes_take_the_classifier(source):
    _, npz, variables = source
    config = make_config(init_from=str(npz), data__name="cifar100", data__image_size=0)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), variables
    )
    start = warm_start.read(config, shapes)
    jax.tree.map(np.testing.assert_array_equal, start.taken, variables)
    assert "not taken" not in start.note


def test_a_new_state(source):
    """What is not taken is drawn as without init_from; step and optimizer start at zero."""
    config = make_config(init_from=str(source[0]), mesh__data=4, mesh__net=2)
    exp, shapes = like(config)
    start = warm_start.read(config, shapes)
    args = (exp.method, exp.optimizer, config.seed, exp.dataset.image_shape, exp.sharding)
    plain, tuned = state.init(*args), state.init(*args, start.taken)
    assert int(tuned.step) == 0
    np.testing.assert_array_equal(tuned.key, plain.key)
    jax.tree.map(np.testing.assert_array_equal, tuned.opt_state, plain.opt_state)
    got, drawn, wanted = leaves(tuned.variables), leaves(plain.variables), leaves(source[2])
    for name in got:
        np.testing.assert_array_equal(got[name], drawn[name] if name in HEAD else wanted[name])
        assert got[name].sharding == drawn[name].sharding


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """The workdir of two steps from `source`, which is gone by then."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(source[0], folder / "gone")
    config = make_config(init_from=str(folder / "gone"))
    loop.train_and_evaluate(config, folder / "run")
    shutil.rmtree(folder / "gone")
    return folder / "run"


@pytest.mark.slow
def test_the_source_is_recorded_and_not_read_again(tuned, capsys, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    config = config_lib.load(tmp_path / "run")
    assert config.init_from.endswith("gone")
    config.duration = "3 steps"
    capsys.readouterr()
    assert loop.train_and_evaluate(config, tmp_path / "run")["step"] == 3
    said = capsys.readouterr().out
    assert said.startswith("resumed at step 2 in ") and "arrays taken" not in said
    # It need not be given again, and stays recorded.
    loop.train_and_evaluate(make_config(duration="3 steps"), tmp_path / "run")
    assert config_lib.load(tmp_path / "run").init_from.endswith("gone")
    with pytest.raises(ConfigError, match="^init_from='.*gone': no such workdir, checkpoint or"):
        loop.train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_training_starts_from_what_was_taken(source, tuned):
    """Two steps moved the weights a little from the source's, far from drawn ones."""
    exp, _ = like(make_config())
    checkpoints = read.Reader(tuned)
    after = leaves(read.restore_model(checkpoints.path(2), exp.state_shapes()))
    for name, before in leaves(source[2]["params"]).items():
        if f"params/{name}" not in HEAD:
            moved = np.abs(after[f"params/{name}"] - before).mean()
            assert 0 < moved < 0.5 * np.abs(before).mean(), name


def test_a_step_can_be_chosen(tuned):
    taken = {}
    for which in ("", "/checkpoints/1", "/checkpoints/2", "/checkpoints/2/"):
        config = make_config(init_from=f"{tuned}{which}")
        start = warm_start.read(config, like(config)[1])
        taken[which] = np.asarray(leaves(start.taken)["params/stack/stem_conv1/kernel"])
        assert f"checkpoint {which.strip('/')[12:] or 2} of " in start.note
    np.testing.assert_array_equal(taken[""], taken["/checkpoints/2"])
    np.testing.assert_array_equal(taken[""], taken["/checkpoints/2/"])
    assert (taken[""] != taken["/checkpoints/1"]).any()


def test_parts_of_another_method(source):
    """Auxiliary modules are taken where both have them, and named where only one has."""
    _, shapes = like(make_config())
    need = leaves(shapes) | {"params/fusion/kernel": np.zeros((3, 4))}
    have = {name: tuple(x.shape) for name, x in leaves(shapes).items()}
    have["params/trans_fusion/conv1/kernel"] = (3, 3, 1, 4)
    tree: dict = {}
    for name, leaf in need.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    fit = warm_start._fitting(have, tree)
    assert fit.wanted.keys() == leaves(shapes).keys()
    assert fit.differences == ["trans_fusion (not in this run)", "fusion (not in the checkpoint)"]
    assert warm_start._fitting(have | {"params/fusion/kernel": (3, 4)}, tree).differences == [
        "trans_fusion (not in this run)"
    ]


@pytest.mark.parametrize(
    "fields, reason",
    [
        (
            dict(split=4),
            "holds wide_resnet10_1 divided in 2, config has wide_resnet10_1 divided in 4",
        ),
        (
            dict(arch="wide_resnet16_1"),
            "holds wide_resnet10_1 divided in 2, config has wide_resnet16_1 divided in 2",
        ),
        (
            dict(divide=False, arch="wide_resnet10_2"),
            "holds wide_resnet10_1 divided in 2, config has 2 x wide_resnet10_2",
        ),
    ],
)
def test_networks_that_differ(source, fields, reason):
    config = make_config(init_from=str(source[0]), **fields)
    with pytest.raises(ConfigError) as caught:
        warm_start.read(config, like(config)[1])
    assert str(caught.value) == f"init_from='{source[0]}': {reason}"


def layer(state_or_tree):
    return np.asarray(leaves(state_or_tree)["params/stack/stem_conv1/kernel"])


def test_images_of_another_number_of_channels(source, tmp_path):
    """Of 3 to 1 channels the first kernel is summed, of 1 to 3 divided and repeated; one line each
    says so, of a run and of a file."""
    workdir, npz, variables = source
    kernel = layer(variables)  # [2, 3, 3, 3, 16]
    gray = np.float32(kernel[..., 0:1, :] + kernel[..., 1:2, :] + kernel[..., 2:, :])
    name = "params/stack/stem_conv1/kernel"
    taken = {}
    for path in (workdir, npz):
        config = make_config(init_from=str(path), data__name="digits", data__image_size=0)
        config.mesh.data, config.mesh.net = 2, 2
        shapes = like(config)[1]
        start = warm_start.read(config, shapes)
        taken[path] = layer(start.taken)
        np.testing.assert_allclose(taken[path], gray, rtol=1e-6)
        assert leaves(start.taken)[name].sharding == leaves(shapes)[name].sharding
        first, second = start.note.splitlines()
        assert first == f"{name}: converted from 3 image channels to 1 by summing over them"
        assert "arrays taken" in second and name not in second
        rest = {n: v for n, v in leaves(start.taken).items() if n != name}
        for n, value in rest.items():
            np.testing.assert_array_equal(value, leaves(variables)[n])
    np.testing.assert_array_equal(taken[workdir], taken[npz])

    config = make_config(data__name="digits", data__image_size=0)
    one = jax.tree.map(lambda x: np.asarray(x[0]), {c: v["stack"] for c, v in variables.items()})
    one["params"]["stem_conv1"]["kernel"] = kernel[0, ..., :1, :]
    states = numbered([state_of(config_lib.resolve(config).spec, one)] * 2)
    np.savez(tmp_path / "gray.npz", **states)
    config = make_config(init_from=str(tmp_path / "gray.npz"))
    start = warm_start.read(config, like(config)[1])
    wanted = np.repeat([kernel[0, ..., :1, :] / 3] * 2, 3, axis=-2)
    np.testing.assert_allclose(layer(start.taken), wanted, rtol=2e-7)  # XLA's division
    line = f"{name}: converted from 1 image channel to 3 by dividing by 3 and repeating"
    assert start.note.splitlines()[0] == line


def test_a_gray_image_gives_the_same():
    """In one channel, or in three equal ones."""
    rng = np.random.default_rng(0)
    gray, image = rng.normal(size=(3, 3, 1, 4)), rng.normal(size=(3, 3, 1))
    colour = warm_start._for_channels(gray, 3)
    assert colour.shape == (3, 3, 3, 4)
    wanted = np.einsum("hwio,hwi->o", gray, image)
    equal = np.repeat(image, 3, axis=-1)
    np.testing.assert_allclose(np.einsum("hwio,hwi->o", colour, equal), wanted, rtol=1e-5)
    np.testing.assert_allclose(warm_start._for_channels(colour, 1), gray, rtol=1e-5)


FAMILIES = (
    "wide_resnet16_8 resnet20 vit_ti4 convnext_atto resnet50 efficientnetb0_cifar resnet110 "
    "resnext29_8x64d se_resnet110 shake_resnet26_2x96d pyramidnet164 densenet40_12 "
    "ffsd_wide_resnet16_2 googlenet se_resnet50 resnest101 resnexst50_4x16d efficientnetb0 "
    "densenet121 ffsd_resnet18"
).split()


@pytest.mark.parametrize("arch", first(4, FAMILIES))
def test_the_first_layer_of_every_family(arch):
    """Of all that depends on the number of channels exactly one kernel; in both directions."""
    spec = models.divided(arch, 1)
    shapes = []
    for channels in (1, 3):
        made = torch_network.shapes_of(models.build(spec, 10), spec.image_size, channels)
        shapes.append({"params": {"stack": made["params"]}})
    gray, colour = ({n: (2, *x.shape) for n, x in leaves(tree).items()} for tree in shapes)
    (name,) = [n for n in gray if gray[n] != colour[n]]
    assert warm_start._first_kernels(gray, colour) == {name}
    assert warm_start._first_kernels(colour, gray) == {name}
    assert name.startswith("params/stack/stem_")


def test_other_architectures_are_not_other_channels():
    """More than one kernel, or another difference; other numbers than 1 are not changed."""
    have = {"params/stack/a/kernel": (2, 3, 3, 3, 16), "params/stack/b/kernel": (2, 3, 3, 4, 16)}
    for other in (
        {"params/stack/a/kernel": (2, 3, 3, 1, 16), "params/stack/b/kernel": (2, 3, 3, 1, 16)},
        {"params/stack/a/kernel": (2, 3, 3, 1, 8), "params/stack/b/kernel": (2, 3, 3, 4, 16)},
        {"params/stack/a/kernel": (2, 3, 3, 4, 16), "params/stack/b/kernel": (2, 3, 3, 4, 16)},
        {"params/stack/a/bias": (1,), "params/stack/b/kernel": (2, 3, 3, 4, 16)},
    ):
        assert not warm_start._first_kernels(have, other)
    kernels = [
        {"params/stack/a/kernel": (2, 3, 3, c, 16), "params/leader/a/kernel": (3, 3, c, 16)}
        for c in (3, 1)
    ]
    assert warm_start._first_kernels(*kernels) == kernels[0].keys()


@pytest.mark.parametrize("folder", ["a,b", "a=b", "lr=0.1,wd=1e-4", "a:ema"])
def test_paths_with_commas(source, tmp_path, folder):
    """As a whole first; then with commas between files."""
    workdir, npz, variables = source
    shutil.copytree(workdir, tmp_path / folder / "run,1")
    shutil.copy(npz, tmp_path / folder / "x,y.npz")
    for rest in ("run,1", "run,1/checkpoints/0", "x,y.npz"):
        config = make_config(init_from=str(tmp_path / folder / rest))
        np.testing.assert_array_equal(
            layer(warm_start.read(config, like(config)[1]).taken), layer(variables)
        )
    assert warm_start._sources(f"{tmp_path / folder / 'x,y.npz'},none.npz,{npz}:ema") == (
        [tmp_path / folder / "x,y.npz", pathlib.Path("none.npz"), npz],
        "average",
    )


def test_the_average_of_a_file(source, tmp_path):
    workdir, npz, variables = source
    states = dict(np.load(npz))
    zero = {f"model_ema.{name}": np.zeros_like(value) for name, value in states.items()}
    path = tmp_path / "a.npz"
    np.savez(path, **{f"model.{name}": value for name, value in states.items()}, **zero)
    for suffix, wanted in (("", layer(variables)), (":ema", 0 * layer(variables))):
        config = make_config(init_from=f"{path}{suffix}")
        start = warm_start.read(config, like(config)[1])
        np.testing.assert_array_equal(layer(start.taken), wanted)
        line = start.note.splitlines()[0]
        assert line.startswith(f"{path}: ") and "are taken; it also holds " in line
    config = make_config(init_from=f"{workdir}:ema")
    with pytest.raises(ConfigError, match=":ema': :ema is for PyTorch files only; the check"):
        warm_start.read(config, like(config)[1])


def test_bad_sources(source, tmp_path):
    workdir, npz, _ = source
    (tmp_path / "text.npz").write_text("text")
    for path, reason in {
        tmp_path / "none": "no such workdir, checkpoint or file",
        tmp_path: "holds no checkpoints",
        workdir / "checkpoints" / "7": "must be latest, best or one of: ",
        workdir / "checkpoints": "must be a workdir or its checkpoints/<step>",
        tmp_path / "text.npz": "cannot be read as a checkpoint",
        f"{workdir},{npz}": "run: is a directory",
        f"{npz},{npz}": "holds 2 networks; each of several files must hold one network",
    }.items():
        config = make_config(init_from=str(path))
        with pytest.raises(ConfigError) as caught:
            loop.train_and_evaluate(config, tmp_path / "run")
        assert str(caught.value).startswith(f"init_from='{path}': ")
        assert reason in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_files_of_single_networks(tmp_path):
    """Whole networks of FFSD's layout, in the order that they are given in."""
    config = make_config(arch="wide_resnet10_2", divide=False)
    spec = config_lib.resolve(config).spec
    assert spec == models.divided("wide_resnet10_2", 1)
    stems = []
    for seed in range(2):
        variables = random_variables(spec, 10, seed=seed)
        stems.append(variables["params"]["stem_conv1"]["kernel"])
        np.savez(tmp_path / f"{seed}.npz", **state_of(spec, variables))
    config.init_from = f"{tmp_path / '1.npz'},{tmp_path / '0.npz'}"
    taken = leaves(warm_start.read(config, like(config)[1]).taken)
    np.testing.assert_array_equal(
        taken["params/stack/stem_conv1/kernel"], np.stack([stems[1], stems[0]])
    )
    assert set(HEAD) <= taken.keys()


# ---- Fine-tuning: one whole network for several, another image size


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(a file as timm publishes: one Vision Transformer of 16 x 16 patches and 7 classes, arrays).

    Its data set has images of 32 pixels; here they have 8.
    """
    spec = models.divided("vit_ti2", 1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    module = models.build(spec, 7)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32"), shapes)
    path = tmp_path_factory.mktemp("published") / "vit.npz"
    np.savez(path, **state_of(spec, variables))
    return path, leaves(variables)


@pytest.mark.slow
def test_several_networks_start_from_one(published):
    """All weights are the file's, in every network; positions are resized, heads are drawn."""
    path, wanted = published
    config = make_config(arch="vit_ti2", divide=False, init_from=str(path), method="independent")
    config.mesh.data, config.mesh.net = 2, 2
    exp, shapes = like(config)
    start = warm_start.read(config, shapes)
    got = leaves(start.taken)
    position = "params/stack/stem_tokens/positions"
    for name, value in got.items():
        assert value.sharding == leaves(shapes)[name].sharding
        if name != position:
            own = wanted[name.replace("stack/", "")]
            np.testing.assert_array_equal(value, np.stack([own, own]))
    assert got.keys() == leaves(shapes).keys() - set(HEAD)
    assert got[position].shape == (2, 1, 17, 192)
    token = wanted["params/stem_tokens/positions"][:, 0]
    np.testing.assert_array_equal(got[position][:, :, 0], [token, token])
    first_line, last = start.note.splitlines()[-2:]
    assert first_line == f"{position}: resized from 256 patches to 16, bicubic"
    assert "arrays taken, each for 2 networks, not taken: params/stack/head/bias [1, 7] -> " in last
    args = (exp.method, exp.optimizer, config.seed, exp.dataset.image_shape, exp.sharding)
    head = np.asarray(leaves(state.init(*args, start.taken).variables)[HEAD[1]])
    assert (head[0] != head[1]).any()


def test_several_networks_start_from_one_exported_network(tmp_path):
    write_untrained(tiny(split=1, method="single"), tmp_path / "one")
    path = export(tmp_path / "one", "safetensors", to=tmp_path / "one.safetensors").path
    found = []
    for source in (path, tmp_path / "one"):
        config = tiny(init_from=str(source), split=3, divide=False, method="independent")
        found.append(leaves(warm_start.read(config, like(config)[1]).taken))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value.shape[0] == 3
        np.testing.assert_array_equal(value, found[1][name])


@pytest.mark.parametrize(
    ("classes", "fields", "warned"),
    [
        (10, dict(method="dml"), True),  # whose networks see the same view
        (10, dict(method="dml", views="different"), False),
        (10, dict(method="dml", dropout=0.1), False),
        (7, dict(method="dml"), False),  # each draws a classifier
        (10, dict(method="independent"), False),
        (10, dict(method="independent", views="same"), True),
    ],
)
def test_copies_that_would_stay_equal_are_told(tmp_path, classes, fields, warned):
    spec = models.divided("wide_resnet10_1", 1)
    np.savez(tmp_path / "a.npz", **state_of(spec, random_variables(spec, classes)))
    config = make_config(divide=False, init_from=str(tmp_path / "a.npz"), **fields)
    *lines, last = warm_start.read(config, like(config)[1]).note.splitlines()
    assert "arrays taken, each for 2 networks" in last
    text = (
        "warning: all 2 networks start equal, see the same view and drop nothing, so that they may "
        "stay equal for ever; --config.views=different or --config.dropout=0.1 helps"
    )
    assert lines == [text] * warned


def test_a_network_of_several_heads_is_not_copied(tmp_path):
    """MIMO's network has a part of its first and last layer for each of its images."""
    mimo = tiny(method="mimo", divide=False, mimo__batch_repetitions=1)
    write_untrained(mimo, tmp_path)
    config = tiny(method="independent", divide=False, init_from=str(tmp_path))
    with pytest.raises(
        ConfigError, match="^init_from=.*: holds one_block with 2 inputs and outputs"
    ):
        warm_start.read(config, like(config)[1])


def test_resized_positions():
    """A smooth grid stays what it is; the class token's position is not touched."""
    x, y = np.meshgrid(np.linspace(-1, 1, 14), np.linspace(-1, 1, 14))
    grid = np.stack([x, y], -1).reshape(1, 196, 2)
    positions = np.concatenate([np.full((1, 1, 2), 7.0), grid], 1).astype("float32")
    got = np.asarray(warm_start._for_patches(positions, 1 + 28 * 28, 1))
    np.testing.assert_array_equal(got[:, 0], 7.0)
    x, y = np.meshgrid(*[(np.arange(28) - 13.5) / 13] * 2)
    inner = got[0, 1:].reshape(28, 28, 2)[3:-3, 3:-3]
    np.testing.assert_allclose(inner, np.stack([x, y], -1)[3:-3, 3:-3], atol=1e-4)
    np.testing.assert_array_equal(warm_start._for_patches(positions, 197, 1), positions)


def test_as_many_patches_are_copied_as_they_are():
    """Also where they form no square: nothing is resized, and no line says so."""
    name = "params/stack/stem_tokens/positions"
    positions = np.arange(28, dtype="float32").reshape(1, 1, 7, 4)  # of a token and 2 x 3 patches
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    want = jax.ShapeDtypeStruct((2, 1, 7, 4), "float32", sharding=here)
    got, note = warm_start._converted(name, jax.numpy.asarray(positions), want, 1)
    np.testing.assert_array_equal(got, np.concatenate([positions, positions]))
    assert note == ""
    with pytest.raises(ConfigError, match="positions: 6 patches form no square"):
        want = jax.ShapeDtypeStruct((2, 1, 5, 4), "float32", sharding=here)
        warm_start._converted(name, jax.numpy.asarray(positions), want, 1)


def test_divided_networks_do_not_start_from_one(published):
    config = make_config(arch="vit_ti2", init_from=str(published[0]))
    with pytest.raises(ConfigError, match="the checkpoint holds 1 network, config has split=2"):
        warm_start.read(config, like(config)[1])
