"""Every field of a jaxsplit config, with its default and its meaning.

An experiment file calls `get_config()` and changes the fields that differ. Fields hold *primary*
values only. What follows from them (the learning rate at this batch size, the steps in an epoch)
is derived when the run starts, so an override never leaves a stale value behind.

A duration is a string with one unit: '300 epochs', '5000 steps', '1e6 examples' or '10%' (of
`duration`, which itself cannot be a percentage). S is the number of networks, `config.split`. In
the comments `|` separates the allowed values.
"""

from ml_collections import ConfigDict

from jaxsplit import methods
from jaxsplit.errors import ConfigError
from jaxsplit.values import Fields, number_or


def get_config() -> ConfigDict:
    """The defaults: the published CIFAR recipe of divide and co-training (arXiv 2011.14660)."""
    config = Fields()  # also takes NumPy values and paths
    _networks(config)
    config.duration = "300 epochs"  # length of the run
    config.batch_size = 128  # images per step, over all devices and processes
    # Precision of the computation: float32 | bfloat16. Parameters, BatchNorm statistics and losses
    # are always float32.
    config.dtype = "float32"
    config.batch_norm = "local"  # statistics of each device: local | of the whole batch: sync
    # Loss on labels: cross_entropy | bce (binary cross-entropies, their mean over examples and
    # classes, as in timm) | bce_sum (their sum over classes, which weighs as much as cross_entropy
    # beside the losses between networks).
    config.label_loss = "cross_entropy"
    # bce, bce_sum only: targets above this become 1, the others 0, in [0, 1]; 1: off. With 0 both
    # labels of mixed images are targets (DeiT III).
    config.bce_threshold = 1.0
    config.label_smoothing = 0.0  # probability spread over all classes, in [0, 0.9]; 0: off
    config.distill = _distill()
    config.data = _data()
    config.augment = _augment()
    config.optim = _optim()
    config.schedule = _schedule()
    # Decay of a moving average of weights and BatchNorm statistics, in [0, 1), such as 0.9999. The
    # average is what is evaluated, and what a checkpoint holds as its networks. 0: no average.
    config.ema = 0.0
    # True: the decay at a step is min(ema, 1 - (1 + step) ** (-2 / 3)), so that the average soon
    # forgets the random start. False: the decay is `ema` from the first step on.
    config.ema_warmup = True

    # ---- Runtime fields: they may change when a workdir is resumed. Of the fields above only these
    # may: a longer `duration`, and data.dir, data.download, data.resident, data.resident_limit,
    # data.on_bad_record and data.threads.
    _runtime(config)
    config.eval = _eval()
    config.stop = _stop()
    # '': a workdir is resumed with its own config | 'changed': also with another learning rate,
    # schedule, augmentation or loss; config.json records each change and its step.
    config.resume_with = ""
    config.log_every = "50 steps"  # duration between two lines of training metrics
    # Steps that jax's profiler traces for TensorBoard: from:to, as '20 steps:25 steps'; '': none.
    config.profile = ""
    # Where metrics go beside metrics.jsonl: any of tensorboard, csv, wandb and names in
    # jaxsplit.trackers.TRACKERS; () for none.
    config.trackers = ("tensorboard",)
    config.checkpoint = _checkpoint()
    _methods(config)
    return config


def _networks(config: Fields) -> None:
    """What is trained, and from which weights."""
    config.seed = 0  # of all randomness; 0 to 2**32 - 1
    config.arch = "wide_resnet28_10"  # the undivided network; docs/architectures.md lists the names
    config.split = 4  # S: the number of networks that are trained
    config.divide = True  # True: S small networks replace `arch`; False: each is a whole `arch`
    config.divide_in = 0  # number of small networks that would replace `arch`; 0: as `split`
    # Rates of the undivided network, in [0, 1), for architectures that drop anything | paper (as
    # the architecture has them). S small networks have them over sqrt(S).
    config.dropout = number_or("paper")  # of single values
    config.drop_path = number_or("paper")  # of the last residual branch; grows with the depth
    config.divide_anyway = False  # allow small networks that cost over 1.5 times as much as `arch`
    # Initial weights: a workdir, its checkpoints/<step>, or PyTorch files; '': random weights.
    config.init_from = ""
    # A name in jaxsplit.methods.METHODS; docs/methods.md describes them.
    config.method = "cotrain"
    # Views of an image: different (one per network) | same (one for all) | paper (as in the
    # method's paper).
    config.views = "paper"
    # The last stage that the networks share, such as 'stage1' | none | paper (as in the method's
    # paper: none, or all stages but the last).
    config.trunk = "paper"


def _distill() -> Fields:
    """The loss between logits that most methods use; methods that use only labels ignore it."""
    config = Fields()
    config.loss = "kl"  # kl | dkd (arXiv 2203.08679) | dist (arXiv 2205.10536)
    config.standardize = False  # standardise the logits before the loss (arXiv 2403.01427)
    config.weight = 1.0  # loss weight; the losses already include temperature ** 2
    # Divides the logits before the loss; above 0 | paper (as in the method's paper: 1 to 4).
    config.temperature = number_or("paper")
    config.dkd_alpha = 1.0  # dkd only: weight of the target class
    config.dkd_beta = 8.0  # dkd only: weight of the other classes
    config.dist_beta = 1.0  # dist only: weight of the correlation between classes, per example
    config.dist_gamma = 1.0  # dist only: weight of the correlation between examples, per class
    return config


def _data() -> Fields:
    config = Fields()
    # A name in jaxsplit.data.DATASETS, another image classification set of tfds in data.dir, or
    # 'hf:NAME_OR_PATH': a set of Hugging Face in a folder of save_to_disk or in its cache.
    config.name = "cifar10"
    config.dir = "~/tensorflow_datasets"  # folder of the prepared sets; digits needs none
    config.download = False  # let tfds or Hugging Face's datasets download a set that is missing
    # Names of splits. '': train; and test, else validation, else a share of the training set.
    config.train_split = ""
    config.test_split = ""
    # Of Hugging Face's sets: the configuration in the cache, the column of images, that of labels.
    # '': the only one there is.
    config.subset = ""
    config.image_column = ""
    config.label_column = ""
    config.image_size = 0  # height and width in pixels for the networks; 0: as in the data set
    # Mean and standard deviation of each channel, for pixels in 0..1. (): those of the data set if
    # they are known, else ImageNet's.
    config.mean = ()
    config.std = ()
    config.test_share = 0.1  # share of the training set to test on, if there is no test split
    # Share of the training set held out for validation, in [0, 1). The best checkpoint is chosen
    # on it; 0: on the test set.
    config.validation = 0.0
    # Where training images lie: device (all in device memory) | stream (read batch by batch) |
    # auto (device for images of one size up to `resident_limit`, else stream).
    config.resident = "auto"
    config.resident_limit = 2048  # MiB of uint8 pixels; svhn_cropped has 1771
    config.on_bad_record = "error"  # error | skip (leave it out and count it in data/bad_records)
    config.threads = 8  # decoding threads of a streamed data set
    config.scale_min = 0.1  # smallest share of the area that a random-resized crop keeps
    return config


def _augment() -> Fields:
    config = Fields()
    # Copies of each image in a batch, each with views of its own (repeated augmentation, arXiv
    # 1901.09335), such as 3; 1: off. An epoch has as many steps, and 1 / repeats of the images.
    config.repeats = 1
    config.crop_padding = 4  # pixels added on each side before the random crop; 0: no crop
    config.crop_mode = "zeros"  # content of the padding: zeros | reflect
    # Device-side random-resized crop instead of pad-and-crop. Streamed images are always cropped
    # so, on the host.
    config.random_resized_crop = False
    config.flip = True  # mirror half of the images
    config.autoaugment = ""  # policy: '' (off) | cifar10 | svhn | imagenet
    config.randaugment = ""  # '' (off), or a notation such as 'rand-m9-mstd0.5'; not with the above
    # Interpolation of both policies: reference (as the original code) | nearest (faster).
    config.resample = "reference"
    config.erase_prob = 0.0  # probability of random erasing with the mean colour, in [0, 1]; 0: off
    config.erase_area = (0.0625, 0.1)  # least and largest erased share of the image
    config.erase_aspect = (0.99, 1.0)  # least and largest height / width of the erased rectangle
    config.cutout = 0  # side in pixels of a square erased with the mean colour; 0: off
    # Alpha of mixup's Beta(alpha, alpha), in [0.001, 100]; one lambda per step; 0: off.
    config.mixup = 0.2
    config.cutmix = 0.0  # alpha of CutMix, likewise; one box per step; 0: off
    config.mix_switch = 0.5  # probability of CutMix in a step, if mixup and CutMix are both on
    return config


def _optim() -> Fields:
    config = Fields()
    config.name = "sgd"  # sgd | adam (L2 decay) | adamw (decoupled) | rmsprop | rmsprop_tf
    config.lr = 0.1  # highest learning rate, for `base_batch_size`; scales linearly with batch_size
    config.base_batch_size = 128  # batch size for which the learning rates are given
    config.momentum = 0.9  # sgd, rmsprop, rmsprop_tf; in [0, 1)
    config.nesterov = True  # sgd only
    config.beta1 = 0.9  # adam, adamw: decay of the average gradient, in [0, 1)
    config.beta2 = 0.999  # adam, adamw: decay of the average squared gradient, in [0, 1)
    config.alpha = 0.9  # rmsprop, rmsprop_tf: decay of the average squared gradient, in [0, 1)
    config.centered = False  # rmsprop, rmsprop_tf: divide by the standard deviation
    config.eps = 1e-8  # all but sgd: added to the divisor; rmsprop_tf adds it inside the root
    config.weight_decay = 1e-4  # 0 or more
    # Whether the scales of BatchNorm and LayerNorm decay, as in the reference. Position embeddings,
    # class tokens and layer scales never decay.
    config.decay_norm = True
    config.decay_bias = False  # whether biases decay
    config.divide_weight_decay = False  # multiply weight_decay by exp(1/S - 1), the paper's Eq. (6)
    # In (0, 1], such as 0.75 to fine-tune: the learning rate of a layer of depth d is multiplied by
    # layer_decay ** (D - d); the stem has depth 0, the head D = blocks + 1. 1: off.
    config.layer_decay = 1.0
    # Largest norm of the gradient, of each network and of each further module; 0: no clipping.
    config.clip_norm = 0.0
    # Micro-batches per step; their gradients are averaged. More of them need less memory.
    config.accumulate = 1
    return config


def _schedule() -> Fields:
    """The learning rate over the run. Its rates scale with batch_size as `optim.lr` does."""
    config = Fields()
    config.name = "cosine"  # cosine | step | polynomial | htd | exponential
    config.warmup = "20 epochs"  # duration of the linear rise from warmup_lr to optim.lr
    config.warmup_lr = 5e-3  # learning rate at step 0
    config.end_lr = 1e-4  # the learning rate never falls below this
    config.milestones = ("100 epochs", "225 epochs")  # step only: durations until each fall
    config.factor = 0.1  # step only: each fall multiplies the learning rate by this, in (0, 1]
    config.power = 0.9  # polynomial only; above 0
    # htd (hyperbolic tangent decay) only: the part of the tanh curve that is used.
    config.htd_lower = -6.0
    config.htd_upper = 3.0
    config.decay_factor = 0.97  # exponential only: multiplies the learning rate every `decay_every`
    config.decay_every = "0.8 epochs"  # exponential only
    config.staircase = True  # exponential only: True: falls every `decay_every`; False: every step
    return config


def _runtime(config: Fields) -> None:
    """How, and on which devices, the networks are computed."""
    # How S networks become one program: auto | dense | unrolled | packed | grouped; see
    # docs/performance.md.
    config.lowering = "auto"
    # Stages whose blocks are recomputed in the backward pass, which saves memory and costs time:
    # '' (none) | 'all' | names such as 'stage1,stage2'.
    config.remat = ""
    config.mesh = Fields()
    config.mesh.data = -1  # number of devices that divide the batch; -1: all that `net` leaves
    config.mesh.net = 1  # number of device groups that divide the networks; must divide S


def _eval() -> Fields:
    config = Fields()
    config.batch_size = 0  # images per evaluation step, over all devices; 0: as batch_size
    config.every = "1 epochs"  # duration between two evaluations
    # How the networks' outputs are combined: mean_logits | mean_probs | max_logits | max_probs. An
    # evaluation may change it; a resumed run may not.
    config.ensemble = "mean_logits"
    # The next two are for `jaxsplit eval` only.
    config.ood = ""  # another data set, whose images uncertainty should tell from the test images
    config.corruptions = False  # True: also the test images under 15 corruptions at 5 severities
    return config


def _stop() -> Fields:
    """Early stopping."""
    config = Fields()
    # The run ends after so many evaluations in a row without an improvement; 0: off.
    config.patience = 0
    # Name of an evaluated metric, such as 'test/ensemble/nll'; '': the metric that selects the best
    # checkpoint.
    config.metric = ""
    config.min_delta = 0.0  # an improvement must be larger than this; 0 or more
    return config


def _checkpoint() -> Fields:
    config = Fields()
    config.every = "1 epochs"  # duration between two checkpoints
    config.keep = 2  # number of newest checkpoints to keep; the best one is kept as well
    # If the newest checkpoint is damaged: previous (resume from the one before it) | error.
    config.on_corrupt = "previous"
    return config


def _methods(config: Fields) -> None:
    """Adds the fields of each method, such as config.cotrain and config.ffsd.

    `ENTRY` at the end of a method's file, such as jaxsplit/methods/cotrain.py, holds its fields
    with their defaults and comments.

    Raises:
      ConfigError: a method with fields has the name of another field.
    """
    for name, entry in methods.METHODS.items():
        if entry.fields and name in config:
            raise ConfigError(f"method {name!r}: must have another name; config.{name} exists")
        if entry.fields:
            config[name] = ConfigDict(dict(entry.fields))
