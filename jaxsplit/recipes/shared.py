"""The published recipes of divide and co-training (arXiv 2011.14660), as one table.

`DATASETS` holds the recipe of each data set, `EXCEPTIONS` what differs for an architecture or a
number of epochs. `of` looks up the recipe of an experiment, and `config` makes its config. The
values are those that the original command line results in; `tests/recipes/test_published.py`
compares all of its cases and lists intended differences.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxsplit.recipes import arguments


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe for a data set, an architecture and a length; rates are for `batch_size`."""

    batch_size: int
    crop: int  # pixels
    lr: float
    end_lr: float
    weight_decay: float  # before Eq. (6)
    shortest: int  # epochs; a shorter run has warm-ups of the same share of the run
    warmup: int  # epochs
    cotrain_warmup: int  # epochs
    warmup_lr: float = 5e-3
    divide_weight_decay: bool = False  # by Eq. (6); a published result overrides it
    optimizer: str = "sgd"
    eps: float = 1e-8  # of the optimizer; unused by sgd
    schedule: str = "cosine"
    label_smoothing: float = 0.0
    mixup: float = 0.2
    erase_prob: float = 0.5
    erase_area: tuple[float, float] = (0.0625, 0.1)  # share of the image
    erase_aspect: tuple[float, float] = (0.99, 1.0)
    autoaugment: str = ""
    randaugment: str = ""


CIFAR = Recipe(
    batch_size=128,
    crop=32,
    lr=0.1,
    end_lr=1e-4,
    weight_decay=1e-4,
    shortest=200,
    warmup=20,
    cotrain_warmup=40,
)
DATASETS = {
    "cifar10": dataclasses.replace(
        CIFAR, autoaugment="cifar10", erase_area=(0.125, 0.2), divide_weight_decay=True
    ),
    # AutoAugment is off: on CIFAR-100 the original command line has it as an optional flag.
    "cifar100": CIFAR,
    "svhn_cropped": dataclasses.replace(
        CIFAR,
        lr=5e-3,
        end_lr=1e-5,
        weight_decay=1e-3,
        warmup=0,
        autoaugment="svhn",
        erase_area=(0.125, 0.25),
        erase_aspect=(0.9, 1.1),
    ),
    "imagenet2012": Recipe(
        batch_size=256,
        crop=224,
        lr=0.1,
        end_lr=1e-5,
        weight_decay=1e-4,
        shortest=100,
        warmup=5,
        cotrain_warmup=60,
        label_smoothing=0.1,
        erase_area=(0.05, 0.12),
        erase_aspect=(0.5, 1.5),
    ),
}


class Exceptional(NamedTuple):
    """What differs for matching architectures and numbers of epochs."""

    architectures: str  # a regular expression that matches the whole name
    changes: dict[str, Any]
    from_epochs: int = 0  # inclusive
    below_epochs: float = math.inf  # exclusive


def _efficientnet(sizes: str, magnitude: int, erase_prob: float) -> Exceptional:
    """EfficientNet has a recipe of its own; its regularisation grows with its size."""
    changes = dict(optimizer="rmsprop_tf", eps=1e-3, lr=0.256, weight_decay=1e-5)
    changes |= dict(schedule="exponential", warmup_lr=1e-6)  # 0.97 every 0.8 epochs
    changes |= dict(mixup=0.0, erase_prob=erase_prob, randaugment=f"rand-m{magnitude}-mstd0.5")
    return Exceptional(f"efficientnet({sizes})(_.*)?", changes)


_OF_CIFAR = (
    Exceptional(".*", dict(warmup=10), below_epochs=300),
    Exceptional("resnext29_16x64d|se_resnet164", dict(warmup=30), 300, 1800),
    Exceptional("resnext29_16x64d", dict(lr=0.05), 300, 1800),
    Exceptional(".*", dict(warmup=60, cotrain_warmup=80), 1800),
    Exceptional("(densenet|pyramidnet|shake_resnet).*", dict(warmup=0), 1800),
    Exceptional("shake_resnet.*", dict(lr=0.2), 1800),
    Exceptional("efficientnetb3_cifar|resnext29_(8|16)x64d", dict(weight_decay=5e-4)),
    Exceptional("wide_resnet(16_12|28_10|40_10|52_8)", dict(weight_decay=5e-4)),
)
# Applied in this order, so a later exception overrides an earlier one.
EXCEPTIONS: dict[str, tuple[Exceptional, ...]] = {
    "cifar10": _OF_CIFAR,
    "cifar100": _OF_CIFAR,
    "svhn_cropped": (),
    "imagenet2012": (
        Exceptional("resnet50", dict(weight_decay=5e-5)),
        Exceptional("se_resnet50|resnexst50_.*", dict(randaugment="rand-m6-mstd0.5")),
        Exceptional(
            "se_resnext101_64x4d_B|senet113|resnexst101_8x32d",
            dict(randaugment="rand-m9-mstd0.5"),
        ),
        _efficientnet("b0|b1", 4, 0.2),
        _efficientnet("b2", 5, 0.3),
        _efficientnet("b3", 6, 0.3),
        _efficientnet("b4", 6, 0.4),
        _efficientnet("b5", 7, 0.4),
        _efficientnet("b6", 8, 0.5),
        _efficientnet("b7|b8|l2", 9, 0.5),
    ),
}
# Their learning rate on ImageNet scales with the batch size; others keep the one for 256 images.
SCALED_RATE = ("se_resnext101_64x4d_B", "senet113", "resnexst101_8x32d")


def of(dataset: str, arch: str, epochs: int, *, batch_size: int = 0, crop: int = 0) -> Recipe:
    """The recipe of one experiment.

    Args:
      dataset: a name in DATASETS.
      arch: a name in jaxsplit.models.
      epochs: length of the run.
      batch_size, crop: replace those of the data set; 0: they do not.
    """
    recipe = DATASETS[dataset]
    usual = recipe.batch_size
    for exception in EXCEPTIONS[dataset]:
        if not exception.from_epochs <= epochs < exception.below_epochs:
            continue
        if re.fullmatch(exception.architectures, arch):
            recipe = dataclasses.replace(recipe, **exception.changes)
    batch_size = batch_size or usual
    lr = recipe.lr * (batch_size / usual if arch in SCALED_RATE else 1)
    return dataclasses.replace(recipe, lr=lr, batch_size=batch_size, crop=crop or recipe.crop)


def config(text: str, dataset: str, *, arch: str, split: int, epochs: int) -> ConfigDict:
    """The config of the experiment that `text` names: see `arguments.start`.

    The published result of the nearest length decides the batch size, the crop and whether Eq. (6)
    divides the decay.

    Raises:
      ConfigError: an argument, architecture or split is unknown, or a number is malformed.
    """
    small = DATASETS[dataset].crop == CIFAR.crop
    suffix = "_cifar" if small else ""
    begun = arguments.start(text, dataset, arch=arch, split=split, epochs=epochs, suffix=suffix)
    made, published = begun.config, begun.result is not None
    recipe = of(
        dataset,
        begun.arch,
        begun.epochs,
        batch_size=made.batch_size if published else 0,
        crop=0 if small else begun.image_size,
    )
    if not small:
        made.data.image_size = recipe.crop
    if not published:
        made.optim.divide_weight_decay = recipe.divide_weight_decay
    made.batch_size = made.optim.base_batch_size = recipe.batch_size
    made.label_smoothing = recipe.label_smoothing
    made.optim.update(
        name=recipe.optimizer, eps=recipe.eps, lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    made.schedule.update(
        name=recipe.schedule,
        warmup=arguments.share(recipe.warmup, recipe.shortest, begun.epochs),
        warmup_lr=recipe.warmup_lr,
        end_lr=recipe.end_lr,
    )
    made.cotrain.warmup = arguments.share(recipe.cotrain_warmup, recipe.shortest, begun.epochs)
    made.augment.update(
        mixup=recipe.mixup,
        erase_prob=recipe.erase_prob,
        erase_area=recipe.erase_area,
        erase_aspect=recipe.erase_aspect,
        autoaugment=recipe.autoaugment,
        randaugment=recipe.randaugment,
    )
    return made
