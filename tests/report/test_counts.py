"""Size and cost of every architecture, at every S, against the reference's own counts.

`golden/counts.json` holds [arch, S, pixels, classes, parameters, elements of running statistics,
multiply-adds of one image], of one network; a test says that it is the parity file.
"""

import itertools
import json

import pytest

from jaxsplit import costs, models
from jaxsplit.errors import ConfigError
from jaxsplit.report import summary
from jaxsplit.weights.torch_import import FFSD_NAMES
from tests.support import nets
from tests.support.paths import GOLDEN

FILE = GOLDEN / "counts.json"
ROWS = json.loads(FILE.read_text())

# Counted in every run: every family, the slowest ones at one S.
SAMPLE = {
    ("resnet110", 1),
    ("resnet50", 2),
    ("resnet101", 4),
    ("resnext29_8x64d", 8),
    ("resnext50_32x4d", 16),
    ("wide_resnet16_8", 4),
    ("wide_resnet28_10", 8),
    ("wide_resnet50_2", 4),
    ("wide_resnet50_3", 2),
    ("se_resnet110", 4),
    ("se_resnet50", 8),
    ("se_resnet50_B", 2),
    ("resnest101", 1),
    ("resnexst50_4x16d", 1),
    ("densenet40_12", 1),
    ("googlenet", 1),
    ("efficientnetb0", 1),
    ("efficientnetb0_lightnetpp", 2),
    ("efficientnetb0_cifar", 4),
    ("resnet20", 1),
    ("ffsd_resnet18", 1),
    ("ffsd_wide_resnet16_2", 1),
    ("shake_resnet26_2x96d", 4),
    ("pyramidnet164", 16),
}


def name_of(row: dict) -> str:
    """The name here of a row of the parity file."""
    if row["repo"] == "ffsd":
        return FFSD_NAMES.get(row["model"], row["model"])
    if row["arch"].startswith("efficientnet"):
        if row["dataset"] != "imagenet":
            return row["arch"] + "_cifar"
        return row["arch"] + ("" if row["is_lukemelas_efficientnet"] else "_lightnetpp")
    if row.get("is_official_densenet") == 0:
        return row["arch"] + "_plain"
    return row["arch"]


def counts_of(row: dict) -> list:
    """A row of the parity file in the form of `counts.json`."""
    if row["repo"] == "ffsd":
        s, params = 1, row["params"]
        num_classes = 100 if row["dataset"] == "cifar100" else 1000
    else:
        # Shake-shake builds layers there that it never runs.
        s, params = row["split_factor"], row["params_per_network"]
        params = row.get("params_per_network_used_in_forward", params)
        num_classes = row["facts"]["classifier_out"]
    stats = row["bn_buffer_elements"] - row.get("facts", {}).get("unused_bn_stats", 0)
    return [name_of(row), s, row["image_size"], num_classes, params, stats, row["macs"]]


def slow_unless_sampled(row: list):
    arch, s, size, *_ = row
    sampled = (arch, s) in SAMPLE and size in (32, 224)
    marks = [] if sampled else pytest.mark.slow
    return pytest.param(row, marks=marks, id=f"{arch}-x{s}-{size}px")


@pytest.mark.parametrize("row", [slow_unless_sampled(row) for row in ROWS])
def test_size_and_cost_are_the_references(row):
    arch, s, size, num_classes, *wanted = row
    spec = models.divided(arch, s)
    cost = costs.cost(spec, num_classes=num_classes, image_shape=(size, size, 3))
    assert [cost.params, cost.stats, cost.macs] == wanted


def test_table_is_the_parity_file(parity):
    data = json.loads((parity / "reference_models.json").read_text())
    assert [counts_of(row) for row in (*data["splitnet"], *data["ffsd"])] == ROWS


def test_the_sample_has_every_family_and_split():
    def family(arch):
        return next(n for n, f in models.FAMILIES.items() if models.known(arch)[0] is f)

    assert {(arch, s) for arch, s, *_ in ROWS} >= SAMPLE
    assert {family(arch) for arch, _ in SAMPLE} == {family(row[0]) for row in ROWS}


def test_all_that_divide_is_in_the_table():
    """Every architecture by its name, at every S that it has, but for those listed here."""
    of_timm = {"vit", "convnext"}  # tests/models/test_vit.py counts them
    others = of_timm | {f"own/{nets.SMALLEST}"}
    families = [family for name, family in models.FAMILIES.items() if name not in others]
    specs = [spec for family in families for spec in family.specs.values()]
    table = {(arch, s) for arch, s, *_ in ROWS}
    assert {(spec.arch, s) for spec in specs for s in spec.splits} - table == NOT_THE_REFERENCES


def test_all_are_in_the_printed_table():
    assert {arch for arch, *_ in ROWS} <= set(summary.architectures())


def test_what_the_reference_cannot_divide_raises(parity):
    data = json.loads((parity / "reference_models.json").read_text())
    rows = [{"repo": "splitnet", **row} for row in data["splitnet_not_supported"]]
    rows = [row for row in rows if (name_of(row), row["split_factor"]) not in NOT_THE_REFERENCES]
    assert len(rows) > 100
    for row in rows:
        arch, s = name_of(row), row["split_factor"]
        with pytest.raises(ConfigError, match=rf"^split={s}: {arch} can be divided into"):
            models.divided(arch, s)


# Beside the reference's: papers' networks of the same families (their counts are tested where the
# family is), and divided ones by a rule of our own.
NOT_THE_REFERENCES = {
    *itertools.product((f"densenet{n}" for n in (121, 161, 169, 201)), (1, 2, 4, 8)),
    *itertools.product(("densenet40_12", "googlenet"), (2, 4)),
    *itertools.product(("resnet18", "resnet34"), (1, 2, 4, 8)),
    *itertools.product(("resnest101", "resnest200", "resnest269"), (2, 4, 8)),
    *itertools.product(("shake_resnet26_2x32d",), (1, 2, 4)),
    *itertools.product(("shake_resnet26_2x64d",), (1, 2, 4, 8, 16)),
    *itertools.product(("resnet20", "resnet32", "resnet56"), (2, 4)),
    *itertools.product(("ffsd_resnet18", "ffsd_resnet34"), (2, 4)),
    *itertools.product((f"ffsd_wide_resnet{n}" for n in ("16_2", "40_2", "28_10")), (2, 4)),
}
