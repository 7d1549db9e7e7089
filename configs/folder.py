"""Your own images, from folders of classes: a recipe for sets of some hundred to some ten thousand.

python -m jaxsplit.data.prepare birds --source=birds --holdout=0.1  # birds/<class>/*.jpg
python main.py --config=configs/folder.py:name=birds,arch=resnet18,split=2 --workdir=runs/birds

Arguments: name (of the prepared set), and, optional, arch (resnet18), split (2; 1: the undivided
network alone) and epochs (200).

Trained from scratch; --init_from starts from other weights, then with --config.optim.lr=0.002 and
epochs=30. Of few images each is seen often, so that three things matter more than elsewhere:
  - small batches. 32 images: some thousand steps even of a thousand images.
  - regularisation. A weight decay of 1e-3, ten times that of ImageNet's recipe, label smoothing and
    a little mixup. Weight decay, rate and batch, well chosen, did more for small sets than all but
    one of eight methods made for them (arXiv 2108.13122): try weight_decay=5e-4 and 5e-3, lr=0.005
    and 0.03.
  - views that keep what an image shows. Random-resized crops of at least 35 % of the area, where
    ImageNet's recipe goes down to 8 %, flips, and a small erased part. No changes of colour, which
    tell classes apart as often as not: --config.augment.randaugment=rand-m5-mstd0.5 adds them.
SGD with momentum rather than AdamW: its one rate is good over a wide range for networks with
BatchNorm, which all these are.

All lengths but the intervals are shares of the run. `best` is chosen on the held-out test set; with
--config.data.validation=0.1 on a part of the training set. Not trained to its end by us yet.
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
    models.divided(arch, split)

    config = defaults.get_config()
    config.arch, config.split = arch, split
    config.method = "single" if split == 1 else "cotrain"
    config.duration = f"{epochs} epochs"
    config.batch_size = config.optim.base_batch_size = 32
    config.label_smoothing = 0.1
    config.cotrain.warmup = "20%"

    config.data.name = given["name"]
    config.data.image_size = models.known(arch)[1].image_size  # for which it was made
    config.data.scale_min = 0.35
    config.augment.crop_padding = 0
    config.augment.random_resized_crop = True  # of images of one size, too
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

    config.log_every = "1 epochs"
    config.eval.every = "2 epochs"
    config.checkpoint.every = "5 epochs"
    return config
