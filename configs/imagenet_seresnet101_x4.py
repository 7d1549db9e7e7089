"""SE-ResNet-101 divided in 4 and co-trained on ImageNet, 224 pixels.

jaxsplit train --config=imagenet_seresnet101_x4 --workdir=runs/seresnet101_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

It is the same as --config=imagenet:arch=se_resnet101,split=4; configs/imagenet.py says which data
it needs. No accuracy of SE-ResNet-101 was published.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config() -> ConfigDict:
    config = shared.config("", "imagenet2012", arch="se_resnet101", split=4, epochs=120)
    config.dtype = "bfloat16"
    config.augment.crop_padding = 0  # streamed images are random-resized crops already
    config.log_every = "100 steps"
    return config
