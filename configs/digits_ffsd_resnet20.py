"""FFSD: two ResNet-20 and a leader on scikit-learn's handwritten digits (8x8 pixels).

python main.py --config=configs/digits_ffsd_resnet20.py --workdir=runs/ffsd
python main.py --mode=export_leader --workdir=runs/ffsd

The leader reaches at least 97.5 %; two CPU cores: about 2 minutes. Needs no download.
"""

from ml_collections import ConfigDict

from configs import digits_wrn16_4_x4


def get_config() -> ConfigDict:
    config = digits_wrn16_4_x4.get_config()
    config.method = "ffsd"
    config.arch = "resnet20"
    config.split = 2
    config.divide = False  # students and leader are whole networks, as in the paper
    config.duration = "20 epochs"
    config.ffsd.warmup = "25%"
    config.optim.decay_bias = True  # as in the paper
    return config
