"""ImageNet, by the published recipe of divide and co-training (arXiv 2011.14660).

python main.py --config=configs/imagenet.py:arch=resnext101_64x4d,split=2 --workdir=runs/imagenet \
    --config.data.dir=/path/to/tensorflow_datasets

Arguments, all optional: arch, split (1: the undivided network alone), epochs (120).
`python -m jaxsplit.published imagenet2012` lists what was reached with which. Needs imagenet2012
prepared as array_record: `python -m jaxsplit.data.prepare imagenet2012 --source=...`. Not trained
by us yet.
"""

from ml_collections import ConfigDict

from configs import arguments

BATCH_SIZE = 256
# Their rate is that of 256 images, in proportion; the others keep theirs in published runs of 128.
SCALED_RATE = ("se_resnext101_64x4d_B", "senet113", "resnexst101_8x32d")
# Architecture -> magnitude of RandAugment; 0 (none) elsewhere.
MAGNITUDE = {
    "se_resnet50": 6,
    "resnexst50_4x16d": 6,
    "resnexst50_8x16d": 6,
    "resnexst50_4x32d": 6,
    "resnexst101_8x32d": 9,
    "senet113": 9,
    "se_resnext101_64x4d_B": 9,
}
# EfficientNet's size -> (magnitude, probability of random erasing).
EFFICIENTNET = {
    "b0": (4, 0.2),
    "b1": (4, 0.2),
    "b2": (5, 0.3),
    "b3": (6, 0.3),
    "b4": (6, 0.4),
    "b5": (7, 0.4),
    "b6": (8, 0.5),
    "b7": (9, 0.5),
    "b8": (9, 0.5),
    "l2": (9, 0.5),
}


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
    magnitude = MAGNITUDE.get(arch, 0)
    if arch.startswith("efficientnet"):
        magnitude, config.augment.erase_prob = EFFICIENTNET[arch.removeprefix("efficientnet")[:2]]
        config.augment.mixup = 0.0
        config.optim.name = "rmsprop_tf"
        config.optim.eps = 1e-3
        config.optim.lr = 0.256
        config.optim.weight_decay = 1e-5
        config.schedule.name = "exponential"  # 0.97 every 0.8 epochs
        config.schedule.warmup_lr = 1e-6
    if magnitude:
        config.augment.randaugment = f"rand-m{magnitude}-mstd0.5"
    if arch in SCALED_RATE:
        config.optim.lr *= config.batch_size / BATCH_SIZE
    config.optim.base_batch_size = config.batch_size  # the rates above are those of this batch

    config.log_every = "100 steps"
    return config
