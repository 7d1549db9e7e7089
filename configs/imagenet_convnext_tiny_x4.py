"""ConvNeXt-T divided in 4 and co-trained on ImageNet, 224 pixels, by its paper's recipe.

jaxsplit train --config=imagenet_convnext_tiny_x4 --workdir=runs/convnext_tiny_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

The recipe is that of arXiv 2201.03545. No accuracy of a divided ConvNeXt was published.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import transformers


def get_config() -> ConfigDict:
    config = transformers.imagenet("convnext_tiny", split=4)
    config.batch_size = 4096
    config.optim.lr = 4e-3
    config.optim.base_batch_size = 4096
    config.schedule.warmup = "20 epochs"
    config.schedule.warmup_lr = 0.0
    config.schedule.end_lr = 1e-6
    config.drop_path = 0.1
    config.ema = 0.9999
    return config
