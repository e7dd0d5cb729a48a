"""What every method provides: how a fold starts, and how a stored model becomes a program.

A fold is started once (`Recipe.start` takes models from the pool and gives a `SavedModel` that
holds all the fold needs), and from then on, training or not, here or elsewhere, the model is what
was stored: `Recipe.restore` turns it into a `program.Method` with its parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from steph_jax import steph
from steph_jax.abmil import Architecture, Params
from steph_jax.checkpoints import SavedModel
from steph_jax.pool import Pool
from steph_jax.program import Method


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a run asks of its method.

    Attributes:
        dataset: the target.
        fold: fold whose training patients the model is for.
        seed: of the initial parameters.
        architecture: dimensions for a model that starts without a pool.
        num_outputs: outputs of a new pred_head: T, or 1 for losses without time bins.
        sources: names of the datasets whose fold-0 models are merged, in order.
        steph: options of STEPH.
        merge_weight: of the merge regularizer.
        mix_weight: of the mix regularizer.
    """

    dataset: str
    fold: int
    seed: int
    architecture: Architecture
    num_outputs: int
    sources: tuple[str, ...]
    steph: steph.Options
    merge_weight: float
    mix_weight: float


class Ready(NamedTuple):
    """A model ready to run: its method, and the two trees that the method reads."""

    method: Method
    trainable: Params
    frozen: Params


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method by name.

    Attributes:
        name: value of `config.method`, and `SavedModel.kind` of what it makes.
        start: (what is asked, the pool) -> the untrained model of a fold.
        restore: (a stored model, dtype of products over patches) -> the model ready to run.
        store: (a stored model, trained parameters) -> the same model with those.
    """

    name: str
    start: Callable[[Spec, Pool], SavedModel]
    restore: Callable[[SavedModel, Any], Ready]
    store: Callable[[SavedModel, Params], SavedModel]


def with_trainable(model: SavedModel, trainable: Params) -> SavedModel:
    """`model` with other trainable parameters, beside its frozen ones."""
    params = {"trainable": as_numpy(trainable), "frozen": model.params["frozen"]}
    return dataclasses.replace(model, params=params)


def with_settings(model: SavedModel, **more: Any) -> SavedModel:
    """`model` with more entries in its settings."""
    return dataclasses.replace(model, settings=model.settings | more)


def as_numpy(tree: Mapping[str, Any]) -> Params:
    """The tree with numpy leaves."""
    return {
        name: as_numpy(leaf) if isinstance(leaf, Mapping) else np.asarray(leaf)
        for name, leaf in tree.items()
    }
