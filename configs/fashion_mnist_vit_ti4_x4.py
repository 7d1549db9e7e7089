"""ViT-Ti/4 divided in 4 and co-trained on Fashion-MNIST (28 pixels: 7 x 7 patches).

jaxsplit prepare fashion_mnist --source=/usr/share/datasets/fashion-mnist
jaxsplit train --config=fashion_mnist_vit_ti4_x4 --workdir=runs/fashion_mnist_vit_ti4_x4
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.arch = "vit_ti4_28"
    config.split = 4
    config.duration = "30 epochs"
    config.cotrain.warmup = "20%"
    config.drop_path = 0.1
    config.label_smoothing = 0.1

    config.data.name = "fashion_mnist"
    config.augment.crop_padding = 2
    config.augment.mixup = 0.0
    config.augment.erase_prob = 0.25

    config.optim.name = "adamw"
    config.optim.lr = 1e-3
    config.optim.base_batch_size = 256
    config.optim.weight_decay = 0.05
    config.optim.decay_norm = False
    config.optim.clip_norm = 1.0
    config.schedule.warmup = "10%"
    config.schedule.warmup_lr = 1e-6
    config.schedule.end_lr = 1e-5
    return config
