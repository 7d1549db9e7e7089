"""SVHN (with its extra images), by the recipe of divide and co-training (arXiv 2011.14660).

python main.py --config=configs/svhn.py:arch=wide_resnet16_8,split=4 --workdir=runs/svhn

Arguments, all optional: arch, split (1: the undivided network alone), epochs (200). No accuracy was
published. Not trained by us yet.
"""

from ml_collections import ConfigDict

from configs import arguments


def get_config(text: str = "") -> ConfigDict:
    begun = arguments.start(
        text, "svhn_cropped", arch="wide_resnet16_8", split=4, epochs=200, suffix="_cifar"
    )
    config = begun.config
    config.cotrain.warmup = arguments.part(40, 200, begun.epochs)
    config.augment.autoaugment = "svhn"
    config.augment.erase_prob = 0.5
    config.augment.erase_area = (0.125, 0.25)
    config.augment.erase_aspect = (0.9, 1.1)
    config.optim.lr = 5e-3
    config.optim.weight_decay = 1e-3
    config.schedule.warmup = "0 epochs"
    config.schedule.end_lr = 1e-5
    return config
