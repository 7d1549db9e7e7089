"""Every field of a jaxsplit config, its default and what it means.

An experiment file calls `get_config()` here and changes what differs. Fields hold *primary* values
only: what follows from them (learning rate at this batch size, steps in an epoch, steps of warm-up)
is derived when the run starts, so that an override can never leave a stale value behind.

Durations are strings with exactly one unit: '300 epochs', '5000 steps', '1e6 examples' or '10%' (of
the whole run; not for `duration` itself).
"""

from ml_collections import ConfigDict

from jaxsplit import methods
from jaxsplit.errors import ConfigError
from jaxsplit.values import Fields


def get_config() -> ConfigDict:
    """The defaults: the published CIFAR recipe of divide and co-training (arXiv 2011.14660)."""
    config = Fields()  # takes pathlib's paths and NumPy's values, too
    config.seed = 0  # 0 ... 2**32 - 1

    # What is trained. `split` is S: the undivided network `arch` is replaced by S small ones.
    config.arch = "wide_resnet28_10"
    config.split = 4
    config.divide = True  # False: each of the S networks is the whole `arch`
    config.divide_in = 0  # each is one of so many that replace `arch`; 0: of S
    config.divide_anyway = False  # also where they together cost over 1.5 times as much as `arch`
    config.init_from = ""  # weights to start from: a workdir, its checkpoints/<step>, files
    # A name in jaxsplit.methods.METHODS; docs/methods.md has a table of them.
    config.method = "cotrain"
    # What the S networks see of one image: different | same | paper (as in the method's paper).
    config.views = "paper"
    # The last layers that the networks share, as 'stage1' | none | paper (as in the method's paper:
    # none, or all stages but the last).
    config.trunk = "paper"

    config.duration = "300 epochs"
    config.batch_size = 128  # images a step, over all devices and processes
    config.dtype = "float32"  # computation; parameters, statistics and losses are always float32
    config.batch_norm = "local"  # local (statistics per device) | sync (over the data axis)
    config.label_smoothing = 0.0

    # The loss on logits that most methods share; those that only read the labels do not use it.
    config.distill = ConfigDict()
    config.distill.loss = "kl"  # kl | dkd | dist
    config.distill.standardize = False  # logits are standardised before (arXiv 2403.01427)
    config.distill.weight = 1.0  # of these losses, in which the square of the temperature stands
    # 0: that of the method's paper, 1, 2 or 3; `ENTRY` of its file has it.
    config.distill.temperature = 0.0
    config.distill.dkd_alpha = 1.0  # dkd: of the target class
    config.distill.dkd_beta = 8.0  # dkd: of the others
    config.distill.dist_beta = 1.0  # dist: within an example
    config.distill.dist_gamma = 1.0  # dist: within a class

    config.data = ConfigDict()
    # One of jaxsplit.data.DATASETS, or any other image classification set of tfds in data.dir.
    config.data.name = "cifar10"
    config.data.dir = "~/tensorflow_datasets"  # where prepared data lies; digits need none
    config.data.download = False  # tfds downloads and prepares what is not in data.dir
    config.data.image_size = 0  # pixels fed to the networks; 0: as the data set has them
    config.data.mean = ()  # of each channel, in 0..1; empty: those of the data set, or ImageNet's
    config.data.std = ()
    config.data.test_share = 0.1  # of the training set, as test set of a tfds set that has none
    config.data.validation = 0.0  # share of the training set held out; `best` is chosen on it
    # auto: images of one size lie on the device whole up to the limit, others are streamed.
    config.data.resident = "auto"  # auto | device | stream
    config.data.resident_limit = 2048  # MiB of training pixels; svhn_cropped has 1771
    config.data.on_bad_record = "error"  # error | skip: left out, counted as data/bad_records
    config.data.threads = 8  # decoding threads of a streamed data set
    config.data.scale_min = 0.1  # smallest share of the area that a random-resized crop takes

    config.augment = ConfigDict()
    config.augment.crop_padding = 4  # pixels around the image before the random crop; 0: no crop
    config.augment.crop_mode = "zeros"  # zeros | reflect: what the padding holds
    config.augment.random_resized_crop = False  # instead, in memory; streamed images always are
    config.augment.flip = True
    config.augment.autoaugment = ""  # '' | cifar10 | svhn | imagenet
    config.augment.randaugment = ""  # instead: 'rand-m9-mstd0.5'; see augment/policies.py
    config.augment.resample = "reference"  # of both | nearest: faster, every map takes one pixel
    config.augment.erase_prob = 0.0  # random erasing, after normalisation, with zeros
    config.augment.erase_area = (0.0625, 0.1)  # share of the image
    config.augment.erase_aspect = (0.99, 1.0)  # height / width
    config.augment.cutout = 0  # side in pixels of a square of zeros, after normalisation; 0 is off
    config.augment.mixup = 0.2  # alpha of Beta(alpha, alpha); one lambda a step; 0 is off
    config.augment.cutmix = 0.0  # alpha of CutMix; one box a step; 0 is off
    config.augment.mix_switch = 0.5  # where both are on: probability of CutMix in a step

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # sgd | adam (L2 decay) | adamw | rmsprop | rmsprop_tf
    config.optim.lr = 0.1  # at `base_batch_size`; scaled linearly by batch_size
    config.optim.base_batch_size = 128
    config.optim.momentum = 0.9  # sgd, rmsprop, rmsprop_tf
    config.optim.nesterov = True  # sgd only
    config.optim.beta1 = 0.9  # adam, adamw
    config.optim.beta2 = 0.999
    config.optim.alpha = 0.9  # rmsprop, rmsprop_tf: decay of the mean of squares
    config.optim.centered = False  # rmsprop, rmsprop_tf: divide by the deviation, not the root
    config.optim.eps = 1e-8  # all but sgd; in rmsprop_tf inside the root
    config.optim.weight_decay = 1e-4
    config.optim.decay_norm = True  # the scales of BatchNorm decay, as in the reference
    config.optim.decay_bias = False  # biases, too
    config.optim.divide_weight_decay = False  # Eq. (6): weight_decay * exp(1/S - 1)
    # Of the gradient of each network, and of each module beside them; 0: not clipped.
    config.optim.clip_norm = 0.0
    config.optim.accumulate = 1  # parts that a batch is cut in, one after another; saves memory

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # cosine | step | polynomial | htd | exponential
    config.schedule.warmup = "20 epochs"  # linear, from warmup_lr to lr
    config.schedule.warmup_lr = 5e-3  # warmup_lr and end_lr, too, are at base_batch_size
    config.schedule.end_lr = 1e-4  # floor of the whole curve
    config.schedule.milestones = ("100 epochs", "225 epochs")  # step only
    config.schedule.factor = 0.1  # step only
    config.schedule.power = 0.9  # polynomial only
    config.schedule.htd_lower = -6.0  # htd (hyperbolic tangent decay) only: from where on its
    config.schedule.htd_upper = 3.0  # curve to where
    config.schedule.decay_factor = 0.97  # exponential only, and so the next two
    config.schedule.decay_every = "0.8 epochs"
    config.schedule.staircase = True  # False: falls at every step

    # Decay of an average of the weights and BatchNorm statistics over the steps, such as 0.9999. It
    # is what is evaluated, and what a checkpoint's networks are. 0: the weights themselves.
    config.ema = 0.0
    # From 0 towards `ema`: min(ema, 1 - (1 + step) ** (-2 / 3)). False: a short run evaluates its
    # random start.
    config.ema_warmup = True

    # ---- Runtime fields: they may change when a workdir is resumed. Of those above only data.dir,
    # .download, .resident, .resident_limit, .on_bad_record, .threads and a longer `duration` may.
    config.lowering = "auto"  # how the stack lowers: auto | dense | unrolled | packed | grouped
    # Stages whose blocks keep only their input and are computed again in the backward pass: less
    # memory for one more forward pass of theirs. '' none | 'all' | names, as 'stage1,stage2'.
    config.remat = ""
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1: all that are left
    config.mesh.net = 1  # groups of devices that share out the S networks; must divide S

    config.eval = ConfigDict()
    config.eval.batch_size = 0  # 0: as batch_size
    config.eval.every = "1 epochs"
    config.eval.ensemble = "mean_logits"  # mean_logits | mean_probs | max_logits | max_probs
    # For --mode=eval only. Another data set, whose images should be told from the test images.
    config.eval.ood = ""
    config.eval.corruptions = False  # also the test images under 15 corruptions at 5 severities

    # Ends the run after so many evaluations one after another that were not better than the best
    # before by more than min_delta.
    config.stop = ConfigDict()
    config.stop.patience = 0  # evaluations; 0: off
    config.stop.metric = ""  # such as 'test/ensemble/nll'; '': that by which `best` is chosen
    config.stop.min_delta = 0.0

    # '': a workdir is resumed with the config that it was begun with | changed: also with another
    # rate, schedule, augmentation, loss; config.json records what changed at which step.
    config.resume_with = ""
    config.log_every = "50 steps"
    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epochs"
    config.checkpoint.keep = 2  # the newest ones; the best one is kept beside them
    # A newest checkpoint that is damaged: previous (goes on from the one before) | error
    config.checkpoint.on_corrupt = "previous"

    # The methods' own fields, config.cotrain, config.ffsd ...: each stands with its default and a
    # comment in `ENTRY` at the end of the method's file, such as jaxsplit/methods/cotrain.py.
    for name, entry in methods.METHODS.items():
        if entry.fields and name in config:
            raise ConfigError(f"method {name!r}: must be called otherwise; config.{name} exists")
        if entry.fields:
            config[name] = ConfigDict(dict(entry.fields))
    return config
