"""`zero_shot` and `fine_tune`: one source's model, unchanged or fine-tuned.

The source is `transfer.source`, or the one whose model has the best C-index on the target's
training patients of the fold. The outputs of an unchanged model are read by its own loss and time
bins, not by those of the run.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil, sources
from steph_jax.methods.abmil import apply_head, with_outputs
from steph_jax.methods.base import FoldSpec, Method, Represent, TrainingCIndex, with_metadata


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The section `transfer` of a config.

    Attributes:
        source: dataset whose model is transferred; "" for the best on the training patients.
    """

    source: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `zero_shot` and `fine_tune` (see `Method.options_type`)."""

    transfer: Transfer = dataclasses.field(default_factory=Transfer)


def members(spec: FoldSpec[Options], pool: Pool) -> tuple[tuple[str, int], ...]:
    """The models that may be transferred (see `Method.members`): of the sources, of fold 0.

    Raises:
        ValueError: no source is left, or the one asked for is the target.
    """
    if spec.options.transfer.source == spec.dataset:
        raise ValueError(
            f"transfer.source is the target itself, {spec.dataset}, whose fold-0 model has seen "
            "test patients of other folds; name another dataset, or use --config.method=abmil"
        )
    asked = (spec.options.transfer.source,) if spec.options.transfer.source else ()
    names = asked or sources.source_names(spec, pool, include_target=False)
    if not names:
        raise ValueError(
            f"no source model is left to transfer to {spec.dataset}: the pool {pool.root} holds "
            "none but the target's; name some in `sources`, or add models to the pool"
        )
    return tuple((name, 0) for name in names)


def candidates(spec: FoldSpec[Options], pool: Pool) -> dict[str, SavedModel]:
    """`members`, by name.

    Raises:
        FileNotFoundError: the pool lacks a model; with how to make it.
        ValueError: as `members` does.
    """
    return {name: pool.member(name, fold) for name, fold in members(spec, pool)}


def start_zero_shot(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """The first candidate's model as it is."""
    models = candidates(spec, pool)
    outputs = {
        name: sources.own_outputs(spec, model, f"model of {name}") for name, model in models.items()
    }
    name, model = next(iter(models.items()))
    settings = {"dataset": spec.dataset, "fold": spec.fold, "source": name} | outputs[name]
    return dataclasses.replace(model, metadata=settings)


def start_fine_tune(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """The first candidate's model, with a new head where the loss asks for other outputs."""
    name, model = next(iter(candidates(spec, pool).items()))
    is_alike = sources.output_of(model) == spec.output
    return with_metadata(with_outputs(model, spec, keep_head=is_alike), source=name)


def best_source(
    models: dict[str, SavedModel], represent: Represent, c_index: TrainingCIndex
) -> tuple[str, dict[str, float]]:
    """The source with the best C-index on the fold's training patients, and the C-index of all.

    Ties go to the first; a C-index that is not defined loses against any that is.
    """
    first = next(iter(models.values()))
    z = represent(first.architecture, [model.params for model in models.values()])
    scores = {
        name: c_index(
            model, np.asarray(apply_head(model.params["pred_head"], jnp.asarray(embeddings)))
        )
        for (name, model), embeddings in zip(models.items(), np.moveaxis(z, 1, 0), strict=True)
    }
    best = max(scores, key=lambda name: -1.0 if math.isnan(scores[name]) else scores[name])
    return best, scores


def _method(
    name: str, start: Callable[[FoldSpec[Options], Pool], SavedModel], trains: bool
) -> Method:
    def choose(
        spec: FoldSpec[Options], pool: Pool, represent: Represent, c_index: TrainingCIndex
    ) -> SavedModel:
        if spec.options.transfer.source:
            return start(spec, pool)
        best, scores = best_source(candidates(spec, pool), represent, c_index)
        model = start(dataclasses.replace(spec, options=Options(Transfer(best))), pool)
        return with_metadata(model, source_train_c_index=scores)

    return Method(
        name,
        start,
        abmil.restore,
        abmil.METHOD.store,
        Options,
        trains=trains,
        members=members,
        choose=choose,
        shows_null=not trains,
    )


ZERO_SHOT = _method("zero_shot", start_zero_shot, trains=False)
FINE_TUNE = _method("fine_tune", start_fine_tune, trains=True)
