"""WRN-10-2 divided in 4 and co-trained on Fashion-MNIST for 2 epochs: minutes on two CPU cores.

python -m jaxsplit.data.prepare fashion_mnist --source=/usr/share/datasets/fashion-mnist
python main.py --config=configs/fashion_mnist_wrn10_2_x4.py --workdir=runs/fashion_mnist_wrn10_2_x4

The ensemble reaches at least 86 %; see `bench/results/fashion_mnist_cpu.md`.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_wrn16_4_x4


def get_config() -> ConfigDict:
    config = fashion_mnist_wrn16_4_x4.get_config()
    config.arch = "wide_resnet10_2"
    config.duration = "2 epochs"
    config.augment.erase_prob = 0.0  # a run this short has no time for much regularisation
    config.checkpoint.every = "200 steps"
    return config
