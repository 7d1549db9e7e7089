"""WRN-28-10 divided in 4 and co-trained on CIFAR-10.

python main.py --config=configs/cifar10_wrn28_10_x4.py --workdir=runs/cifar10_wrn28_10_x4

The published recipe (arXiv 2011.14660) reaches 97.99 % in 300 epochs; it has AutoAugment besides,
which is not built yet, and divides the weight decay by Eq. (6). Not trained by us yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.arch = "wide_resnet28_10"
    config.split = 4
    config.data.name = "cifar10"
    config.augment.erase_prob = 0.5
    config.augment.erase_area = (0.125, 0.2)
    config.optim.weight_decay = 5e-4
    config.optim.divide_weight_decay = True
    return config
