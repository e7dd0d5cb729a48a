"""`steph_target`: STEPH that starts from the target's own model, encoder and head.

    theta(X) = theta_t + sum_{s in K} w_s [lambda_s tau_t + (1 - lambda_s) tau_s]

Beyond the paper; all else is as in `steph`, and so is the stored model.
"""

import dataclasses

from steph_jax.checkpoints import SavedModel
from steph_jax.methods import steph
from steph_jax.methods.recipe import Spec
from steph_jax.pool import Pool


def start(spec: Spec, pool: Pool) -> SavedModel:
    """STEPH with base and head of the target."""
    options = dataclasses.replace(
        spec.steph, base="target", retrained="pred_head", head_init="target"
    )
    return steph.start(dataclasses.replace(spec, steph=options), pool)


RECIPE = dataclasses.replace(steph.RECIPE, name="steph_target", start=start)
