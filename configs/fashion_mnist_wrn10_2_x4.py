"""WRN-10-2 divided in 4 and co-trained on Fashion-MNIST for 2 epochs: minutes on two CPU cores.

jaxsplit prepare fashion_mnist --source=/usr/share/datasets/fashion-mnist
jaxsplit train --config=fashion_mnist_wrn10_2_x4 --workdir=runs/fashion_mnist_wrn10_2_x4

The ensemble reaches at least 86 %; see `bench/results/fashion_mnist_cpu.md`.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.arch = "wide_resnet10_2"
    config.split = 4
    config.duration = "2 epochs"
    config.cotrain.warmup = "15%"
    config.data.name = "fashion_mnist"
    config.augment.crop_padding = 2
    config.augment.mixup = 0.0
    config.augment.erase_prob = 0.0  # so short a run needs little regularisation
    config.optim.weight_decay = 5e-4
    config.schedule.warmup = "5%"
    config.checkpoint.every = "200 steps"
    return config
