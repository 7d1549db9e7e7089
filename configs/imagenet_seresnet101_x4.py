"""SE-ResNet-101 divided in 4 and co-trained on ImageNet, 224 pixels.

python main.py --config=configs/imagenet_seresnet101_x4.py --workdir=runs/seresnet101_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

Needs imagenet2012 prepared by tensorflow-datasets as array_record. The recipe is the published one
of SE-ResNet-152 (arXiv 2011.14660); no accuracy of SE-ResNet-101 was published. Not trained by us
yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.arch = "se_resnet101"
    config.split = 4
    config.duration = "120 epochs"
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.label_smoothing = 0.1
    config.cotrain.warmup = "60 epochs"

    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.augment.crop_padding = 0  # streamed images come as random-resized crops
    config.augment.mixup = 0.2

    config.optim.lr = 0.1
    config.optim.base_batch_size = 256
    config.optim.weight_decay = 1e-4
    config.schedule.warmup = "5 epochs"
    config.schedule.end_lr = 1e-5

    config.log_every = "100 steps"
    return config
