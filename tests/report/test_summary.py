"""Parameters and multiply-adds against formulas written out by hand."""

import dataclasses

import pytest

from configs import common, digits_wrn16_4_x4, imagenet_seresnet101_x4
from jaxsplit import costs, models
from jaxsplit.cli import summary as summary_verb
from jaxsplit.errors import ConfigError
from jaxsplit.models import resnet, senet
from jaxsplit.report import summary

K = 10


def test_wide_resnet10_1():
    cost = costs.cost(models.divided("wide_resnet10_1", 1), num_classes=K, image_shape=(9, 8, 3))
    areas = (9 * 8, 5 * 4, 3 * 2)  # of the three stages; halves are rounded up
    kernels = {
        "stem": [(9 * 3 * 16, areas[0])],
        "stage1": [(9 * 16 * 16, areas[0]), (9 * 16 * 16, areas[0])],
        "stage2": [(9 * 16 * 32, areas[1]), (9 * 32 * 32, areas[1]), (16 * 32, areas[1])],
        "stage3": [(9 * 32 * 64, areas[2]), (9 * 64 * 64, areas[2]), (32 * 64, areas[2])],
        "head": [(64 * K, 1)],
    }
    norms = {"stem": 16, "stage1": 2 * 16, "stage2": 3 * 32, "stage3": 3 * 64}  # channels
    macs = {g: sum(n * area for n, area in rows) for g, rows in kernels.items()}
    params = {
        g: sum(n for n, _ in rows) + 2 * norms.get(g, 0) + (K if g == "head" else 0)
        for g, rows in kernels.items()
    }
    assert cost.groups == {g: (params[g], macs[g]) for g in kernels}
    assert cost.params == sum(params.values())
    assert cost.macs == sum(macs.values())
    assert cost.stats == 2 * sum(norms.values())


def test_grouped_convolution():
    """A ResNeXt of one block: 3x3 of 8 channels in 4 groups."""
    spec = resnet.Spec(
        "resnext29_8x64d", (1,), width=16, stem=(16,), groups=4, base_width=8
    )  # inner: int(16 * 8 / 64) * 4 = 8, out: 4 * 16 = 64
    cost = costs.cost(spec, num_classes=K, image_shape=(6, 6, 3))
    stem = 9 * 3 * 16
    block = 16 * 8 + 9 * (8 // 4) * 8 + 8 * 64 + 16 * 64  # and the shortcut's
    assert cost.macs == 36 * (stem + block) + 64 * K
    assert cost.params == stem + block + 64 * K + K + 2 * (16 + 8 + 8 + 64 + 64)
    dense = costs.cost(
        dataclasses.replace(spec, groups=1, base_width=32), num_classes=K, image_shape=(6, 6, 3)
    )
    assert dense.macs - cost.macs == 36 * 9 * 8 * (8 - 2)


def test_small_maps_count_the_same():
    """2x2 maps are multiplied as patches; a multiply-add of padding counts as any other."""
    spec = resnet.Spec("resnet50", (1,), width=4, stem=(4,))
    cost = costs.cost(spec, num_classes=K, image_shape=(2, 2, 3))
    assert cost.macs == 4 * (9 * 3 * 4 + 4 * 4 + 9 * 4 * 4 + 4 * 16 + 4 * 16) + 16 * K
    grouped = dataclasses.replace(spec, groups=2, base_width=32)
    cost = costs.cost(grouped, num_classes=K, image_shape=(2, 2, 3))
    assert cost.macs == 4 * (9 * 3 * 4 + 4 * 4 + 9 * 2 * 4 + 4 * 16 + 4 * 16) + 16 * K


def test_squeeze_excite():
    """Two layers with bias on the pooled map, once an image whatever its size."""
    spec = senet.SPECS["se_resnet110"]
    spec = dataclasses.replace(spec, blocks=(1,), width=8, stem=(8,))  # out 32, reduced 8
    plain = dataclasses.replace(spec, se_reduction=0)
    with_se, without = (costs.cost(s, num_classes=K, image_shape=(5, 5, 3)) for s in (spec, plain))
    assert with_se.macs - without.macs == 32 * 8 + 8 * 32
    assert with_se.params - without.params == 32 * 8 + 8 + 8 * 32 + 32
    assert with_se.stats == without.stats


def rows_of(text: str) -> dict[str, list[str]]:
    """Name of a line of a table -> its figures, without the commas; curves below are left out."""
    lines = [line.rsplit(maxsplit=2) for line in text.partition("\n\n")[0].splitlines()[2:]]
    return {name: [v.replace(",", "") for v in values] for name, *values in lines}


@pytest.mark.parametrize("method", ["one", "okddip", "ffsd"])
def test_table_of_other_methods(method):
    """What networks share counts once; answers of other modules have their own lines."""
    config = common.get_config()
    config.arch, config.split, config.method, config.divide = "wide_resnet10_1", 3, method, False
    small, large = costs.stack_cost("wide_resnet10_1", 1, num_classes=K, image_shape=(8, 8, 1))
    assert small == large
    rows = rows_of(summary.table(config, num_classes=K, image_shape=(8, 8, 1)))
    every = [int(v) for v in rows["all 3"]]
    if method == "one":  # shares the stem and two of three stages
        shared = [sum(small.groups[g][i] for g in ("stem", "stage1", "stage2")) for i in (0, 1)]
        assert every == [3 * small.params - 2 * shared[0], 3 * small.macs - 2 * shared[1]]
        gate = 3 * 32 + 3 + 2 * 3  # 32 channels to 3 branches, its bias, normalisation
        assert [int(v) for v in rows["gated"]] == [every[0] + gate, every[1] + 3 * 32]
        return
    assert every == [3 * small.params, 3 * small.macs]
    assert [int(v) for v in rows["leader"]] == [small.params, small.macs]
    if method == "ffsd":
        c = 64  # channels of 2x2 maps: depthwise 3x3, then 1x1, of three students'; a classifier
        params = 3 * c * 9 + 2 * 3 * c + 3 * c * c + 2 * c + c * K + K
        macs = 4 * (3 * c * 9 + 3 * c * c) + c * K
        assert [int(v) for v in rows["fusion"]] == [every[0] + params, every[1] + macs]


def test_table():
    config = common.get_config()
    config.arch, config.split = "wide_resnet10_4", 4
    fields = dict(num_classes=K, image_shape=(8, 8, 1))
    text = summary.table(config, **fields)
    small, large = costs.stack_cost("wide_resnet10_4", 4, **fields)
    assert text.splitlines()[0] == "wide_resnet10_4 divided in 4, one network"
    rows = rows_of(text)
    groups = ["stem", "stage1", "stage2", "stage3", "head"]
    assert sorted(rows) == sorted([*groups, "one network", "all 4", "undivided", "ratio"])
    for group in groups:
        assert [int(v) for v in rows[group]] == list(small.groups[group])
    columns = [[int(rows[g][i]) for g in groups] for i in (0, 1)]
    assert [int(v) for v in rows["one network"]] == [sum(c) for c in columns]
    assert [int(v) for v in rows["one network"]] == [small.params, small.macs]
    assert [int(v) for v in rows["all 4"]] == [4 * small.params, 4 * small.macs]
    assert [int(v) for v in rows["undivided"]] == [large.params, large.macs]
    assert rows["ratio"] == [
        f"{4 * small.params / large.params:.3f}",
        f"{4 * small.macs / large.macs:.3f}",
    ]
    assert len({len(line) for line in text.splitlines()[1:]}) == 1  # columns are aligned


def test_of_a_config():
    """The images of the data set, none of which is read."""
    rows = rows_of(summary.of_config(digits_wrn16_4_x4.get_config()))
    assert rows["one network"] == ["691834", "6301952"]
    assert rows["all 4"] == [str(4 * 691834), str(4 * 6301952)]


@pytest.mark.slow
def test_of_the_imagenet_config():
    """Figures of the reference: one of four SE-ResNet-101, and the undivided one."""
    rows = rows_of(summary.of_config(imagenet_seresnet101_x4.get_config()))
    assert rows["one network"] == ["12896512", "2164594688"]
    assert rows["undivided"] == ["49393176", "8634654720"]
    assert rows["ratio"] == ["1.044", "1.003"]


def test_image_size_of_a_config():
    config = imagenet_seresnet101_x4.get_config()
    config.arch, config.data.image_size = "se_resnet50", 64
    small = rows_of(summary.of_config(config))
    want = costs.cost(models.divided("se_resnet50", 4), num_classes=1000, image_shape=(64, 64, 3))
    assert small["one network"] == [str(want.params), str(want.macs)]


def test_a_wrong_config_is_an_error():
    config = digits_wrn16_4_x4.get_config()
    config.split = 3
    with pytest.raises(ConfigError, match="^split=3: wide_resnet16_4 can be divided into"):
        summary.of_config(config)


# ---- The table of all architectures


def test_all_architectures():
    archs = summary.architectures()
    assert len(set(archs)) == len(archs)
    for arch in archs:
        assert models.known(arch)[1].arch == arch
    # Of those with free numbers the reference's.
    wide = {a for a in archs if a.startswith("wide_resnet") and models.known(a)[1].image_size == 32}
    assert wide == {f"wide_resnet{n}" for n in ("16_8", "16_12", "28_10", "40_10", "52_8")}
    assert {"resnet50", "se_resnet152"} <= set(archs)


def test_rows_come_one_by_one(monkeypatch):
    """At every S of the table that the architecture has, with the images it was made for."""
    spec = dataclasses.replace(resnet.SPECS["resnet110"], blocks=(1, 1, 1), splits=(1, 4))
    monkeypatch.setitem(resnet.SPECS, "resnet110", spec)
    rows = summary.rows(["resnet110", "resnet18"])
    titles = [next(rows) for _ in range(2)]
    assert titles[1].split() == ["S", "pixels", "classes", *["parameters", "mult-adds"] * 2] + [
        "param.", "m-adds"
    ]  # fmt: skip
    shape = (32, 32, 3)
    whole, small = (
        costs.cost(models.divided("resnet110", s), num_classes=100, image_shape=shape)
        for s in (1, 4)
    )
    one = [f"{whole.params:,}", f"{whole.macs:,}"]
    assert next(rows).split() == ["resnet110", "1", "32", "100", *one, *one, "1.000", "1.000"]
    cells = next(rows).split()
    assert cells[:6] == ["resnet110", "4", "32", "100", f"{small.params:,}", f"{small.macs:,}"]
    assert cells[6:8] == [f"{4 * small.params:,}", f"{4 * small.macs:,}"]
    assert float(cells[8]) == pytest.approx(4 * small.params / whole.params, abs=5e-4)
    assert float(cells[9]) == pytest.approx(4 * small.macs / whole.macs, abs=5e-4)
    assert next(rows).split()[:4] == ["resnet18", "1", "224", "1000"]


def test_command_line(capsys, monkeypatch):
    assert summary_verb.main(["--arch=wide_resnet10_1", "--arch=wide_resnet10_2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in said[2:]}) == 1
    assert [line.split()[:2] for line in said[2:]] == [
        [f"wide_resnet10_{k}", str(s)] for k in (1, 2) for s in (1, 2, 4)
    ]
    monkeypatch.setattr(summary, "architectures", lambda: ["wide_resnet10_2"])
    assert summary_verb.main(["--all"]) == 0
    assert capsys.readouterr().out.splitlines() == said[:2] + said[5:]


def test_unknown_architecture_on_the_command_line(capsys):
    """One line, before anything is counted."""
    assert summary_verb.main(["--arch=wide_resnet10_1", "--arch=resnet111"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: arch='resnet111': unknown; nearest are resnet11")
