"""ImageNet, by the published recipe of divide and co-training (arXiv 2011.14660).

jaxsplit train --config=imagenet:arch=resnext101_64x4d,split=2 --workdir=runs/imagenet \
    --config.data.dir=/path/to/tensorflow_datasets

Arguments, all optional: arch, split (1: the undivided network alone), epochs (120).
`jaxsplit published imagenet2012` lists the published results. It needs imagenet2012 prepared as
array_record: `jaxsplit prepare imagenet2012 --source=...`. We have not trained it yet.
"""

from ml_collections import ConfigDict

from jaxsplit.recipes import shared


def get_config(text: str = "") -> ConfigDict:
    config = shared.config(text, "imagenet2012", arch="resnext101_64x4d", split=2, epochs=120)
    config.dtype = "bfloat16"
    config.augment.crop_padding = 0  # streamed images are random-resized crops already
    config.log_every = "100 steps"
    return config
