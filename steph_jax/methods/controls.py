"""Controls: a method without the cause that its gain is claimed for, all else as it is.

A gain over the target's own model need not come from other cancers: a longer step along the
target's own task vector, or more training, may do as well. The setting `control` takes the cause
away:

    permuted     the entries of every tensor of tau_s in random order: norms stay, knowledge goes
    no_sources   tau_s = 0: the sources are the untrained null model
    longer       the target's own model, trained on for as many steps

What transfers is what the method has beyond the same method with permuted sources.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import numpy as np

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil
from steph_jax.methods.abmil import with_outputs
from steph_jax.methods.base import FoldSpec, Method
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Params

NONE, PERMUTED, NO_SOURCES, LONGER = "none", "permuted", "no_sources", "longer"
CONTROLS = (NONE, PERMUTED, NO_SOURCES, LONGER)


def label_of(method: str, control: str) -> str:
    """What a comparison calls a method under a control: "steph", or "steph+permuted"."""
    return method if control == NONE else f"{method}+{control}"


def parts_of(label: str) -> tuple[str, str]:
    """Method and control of a label."""
    method, _, control = label.partition("+")
    return method, control or NONE


def controls_of(method: Method) -> tuple[str, ...]:
    """The controls that a method has: none without sources, no epochs without any to compare."""
    if not method.uses_sources:
        return ()
    return (PERMUTED, NO_SOURCES) if method.fit else (PERMUTED, NO_SOURCES, LONGER)


def expect_control(method: Method, control: str) -> None:
    """Checks that a method has a control.

    Raises:
        ValueError: an unknown control, or one that the method does not have; names those it has.
    """
    if control not in CONTROLS:
        raise ValueError(f"control is one of {', '.join(CONTROLS)}; found {control!r}")
    if control != NONE and not method.uses_sources:
        raise ValueError(
            f"control={control} takes away what other cancers add, but method {method.name} merges "
            "none; use control=none, or a method that does, such as steph"
        )
    if control != NONE and control not in controls_of(method):
        raise ValueError(
            f"control={control} trains for more epochs, but method {method.name} has none; its "
            f"controls are {', '.join(controls_of(method))}"
        )


def permuted(task_vector: Params, rng: np.random.Generator) -> Params:
    """The task vector with the entries of every tensor in random order."""
    return {
        name: permuted(leaf, rng)
        if isinstance(leaf, dict)
        else rng.permutation(np.asarray(leaf).ravel()).reshape(np.shape(leaf))
        for name, leaf in sorted(task_vector.items())
    }


def controlled(
    spec: FoldSpec[object], models: Sequence[SavedModel], names: Sequence[str], null: SavedModel
) -> list[SavedModel]:
    """The source models as the control of a fold leaves them; the target's own stays as it is.

    Args:
        spec: what is asked; its seed and the name of a source decide the order of the entries.
        models: of the sources.
        names: of the sources.
        null: theta_0.
    """
    return [
        model if name == spec.dataset else _controlled(spec, model, name, null)
        for model, name in zip(models, names, strict=True)
    ]


def _controlled(
    spec: FoldSpec[object], model: SavedModel, name: str, null: SavedModel
) -> SavedModel:
    if spec.control == NO_SOURCES:
        return dataclasses.replace(model, params=null.params)
    if spec.control == PERMUTED:
        rng = np.random.default_rng([spec.seed, zlib.crc32(name.encode())])
        moved = permuted(task_vectors.task_vector(model.params, null.params), rng)
        theta = jax.tree.map(lambda base, tau: np.asarray(base) + tau, null.params, moved)
        return dataclasses.replace(model, params=theta)
    return model


def own_model(spec: FoldSpec[object], pool: Pool) -> SavedModel:
    """The target's model of the fold, from which it is trained on."""
    model = pool.member(spec.dataset, spec.fold)
    is_alike = saved_model.stored_objective(model).output.name == spec.output
    return with_outputs(model, spec, keep_head=is_alike)


#: What `control = longer` runs in the place of any method.
TRAINED_ON = Method(
    LONGER,
    own_model,
    abmil.restore,
    abmil.METHOD.store,
    members=lambda spec, pool: ((spec.dataset, spec.fold),),
)
