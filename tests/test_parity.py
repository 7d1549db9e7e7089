"""Outputs and statistics of backbones against the reference's, from its own weights.

The golden files of this folder are parts of parity files (a test says so): logits of two networks.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import models, optim
from jaxsplit.models import stochastic
from jaxsplit.weights import torch_network
from tests.support.paths import GOLDEN
from tests.support.samples import sampled
from tests.support.xla import EXACT, EXACT_FLOAT64

GOLDEN_CASES = ("cifar100_wide_resnet16_8_s4", "cifar100_resnet110_s4")
# File -> name of the network here, where it is not the file's own.
CASES = {
    "cifar100_wide_resnet16_8_s4": None,
    "cifar100_resnet110_s4": None,
    "cifar100_se_resnet110_s4": None,
    "cifar100_resnext29_8x64d_s8": None,
    "cifar100_shake_resnet26_2x96d_s16": None,
    "cifar100_pyramidnet164_s16": None,
    "cifar100_densenet190_s16": None,
    "cifar100_efficientnetb0_s4": "efficientnetb0_cifar",
    "imagenet_resnet50_s8": None,
    "imagenet_wide_resnet50_2_s4": None,
    "imagenet_resnext50_32x4d_s16": None,
    "imagenet_se_resnet50_s8": None,
    "imagenet_se_resnext101_64x4d_B_s16": None,
    "imagenet_senet113_s16": None,
    "imagenet_resnest_mini": "resnest101",
    "imagenet_resnexst50_8x16d_s8": None,
    "imagenet_efficientnetb0_s4_lukemelas": "efficientnetb0",
    "imagenet_efficientnetb0_s4_lightnetpp": "efficientnetb0_lightnetpp",
    "ffsd_cifar100_resnet20": "resnet20",
    "ffsd_cifar100_wideresnet1602": "ffsd_wide_resnet16_2",
    "ffsd_cifar100_densenet": "densenet40_12",
    "ffsd_cifar100_googlenet": "googlenet",
}
# Files that are compared in every run of the tests; all of them in `make test-all` and in CI.
IN_TRAINING = (
    "cifar100_wide_resnet16_8_s4",
    "cifar100_resnext29_8x64d_s8",
    "imagenet_resnet50_s8",
    "ffsd_cifar100_resnet20",
    "ffsd_cifar100_wideresnet1602",
)
IN_EVALUATION = (*IN_TRAINING, "cifar100_efficientnetb0_s4", "imagenet_se_resnet50_s8")
# Fields of the specs that differ from those of the name.
FIELDS = {
    "imagenet_resnest_mini": dict(blocks=(2, 2, 1, 1), stem=(32, 32, 64)),
}
# Those that draw random numbers; the reference's training mode ran without them.
RATES = ("dropout", "drop_path", "drop_block", "shake_drop")
# Of the largest value; float32 rounding leaves some 1e-6, also between the reference and itself.
TOLERANCE = 2e-5
TOLERANCE_FLOAT64 = 1e-11  # between float64 and itself


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=EXACT)


def relative_error(got, want) -> float:
    """Largest difference over largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def network_of(case: str, data: dict):
    """(spec, variables) of a fixture."""
    arch = CASES[case] or str(data["meta/arch"])
    s = int(data.get("meta/split_factor", 1))
    spec = dataclasses.replace(models.divided(arch, s), **FIELDS.get(case, {}))
    state = {k.removeprefix("state/"): data[k] for k in data if k.startswith("state/")}
    # The leader's own module is tested where it is defined.
    state = {k: v for k, v in state.items() if not k.startswith("trans_fusion_module.")}
    return spec, torch_network.from_state_dict(spec, state, data["logits_eval"].shape[1])


def build(spec, data: dict, *, random: bool):
    rates = {name: 0.0 for name in RATES if hasattr(spec, name) and not random}
    spec = dataclasses.replace(spec, **rates)
    return models.build(spec, data["logits_eval"].shape[1])


def images(data, name="x"):
    return data[name].astype(np.float32).transpose(0, 2, 3, 1)


def evaluate(module, variables, x):
    with jax.default_matmul_precision("highest"):
        return quick(lambda v, x: module.apply(v, x))(variables, x)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_logits(case):
    data = dict(np.load(GOLDEN / f"models_{case}.npz"))
    spec, variables = network_of(case, data)
    logits, _ = evaluate(build(spec, data, random=True), variables, images(data))
    assert relative_error(logits, data["logits_eval"]) <= TOLERANCE


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_file_is_a_part_of_the_parity_file(parity, case):
    golden, whole = (
        np.load(GOLDEN / f"models_{case}.npz"),
        np.load(parity / "models" / f"{case}.npz"),
    )
    kept = [k for k in whole if k.startswith(("state/", "meta/"))] + ["x", "logits_eval"]
    assert sorted(golden) == sorted(kept)
    for key in kept:
        assert golden[key].dtype == whole[key].dtype
        np.testing.assert_array_equal(golden[key], whole[key])


def test_every_file_is_a_case(parity):
    files = {path.stem for path in (parity / "models").iterdir()} - {"ffsd_modules"}
    assert files == set(CASES)


@pytest.fixture(scope="module")
def fixture(request, parity):
    """(case, arrays of the parity file, spec, variables)."""
    data = dict(np.load(parity / "models" / f"{request.param}.npz"))
    return request.param, data, *network_of(request.param, data)


@pytest.mark.parametrize("fixture", sampled(CASES, IN_EVALUATION), indirect=True)
def test_logits_in_evaluation(fixture):
    case, data, spec, variables = fixture
    names = [name for name in ("", "_odd") if f"x{name}" in data]
    # Of the ImageNet networks only EfficientNet's files lack images of an odd size.
    assert len(names) == 1 + (case.startswith("imagenet") and "efficientnet" not in case)
    for name in names:
        module = build(spec, data, random=True)
        logits, features = evaluate(module, variables, images(data, f"x{name}"))
        assert relative_error(logits, data[f"logits{name}_eval"]) <= TOLERANCE
    if case.startswith("ffsd"):
        # What FFSD reads: all stages but the last, and the map before the classifier.
        stages = sorted(name for name in features if name.startswith("stage"))
        for i, name in enumerate([*stages[:-1], "final"]):
            attention = jnp.square(features[name]).mean(3)[:, None]
            means = features[name].mean((1, 2))
            wanted = data[f"feature_map_{i}_attention_eval"]
            assert relative_error(attention, wanted) <= TOLERANCE, name
            wanted = data[f"feature_map_{i}_channel_mean_eval"]
            assert relative_error(means, wanted) <= TOLERANCE, name


@pytest.mark.parametrize("fixture", sampled(CASES, IN_TRAINING), indirect=True)
def test_logits_and_statistics_in_training(fixture, monkeypatch):
    case, data, spec, variables = fixture
    module = build(spec, data, random=False)

    def half(key, example_ids, x, low):  # as the reference ran its training mode
        wide = jnp.full((x.shape[0], *(1,) * (x.ndim - 1)), 0.5, x.dtype)
        return wide, wide

    monkeypatch.setattr(stochastic, "uniform_pair", half)

    def run(variables, x):
        rngs = {"dropout": jax.random.key(0)}
        (logits, _), new = module.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])
        return logits, new

    # In float64: the statistics of four images amplify float32's rounding, which each machine does
    # in another order, to the size of a fault.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda value: jnp.asarray(value, jnp.float64), variables)
        x = jnp.asarray(images(data), jnp.float64)
        logits, new = jax.jit(run, compiler_options=EXACT_FLOAT64)(wide, x)
        logits, new = jax.device_get((logits, new))
    assert logits.dtype == np.float64
    assert relative_error(logits, data["logits_train_f64"]) <= TOLERANCE_FLOAT64
    names = jax.tree.leaves(torch_network.state_dict_names(spec, new))
    wanted = {k for k in data if k.startswith("train_stats/")}
    wanted = {k for k in wanted if not k.startswith("train_stats/trans_fusion_module.")}
    # The file has statistics of layers that never run, too.
    dead = models.known(spec.arch)[0].torch_dead
    wanted = {k for k in wanted if not any(re.fullmatch(f"train_stats/{d}", k) for d in dead)}
    assert {f"train_stats/{name}" for name in names} == wanted
    for name, value in zip(names, jax.tree.leaves(new), strict=True):
        assert relative_error(value, data[f"train_stats/{name}"]) <= TOLERANCE, name


GROUPS = json.loads((GOLDEN / "parameter_groups.json").read_text())


@pytest.mark.parametrize("case", sampled(GROUPS, [c for c in IN_EVALUATION if c in GROUPS]))
def test_decay_groups(parity, case):
    """What does not decay of the whole networks is what the reference leaves out."""
    row, data = GROUPS[case], dict(np.load(parity / "models" / f"{case}.npz"))
    spec, variables = network_of(case, data)
    names = torch_network.state_dict_names(spec, variables)["params"]
    mask = optim.decay_mask(variables["params"], decay_norm=row["bn_weights_decayed"] > 0)
    undecayed = {n for n, m in zip(*map(jax.tree.leaves, (names, mask)), strict=True) if not m}
    dead = models.known(spec.arch)[0].torch_dead
    wanted = {n for n in row["not_decayed_names"] if not any(re.fullmatch(d, n) for d in dead)}
    assert undecayed == wanted
