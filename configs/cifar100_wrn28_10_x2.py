"""WRN-28-10 divided in 2 and co-trained on CIFAR-100.

python main.py --config=configs/cifar100_wrn28_10_x2.py --workdir=runs/cifar100_wrn28_10_x2

The published recipe (arXiv 2011.14660) reaches 85.52 % in 300 epochs; it has AutoAugment besides,
which is not built yet. Not trained by us yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.arch = "wide_resnet28_10"
    config.split = 2
    config.data.name = "cifar100"
    config.augment.erase_prob = 0.5
    config.optim.weight_decay = 5e-4
    return config
