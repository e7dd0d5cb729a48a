"""Bags of real patients and the models of the published program on them, for parity tests."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints import torch_layers, torch_names
from steph_jax.checkpoints.torch_layers import Linear
from steph_jax.data.bags import InMemoryBags
from steph_jax.data.batches import make_batch
from steph_jax.data.chunks import GroupShapes
from steph_jax.data.torch_format import reader
from steph_jax.engine.placement import device_mesh
from steph_jax.engine.step import evaluate
from steph_jax.models.abmil import Architecture

#: Instances of a patient's bag (pathways), and D.
NUM_PATHWAYS, FEATURE_DIM = 76, 1536
#: The trainable layers of the default STEPH model, by their published names.
TRAINED = [
    Linear("pred_head", ("pred_head",)),
    Linear("regulate_layer_emb.0", ("embedding",)),
    Linear("regulate_layer_prj.0", ("weights", "hidden")),
    Linear("regulate_layer_prj.3", ("weights", "output")),
    Linear("vecmix_layer.0", ("mixing", "hidden")),
    Linear("vecmix_layer.3", ("mixing", "output")),
]
_KIND = "abmil_gat_attn-MLE_YEAR"


class StephModel(NamedTuple):
    """A STEPH model as `methods.steph` takes it."""

    architecture: Architecture
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    num_sources: int


def bags(shared, cohort, patients, dtype):
    """A store of patients' bags [76, 1536], rows in the order of the pathways."""
    member = np.load(shared / "tcga_rna" / "pathways.npz")["member"]
    num_genes = member.shape[1]
    scale = member * np.sqrt(num_genes / member.sum(1, keepdims=True)).astype(np.float32)
    data = np.load(shared / "tcga_rna" / cohort / "expression.npz")
    row = {patient: i for i, patient in enumerate(data["patient_id"])}
    profiles = data["rna"]
    bag_list = []
    for patient in patients:
        bag = np.zeros((NUM_PATHWAYS, FEATURE_DIM), np.float32)
        bag[:, :num_genes] = scale * profiles[row[str(patient)]].astype(np.float32)
        bag_list.append(bag.astype(dtype))
    return InMemoryBags.of(bag_list, FEATURE_DIM, np.dtype(dtype))


def state(file: pathlib.Path):
    """The state dict of a checkpoint."""
    loaded = reader.load(file)
    assert isinstance(loaded, dict)
    return loaded["model"]


def abmil_state(parity, cohort, fold=0):
    """State dict of a cohort's base model; of the null model for "null"."""
    name = f"{_KIND}-data_{cohort}-fold_{fold}"
    if cohort == "null":
        name = f"Null_model-{_KIND}-fold_0"
    return state(parity / "result" / name / "train_model-last.pth")


def steph_model(parity, target, sources, trained, dtype):
    """A STEPH model of the published program's members and tensors, as our trees.

    Args:
        parity: folder of the reference data.
        target: cohort whose fold-0 model is the target.
        sources: cohorts whose fold-0 models are merged, in order.
        trained: state dict of the trainable tensors.
        dtype: of every array, and of the differences taken here.

    Returns:
        its architecture, its frozen and trainable trees, and the number of its sources.
    """

    def theta(cohort):
        architecture, tree = torch_names.abmil_from_torch(abmil_state(parity, cohort))
        assert architecture == Architecture()
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    null, theta_t = theta("null"), theta(target)
    vectors = [jax.tree.map(np.subtract, theta(source), null) for source in sources]
    frozen = {
        "null": null,
        "target": theta_t,
        "target_task_vector": jax.tree.map(np.subtract, theta_t, null),
        "task_vectors": jax.tree.map(lambda *leaves: np.stack(leaves), *vectors),
    }
    trainable = jax.tree.map(lambda x: x.astype(dtype), torch_layers.to_tree(trained, TRAINED))
    return StephModel(Architecture(), trainable, frozen, len(sources))


def outputs(ready, store):
    """Outputs of a model for the bags of a store, all in one batch, in the type of the bags.

    Args:
        ready: method, trainable and frozen tree, as `Method.restore` gives them.
        store: as `bags` gives it.
    """
    num_bags = len(store.num_patches)
    group_shapes = GroupShapes(((num_bags, NUM_PATHWAYS),))
    batch = make_batch(store, group_shapes, range(num_bags), {}, num_bags)
    trees = jax.tree.map(lambda x: jnp.asarray(x, store.dtype), (ready[1], ready[2]))
    return evaluate(ready[0], device_mesh(jax.devices()[:1]), *trees, batch)


def difference(actual, reference):
    """Largest difference, relative to the largest entry of the reference."""
    reference = np.asarray(reference, np.float64)
    actual = np.asarray(actual, np.float64)
    assert actual.shape == reference.shape
    return np.abs(actual - reference).max() / np.abs(reference).max()
