"""`joint`: one ABMIL from the null model, on the target's training patients and all of the sources.

Patients of the target's cohort are left out of the sources': a cohort that contains the target's
(kidney cancers of all kinds, say) would show the model its test patients.
"""

import dataclasses

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil, sources
from steph_jax.methods.base import FoldSpec, with_metadata


def cohorts(spec: FoldSpec[object], pool: Pool) -> tuple[str, ...]:
    """The cohorts that are joined to the target's: `sources`, or all others of the pool.

    Raises:
        FileNotFoundError: neither `sources` nor a pool names cohorts.
        ValueError: none is left but the target.
    """
    names = sources.source_names(spec, pool, include_target=False)
    if not names:
        raise ValueError(
            f"no cohort is left to be joined to {spec.dataset}; name some in `sources`"
        )
    return names


def start(spec: FoldSpec[object], pool: Pool) -> SavedModel:
    """theta_0, with a record of the names of the cohorts."""
    return with_metadata(abmil.start(spec, pool), cohorts=list(cohorts(spec, pool)))


METHOD = dataclasses.replace(abmil.METHOD, name="joint", start=start, joins=cohorts)
