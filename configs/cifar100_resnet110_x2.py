"""ResNet-110 divided in 2 and co-trained on CIFAR-100.

python main.py --config=configs/cifar100_resnet110_x2.py --workdir=runs/cifar100_resnet110_x2

The published recipe (arXiv 2011.14660) reaches 81.68 % in 300 epochs; it has AutoAugment besides,
which is not built yet. Not trained by us yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.arch = "resnet110"
    config.split = 2
    config.data.name = "cifar100"
    config.augment.erase_prob = 0.5
    return config
