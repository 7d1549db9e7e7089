"""CIFAR-10, by the published recipe of divide and co-training (arXiv 2011.14660).

python main.py --config=configs/cifar10.py:arch=wide_resnet28_10,split=4 --workdir=runs/c10

Arguments, all optional: arch, split (1: the undivided network alone), epochs (300; 1800 is the long
recipe). `python -m jaxsplit.published cifar10` lists what was reached with which. Not trained by us
yet.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config(text: str = "") -> ConfigDict:
    return shared.config(text, "cifar10", arch="wide_resnet28_10", split=4, epochs=300)
