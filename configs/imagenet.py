"""ImageNet, by the published recipe of divide and co-training (arXiv 2011.14660).

python main.py --config=configs/imagenet.py:arch=resnext101_64x4d,split=2 --workdir=runs/imagenet \
    --config.data.dir=/path/to/tensorflow_datasets

Arguments, all optional: arch, split (1: the undivided network alone), epochs (120).
`python -m jaxsplit.published imagenet2012` lists what was reached with which. Needs imagenet2012
prepared by tensorflow-datasets as array_record. Not built yet, and so left out: RandAugment (of
SE-ResNet-50, ResNeXSt, SENet-113, SE-ResNeXt-101 B and EfficientNet), and RMSprop as TensorFlow has
it with an exponential schedule (EfficientNet). Not trained by us yet.
"""

from ml_collections import ConfigDict

from configs import arguments

BATCH_SIZE = 256
# Their rate is that of 256 images, in proportion; the others keep theirs in published runs of 128.
SCALED_RATE = ("se_resnext101_64x4d_B", "senet113", "resnexst101_8x32d")
# EfficientNet's size -> probability of random erasing; 0.5 elsewhere.
ERASE_PROB = {"b0": 0.2, "b1": 0.2, "b2": 0.3, "b3": 0.3, "b4": 0.4, "b5": 0.4}


def get_config(text: str = "") -> ConfigDict:
    begun = arguments.start(text, "imagenet2012", arch="resnext101_64x4d", split=2, epochs=120)
    config, arch, epochs = begun.config, begun.arch, begun.epochs
    config.dtype = "bfloat16"
    config.label_smoothing = 0.1
    config.cotrain.warmup = arguments.part(60, 120, epochs)

    config.data.image_size = begun.image_size
    config.augment.crop_padding = 0  # streamed images come as random-resized crops
    config.augment.erase_prob = 0.5
    config.augment.erase_area = (0.05, 0.12)
    config.augment.erase_aspect = (0.5, 1.5)

    if begun.result is None:
        config.batch_size = BATCH_SIZE
    config.optim.lr = 0.1
    config.optim.weight_decay = 5e-5 if arch == "resnet50" else 1e-4
    config.schedule.warmup = arguments.part(5, 100, epochs)
    config.schedule.end_lr = 1e-5
    if arch.startswith("efficientnet"):
        config.augment.erase_prob = ERASE_PROB.get(arch[len("efficientnet") :][:2], 0.5)
        config.augment.mixup = 0.0
        config.optim.lr = 0.256
        config.optim.weight_decay = 1e-5
        config.schedule.warmup_lr = 1e-6
    if arch in SCALED_RATE:
        config.optim.lr *= config.batch_size / BATCH_SIZE
    config.optim.base_batch_size = config.batch_size  # the rates above are those of this batch

    config.log_every = "100 steps"
    return config
