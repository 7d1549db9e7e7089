"""Backbones against the reference: size and cost of every one, outputs and statistics of some.

The golden files of this folder are parts of parity files (a test says so): logits of two networks.
"""

import collections
import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import models, summary, torch_import
from jaxsplit.errors import ConfigError
from jaxsplit.models import layers, resnet, senet

GOLDEN = pathlib.Path(__file__).parent / "golden"
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# (architecture, S) -> of one network: (parameters, elements of running statistics, multiply-adds of
# one image). The reference's own counts, for 32 pixels and 100 classes or 224 pixels and 1000.
REFERENCE: dict[tuple[str, int], tuple[int, int, int]] = {
    ("resnet110", 1): (1_170_868, 17_056, 167_453_696),
    ("resnet110", 2): (666_736, 12_792, 94_280_448),
    ("resnet110", 4): (303_564, 8_528, 41_980_416),
    ("resnet110", 8): (174_838, 6_396, 23_657_856),
    ("resnet110", 16): (81_352, 4_264, 10_553_600),
    ("resnet164", 1): (1_727_284, 25_120, 247_669_760),
    ("resnet164", 2): (981_232, 18_840, 139_401_984),
    ("resnet164", 4): (444_684, 12_560, 62_034_432),
    ("resnet164", 8): (254_974, 9_420, 34_938_240),
    ("resnet164", 16): (117_640, 6_280, 15_567_104),
    ("resnext29_8x64d", 1): (34_518_948, 57_472, 5_387_358_208),
    ("resnext29_8x64d", 2): (17_654_692, 35_968, 2_736_558_080),
    ("resnext29_8x64d", 4): (9_222_564, 25_216, 1_411_158_016),
    ("resnext29_8x64d", 8): (5_006_500, 19_840, 748_457_984),
    ("resnext29_16x64d", 1): (68_247_460, 100_480, 10_688_958_464),
    ("resnext29_16x64d", 2): (34_518_948, 57_472, 5_387_358_208),
    ("resnext29_16x64d", 4): (17_654_692, 35_968, 2_736_558_080),
    ("resnext29_16x64d", 8): (9_222_564, 25_216, 1_411_158_016),
    ("resnext29_16x64d", 16): (5_006_500, 19_840, 748_457_984),
    ("wide_resnet16_8", 1): (11_009_332, 8_992, 1_548_191_744),
    ("wide_resnet16_8", 2): (6_208_116, 6_752, 874_993_152),
    ("wide_resnet16_8", 4): (2_772_916, 4_512, 392_635_392),
    ("wide_resnet16_8", 8): (1_567_572, 3_392, 223_021_824),
    ("wide_resnet16_8", 16): (703_732, 2_272, 101_118_464),
    ("wide_resnet16_12", 1): (24_709_812, 13_472, 3_467_111_424),
    ("wide_resnet16_12", 2): (11_009_332, 8_992, 1_548_191_744),
    ("wide_resnet16_12", 4): (6_208_116, 6_752, 874_993_152),
    ("wide_resnet16_12", 8): (2_772_916, 4_512, 392_635_392),
    ("wide_resnet16_12", 16): (1_567_572, 3_392, 223_021_824),
    ("wide_resnet28_10", 1): (36_539_124, 20_192, 5_243_386_368),
    ("wide_resnet28_10", 2): (17_927_508, 14_144, 2_575_003_392),
    ("wide_resnet28_10", 4): (9_162_644, 10_112, 1_317_747_968),
    ("wide_resnet28_10", 8): (3_312_084, 6_080, 477_825_792),
    ("wide_resnet28_10", 16): (1_479_668, 4_064, 214_364_672),
    ("wide_resnet40_10", 1): (55_901_684, 29_152, 8_074_541_568),
    ("wide_resnet40_10", 2): (27_417_044, 20_416, 3_962_269_440),
    ("wide_resnet40_10", 4): (14_005_524, 14_592, 2_025_536_768),
    ("wide_resnet40_10", 8): (5_056_596, 8_768, 732_629_760),
    ("wide_resnet40_10", 16): (2_255_604, 5_856, 327_610_880),
    ("wide_resnet52_8", 1): (48_189_748, 30_496, 6_984_009_728),
    ("wide_resnet52_8", 2): (27_126_132, 22_880, 3_932_640_768),
    ("wide_resnet52_8", 4): (12_073_396, 15_264, 1_751_589_888),
    ("wide_resnet52_8", 8): (6_801_108, 11_456, 987_433_728),
    ("wide_resnet52_8", 16): (3_031_540, 7_648, 440_857_088),
    ("se_resnet110", 1): (1_693_684, 17_056, 167_969_792),
    ("se_resnet110", 2): (962_080, 12_792, 94_570_752),
    ("se_resnet110", 4): (435_948, 8_528, 42_109_440),
    ("se_resnet164", 1): (2_511_508, 25_120, 248_443_904),
    ("se_resnet164", 2): (1_424_248, 18_840, 139_837_440),
    ("se_resnet164", 4): (643_260, 12_560, 62_227_968),
    ("resnet50", 1): (25_680_808, 53_504, 5_444_337_664),
    ("resnet50", 2): (12_590_588, 36_784, 2_578_397_184),
    ("resnet50", 4): (6_946_760, 26_752, 1_367_015_424),
    ("resnet50", 8): (4_105_168, 20_064, 771_170_304),
    ("resnet101", 1): (44_672_936, 105_728, 9_156_558_848),
    ("resnet101", 2): (21_578_556, 72_688, 4_333_001_728),
    ("resnet101", 4): (11_707_848, 52_864, 2_295_070_720),
    ("resnet101", 8): (6_788_176, 39_648, 1_293_201_408),
    ("resnet152", 1): (60_316_584, 151_808, 12_868_780_032),
    ("resnet152", 2): (28_982_524, 104_368, 6_087_606_272),
    ("resnet152", 4): (15_630_280, 75_904, 3_223_126_016),
    ("resnet152", 8): (8_998_864, 56_928, 1_815_232_512),
    ("resnet200", 1): (64_797_608, 176_384, 16_362_635_264),
    ("resnet200", 2): (31_105_788, 121_264, 7_738_998_784),
    ("resnet200", 4): (16_756_680, 88_192, 4_096_589_824),
    ("resnet200", 8): (9_634_768, 66_144, 2_306_555_904),
    ("wide_resnet50_2", 1): (69_011_112, 68_608, 12_766_019_584),
    ("wide_resnet50_2", 2): (25_680_808, 53_504, 5_444_337_664),
    ("wide_resnet50_2", 4): (17_783_112, 34_304, 3_197_435_904),
    ("wide_resnet50_3", 1): (134_975_912, 83_712, 23_787_077_632),
    ("wide_resnet50_3", 2): (69_011_112, 68_608, 12_766_019_584),
    ("wide_resnet50_3", 4): (34_278_088, 41_856, 5_952_700_416),
    ("wide_resnet101_2", 1): (127_014_568, 138_240, 24_121_049_088),
    ("wide_resnet101_2", 2): (60_504_828, 95_040, 11_406_061_568),
    ("wide_resnet101_2", 4): (32_301_384, 69_120, 6_036_193_280),
    ("resnext50_32x4d", 1): (25_156_776, 68_608, 5_598_478_336),
    ("resnext50_32x4d", 2): (15_070_888, 53_504, 3_710_255_104),
    ("resnext50_32x4d", 4): (10_027_944, 45_952, 2_766_143_488),
    ("resnext50_32x4d", 8): (7_506_472, 42_176, 2_294_087_680),
    ("resnext50_32x4d", 16): (6_245_736, 40_288, 2_058_059_776),
    ("resnext101_32x4d", 1): (44_305_576, 138_240, 9_337_995_264),
    ("resnext101_32x4d", 2): (24_662_696, 105_728, 5_580_013_568),
    ("resnext101_32x4d", 4): (14_841_256, 89_472, 3_701_022_720),
    ("resnext101_32x4d", 8): (9_930_536, 81_344, 2_761_527_296),
    ("resnext101_32x4d", 16): (7_475_176, 77_280, 2_291_779_584),
    ("resnext101_64x4d", 1): (83_591_336, 203_264, 16_853_958_656),
    ("resnext101_64x4d", 2): (44_305_576, 138_240, 9_337_995_264),
    ("resnext101_64x4d", 4): (24_662_696, 105_728, 5_580_013_568),
    ("resnext101_64x4d", 8): (14_841_256, 89_472, 3_701_022_720),
    ("resnext101_64x4d", 16): (9_930_536, 81_344, 2_761_527_296),
    ("se_resnet50", 1): (28_154_328, 53_376, 4_920_205_312),
    ("se_resnet50", 2): (13_763_133, 36_696, 2_330_662_752),
    ("se_resnet50", 4): (7_569_120, 26_688, 1_235_982_336),
    ("se_resnet50", 8): (4_456_738, 20_016, 697_464_192),
    ("se_resnet101", 1): (49_393_176, 105_600, 8_634_654_720),
    ("se_resnet101", 2): (23_817_001, 72_600, 4_086_320_480),
    ("se_resnet101", 4): (12_896_512, 52_800, 2_164_594_688),
    ("se_resnet101", 8): (7_460_026, 39_600, 1_219_808_640),
    ("se_resnet152", 1): (66_888_152, 151_680, 12_348_710_912),
    ("se_resnet152", 2): (32_099_517, 104_280, 5_841_792_352),
    ("se_resnet152", 4): (17_285_856, 75_840, 3_093_108_736),
    ("se_resnet152", 8): (9_934_882, 56_880, 1_742_097_792),
}
FAMILIES = r"resnet\d+|wide_resnet\d+_\d+|resnext\d+_\d+x\d+d|se_resnet(50|101|152|110|164)"
# Counted in every run: all families, all S, the shallow of each.
SAMPLE = {
    ("resnet110", 1),
    ("resnet110", 16),
    ("resnet50", 2),
    ("resnet101", 4),
    ("resnext29_8x64d", 8),
    ("resnext29_16x64d", 16),
    ("resnext50_32x4d", 16),
    ("wide_resnet16_8", 4),
    ("wide_resnet28_10", 8),
    ("wide_resnet40_10", 2),
    ("wide_resnet50_2", 4),
    ("wide_resnet50_3", 2),
    ("se_resnet110", 4),
    ("se_resnet50", 8),
    ("se_resnet101", 4),
}


def images_of(arch: str) -> dict:
    """The images and classes that the table counts for."""
    cifar = models.divided(arch, 1).image_size == 32
    size, num_classes = (32, 100) if cifar else (224, 1000)
    return dict(num_classes=num_classes, image_shape=(size, size, 3))


def family_of(row: tuple[str, int]) -> tuple[str, int]:
    """(kind, pixels)."""
    kind = re.match("(se_|wide_)?(resnet|resnext)", row[0])[0]
    return kind, images_of(row[0])["image_shape"][0]


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def relative_error(got, want) -> float:
    """Largest difference over largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


# ---- size and cost


@pytest.mark.parametrize(
    "arch, s",
    [
        pytest.param(
            *row, marks=[] if row in SAMPLE else pytest.mark.slow, id="-x".join(map(str, row))
        )
        for row in REFERENCE
    ],
)
def test_size_and_cost_are_the_references(arch, s):
    cost = summary.cost(models.divided(arch, s), **images_of(arch))
    assert (cost.params, cost.stats, cost.macs) == REFERENCE[arch, s]


def test_the_sample_has_every_family_and_split():
    assert REFERENCE.keys() >= SAMPLE
    assert {s for _, s in SAMPLE} == {s for _, s in REFERENCE}
    assert set(map(family_of, SAMPLE)) == set(map(family_of, REFERENCE))


def test_all_that_divide_is_in_the_table():
    """Every architecture by its name, at every S that it has."""
    specs = {**resnet.SPECS, **senet.SPECS}
    expected = {(arch, s) for arch, spec in specs.items() for s in spec.splits}
    cifar_wrn = {row for row in REFERENCE if re.fullmatch(r"wide_resnet(16|28|40|52)_\d+", row[0])}
    assert set(REFERENCE) == expected | cifar_wrn
    assert len(REFERENCE) == 102


def reference_rows(parity, key: str) -> list[dict]:
    rows = json.loads((parity / "reference_models.json").read_text())[key]
    return [row for row in rows if re.fullmatch(FAMILIES, row["arch"])]


def test_table_is_the_parity_file(parity):
    rows = reference_rows(parity, "splitnet")
    figures = ("params_per_network", "bn_buffer_elements", "macs")
    table = {(r["arch"], r["split_factor"]): tuple(r[f] for f in figures) for r in rows}
    assert len(table) == len(rows)
    assert table == REFERENCE
    for row in rows:
        shape = images_of(row["arch"])["image_shape"]
        assert row["image_size"] == shape[0]
        assert row["facts"]["classifier_out"] == images_of(row["arch"])["num_classes"]


def test_specs_are_the_references(parity):
    """Widths, groups, blocks, stem, squeeze, dropout and BatchNorm constants, all 102."""
    norm = layers.BatchNorm()
    for row in reference_rows(parity, "splitnet"):
        facts, name = row["facts"], (row["arch"], row["split_factor"])
        spec = models.divided(*name)
        assert spec.dropout == pytest.approx(facts["dropout_p"] or 0.0, rel=1e-12), name
        assert facts["bn_eps"] == [norm.epsilon], name
        assert facts["bn_momentum"] == [pytest.approx(1 - norm.momentum)], name
        assert facts["first_conv_out"] == spec.stem[0], name
        assert tuple(stage["blocks"] for stage in facts["stages"]) == spec.blocks, name
        for i, stage in enumerate(facts["stages"]):
            width = spec.width * 2**i
            inner = int(width * spec.base_width / 64) * spec.groups
            out = width * (1 if spec.block == "basic" else resnet.EXPANSION)
            assert (stage["out"], stage["groups"]) == (out, spec.groups), name
            if facts["family"] == "senet":
                assert (stage["conv1_out"], stage["conv2_out"]) == (inner, inner), name
                assert stage["se_reduced"] == out // spec.se_reduction, name
            else:
                assert stage["inner"] == inner, name


def test_what_the_reference_cannot_divide_raises(parity):
    rows = reference_rows(parity, "splitnet_not_supported")
    assert len(rows) > 15
    for row in rows:
        with pytest.raises(ConfigError, match=rf"^split={row['split_factor']}: {row['arch']} can"):
            models.divided(row["arch"], row["split_factor"])


# ---- names and dividing


def test_wide_resnet_of_any_depth_and_width():
    assert models.divided("wide_resnet10_1", 1).blocks == (1, 1, 1)
    spec = models.divided("wide_resnet22_3", 1)
    assert (spec.blocks, spec.width, spec.block) == ((3, 3, 3), 48, "basic")
    assert models.divided("wide_resnet22_3", 4).width == 16  # int(3 / 2 + 0.4) = 1
    assert models.divided("wide_resnet100_20", 2).width == 16 * 14  # int(20 / sqrt 2 + 0.4)
    assert models.divided("wide_resnet10_1", 16).width == 16  # never narrower than 1
    for s, k in {1: 10, 2: 7, 4: 5, 8: 3, 16: 2}.items():
        assert models.divided("wide_resnet28_10", s).width == 16 * k


def test_cost_of_the_digits_network():
    spec = models.divided("wide_resnet16_4", 4)
    cost = summary.cost(spec, num_classes=10, image_shape=(8, 8, 1))
    assert (cost.params, cost.macs) == (691_834, 6_301_952)


@pytest.mark.parametrize(
    "arch",
    ["wide_resnet17_4", "wide_resnet4_4", "wide_resnet16_0", "wide_resnet016_4", "resnet51", ""],
)
def test_unknown_architecture_names_the_known(arch):
    with pytest.raises(ConfigError) as error:
        models.divided(arch, 1)
    assert str(error.value).startswith(f"arch={arch!r}: unknown; known are ")
    for name in ("resnet110", "resnext50_32x4d", "se_resnet101", "wide_resnet{6n+4}_{k}"):
        assert name in str(error.value)
    with pytest.raises(ConfigError, match="unknown; known are"):
        models.build(dataclasses.replace(resnet.SPECS["resnet50"], arch=arch), 10)


@pytest.mark.parametrize(
    "arch, s, known",
    [
        ("resnet50", 16, "1, 2, 4, 8"),
        ("resnet110", 3, "1, 2, 4, 8, 16"),
        ("wide_resnet16_8", 0, "1, 2, 4, 8, 16"),
        ("wide_resnet50_2", 8, "1, 2, 4"),
        ("resnext29_8x64d", 16, "1, 2, 4, 8"),
        ("se_resnet110", 8, "1, 2, 4"),
    ],
)
def test_unknown_split_names_the_known(arch, s, known):
    with pytest.raises(ConfigError, match=f"^split={s}: {arch} can be divided in {known}$"):
        models.divided(arch, s)


def test_specs_are_values():
    spec = models.divided("se_resnet101", 4)
    assert spec == models.divided("se_resnet101", 4)
    assert hash(spec) == hash(models.divided("se_resnet101", 4))
    assert spec != models.divided("se_resnet101", 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.width = 1


def test_undivided_is_the_spec_itself():
    for family in models.FAMILIES.values():
        for arch, spec in family.SPECS.items():
            assert spec.arch == arch
            assert family.divide(spec, 1) == spec == models.divided(arch, 1)


def test_names_are_found():
    for name in models.names():
        assert models.divided(name.replace("{6n+4}_{k}", "16_4"), 1).splits[0] == 1


# ---- the module


def test_features_in_order():
    cases = {
        # arch, S -> image, shapes of the stages, final is the last
        ("wide_resnet16_8", 4): (32, [(32, 32, 64), (16, 16, 128), (8, 8, 256)]),
        ("resnet110", 2): (31, [(31, 31, 48), (16, 16, 96), (8, 8, 192)]),
        ("resnet50", 4): (56, [(14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 1024)]),
        ("se_resnet50", 4): (57, [(14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 1024)]),
    }
    for (arch, s), (size, maps) in cases.items():
        spec = models.divided(arch, s)
        module = models.build(dataclasses.replace(spec, blocks=(1,) * len(maps)), 7)
        image = jnp.zeros((2, size, size, 3))
        found = []

        def run(x, module=module, found=found):
            logits, features = module.apply(module.init(jax.random.key(0), x), x)
            found.extend(features)  # a dict that leaves a transformation is sorted
            return logits, features

        logits, features = jax.eval_shape(run, image)
        assert logits.shape == (2, 7)
        assert found == [f"stage{i + 1}" for i in range(len(maps))] + ["final"]
        assert [features[f].shape[1:] for f in found] == [*maps, maps[-1]]


@pytest.fixture(scope="module")
def initialised():
    """Variables of one wide block: ResNet, Wide-ResNet, ResNeXt, SE-ResNet."""
    tiny = dict(blocks=(1,), width=64)
    specs = {
        "bottleneck": dataclasses.replace(resnet.SPECS["resnet50"], **tiny, stem=(32, 32, 64)),
        "basic": dataclasses.replace(models.divided("wide_resnet10_1", 1), **tiny),
        "grouped": dataclasses.replace(
            resnet.SPECS["resnext29_8x64d"], **tiny, base_width=4, groups=32
        ),
        "se": dataclasses.replace(senet.SPECS["se_resnet50"], **tiny),
    }

    def init(spec, key):
        module = models.build(spec, 100)
        return module.init(key, jnp.zeros((1, 8, 8, 3)))

    out = {}
    for name, spec in specs.items():
        variables = quick(lambda key, spec=spec: init(spec, key))(jax.random.key(len(name)))
        leaves = jax.tree.leaves_with_path(jax.device_get(variables))
        out[name] = {tuple(p.key for p in path): leaf for path, leaf in leaves}
    return out


@pytest.mark.parametrize("name", ["bottleneck", "basic", "grouped", "se"])
def test_initial_kernels(initialised, name):
    """Normal, fan-out: std sqrt(2 / (h w C')); 1e-3 in the head. Within 5 standard errors."""
    seen = 0
    for path, kernel in initialised[name].items():
        if path[-1] != "kernel":
            continue
        std = (
            1e-3
            if path[1] == "head"
            else (2 / np.prod([*kernel.shape[:2], kernel.shape[3]])) ** 0.5
        )
        assert abs(kernel.std() / std - 1) < 5 / (2 * kernel.size) ** 0.5, path
        assert abs(kernel.mean()) < 5 * std / kernel.size**0.5, path
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize("name", ["bottleneck", "basic", "grouped", "se"])
def test_initial_norms_and_biases(initialised, name):
    """Branches start at zero in ResNets, not in SE-ResNets; statistics start at 0 and 1."""
    last = "bn2" if name == "basic" else "bn3"
    values = {"bias": 0.0, "mean": 0.0, "var": 1.0}
    scales = collections.Counter()
    for path, leaf in initialised[name].items():
        if path[-1] in values:
            assert (leaf == values[path[-1]]).all(), path
        elif path[-1] == "scale":
            expected = 0.0 if path[-2] == last and name != "se" else 1.0
            assert (leaf == expected).all(), path
            scales[expected] += 1
    assert scales[0.0] == (0 if name == "se" else 1)
    assert scales[1.0] >= 3


# ---- layers


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (7, 3)])
def test_batch_norm_by_hand(shape):
    rng = np.random.default_rng(0)
    c = shape[-1]
    # A variance near epsilon shows the epsilon.
    spread = np.array([3e-3, 2.0, 1.0])[:c]
    x = (rng.normal(1.0, 1.0, shape) * spread).astype(np.float32)
    scale, bias, mean, var = (rng.uniform(0.5, 2.0, c).astype(np.float32) for _ in range(4))
    var[0] = 1e-5
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    norm = layers.BatchNorm()
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])

    rows = x.astype(np.float64).reshape(-1, c)
    m, v = rows.mean(0), rows.var(0)
    want = (x - m) / np.sqrt(v + 1e-5) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    unbiased = rows.var(0, ddof=1)
    assert (unbiased > 1.01 * v).all()  # so that the two can be told apart
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * mean + 0.1 * m, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 * var + 0.1 * unbiased, rtol=1e-6)

    y, new = norm.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(new["batch_stats"]["mean"], mean)
    np.testing.assert_array_equal(new["batch_stats"]["var"], var)


def test_batch_norm_of_one_row():
    """No unbiased variance exists: the biased one, 0, is kept instead of a NaN."""
    norm = layers.BatchNorm()
    x = jnp.asarray([[2.0, -1.0]])
    variables = norm.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], [1.0, 1.0])
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, [[0.0, 0.0]])
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2, -0.1], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9, 0.9], rtol=1e-6)


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(100.0, 1.0, (64, 8, 8, 2)), jnp.bfloat16)
    norm = layers.BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, True)
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    rows = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
    )
    assert {v.dtype for v in jax.tree.leaves((variables, new))} == {jnp.dtype("float32")}


def windows(x, window, stride, reduce):
    """Pooling of [B, H, W, C] by Python loops; windows over the edge hold what exists."""
    b, h, w, c = x.shape
    rows = range(0, max(h - window, 0) + stride, stride)
    cols = range(0, max(w - window, 0) + stride, stride)
    rows = [i for i in rows if i < h and (i == 0 or i - stride + window < h)]
    cols = [j for j in cols if j < w and (j == 0 or j - stride + window < w)]
    out = [[reduce(x[:, i : i + window, j : j + window], (1, 2)) for j in cols] for i in rows]
    return np.asarray(out).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("h, w", [(4, 6), (5, 4), (4, 7), (5, 7), (1, 1), (2, 1)])
def test_avg_pool_covers_odd_edges(h, w):
    x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
    want = windows(x, 2, 2, np.mean)
    assert want.shape == (2, -(-h // 2), -(-w // 2), 3)
    np.testing.assert_allclose(layers.avg_pool_2x2(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("h, w", [(3, 4), (5, 6), (7, 8), (9, 2), (112, 3)])
def test_max_pool_with_ceil_padding(h, w):
    # All negative: a padded zero would win.
    x = -np.random.default_rng(0).uniform(1.0, 2.0, (2, h, w, 3)).astype(np.float32)
    padding = tuple(layers.ceil_padding(n, 3, 2) for n in (h, w))
    got = layers.max_pool(x, 3, 2, padding)
    np.testing.assert_array_equal(got, windows(x, 3, 2, np.max))


def test_max_pool_with_padding_on_both_sides():
    x = -np.random.default_rng(0).uniform(1.0, 2.0, (2, 6, 7, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    got = layers.max_pool(x, 3, 2, ((1, 1), (1, 1)))
    assert got.shape == (2, 3, 4, 3)
    want = [[padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2, 4, 6)] for i in (0, 2, 4)]
    np.testing.assert_array_equal(got, np.asarray(want).transpose(2, 0, 1, 3))


def test_gradient_of_max_pool():
    """Under jit and vmap; every output gives its cotangent to the largest of its window."""
    x = np.random.default_rng(0).permutation(36.0 * np.arange(1, 37)).reshape(1, 6, 6, 1)
    x = x.astype(np.float32)
    g = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)

    def f(x):
        return jnp.sum(layers.max_pool(x, 3, 2, ((1, 1), (1, 1)))[0, ..., 0] * g)

    want = np.zeros((6, 6), np.float32)
    for i in range(3):
        for j in range(3):
            rows, cols = range(max(2 * i - 1, 0), 2 * i + 2), range(max(2 * j - 1, 0), 2 * j + 2)
            place = max(((r, c) for r in rows for c in cols), key=lambda p: x[0, *p, 0])
            want[place] += g[i, j]
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(x)[0, ..., 0], want)
    stacked = jax.jit(jax.grad(lambda x: jax.vmap(f)(x).sum()))(np.stack([x, 2 * x]))
    np.testing.assert_array_equal(stacked[:, 0, ..., 0], np.stack([want, want]))


def test_squeeze_excite_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    w1, b1 = rng.normal(size=(6, 2)), np.array([1.0, -1.0])
    w2, b2 = rng.normal(size=(2, 6)), rng.normal(size=6)
    params = {
        "fc1": {"kernel": w1[None, None], "bias": b1},
        "fc2": {"kernel": w2[None, None], "bias": b2},
    }
    params = jax.tree.map(lambda v: v.astype(np.float32), params)
    hidden = np.maximum(x.mean((1, 2)) @ w1 + b1, 0.0)
    assert (hidden == 0).any() and (hidden > 0).any()
    gate = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    got = layers.SqueezeExcite(2).apply({"params": params}, x)
    np.testing.assert_allclose(got, x * gate[:, None, None], rtol=1e-5, atol=1e-6)


def test_dropout():
    layer = layers.Dropout(0.25)
    x = np.ones((40, 500), np.float32)
    rngs = {"dropout": jax.random.key(3)}
    y = np.asarray(layer.apply({}, x, True, None, rngs=rngs))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / y.size) ** 0.5
    assert len({row.tobytes() for row in y}) == 40
    # The mask belongs to the place in the global batch: a part of it is masked as in the whole.
    part = layer.apply({}, x[10:20], True, jnp.arange(10, 20), rngs=rngs)
    np.testing.assert_array_equal(part, y[10:20])
    assert layer.apply({}, x, False, None) is x
    assert layers.Dropout(0.0).apply({}, x, True, None) is x


# ---- outputs of the reference

GOLDEN_CASES = ("cifar100_wide_resnet16_8_s4", "cifar100_resnet110_s4")
PARITY_CASES = (
    *GOLDEN_CASES,
    "cifar100_se_resnet110_s4",
    "cifar100_resnext29_8x64d_s8",
    "imagenet_resnet50_s8",
    "imagenet_se_resnet50_s8",
    "imagenet_resnext50_32x4d_s16",
    "imagenet_wide_resnet50_2_s4",
)
# Of the largest value; float32 rounding leaves 1e-6, also between the reference and itself.
TOLERANCE = 2e-5


def network_of(data, **fields):
    """(spec, module, variables) of a fixture; `fields` replace those of the spec."""
    spec = models.divided(str(data["meta/arch"]), int(data["meta/split_factor"]))
    spec = dataclasses.replace(spec, **fields)
    num_classes = data["logits_eval"].shape[1]
    state = {k.removeprefix("state/"): data[k] for k in data if k.startswith("state/")}
    variables = torch_import.from_state_dict(spec, state, num_classes)
    return spec, models.build(spec, num_classes), variables


def images(data, name="x"):
    return data[name].astype(np.float32).transpose(0, 2, 3, 1)


def evaluate(module, variables, x):
    with jax.default_matmul_precision("highest"):
        return quick(lambda v, x: module.apply(v, x)[0])(variables, x)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_logits(case):
    data = dict(np.load(GOLDEN / f"models_{case}.npz"))
    _, module, variables = network_of(data)
    logits = evaluate(module, variables, images(data))
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


@pytest.fixture(scope="module", params=PARITY_CASES)
def fixture(request, parity):
    """The arrays of a parity file, in evaluation and in training the same network."""
    data = dict(np.load(parity / "models" / f"{request.param}.npz"))
    # The reference ran its training mode with dropout disabled.
    return data, *network_of(data, dropout=0.0)


def test_logits_in_evaluation(fixture):
    data, _, module, variables = fixture
    names = [name for name in ("", "_odd") if f"x{name}" in data]
    assert len(names) == 1 + (str(data["meta/dataset"]) == "imagenet")
    for name in names:
        logits = evaluate(module, variables, images(data, f"x{name}"))
        assert relative_error(logits, data[f"logits{name}_eval"]) <= TOLERANCE


def test_logits_and_statistics_in_training(fixture):
    data, spec, module, variables = fixture

    @quick
    def run(variables, x):
        (logits, _), new = module.apply(variables, x, True, mutable=["batch_stats"])
        return logits, new

    with jax.default_matmul_precision("highest"):
        logits, new = run(variables, images(data))
    assert relative_error(logits, data["logits_train"]) <= TOLERANCE
    names = jax.tree.leaves(torch_import.state_dict_names(spec, new))
    wanted = {k for k in data if k.startswith("train_stats/")}
    assert {f"train_stats/{name}" for name in names} == wanted
    for name, value in zip(names, jax.tree.leaves(new), strict=True):
        assert relative_error(value, data[f"train_stats/{name}"]) <= TOLERANCE, name
