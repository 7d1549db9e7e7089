"""Workdirs with networks that were not trained, which is enough to predict."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxsplit import augment, experiment, state
from jaxsplit import config as config_lib
from jaxsplit.checkpoints import store
from jaxsplit.data import facts


def write_untrained(config: ConfigDict, workdir: pathlib.Path) -> experiment.Experiment:
    """Makes a workdir of random networks, as an import of weights would; needs the data set."""
    exp = experiment.build_for_evaluation(config)
    made = state.init(exp.method, exp.optimizer, config.seed, exp.dataset.image_shape, exp.sharding)
    # Statistics that normalise nothing would hide a wrong normalisation of the images.
    variables = jax.tree.map(lambda x: np.asarray(x) * 1.1 + 0.01, made.variables)
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.save(exp.config, workdir)
    facts.write(workdir, facts.of_dataset(exp.dataset))
    checkpoints = store.Checkpoints(workdir)
    checkpoints.save_weights(variables, exp.config, {"files": [], "epoch": None})
    checkpoints.close()
    return exp


def evaluated(exp: experiment.Experiment, variables: dict, images: np.ndarray) -> dict:
    """Name -> probabilities float[B, K] of what the evaluation step computes of uint8 images."""

    def named(variables: dict, images: np.ndarray) -> dict:
        views = augment.eval_view(images, exp.dataset.mean, exp.dataset.std)
        return exp.method.predict(variables, views)

    return {name: jax.nn.softmax(z) for name, z in jax.jit(named)(variables, images).items()}
