"""`steph_target`: STEPH that starts from the target's own model, encoder and head.

Equation 14 of docs/method.md:

    theta(X) = theta_t + sum_{s in K} w_s [lambda_s tau_t + (1 - lambda_s) tau_s]

Beyond the paper; all else is as in `steph`, and so is the stored model.
"""

import dataclasses

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import steph
from steph_jax.methods.base import FoldSpec


def start(spec: FoldSpec[steph.Options], pool: Pool) -> SavedModel:
    """STEPH with base and head of the target.

    Raises:
        ValueError: `steph.retrained` is "none"; and as `steph.start` does.
    """
    if spec.options.steph.retrained != "pred_head":
        raise ValueError(
            "method steph_target trains the target's pred_head on; for a head that stays as it is "
            f"(steph.retrained={spec.options.steph.retrained}) use --config.method=steph "
            "--config.steph.base=target"
        )
    section = dataclasses.replace(spec.options.steph, base="target", head_init="target")
    options = dataclasses.replace(spec.options, steph=section)
    return steph.start(dataclasses.replace(spec, options=options), pool)


METHOD = dataclasses.replace(steph.METHOD, name="steph_target", start=start)
