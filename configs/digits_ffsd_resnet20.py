"""FFSD: two ResNet-20 and a leader on scikit-learn's handwritten digits (8x8 pixels).

jaxsplit train --config=digits_ffsd_resnet20 --workdir=runs/ffsd
jaxsplit export-leader --workdir=runs/ffsd

The leader reaches at least 97.5 %. It takes about 2 minutes on two CPU cores and needs no download.
Data, augmentation and schedule are those of digits_wrn16_4_x4.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.method = "ffsd"
    config.arch = "resnet20"
    config.split = 2
    config.divide = False  # students and leader are whole networks, as in the paper
    config.duration = "20 epochs"
    config.batch_size = 64
    config.ffsd.warmup = "25%"
    config.cotrain.warmup = "25%"  # unused by FFSD; kept so that old workdirs resume

    config.data.name = "digits"
    config.augment.crop_padding = 1
    config.augment.flip = False  # a mirrored digit has another shape
    config.augment.mixup = 0.0

    config.optim.lr = 0.1
    config.optim.base_batch_size = 64
    config.optim.weight_decay = 5e-4
    config.optim.decay_bias = True  # as in the paper
    config.schedule.warmup = "10%"

    config.log_every = "1 epochs"
    config.eval.every = "2 epochs"
    config.eval.batch_size = 360
    config.checkpoint.every = "4 epochs"
    return config
