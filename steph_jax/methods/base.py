"""What every method provides: how a fold starts, and how a stored model is restored.

`Method.start` makes a `SavedModel` from models of the pool; it holds all that a fold needs.
`Method.restore` turns a `SavedModel` into what the engine runs, a `BagModel` and its parameters,
to train or to evaluate it. A method declares its own options: `Method.options_type`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.clinical_coding import Coding
from steph_jax.engine.bag_model import BagModel
from steph_jax.messages import join_names
from steph_jax.models.abmil import Architecture, Params


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


OptionsT_co = TypeVar("OptionsT_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class FoldSpec(Generic[OptionsT_co]):
    """What a method starts a fold from.

    Attributes:
        dataset: the target.
        fold: fold whose training patients the model is for.
        seed: of the initial parameters.
        architecture: dimensions of a model that starts without a pool.
        num_outputs: outputs of a new pred_head: T, or 1 for losses without time bins.
        output: what they mean, the name of an `objectives.Output`.
        bins: the time bins of the run, as `TimeBins.to_json` gives them; None before it has any.
        sources: names of the datasets whose fold-0 models are merged, in order.
        options: of the method, an instance of its `options_type`.
        control: what is taken away from the method, one of `controls.CONTROLS`.
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
    control: str = "none"


class LoadedModel(NamedTuple):
    """A stored model in memory: what it computes per bag, and the two trees of parameters."""

    model: BagModel
    trainable: Params
    frozen: Params


#: (architecture, S ABMIL trees) -> embeddings [n, S, E] of all patients by those models.
Represent = Callable[[Architecture, Sequence[Params]], np.ndarray]
#: (a model, its outputs [n, T] for all patients) -> its C-index on the fold's training patients.
TrainingCIndex = Callable[[SavedModel, np.ndarray], float]


class PatientMoments(NamedTuple):
    """Mean and standard deviation of the features of n patients, and their outcomes.

    Attributes:
        values: [n, 2D] the means, then the standard deviations over a patient's patches.
        center: [D] that deviations were measured from.
        time: [n] days.
        event: [n] True where death was seen.
    """

    values: np.ndarray
    center: np.ndarray
    time: np.ndarray
    event: np.ndarray


class PatientColumns(NamedTuple):
    """Clinical columns of n patients, and their outcomes.

    Attributes:
        table: cells, of all patients of the cohort.
        patients: [n] ids.
        time: [n] days.
        event: [n] True where death was seen.
    """

    table: ClinicalTable
    patients: Sequence[str]
    time: np.ndarray
    event: np.ndarray


class HeldOut(Protocol):
    """The held-out patients of an inner fold, as `Method.fit` reads them.

    Attributes:
        pool: with a model of the target that was fitted without these patients.
    """

    @property
    def pool(self) -> Pool: ...

    def outputs(self, model: SavedModel) -> np.ndarray:
        """Outputs [n, T] of a model."""

    def c_index(self, model: SavedModel) -> float:
        """Of a model; NaN where no two patients can be compared."""

    def loss(self, model: SavedModel, outputs: jax.Array) -> jax.Array:
        """The sum over patients of the model's own loss, of outputs [n, T]."""


class FoldPatients(Protocol):
    """The training patients of a fold, as `Method.fit` reads them.

    Attributes:
        shared: what methods compute once for all folds of a run, by names of their own.
    """

    @property
    def shared(self) -> dict[Any, Any]: ...

    def moments(self) -> PatientMoments:
        """Of the training patients."""

    def source_moments(self, dataset: str) -> PatientMoments:
        """Of the fold-0 training patients of a cohort that the method joins, none the target's."""

    def clinical(self) -> PatientColumns:
        """Of the training patients, the columns that `Method.columns` names."""

    def held_out_parts(self) -> Sequence[HeldOut]:
        """The inner folds of the training patients."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method by name.

    Attributes:
        name: value of `config.method`. The `SavedModel.kind` of what it makes is the name of the
            method that restores it: the same, unless the method differs only in how a fold starts.
        start: (the spec of a fold, the pool) -> the untrained model of the fold. It is called
            before features are read, so that a model that the pool lacks is reported first.
        restore: (a stored model, dtype of products over patches) -> the model in memory.
        store: (a stored model, trained parameters) -> the same model with those.
        options_type: of `FoldSpec.options`: a frozen dataclass with a field for each section of the
            config that the method reads. The field has the section's name; its type is a dataclass
            of the settings in it (str, int, float, bool, or tuples of them), each with a default,
            that checks their values. So the setting `steph.top_k` of a config is
            `spec.options.steph.top_k`. Methods may share sections; a config without the section has
            the defaults.
        trains: whether there is anything to train by gradient steps.
        members: (spec, pool) -> dataset and fold of each member of the pool that `start` or
            `choose` may read; theta_0 is not listed.
        joins: (spec, pool) -> cohorts whose patients are training patients too.
        fit: (spec, pool, training patients) -> the model of a fold, for a method that is fitted
            otherwise than by gradient steps; it records the number of fitted parameters as
            "fitted_parameters". `start` then makes the same model with nothing fitted.
        grid: (options) -> values of settings that each fold selects by inner folds, by name, where
            the run has no sweep of its own.
        choose: `start` for a method that evaluates candidates on the training patients first.
        weights_can_collapse: (an untrained model) -> whether all its weights of sources can become
            0 for good (dying ReLU), which leaves the untrained null encoder.
        raise_weights: (spec, number) -> the spec for a restart after a collapse, whose weights
            start at that number or higher.
        uses_task_vectors: whether it takes differences of models to theta_0.
        uses_sources: whether it merges or routes models of other cancers, so that it has controls.
        shows_null: whether the C-index of the untrained null model is reported with its own: a
            source's model that is not trained on ranks patients in part as theta_0 does.
        inputs: (a stored model, embeddings by frozen models) -> arrays [n, ...] of all patients,
            which `BagModel.head` finds by name among the labels.
        columns: (options) -> clinical columns of the survival table that the method reads.
        codings: (a stored model) -> how it reads them; `BagModel.head` finds the predictors [n, K]
            as "clinical" among the labels.
    """

    name: str
    start: Callable[[FoldSpec[Any], Pool], SavedModel]
    restore: Callable[[SavedModel, Any], LoadedModel]
    store: Callable[[SavedModel, Params], SavedModel]
    options_type: type = NoOptions
    trains: bool = True
    members: Callable[[FoldSpec[Any], Pool], Sequence[tuple[str, int]]] = lambda spec, pool: ()
    joins: Callable[[FoldSpec[Any], Pool], Sequence[str]] | None = None
    fit: Callable[[FoldSpec[Any], Pool, FoldPatients], SavedModel] | None = None
    grid: Callable[[Any], dict[str, list[Any]]] = lambda options: {}
    choose: Callable[[FoldSpec[Any], Pool, Represent, TrainingCIndex], SavedModel] | None = None
    weights_can_collapse: Callable[[SavedModel], bool] = lambda model: False
    raise_weights: Callable[[FoldSpec[Any], float], FoldSpec[Any]] = lambda spec, least: spec
    uses_task_vectors: bool = False
    uses_sources: bool = False
    shows_null: bool = False
    inputs: Callable[[SavedModel, Represent], dict[str, np.ndarray]] | None = None
    columns: Callable[[Any], Sequence[str]] = lambda options: ()
    codings: Callable[[SavedModel], Sequence[Coding]] = lambda model: ()

    def patient_inputs(
        self, model: SavedModel, represent: Represent, predictors: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of `inputs`, and clinical predictors; {} for a method without.

        Args:
            model: stored.
            represent: embeddings by frozen models.
            predictors: [n, K] by `clinical_coding.values`, of a model that has `codings`.

        Raises:
            ValueError: the model reads clinical columns, and there are no predictors.
        """
        arrays = {} if self.inputs is None else self.inputs(model, represent)
        codings = self.codings(model)
        if not codings:
            return arrays
        if predictors is None:
            names = join_names(coding.column for coding in codings)
            raise ValueError(
                f"a model of kind {model.kind} reads no slides but clinical columns of a table "
                f"({names}), so it can neither be run without them nor be a function of slides; "
                "steph_jax.predict reads them from --table"
            )
        return {**arrays, "clinical": predictors.astype(np.float32)}


def with_trainable(model: SavedModel, trainable: Params) -> SavedModel:
    """`model` with other trainable parameters and the same frozen ones."""
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
