"""Bags of real patients and the models of the published program on them, for parity tests."""

import pathlib

import numpy as np

from steph_jax.checkpoints import torch_names
from steph_jax.checkpoints.torch_layers import Linear
from steph_jax.data.bags import MemoryBags
from steph_jax.data.torch_format import reader

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


def bags(shared, cohort, patients, dtype):
    """A store of patients' bags [76, 1536], rows in the order of the pathways."""
    member = np.load(shared / "tcga_rna" / "pathways.npz")["member"]
    num_genes = member.shape[1]
    scale = member * np.sqrt(num_genes / member.sum(1, keepdims=True)).astype(np.float32)
    data = np.load(shared / "tcga_rna" / cohort / "expression.npz")
    row = {patient: i for i, patient in enumerate(data["patient_id"])}
    profiles = data["rna"]
    made = []
    for patient in patients:
        bag = np.zeros((NUM_PATHWAYS, FEATURE_DIM), np.float32)
        bag[:, :num_genes] = scale * profiles[row[str(patient)]].astype(np.float32)
        made.append(bag.astype(dtype))
    return MemoryBags.of(made, FEATURE_DIM, np.dtype(dtype))


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
    """A STEPH model of the published layout, as our trees.

    Args:
        parity: folder of the reference data.
        target: cohort whose fold-0 model is the target.
        sources: cohorts whose fold-0 models are merged, in order.
        trained: state dict of the trainable tensors.
        dtype: of every array, and of the differences taken here.

    Returns:
        `torch_names.StephState`.
    """

    def of(cohort):
        return {n: x.astype(dtype) for n, x in abmil_state(parity, cohort).items()}

    null, theta_t = of("null"), of(target)
    full = {f"null_model.{name}": x for name, x in null.items()}
    full |= {f"target_model.{name}": x for name, x in theta_t.items()}
    vectors = {f"task_vectors.{i}.": of(source) for i, source in enumerate(sources)}
    for prefix, theta in (vectors | {"target_task_vector.": theta_t}).items():
        full |= {prefix + name.replace(".", "_"): x - null[name] for name, x in theta.items()}
    full |= {name: x.astype(dtype) for name, x in trained.items()}
    return torch_names.steph_from_torch(full)


def difference(ours, reference):
    """Largest difference, relative to the largest entry of the reference."""
    reference = np.asarray(reference, np.float64)
    ours = np.asarray(ours, np.float64)
    assert ours.shape == reference.shape
    return np.abs(ours - reference).max() / np.abs(reference).max()
