"""What merging methods without mixup share: theta = theta_0 + sum_s w_s tau_s.

Only the encoder is merged. The target is one of the sources by default, and then last.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import controls
from steph_jax.methods.base import FoldSpec, as_numpy
from steph_jax.models import preparation, task_vectors
from steph_jax.models.abmil import Params
from steph_jax.survival import objectives


@dataclasses.dataclass(frozen=True)
class Merging:
    """What the merging methods share; the section `merging` of a config.

    Attributes:
        prepare: what is done to the task vectors before they are merged, by any method: one of
            `preparation.KINDS`.
        include_target: whether the target is one of the sources (STEPH has an option of its own).
        weights: w per source for "fix", in the order of the sources; () for 0.3 each.
    """

    prepare: str = "none"
    include_target: bool = True
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.prepare not in preparation.KINDS:
            kinds = ", ".join(preparation.KINDS)
            raise ValueError(f"merging.prepare is one of {kinds}, not {self.prepare!r}")


@dataclasses.dataclass(frozen=True)
class MergeRegularizer:
    """The merge regularizer's settings in the section `loss` of a config.

    Attributes:
        merge_weight: of the merge regularizer in the loss.
    """

    merge_weight: float = 0.005

    def __post_init__(self) -> None:
        _expect_weight("loss.merge_weight", self.merge_weight)


@dataclasses.dataclass(frozen=True)
class Regularizers(MergeRegularizer):
    """Both regularizers' settings in the section `loss` of a config.

    Attributes:
        mix_weight: of the mix regularizer in the loss.
    """

    mix_weight: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _expect_weight("loss.mix_weight", self.mix_weight)


def _expect_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number 0 or more; found {value}")


class HasMerging(Protocol):
    """Options with the section `merging`."""

    @property
    def merging(self) -> Merging: ...


class Gathered(NamedTuple):
    """The models that a method merges.

    Attributes:
        null: theta_0.
        target: theta_t of the fold.
        sources: names in order.
        task_vectors: ABMIL tree with leaves [S, ...], of the sources, as they are merged.
    """

    null: SavedModel
    target: SavedModel
    sources: tuple[str, ...]
    task_vectors: Params


def source_names(spec: FoldSpec[object], pool: Pool, include_target: bool) -> tuple[str, ...]:
    """`sources` of the config, or all of the pool; the target last, or not among them."""
    names = spec.sources or pool.datasets()
    others = tuple(name for name in names if name != spec.dataset)
    return (*others, spec.dataset) if include_target else others


def members(spec: FoldSpec[object], pool: Pool) -> tuple[tuple[str, int], ...]:
    """The models that are merged (see `Method.members`): the target's of the fold, the sources'."""
    sources = source_names(spec, pool, include_target=False)
    return ((spec.dataset, spec.fold), *((name, 0) for name in sources))


def source_models(
    spec: FoldSpec[object], pool: Pool, sources: tuple[str, ...], target: SavedModel
) -> list[SavedModel]:
    """The models of the sources: of fold 0, but for the target's, which is the one of this fold.

    The target's fold-0 model has seen the test patients of other folds. Models of the sources are
    what the control of the fold leaves of them.
    """
    models = [target if name == spec.dataset else pool.member(name, 0) for name in sources]
    return controls.controlled(spec, models, sources, pool.null())


def gather(spec: FoldSpec[HasMerging], pool: Pool, include_target: bool, merged: str) -> Gathered:
    """Null model, target and (prepared) task vectors of the sources, from the pool.

    Args:
        spec: of the fold.
        pool: of the models.
        include_target: whether the target is one of the sources.
        merged: the parts that are merged, a name in `task_vectors.PARTS`; only they are prepared.

    Raises:
        FileNotFoundError: the pool lacks a model; with how to make it.
        ValueError: no source is left, or one cannot be prepared.
    """
    null = pool.null()
    target = pool.member(spec.dataset, spec.fold)
    sources = source_names(spec, pool, include_target)
    if not sources:
        raise ValueError(
            f"no source model is left to merge for {spec.dataset}: the pool {pool.root} holds none "
            "but the target's; name some in `sources`, or add models to the pool"
        )
    vectors = [
        task_vectors.task_vector(model.params, null.params)
        for model in source_models(spec, pool, sources, target)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *vectors)
    if spec.options.merging.prepare != "none":
        tau_t = task_vectors.task_vector(target.params, null.params)
        prepared = preparation.prepare(
            spec.options.merging.prepare,
            task_vectors.parts_of(tau_t, merged),
            task_vectors.parts_of(stacked, merged),
        )
        _check_prepared(spec, prepared, sources)
        stacked = stacked | as_numpy(prepared)
    return Gathered(null, target, sources, stacked)


def _check_prepared(spec: FoldSpec[HasMerging], prepared: Params, sources: tuple[str, ...]) -> None:
    """Raises ValueError where a preparation has no result in finite numbers."""
    for number, name in enumerate(sources):
        if not all(np.isfinite(np.asarray(x)[number]).all() for x in jax.tree.leaves(prepared)):
            raise ValueError(
                f"{spec.dataset}, fold {spec.fold}: {spec.options.merging.prepare} of the task "
                f"vectors of the target and of {name} is not finite; leave {name} out of "
                "`sources`, or use another preparation"
            )


def frozen_models(gathered: Gathered) -> Params:
    """The frozen tree as it is stored: "null", "target" and "task_vectors", whole models.

    Only `encoder_stack` of it is merged; the rest is what the published classes hold too.
    """
    return {
        "null": gathered.null.params,
        "target": gathered.target.params,
        "task_vectors": gathered.task_vectors,
    }


def encoder_stack(frozen: Params) -> Params:
    """[theta_0, tau_1 .. tau_S] of the encoder: leaves [S + 1, ...].

    Args:
        frozen: as `frozen_models` gives it; models of earlier versions hold the stack itself.
    """
    if "stack" in frozen:
        return dict(frozen["stack"])
    return jax.tree.map(
        lambda base, taus: np.concatenate([np.asarray(base)[None], taus]),
        task_vectors.parts_of(frozen["null"], "mil_encoder"),
        task_vectors.parts_of(frozen["task_vectors"], "mil_encoder"),
    )


def coefficients(weights: jax.Array) -> jax.Array:
    """[1, w] over the stack, from w [..., S]."""
    one = jnp.ones((*weights.shape[:-1], 1), weights.dtype)
    return jnp.concatenate([one, weights], axis=-1)


def metadata_of(spec: FoldSpec[HasMerging], gathered: Gathered) -> dict[str, Any]:
    """What a stored model records of how it was merged."""
    return {
        "dataset": spec.dataset,
        "fold": spec.fold,
        "sources": list(gathered.sources),
        "prepare": spec.options.merging.prepare,
    }


def own_outputs(spec: FoldSpec[object], model: SavedModel, name: str) -> dict[str, Any]:
    """Settings of a model that uses the head of another one, whose outputs mean the same then.

    Args:
        spec: of the fold.
        model: whose head is used.
        name: of that model, for messages.

    Returns:
        "objective", the default one where the model has no record of it; and "bins", if recorded.

    Raises:
        ValueError: its bins are not recorded, and it has another number of outputs than the run.
    """
    settings = {"objective": objectives.objective_record(saved_model.stored_objective(model))}
    if "bins" in model.metadata:
        return settings | {"bins": model.metadata["bins"]}
    num_outputs = model.architecture.num_bins
    if num_outputs != spec.num_outputs:
        raise ValueError(
            f"{spec.dataset}, fold {spec.fold}: the head of the {name} is used as it is, but it "
            f"has {num_outputs} outputs where loss.terms and bins ask for {spec.num_outputs}; use "
            "the loss and bins that the pool was fitted with, or a method that trains a new head"
        )
    return settings


def output_of(model: SavedModel) -> str:
    """What the outputs of a stored model mean: the name of an `objectives.Output`."""
    return saved_model.stored_objective(model).output.name
