"""What merging rules without mixup share: theta = theta_0 + sum_s w_s tau_s.

Only the encoder is merged. The target is one of the sources by default, and then last.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods.base import Spec, as_numpy
from steph_jax.models import merging, task_vectors
from steph_jax.models.abmil import Params
from steph_jax.survival import objectives


class Gathered(NamedTuple):
    """The models that a rule merges.

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


def source_names(spec: Spec, pool: Pool, include_target: bool) -> tuple[str, ...]:
    """Those asked for, or all of the pool; the target last, or not among them."""
    named = spec.sources or pool.datasets()
    others = tuple(name for name in named if name != spec.dataset)
    return (*others, spec.dataset) if include_target else others


def members(spec: Spec, pool: Pool) -> tuple[tuple[str, int], ...]:
    """The models that are merged (see `Recipe.members`): the target's of the fold, the sources'."""
    sources = source_names(spec, pool, include_target=False)
    return ((spec.dataset, spec.fold), *((name, 0) for name in sources))


def source_models(
    spec: Spec, pool: Pool, sources: tuple[str, ...], target: SavedModel
) -> list[SavedModel]:
    """The models of the sources: of fold 0, but for the target's, which is the one of this fold.

    The target's fold-0 model has seen the test patients of other folds.
    """
    return [target if name == spec.dataset else pool.member(name, 0) for name in sources]


def gather(spec: Spec, pool: Pool, include_target: bool, merged: str) -> Gathered:
    """Null model, target and (prepared) task vectors of the sources, from the pool.

    Args:
        spec: what is asked.
        pool: where the models are.
        include_target: whether the target is one of the sources.
        merged: the parts that are merged, a name in `task_vectors.PARTS`; only they are prepared.

    Raises:
        FileNotFoundError: the pool lacks a model; says how to make it.
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
    if spec.merging.prepare != "none":
        tau_t = task_vectors.task_vector(target.params, null.params)
        prepared = merging.prepare(
            spec.merging.prepare,
            task_vectors.parts_of(tau_t, merged),
            task_vectors.parts_of(stacked, merged),
        )
        _check_prepared(spec, prepared, sources)
        stacked = stacked | as_numpy(prepared)
    return Gathered(null, target, sources, stacked)


def _check_prepared(spec: Spec, prepared: Params, sources: tuple[str, ...]) -> None:
    """Raises ValueError where a preparation has no result in finite numbers."""
    for number, name in enumerate(sources):
        if not all(np.isfinite(np.asarray(x)[number]).all() for x in jax.tree.leaves(prepared)):
            raise ValueError(
                f"{spec.dataset}, fold {spec.fold}: {spec.merging.prepare} of the task vectors of "
                f"the target and of {name} is not finite; leave {name} out of `sources`, or use "
                "another preparation"
            )


def encoder_stack(gathered: Gathered) -> Params:
    """[theta_0, tau_1 .. tau_S] of the encoder: leaves [S + 1, ...]."""
    return jax.tree.map(
        lambda base, taus: np.concatenate([np.asarray(base)[None], taus]),
        task_vectors.parts_of(gathered.null.params, "mil_encoder"),
        task_vectors.parts_of(gathered.task_vectors, "mil_encoder"),
    )


def coefficients(weights: jax.Array) -> jax.Array:
    """[1, w] over the stack, from w [..., S]."""
    one = jnp.ones((*weights.shape[:-1], 1), weights.dtype)
    return jnp.concatenate([one, weights], axis=-1)


def with_prepared(spec: Spec, kind: str) -> Spec:
    """What is asked, with task vectors prepared in some way."""
    return dataclasses.replace(spec, merging=dataclasses.replace(spec.merging, prepare=kind))


def settings_of(spec: Spec, gathered: Gathered) -> dict[str, Any]:
    """What a stored model says of how it was merged."""
    return {
        "dataset": spec.dataset,
        "fold": spec.fold,
        "sources": list(gathered.sources),
        "prepare": spec.merging.prepare,
    }


def own_outputs(spec: Spec, model: SavedModel, name: str) -> dict[str, Any]:
    """Settings of a model that keeps the head of another one, and with it what its outputs mean.

    Args:
        spec: what is asked.
        model: whose head is kept.
        name: of that model, for messages.

    Returns:
        "objective", the default one where the model does not say; and "bins", where it says.

    Raises:
        ValueError: it does not say its bins, and has another number of outputs than asked for.
    """
    kept = {"objective": objectives.objective_record(saved_model.stored_objective(model))}
    if "bins" in model.settings:
        return kept | {"bins": model.settings["bins"]}
    found = model.architecture.num_bins
    if found != spec.num_outputs:
        raise ValueError(
            f"{spec.dataset}, fold {spec.fold}: the head of the {name} is used as it is, but it "
            f"has {found} outputs where loss.terms and bins ask for {spec.num_outputs}; use the "
            "loss and bins that the pool was fitted with, or a method that trains a new head"
        )
    return kept


def output_of(model: SavedModel) -> str:
    """What the outputs of a stored model mean: the name of an `objectives.Output`."""
    return saved_model.stored_objective(model).output.name
