"""What recipes of Vision Transformers and ConvNeXt on ImageNet share.

The values are those of DeiT (Touvron et al. 2021, arXiv 2012.12877, table 9), which ConvNeXt (Liu
et al. 2022, arXiv 2201.03545, table 5) took over but for batch size, learning rate and warm-up. One
part differs: an erased rectangle gets the mean colour, where both draw noise for each pixel. The
co-training is that of arXiv 2011.14660 on ImageNet: a warm-up of half of the run.
"""

from ml_collections import ConfigDict

from jaxsplit import defaults


def imagenet(arch: str, *, split: int, epochs: int = 300) -> ConfigDict:
    """The config of S networks that replace `arch`, for 224 pixels, in bfloat16."""
    config = defaults.get_config()
    config.arch, config.split = arch, split
    config.duration = f"{epochs} epochs"
    config.batch_size = 1024
    config.dtype = "bfloat16"
    config.label_smoothing = 0.1
    config.cotrain.warmup = "50%"

    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.scale_min = 0.08
    config.augment.crop_padding = 0  # streamed images are random-resized crops already
    config.augment.randaugment = "rand-m9-mstd0.5-inc1"
    config.augment.erase_prob = 0.25
    config.augment.erase_area = (0.02, 0.33)
    config.augment.erase_aspect = (0.3, 3.3)
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0

    config.optim.name = "adamw"
    config.optim.lr = 5e-4
    config.optim.base_batch_size = 512
    config.optim.weight_decay = 0.05
    config.optim.decay_norm = False
    config.schedule.warmup = "5 epochs"
    # DeiT scales optim.lr alone with the batch; these two are its 1e-6 and 1e-5 after scaling.
    config.schedule.warmup_lr = 5e-7
    config.schedule.end_lr = 5e-6
    config.log_every = "100 steps"
    return config
