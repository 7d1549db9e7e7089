"""CIFAR-10, by the published recipe of divide and co-training (arXiv 2011.14660).

python main.py --config=configs/cifar10.py:arch=wide_resnet28_10,split=4 --workdir=runs/c10

Arguments, all optional: arch, split (1: the undivided network alone), epochs (300; 1800 is the long
recipe). `python -m jaxsplit.published cifar10` lists what was reached with which. Not trained by us
yet.
"""

from ml_collections import ConfigDict

from configs import arguments

# Architectures that decay by 5e-4; the others by 1e-4.
STRONG_DECAY = (
    "efficientnetb3_cifar",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "wide_resnet16_12",
    "wide_resnet28_10",
    "wide_resnet40_10",
    "wide_resnet52_8",
)
LONG_WARMUP = ("resnext29_16x64d", "se_resnet164")  # in runs of 300 epochs
NO_WARMUP = ("densenet", "pyramidnet", "shake_resnet")  # in runs of 1800 epochs


def recipe(text: str, dataset: str, *, divide_weight_decay: bool) -> ConfigDict:
    """That of CIFAR-10 and CIFAR-100; Eq. (6) where no published result tells."""
    begun = arguments.start(
        text, dataset, arch="wide_resnet28_10", split=4, epochs=300, suffix="_cifar"
    )
    config, arch, epochs = begun.config, begun.arch, begun.epochs
    if begun.result is None:
        config.optim.divide_weight_decay = divide_weight_decay
    config.augment.erase_prob = 0.5

    if epochs < 300:
        warmup, lr = 10, 0.1
    elif epochs < 1800:
        warmup = 30 if arch in LONG_WARMUP else 20
        lr = 0.05 if arch == "resnext29_16x64d" else 0.1
    else:
        warmup = 0 if arch.startswith(NO_WARMUP) else 60
        lr = 0.2 if arch.startswith("shake_resnet") else 0.1
    config.schedule.warmup = arguments.part(warmup, 200, epochs)
    config.cotrain.warmup = arguments.part(40 if epochs < 1800 else 80, 200, epochs)
    config.optim.lr = lr
    config.optim.weight_decay = 5e-4 if arch in STRONG_DECAY else 1e-4
    return config


def get_config(text: str = "") -> ConfigDict:
    config = recipe(text, "cifar10", divide_weight_decay=True)
    config.augment.autoaugment = "cifar10"
    config.augment.erase_area = (0.125, 0.2)
    return config
