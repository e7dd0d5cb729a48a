"""One ABMIL of a model that is merged for each patient: its coefficients, held fixed.

Merged parameters are linear in the coefficients of the stack (equation 13 of docs/method.md), so
the parameters of mean coefficients are the mean of the patients' parameters.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods.base import as_numpy
from steph_jax.methods.registry import find_method
from steph_jax.models import task_vectors

#: Kinds of models with coefficients per patient, and with the same ones for all.
PER_PATIENT, FIXED = ("steph", "dynamic"), ("learned", "fix")
#: What a static model keeps of the metadata of the model that it was made of.
_METADATA = ("dataset", "fold", "sources", "bins", "objective", "baseline", "encoder")


def fixed_coefficients(model: SavedModel) -> np.ndarray:
    """[1, w] over the stack, of a model of a kind in `FIXED`."""
    weights = find_method(model.kind).restore(model, None).trainable["weights"]
    return np.concatenate([[1], np.asarray(weights)]).astype(np.float32)


def patient_coefficients(model: SavedModel, aux: dict[str, np.ndarray]) -> np.ndarray:
    """Coefficients of some patients over the stack: [n, S + 2] of STEPH, [n, S + 1] of `dynamic`.

    Args:
        model: of a kind in `PER_PATIENT`.
        aux: what it reported of the patients.
    """
    parts = [np.ones((len(aux["weight"]), 1)), aux["source"]]
    if model.kind == "steph":
        parts.insert(1, aux["target"].sum(axis=1, keepdims=True))
    return np.concatenate(parts, axis=1)


def static_model(model: SavedModel, coefficients: np.ndarray, origin: str) -> SavedModel:
    """The ABMIL model of fixed coefficients.

    Args:
        model: that merges, of a kind in `PER_PATIENT` or `FIXED`.
        coefficients: [stack], as the functions above give them for one patient.
        origin: of the coefficients, for the record.
    """
    loaded = find_method(model.kind).restore(model, None)
    merged = task_vectors.weighted_sum(
        loaded.frozen["stack"], jnp.asarray(coefficients, jnp.float32)
    )
    theta: dict[str, Any] = as_numpy({**loaded.frozen.get("target", {}), **merged})
    if "pred_head" in loaded.trainable:
        theta["pred_head"] = as_numpy(loaded.trainable["pred_head"])
    num_outputs = len(theta["pred_head"]["bias"])
    architecture = dataclasses.replace(model.architecture, num_bins=num_outputs)
    names = [*(["target"] if model.kind == "steph" else []), *model.metadata["sources"]]
    rounded = map(float, np.asarray(coefficients, np.float32)[1:])
    static = {
        "kind": model.kind,
        "origin": origin,
        "coefficients": [list(pair) for pair in zip(names, rounded, strict=True)],
    }
    kept = {name: model.metadata[name] for name in _METADATA if name in model.metadata}
    return SavedModel("abmil", architecture, kept | {"static": static}, theta)


def expect_static(model: SavedModel) -> None:
    """Raises ValueError for a model that no single ABMIL can stand for."""
    if model.kind != "abmil" and model.kind not in (*PER_PATIENT, *FIXED):
        raise ValueError(
            f"a model of kind {model.kind!r} does not merge parameters, so there is no static "
            f"model of it; leave --static out (kinds that do: {', '.join(PER_PATIENT + FIXED)})"
        )
