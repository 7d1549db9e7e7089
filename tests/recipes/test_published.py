"""The table of published results, and configs against it and against the reference's options.

`golden/hparams.json` is a part of the parity file (a test says so): the options that the
reference's command line ends up with, for each [arch, data, epochs, batch, S]; RandAugment last.
"""

import collections
import json
import math
import re

import pytest

from configs import cifar10, cifar100, imagenet, imagenet_seresnet101_x4, svhn
from jaxsplit import config as config_lib
from jaxsplit import durations, models
from jaxsplit.cli import published as published_verb
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import arguments, published, shared
from jaxsplit.weights.torch_import import FFSD_NAMES
from tests.support.paths import GOLDEN

FILE = GOLDEN / "hparams.json"
CONFIGS = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "imagenet2012": imagenet}
# Published results with a config; FFSD is another method.
DIVIDED = [r for r in published.RESULTS if r.method != "ffsd"]


def name_of(arch: str, dataset: str) -> str:
    """What the networks of a parity file are called here."""
    small = not dataset.startswith("imagenet")
    return arch + ("_cifar" if small and arch.startswith("efficientnet") else "")


def epochs_of(duration: str, total: int) -> float:
    length = durations.parse("", duration)
    assert length.unit in ("epochs", "percent")
    return length.value if length.unit == "epochs" else length.value / 100 * total


# ---- The table


def test_table_is_the_parity_file(parity):
    names = FFSD_NAMES | {"densenet_40": "densenet40_12"}
    rows = []
    for row in json.loads((parity / "published_results.json").read_text())["rows"]:
        ffsd = row["method"] == "ffsd"
        arch = names.get(row["arch"], row["arch"]) if ffsd else name_of(row["arch"], row["dataset"])
        rows.append(
            published.Result(
                dataset=row["dataset"],
                method=row["method"],
                arch=arch,
                split=row["students"] if ffsd else row["split_factor"],
                epochs=row["epochs"],
                batch_size=row["batch"],
                crop=row["image_size"],
                divide_weight_decay=row.get("weight_decay_divided_eq6", False),
                params=row.get("mparams"),
                macs=row.get("gflops"),
                top5=row.get("top5"),
                top1=tuple(row["leader_top1_runs"]) if ffsd else (row["top1"],),
                networks_top1=tuple(row.get("members_top1") or ()),
            )
        )
    assert len(rows) == len(published.RESULTS) == 88
    assert set(rows) == set(published.RESULTS)


def test_every_published_network_exists():
    for result in published.RESULTS:
        models.divided(result.arch, 1 if result.method == "ffsd" else result.split)


def test_find():
    wide = dict(dataset="cifar100", method="cotrain", arch="wide_resnet40_10", split=4)
    assert [(r.epochs, r.top1) for r in published.find(**wide)] == [
        (300, (86.04,)),
        (1800, (86.9,)),
    ]
    assert published.find(**wide | dict(method="independent")) == []
    assert published.find(**wide | dict(split=8)) == []
    # Arguments of a config name one result.
    keys = [(r.dataset, r.method, r.arch, r.split, r.epochs) for r in published.RESULTS]
    assert len(set(keys)) == len(keys)


def test_a_result_in_words():
    first, _ = published.find(dataset="cifar10", method="cotrain", arch="wide_resnet28_10", split=4)
    assert str(first) == (
        "97.99 % (300 epochs, batch 128, 32 pixels, weight decay by Eq. (6); "
        "best epoch on the test set)"
    )
    (runs,) = published.find(dataset="cifar100", method="ffsd", arch="resnet20", split=2)
    assert str(runs).startswith("72.70 % (300 epochs, batch 128, 32 pixels, mean of 3 runs; ")


def test_printed_table(capsys):
    assert published_verb.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 88
    assert len({len(line) for line in lines}) == 1
    assert published_verb.main(["imagenet2012"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (best,) = (line for line in lines if "se_resnext101_64x4d_B" in line)
    cells = [cell.strip() for cell in best.split("|")[1:-1]]
    assert cells[:4] == ["imagenet2012", "cotrain", "se_resnext101_64x4d_B", "2"]
    assert cells[4:8] == ["350", "128", "320", ""]
    assert cells[8:] == ["98", "38.2", "96.69", "83.60", "82.43, 82.46"]


def test_table_of_an_unknown_data_set(capsys):
    assert published_verb.main(["mnist"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: 'mnist': must be one of cifar100, cifar10, imagenet2012\n"


# ---- A config for every result


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet2012"])
def test_every_result_has_a_config(dataset):
    results = [r for r in DIVIDED if r.dataset == dataset]
    assert results
    for result in results:
        text = f"arch={result.arch},split={result.split},epochs={result.epochs}"
        config = CONFIGS[dataset].get_config(text)
        config_lib.check(config)
        assert (config.data.name, config.arch) == (dataset, result.arch)
        assert (config.method, config.split) == (result.method, result.split)
        assert config.duration == f"{result.epochs} epochs"
        assert config.batch_size == result.batch_size
        assert (config.data.image_size or 32) == result.crop
        assert config.optim.divide_weight_decay == result.divide_weight_decay
        # The shortest published run is what a config without epochs stands for.
        runs = published.find(
            dataset=dataset, method=result.method, arch=result.arch, split=result.split
        )
        if result == runs[0]:
            short = CONFIGS[dataset].get_config(f"split={result.split}, arch={result.arch}")
            assert short.to_json() == config.to_json()


def test_decay_of_what_was_not_published():
    """As of the published results beside it: on CIFAR-10 all that are divided have Eq. (6)."""
    assert all(
        r.divide_weight_decay for r in DIVIDED if r.dataset == "cifar10" and r.method == "cotrain"
    )
    for name, module in CONFIGS.items():
        config = module.get_config("split=8")
        assert config.optim.divide_weight_decay == (name == "cifar10")


def test_results_without_a_config_are_those_of_ffsd():
    rest = set(published.RESULTS) - set(DIVIDED)
    assert {r.method for r in rest} == {"ffsd"} and len(rest) == 9
    assert {r.dataset for r in DIVIDED} <= CONFIGS.keys()


# ---- Recipes against the reference's options

FIELDS = (
    "lr",
    "slow_start_epochs",
    "slow_start_lr",
    "end_lr",
    "weight_decay",
    "is_label_smoothing",
    "is_mixup",
    "erase_p",
    "crop_size",
    "cot_weight_warm_up_epochs",
    "randaa",
)


def of_hparams(row: dict) -> list:
    """A row of the parity file in the form of `hparams.json`."""
    dataset = {"imagenet": "imagenet2012", "svhn": "svhn_cropped"}.get(
        row["dataset"], row["dataset"]
    )
    case = [name_of(row["arch"], dataset), dataset, row["epochs"], row["batch_size"]]
    return [*case, row["split_factor"], *(row[field] for field in FIELDS)]


def test_golden_options_are_the_parity_file(parity):
    rows = json.loads((parity / "hparams.json").read_text())["rows"]
    assert [of_hparams(row) for row in rows] == json.loads(FILE.read_text())
    same = dict(momentum=0.9, is_nesterov=1, lr_mode="cos", mix_alpha=0.2, is_cutout=1)
    same |= dict(cot_weight=0.5, cot_loss_choose="js_divergence", is_wd_all=0, optimizer="SGD")
    same |= dict(is_autoaugment=0, decay_factor=0.97, decay_epochs=0.8)
    for row in rows:  # what is the same everywhere is not in the golden file
        assert {name: row[name] for name in same} == same


def test_every_case_of_the_references_parser():
    """All 770, but for the differences that are named here."""
    cases = json.loads(FILE.read_text())
    assert len(cases) == 770
    different = collections.Counter()
    for row in cases:
        arch, dataset, epochs, batch_size, split = case = tuple(row[:5])
        wanted = dict(zip(FIELDS, row[5:], strict=True))
        # 1. The parser's default divides the decay always; here the published result decides.
        wanted["weight_decay"] /= math.exp(1 / split - 1)
        # 2. A warm-up of -1 epochs moves its cosine by one epoch, and only that.
        if wanted["slow_start_epochs"] < 0:
            wanted["slow_start_epochs"] = 0
            different["no warm-up"] += 1
        if wanted["slow_start_epochs"] == 0:
            del wanted["slow_start_lr"]
        # 3. ImageNet's script sets 60 epochs where the parser's default is 40.
        if dataset == "imagenet2012":
            assert wanted["cot_weight_warm_up_epochs"] == 40
            wanted["cot_weight_warm_up_epochs"] = 60
            different["co-training's warm-up"] += 1

        size = models.known(arch)[1].image_size if dataset == "imagenet2012" else 32
        # 4. One case has another batch than its data set: a user's option.
        if shared.of(dataset, arch, epochs).batch_size != batch_size:
            assert (arch, epochs, batch_size) == ("resnexst101_8x32d", 270, 512)
            different["batch"] += 1
        recipe = shared.of(dataset, arch, epochs, batch_size=batch_size, crop=size)
        found = {
            "lr": recipe.lr,
            "slow_start_epochs": recipe.warmup,
            "slow_start_lr": recipe.warmup_lr,
            "end_lr": recipe.end_lr,
            "weight_decay": recipe.weight_decay,
            "is_label_smoothing": recipe.label_smoothing == 0.1,
            "is_mixup": recipe.mixup == 0.2,
            "erase_p": recipe.erase_prob,
            "crop_size": recipe.crop,
            "cot_weight_warm_up_epochs": recipe.cotrain_warmup,
        }
        assert {k: found[k] for k in wanted if k != "randaa"} == pytest.approx(
            {k: v for k, v in wanted.items() if k != "randaa"}, rel=1e-12
        ), case
        assert recipe.randaugment == (wanted["randaa"] or ""), case
        # 5. The loaders of CIFAR-10 and SVHN apply AutoAugment whatever the flag says.
        own = {"cifar10": "cifar10", "svhn_cropped": "svhn"}.get(dataset, "")
        assert recipe.autoaugment == own
        # 6. EfficientNet's optimizer is not in the parser's result: its training script has it.
        efficient = dataset == "imagenet2012" and arch.startswith("efficientnet")
        assert (recipe.optimizer, recipe.schedule) == (
            ("rmsprop_tf", "exponential") if efficient else ("sgd", "cosine")
        )
    assert different == {"no warm-up": 55, "co-training's warm-up": 185, "batch": 5}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_have_their_recipe(name):
    dataset = {"svhn": "svhn_cropped"}.get(name, name)
    compared = set()
    for row in json.loads(FILE.read_text()):
        arch, data, epochs, _, split = row[:5]
        if data != dataset or split not in models.known(arch)[1].splits:
            continue
        config = CONFIGS[name].get_config(f"arch={arch},split={split},epochs={epochs}")
        size = config.data.image_size or 32
        recipe = shared.of(data, arch, epochs, batch_size=config.batch_size, crop=size)
        found = shared.Recipe(
            batch_size=config.optim.base_batch_size,  # so that the rates are as the table has them
            crop=size,
            lr=config.optim.lr,
            end_lr=config.schedule.end_lr,
            weight_decay=config.optim.weight_decay,
            shortest=recipe.shortest,
            warmup=epochs_of(config.schedule.warmup, epochs),
            cotrain_warmup=epochs_of(config.cotrain.warmup, epochs),
            warmup_lr=config.schedule.warmup_lr,
            divide_weight_decay=recipe.divide_weight_decay,  # the published result's: above
            optimizer=config.optim.name,
            eps=config.optim.eps,
            schedule=config.schedule.name,
            label_smoothing=config.label_smoothing,
            mixup=config.augment.mixup,
            erase_prob=config.augment.erase_prob,
            erase_area=config.augment.erase_area,
            erase_aspect=config.augment.erase_aspect,
            autoaugment=config.augment.autoaugment,
            randaugment=config.augment.randaugment,
        )
        assert found == recipe, row[:5]
        assert (config.optim.momentum, config.optim.nesterov) == (0.9, True)
        assert (config.schedule.decay_factor, config.schedule.decay_every) == (0.97, "0.8 epochs")
        assert (config.cotrain.loss, config.cotrain.weight) == ("js", 0.5)
        compared.add((arch, split, epochs))
    # All that was published, but for a run that the reference's list of cases leaves out.
    missing = {(r.arch, r.split, r.epochs) for r in DIVIDED if r.dataset == dataset} - compared
    assert missing == ({("se_resnext101_64x4d_B", 2, 350)} if name == "imagenet2012" else set())


def test_recipes_of_the_two_runs_without_options():
    """At a batch of 128 only the B variant halves the rate of 256 images; the floor is the same."""
    for arch, epochs, size in (
        ("se_resnext101_64x4d", 120, 416),
        ("se_resnext101_64x4d_B", 350, 320),
    ):
        config = imagenet.get_config(f"arch={arch},split=2")
        usual = imagenet.get_config("arch=se_resnet152,split=2")
        assert config.optim.lr == usual.optim.lr * (0.5 if arch.endswith("_B") else 1)
        assert config.optim.base_batch_size == config.batch_size == 128
        assert config.data.image_size == size
        assert config.duration == f"{epochs} epochs"
        assert config.schedule.to_json() == usual.schedule.to_json()
        policy = config.augment.randaugment
        assert policy == ("rand-m9-mstd0.5" if arch.endswith("_B") else "")
        usual.augment.randaugment = policy
        assert config.augment.to_json() == usual.augment.to_json()
        assert config.cotrain.to_json() == usual.cotrain.to_json()


def test_decay_of_norms():
    """Those of the reference that do not decay, by its ten parameter groups."""
    groups = json.loads(FILE.with_name("parameter_groups.json").read_text())
    found = collections.Counter()
    for case, group in groups.items():
        dataset, arch = re.fullmatch(r"([a-z0-9]+)_(\w+)_s\d+(?:_lukemelas)?", case).groups()
        recipe = {"cifar100": cifar100, "imagenet": imagenet}[dataset]
        decays = recipe.get_config(f"arch={arch},split=1").optim.decay_norm
        assert decays == (group["bn_weights_decayed"] > 0), case
        found[decays] += 1
    assert found == {True: 8, False: 2}


def test_crops_and_erasing_of_the_loaders(parity):
    loaders = json.loads((parity / "augment_facts.json").read_text())["loaders"]
    for name, module in CONFIGS.items():
        (erasing,) = (t for t in loaders[name.removesuffix("2012")]["train"] if "Erasing" in t)
        augment = module.get_config().augment
        area, aspect = augment.erase_area, augment.erase_aspect
        assert f"scale=({area[0]},{area[1]}),ratio=({aspect[0]},{aspect[1]})" in erasing
        assert (augment.crop_padding, augment.flip) == (0 if name == "imagenet2012" else 4, True)


def test_a_short_run_has_short_warm_ups():
    config = cifar100.get_config("epochs=20")
    plan = durations.plan(config, steps_per_epoch=10)
    assert (plan.total_steps, plan.warmup_steps) == (200, 10)
    assert plan.method_steps["cotrain.warmup"] == 40


def test_undivided_is_trained_alone():
    config = cifar10.get_config("arch=resnet110,split=1")
    assert (config.split, config.method) == (1, "single")
    config_lib.check(config)


# ---- What stands behind the colon


def test_names_of_the_reference():
    for module in (cifar10, cifar100, svhn):
        assert module.get_config("arch=efficientnetb3").arch == "efficientnetb3_cifar"
        assert module.get_config("arch=efficientnetb3_cifar").arch == "efficientnetb3_cifar"
    config = imagenet.get_config("arch=efficientnetb3,split=4")
    assert (config.arch, config.data.image_size) == ("efficientnetb3", 300)


def test_imagenet_config_of_its_own_name():
    generic = imagenet.get_config("arch=se_resnet101,split=4")
    assert imagenet_seresnet101_x4.get_config().to_json() == generic.to_json()


WRONG = {
    "arch=wide_resnet17": "arch='wide_resnet17': unknown; nearest are ",
    "arch=resnet110,split=3": "split=3: resnet110 can be divided into 1, 2, 4, 8, 16",
    "split=two": "config argument 'split=two': must be a whole number above 0",
    "epochs=0": "config argument 'epochs=0': must be a whole number above 0",
    "epochs=1.5": "config argument 'epochs=1.5': must be a whole number above 0",
    "archs=resnet110": "config argument 'archs=resnet110': must be one of arch, split, epochs",
    "resnet110": "config argument 'resnet110': must be one of arch, split, epochs",
    "split": "config argument 'split': must be split=VALUE",
    "arch=": "config argument 'arch=': must be arch=VALUE",
    "split=2,split=4": "config argument 'split=4': split is given twice",
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_arguments(name, text):
    with pytest.raises(ConfigError) as caught:
        CONFIGS[name].get_config(text)
    assert str(caught.value).startswith(WRONG[text])
    assert "\n" not in str(caught.value)


def test_order_and_spaces_do_not_matter():
    plain = cifar10.get_config("arch=resnet110,split=2,epochs=300").to_json()
    assert cifar10.get_config(" epochs = 300, split=2 ,arch=resnet110,").to_json() == plain


def test_docstrings_name_the_arguments():
    for module in CONFIGS.values():
        assert all(key in module.__doc__ for key in arguments.KEYS)
