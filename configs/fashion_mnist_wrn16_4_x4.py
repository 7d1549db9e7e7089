"""WRN-16-4 divided in 4 and co-trained on Fashion-MNIST (28x28 pixels, one channel).

jaxsplit train --config=fashion_mnist_wrn16_4_x4 --workdir=runs/fashion_mnist
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.arch = "wide_resnet16_4"
    config.split = 4
    config.duration = "30 epochs"
    config.cotrain.warmup = "15%"
    config.data.name = "fashion_mnist"
    config.augment.crop_padding = 2
    config.augment.mixup = 0.0
    config.augment.erase_prob = 0.5
    config.optim.weight_decay = 5e-4
    config.schedule.warmup = "5%"
    return config
