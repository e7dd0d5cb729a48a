"""Small merged models that nobody trained, of every rule, as training or an import stores them."""

import dataclasses
from typing import Any

import jax
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil, hypernetworks, roupkt, steph, task_vectors
from steph_jax.models.abmil import Architecture

SMALL = Architecture(feature_dim=12, embed_dim=8, attention_dim=5, num_bins=4)


def tree(seed: int, architecture: Architecture = SMALL):
    return as_numpy(abmil.init(jax.random.key(seed), architecture))


def steph_model(mixing: str = "nn", fixed: tuple[float, ...] = ()) -> SavedModel:
    options = steph.Options(top_k=2, mixing=mixing, fixed_mixing=fixed)
    null, target, members = tree(0), tree(1), [tree(i) for i in (2, 3, 4)]
    vectors = [jax.tree.map(np.subtract, source, null) for source in members]
    frozen = {
        "null": null,
        "target": target,
        "target_task_vector": jax.tree.map(np.subtract, target, null),
        "task_vectors": jax.tree.map(lambda *leaves: np.stack(leaves), *vectors),
    }
    trainable = hypernetworks.init(jax.random.key(5), 12, 3, "relu", mixing, fixed)
    trainable = as_numpy(trainable | {"pred_head": tree(6)["pred_head"]})
    settings = {"sources": ["a", "b", "c"], "options": steph.as_dict(options)}
    return SavedModel("steph", SMALL, settings, {"trainable": trainable, "frozen": frozen})


def rule_model(kind: str) -> SavedModel:
    """A model of a rule without mixup, as training or an import stores it."""
    models = {
        name: x for name, x in steph_model().params["frozen"].items() if "target_" not in name
    }
    settings: dict[str, Any] = {"sources": ["a", "b", "c"], "dataset": "x", "fold": 2}
    trainable: dict[str, Any] = {"pred_head": tree(6)["pred_head"]}
    if kind == "learned":
        trainable["weights"] = np.float32([0.1, 0.2, 0.3])
        settings["merge_weight"] = 0.005
    if kind == "dynamic":
        trainable |= hypernetworks.init(jax.random.key(5), 12, 3, "sigmoid", mixing="")
        settings |= {"weight_output": "sigmoid", "merge_weight": 0.005}
    if kind == "fix":
        trainable, settings["weights"] = {}, [0.25, 0.5, 0.75]
    params = {"trainable": as_numpy(trainable), "frozen": models}
    return SavedModel(kind, SMALL, settings, params)


def steph_with(**options: Any) -> SavedModel:
    model = steph_model()
    changed = model.metadata["options"] | options
    return dataclasses.replace(
        model, metadata=model.metadata | {"options": changed, "dataset": "x", "fold": 2}
    )


def roupkt_model() -> SavedModel:
    """Three frozen sources, a router and a head."""
    options = roupkt.Options(top_k=2)
    encoders = [task_vectors.parts_of(tree(i), "mil_encoder") for i in (2, 3, 4)]
    trainable = as_numpy(roupkt.init(jax.random.key(5), SMALL, 3, 4, options.expert))
    settings = {"sources": ["a", "b", "c"], "options": dataclasses.asdict(options)}
    frozen = {"sources": jax.tree.map(lambda *leaves: np.stack(leaves), *encoders)}
    return SavedModel("roupkt", SMALL, settings, {"trainable": trainable, "frozen": frozen})
