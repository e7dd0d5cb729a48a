"""What every method provides: how a fold starts, and how a stored model becomes a program.

A fold is started once (`Recipe.start` takes models from the pool and gives a `SavedModel` that
holds all the fold needs), and from then on, training or not, here or elsewhere, the model is what
was stored: `Recipe.restore` turns it into a `phases.Method` with its parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.method import Method
from steph_jax.models.abmil import Architecture, Params


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


OptionsT_co = TypeVar("OptionsT_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class FoldSpec(Generic[OptionsT_co]):
    """What a run asks of its method for one fold.

    Attributes:
        dataset: the target.
        fold: fold whose training patients the model is for.
        seed: of the initial parameters.
        architecture: dimensions for a model that starts without a pool.
        num_outputs: outputs of a new pred_head: T, or 1 for losses without time bins.
        output: what they mean, the name of an `objectives.Output`.
        bins: the time bins of the run, as `TimeBins.to_json` gives them; None before it has any.
        sources: names of the datasets whose fold-0 models are merged, in order.
        options: of the method, an instance of its `options_type`.
    """

    dataset: str
    fold: int
    seed: int
    architecture: Architecture
    num_outputs: int
    output: str
    bins: dict[str, Any] | None
    sources: tuple[str, ...]
    options: OptionsT_co


class Ready(NamedTuple):
    """A model ready to run: its method, and the two trees that the method reads."""

    method: Method
    trainable: Params
    frozen: Params


#: (architecture, S ABMIL trees) -> embeddings [n, S, E] of all patients by those models.
Represent = Callable[[Architecture, Sequence[Params]], np.ndarray]
#: (a model, its outputs [n, T] for all patients) -> its C-index on the fold's training patients.
TrainingCIndex = Callable[[SavedModel, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method by name.

    Attributes:
        name: value of `config.method`. The `SavedModel.kind` of what it makes is the name of the
            recipe that restores it: the same, unless the method differs in how a fold starts only.
        options_type: of `FoldSpec.options`: a frozen dataclass with a field for each section of the
            config that the method reads. The field has the section's name, its type is a dataclass
            of the settings in it, with a default for each, and checks their values; so the setting
            `steph.top_k` of a config is `spec.options.steph.top_k`. Methods may share sections. A
            config without the section has the defaults.
        start: (what is asked, the pool) -> the untrained model of a fold. It is called before
            anything else is read, so that a pool that lacks a model is known at once.
        restore: (a stored model, dtype of products over patches) -> the model ready to run.
        store: (a stored model, trained parameters) -> the same model with those.
        trains: whether there is anything to train.
        members: (what is asked, the pool) -> dataset and fold of each member of the pool that
            `start` or `choose` may read; theta_0 is none of them.
        joins: (what is asked, the pool) -> cohorts all of whose patients are trained on too.
        choose: `start` for a method that looks at the training patients first.
        dies: of a model about to be trained: whether nothing but its weights of sources tells it
            from an untrained encoder, and they cannot rise again once all of them are 0.
        raise_weights: (what is asked, a number) -> the same with weights of sources that start at
            that number or higher, for a restart of a model whose weights collapsed.
        inputs: (a stored model, what represents patients) -> arrays [n, ...] of all patients, which
            reach `Method.head` by their names among the labels.
    """

    name: str
    start: Callable[[FoldSpec[Any], Pool], SavedModel]
    restore: Callable[[SavedModel, Any], Ready]
    store: Callable[[SavedModel, Params], SavedModel]
    options_type: type = NoOptions
    trains: bool = True
    members: Callable[[FoldSpec[Any], Pool], Sequence[tuple[str, int]]] = lambda spec, pool: ()
    joins: Callable[[FoldSpec[Any], Pool], Sequence[str]] | None = None
    choose: Callable[[FoldSpec[Any], Pool, Represent, TrainingCIndex], SavedModel] | None = None
    dies: Callable[[SavedModel], bool] = lambda model: False
    raise_weights: Callable[[FoldSpec[Any], float], FoldSpec[Any]] = lambda spec, least: spec
    inputs: Callable[[SavedModel, Represent], dict[str, np.ndarray]] | None = None

    def patient_inputs(self, model: SavedModel, represent: Represent) -> dict[str, np.ndarray]:
        """What `inputs` gives; nothing for a method without."""
        return {} if self.inputs is None else self.inputs(model, represent)


def with_trainable(model: SavedModel, trainable: Params) -> SavedModel:
    """`model` with other trainable parameters, beside its frozen ones."""
    params = {"trainable": as_numpy(trainable), "frozen": model.params["frozen"]}
    return dataclasses.replace(model, params=params)


def with_metadata(model: SavedModel, **more: Any) -> SavedModel:
    """`model` with more entries in its settings."""
    return dataclasses.replace(model, metadata=model.metadata | more)


def with_defaults(model: SavedModel, **more: Any) -> SavedModel:
    """`model` with more entries in its settings, but for those that it has."""
    return dataclasses.replace(model, metadata=more | model.metadata)


def as_numpy(tree: Mapping[str, Any]) -> Params:
    """The tree with numpy leaves."""
    return {
        name: as_numpy(leaf) if isinstance(leaf, Mapping) else np.asarray(leaf)
        for name, leaf in tree.items()
    }
