"""SVHN (with its extra images), by the recipe of divide and co-training (arXiv 2011.14660).

jaxsplit train --config=svhn:arch=wide_resnet16_8,split=4 --workdir=runs/svhn

Arguments, all optional: arch, split (1: the undivided network alone), epochs (200). No accuracy was
published. We have not trained it yet.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config(text: str = "") -> ConfigDict:
    return shared.config(text, "svhn_cropped", arch="wide_resnet16_8", split=4, epochs=200)
