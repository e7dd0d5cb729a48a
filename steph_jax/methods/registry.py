"""Every method by name. A new one takes its file, with its options, and a line here."""

import os

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import (
    abmil,
    clinical_cox,
    dynamic,
    fixed,
    joint,
    learned,
    linear_pool,
    mean_pool,
    rescaled,
    ridge_cox,
    roupkt,
    steph,
    steph_target,
    transfer,
)
from steph_jax.methods.base import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        abmil.METHOD,
        mean_pool.METHOD,
        ridge_cox.METHOD,
        clinical_cox.METHOD,
        linear_pool.METHOD,
        rescaled.METHOD,
        transfer.ZERO_SHOT,
        transfer.FINE_TUNE,
        joint.METHOD,
        fixed.FIX,
        fixed.AVERAGE,
        learned.METHOD,
        dynamic.METHOD,
        learned.TIES,
        learned.ISO_C,
        learned.ISO_CTS,
        roupkt.METHOD,
        steph.METHOD,
        steph_target.METHOD,
    )
}


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if name not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; found {name!r}")
    return METHODS[name]


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Reads a model that is to be run.

    Raises:
        FileNotFoundError, ValueError: as `saved_model.load_model`; a kind of model that no method
            restores.
    """
    model = saved_model.load_model(path)
    if model.kind not in METHODS:
        raise ValueError(
            f"{path}: a model of kind {model.kind!r}; this version runs {', '.join(METHODS)}. Use "
            "the version of steph_jax that wrote it, or make the model again"
        )
    return model
