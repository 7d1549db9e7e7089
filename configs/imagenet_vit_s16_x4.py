"""ViT-S/16 divided in 4 and co-trained on ImageNet, 224 pixels, as DeiT (2012.12877).

jaxsplit train --config=imagenet_vit_s16_x4 --workdir=runs/vit_s16_x4 \
    --config.data.dir=/path/to/tensorflow_datasets

No accuracy of a divided Vision Transformer was published.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import transformers


def get_config() -> ConfigDict:
    config = transformers.imagenet("vit_s16", split=4)
    config.drop_path = 0.1
    config.augment.repeats = 3
    config.ema = 0.99996
    return config
