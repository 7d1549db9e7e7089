"""Your own images, in one folder per class: a recipe for hundreds to ten thousands of images.

jaxsplit prepare birds --source=birds --holdout=0.1  # birds/<class>/*.jpg
jaxsplit train --config=folder:name=birds,arch=resnet18,split=2 --workdir=runs/birds

Arguments: name (of the prepared set); optional: arch (resnet18), split (2; 1: the undivided network
alone) and epochs (200).

The recipe trains from scratch. To fine-tune, add --init_from, epochs=30 and a lower learning rate:
--config.optim.lr=0.002, for ViT and ConvNeXt 2e-5.
A small set is seen many times, so three things matter more than for large sets:
  - Small batches: with 32 images even a set of a thousand images gives thousands of steps.
  - Regularisation: a weight decay of 1e-3, ten times that of ImageNet's recipe, label smoothing and
    a little mixup. For small sets, a good choice of weight decay, learning rate and batch size beat
    all but one of eight special methods (arXiv 2108.13122). Try weight_decay=5e-4 and 5e-3, and
    lr=0.005 and 0.03.
  - Mild augmentation: random-resized crops of at least 35 % of the area (ImageNet's recipe: 8 %),
    flips, and a small erased part. Colours are kept, because they often distinguish classes;
    --config.augment.randaugment=rand-m5-mstd0.5 changes them too.
For networks with BatchNorm the optimizer is SGD with momentum: it works over a wide range of
learning rates. ViT and ConvNeXt have LayerNorm and take AdamW, with a weight decay of 0.05 as in
their papers, and a learning rate of 2e-4 that starts and ends at 0.

All durations but the intervals are shares of the run. The best checkpoint is chosen on the held-out
test set, or with --config.data.validation=0.1 on a part of the training set. We have not trained it
to its end yet.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults, models
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import arguments

KEYS = ("name", *arguments.KEYS)


def get_config(text: str = "") -> ConfigDict:
    given = arguments.parse(text, KEYS)
    if "name" not in given:
        raise ConfigError(
            f"config argument name: must be given, as in folder.py:name=birds ({text!r})"
        )
    arch = given.get("arch", "resnet18")
    split = arguments.number("split", given.get("split", 2))
    epochs = arguments.number("epochs", given.get("epochs", 200))
    arguments.check_split(arch, split)
    family, whole = models.known(arch)

    config = defaults.get_config()
    config.arch, config.split = arch, split
    config.method = "single" if split == 1 else "cotrain"
    config.duration = f"{epochs} epochs"
    config.batch_size = config.optim.base_batch_size = 32
    config.label_smoothing = 0.1
    config.cotrain.warmup = "20%"

    config.data.name = given["name"]
    config.data.image_size = whole.image_size  # that it is made for
    config.data.scale_min = 0.35
    config.augment.crop_padding = 0
    config.augment.random_resized_crop = True  # also if all images have the same size
    config.augment.mixup = 0.1
    config.augment.erase_prob = 0.25
    config.augment.erase_area = (0.02, 0.1)
    config.augment.erase_aspect = (0.5, 2.0)

    config.optim.lr = 0.0125
    config.optim.weight_decay = 1e-3
    config.optim.decay_norm = False
    config.schedule.warmup = "5%"
    config.schedule.warmup_lr = 1e-3
    config.schedule.end_lr = 1e-5
    if family.products:
        config.optim.name = "adamw"
        config.optim.lr = 2e-4
        config.optim.weight_decay = 0.05
        config.schedule.warmup_lr = config.schedule.end_lr = 0.0

    config.log_every = "1 epochs"
    config.eval.every = "2 epochs"
    config.checkpoint.every = "5 epochs"
    return config
