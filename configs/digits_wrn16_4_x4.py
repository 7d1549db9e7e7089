"""WRN-16-4 divided in 4 and co-trained on scikit-learn's handwritten digits (8x8 pixels).

jaxsplit train --config=digits_wrn16_4_x4 --workdir=runs/digits

It takes about 2 minutes on two CPU cores and needs no download.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.arch = "wide_resnet16_4"
    config.split = 4
    config.duration = "15 epochs"
    config.batch_size = 64
    config.cotrain.warmup = "25%"

    config.data.name = "digits"
    config.augment.crop_padding = 1
    config.augment.flip = False  # a mirrored digit has another shape
    config.augment.mixup = 0.0

    config.optim.lr = 0.1
    config.optim.base_batch_size = 64
    config.optim.weight_decay = 5e-4
    config.schedule.warmup = "10%"

    config.log_every = "1 epochs"
    config.eval.every = "2 epochs"
    config.eval.batch_size = 360
    config.checkpoint.every = "4 epochs"
    return config
