"""Simulated cohorts with a pool of untrained models, for tests of what uses pools."""

import pathlib
from typing import Any

import jax
import numpy as np

from configs import testing
from steph_jax import simulate
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.simulation import Settings
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.training.config import as_dict

COHORTS = Settings(cohorts=3, patients=20, patches=12, feature_dim=24, two_slides=0.3)
ARCHITECTURE = Architecture(24, 16, 8)
MEMBERS = ("sim_a-fold_0", "sim_a-fold_1", "sim_b-fold_0", "sim_c-fold_0")


def make(root: pathlib.Path) -> pathlib.Path:
    """Three cohorts under root/data; models a random step from their null model in root/pool."""
    simulate.simulate(root / "data", COHORTS, lambda line: None)
    pool = Pool(root / "pool")
    null = as_numpy(abmil.init(jax.random.key(0), ARCHITECTURE))
    pool.add("null", SavedModel("abmil", ARCHITECTURE, {}, null))
    for seed, name in enumerate(MEMBERS):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda x, rng=rng: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), null
        )
        pool.add(name, SavedModel("abmil", ARCHITECTURE, {}, params))
    return root


def config(root: pathlib.Path) -> dict[str, Any]:
    """What `settings.as_dict` gives for both folds of sim_a, one epoch."""
    config_dict = testing.get_config()
    config_dict.epochs = 1
    config_dict.data.root = str(root / "data")
    config_dict.data.features = str(root / "data/features/{dataset}")
    config_dict.pool.root = str(root / "pool")
    return as_dict(config_dict)
