"""SE-ResNet-101 divided in 4 and co-trained on ImageNet, 224 pixels.

python main.py --config=configs/imagenet_seresnet101_x4.py --workdir=runs/seresnet101_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

The same as --config=configs/imagenet.py:arch=se_resnet101,split=4, which says what it needs. No
accuracy of SE-ResNet-101 was published.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config() -> ConfigDict:
    config = shared.config("", "imagenet2012", arch="se_resnet101", split=4, epochs=120)
    config.dtype = "bfloat16"
    config.augment.crop_padding = 0  # streamed images come as random-resized crops
    config.log_every = "100 steps"
    return config
