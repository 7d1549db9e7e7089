"""ConvNeXt-atto divided in 4 and co-trained on scikit-learn's handwritten digits (8x8 pixels).

jaxsplit train --config=digits_convnext_x4 --workdir=runs/digits_convnext

It takes about 100 seconds on two CPU cores, reaches about 98 % and needs no download.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.arch = "convnext_atto_p1"  # a stem of single pixels
    config.split = 4
    config.duration = "24 epochs"
    config.batch_size = 64
    config.cotrain.warmup = "25%"

    config.data.name = "digits"
    config.augment.crop_padding = 1
    config.augment.flip = False  # a mirrored digit has another shape
    config.augment.mixup = 0.0

    config.optim.name = "adamw"
    config.optim.lr = 4e-3
    config.optim.base_batch_size = 64
    config.optim.weight_decay = 0.05
    config.optim.decay_norm = False
    config.optim.clip_norm = 1.0
    config.schedule.warmup = "10%"
    config.schedule.warmup_lr = 1e-5
    config.schedule.end_lr = 1e-5

    config.log_every = "2 epochs"
    config.eval.every = "4 epochs"
    config.eval.batch_size = 360
    config.checkpoint.every = "8 epochs"
    return config
