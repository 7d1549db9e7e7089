"""SE-ResNet-101 divided in 4 and co-trained on ImageNet, 224 pixels.

python main.py --config=configs/imagenet_seresnet101_x4.py --workdir=runs/seresnet101_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

The same as --config=configs/imagenet.py:arch=se_resnet101,split=4, which says what it needs. No
accuracy of SE-ResNet-101 was published.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("arch=se_resnet101,split=4")
