"""FFSD (arXiv 2103.14473), by its published recipes for CIFAR-100 and ImageNet.

jaxsplit train --config=ffsd:arch=resnet32 --workdir=runs/ffsd

Arguments, all optional: arch, split (number of students, 2), epochs (300; 90 on ImageNet). The data
set is the one that the architecture is made for. Top-1 % of the leader in the paper, mean of runs:

    CIFAR-100   resnet20 72.70                resnet32 74.85               resnet56 75.80
                ffsd_wide_resnet16_2 75.81    ffsd_wide_resnet40_2 79.14   densenet40_12 77.39
                googlenet 81.60
    ImageNet    ffsd_resnet18 70.87           ffsd_resnet34 74.69

Students and leader are whole networks. --config.divide=True makes them small networks that replace
one large network; --config.ffsd.leader=resnet56 chooses another leader. We have not trained it yet.
"""

import dataclasses

from ml_collections import ConfigDict

from jaxsplit import models
from jaxsplit.recipes import arguments


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The part of the recipe that depends on the data set."""

    dataset: str
    epochs: int
    batch_size: int
    milestones: tuple[int, ...]  # epochs after which the learning rate falls to a tenth
    warmup: int  # epochs


CIFAR100 = Recipe("cifar100", 300, 128, milestones=(150, 225), warmup=0)
IMAGENET = Recipe("imagenet2012", 90, 256, milestones=(30, 60, 80), warmup=5)


def get_config(text: str = "") -> ConfigDict:
    given = arguments.parse(text)
    arch = given.get("arch", "resnet20")
    recipe = CIFAR100 if models.known(arch)[1].image_size == 32 else IMAGENET
    begun = arguments.start(
        text, recipe.dataset, arch=arch, split=2, epochs=recipe.epochs, method="ffsd"
    )
    config, epochs = begun.config, begun.epochs
    config.batch_size = config.optim.base_batch_size = recipe.batch_size
    config.optim.weight_decay = 1e-4
    config.optim.decay_norm = config.optim.decay_bias = True

    config.schedule.name = "step"
    config.schedule.milestones = tuple(  # another length of the run keeps their shares
        f"{epoch * epochs / recipe.epochs:g} epochs" for epoch in recipe.milestones
    )
    config.schedule.warmup = arguments.share(recipe.warmup, recipe.epochs, epochs)
    config.schedule.warmup_lr = config.schedule.end_lr = 0.0
    config.ffsd.warmup = arguments.share(5, recipe.epochs, epochs)

    config.augment.mixup = 0.0
    if recipe is CIFAR100:
        config.augment.crop_mode = "reflect"
    else:
        config.dtype = "bfloat16"
        config.data.image_size = begun.image_size
        config.data.scale_min = 0.08
        config.augment.crop_padding = 0  # streamed images are random-resized crops already
        config.log_every = "100 steps"
    return config
