"""CIFAR-10, by the published recipe of divide and co-training (arXiv 2011.14660).

jaxsplit train --config=cifar10:arch=wide_resnet28_10,split=4 --workdir=runs/c10

Arguments, all optional: arch, split (1: the undivided network alone), epochs (300; 1800 is the long
recipe). `jaxsplit published cifar10` lists the published results. We have not trained it yet.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config(text: str = "") -> ConfigDict:
    return shared.config(text, "cifar10", arch="wide_resnet28_10", split=4, epochs=300)
