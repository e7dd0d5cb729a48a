"""Merging rules without mixup: against the published program, and what they refuse."""

import dataclasses

import jax
import numpy as np
import pytest
import reference_bags
from reference_bags import difference
from specs import EveryOption, with_options

from steph_jax.checkpoints import torch_names
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods.base import FoldSpec
from steph_jax.methods.dynamic import DynamicModel
from steph_jax.methods.learned import LearnedModel
from steph_jax.methods.registry import find_method
from steph_jax.methods.sources import Merging, encoder_stack, gather, source_names
from steph_jax.methods.transfer import Transfer
from steph_jax.models import preparation
from steph_jax.models.abmil import Architecture

TARGET = "tcga_gbmlgg"


@pytest.fixture(scope="module")
def recorded(parity):
    return np.load(parity / "options.npz")


@pytest.fixture(scope="module")
def pool(parity, recorded, tmp_path_factory):
    """The recorded models, imported."""
    pool = Pool(tmp_path_factory.mktemp("pool"))
    for name in ("null", TARGET, *recorded["sources"]):
        state = reference_bags.abmil_state(parity, str(name))
        architecture, params = torch_names.abmil_from_torch(state)
        place = "null" if name == "null" else f"{name}-fold_0"
        pool.add(place, SavedModel("abmil", architecture, {}, params))
    return pool


@pytest.fixture(scope="module")
def spec(recorded):
    """Fold 0 of the target, its own model not among the sources."""
    return FoldSpec(
        dataset=TARGET,
        fold=0,
        seed=0,
        architecture=Architecture(),
        num_outputs=32,
        output="hazard",
        bins=None,
        sources=tuple(map(str, recorded["sources"])),
        options=EveryOption(merging=Merging(include_target=False)),
    )


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The type of all arrays of a merged model."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


#: In float64 what is left is the rounding of the record, and of the models as they are stored.
TOLERANCE = {"float32": 1e-5, "float64": 3e-6}


def outputs(shared, recorded, ready, dtype):
    store = reference_bags.bags(shared, TARGET, recorded["patient_id"], dtype)
    out = reference_bags.outputs(ready, store)
    assert out.logits.dtype == dtype
    return out


def penalty(w):
    """logsumexp(w)^2 of w [B, S]: the whole merge regularizer where no sources are selected."""
    return np.log(np.exp(np.asarray(w, np.float64)).sum(axis=1)) ** 2


@pytest.mark.parametrize("case", ["fix", "average"])
def test_untrained(shared, recorded, pool, spec, dtype, case):
    model = find_method(case).start(spec, pool)
    np.testing.assert_allclose(model.metadata["weights"], recorded[f"{case}/w"], rtol=1e-6)
    out = outputs(shared, recorded, find_method(model.kind).restore(model, None), dtype)
    assert difference(out.logits, recorded[f"{case}/logits"]) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", ["learned", "learned_with_target"])
def test_learned(parity, shared, recorded, pool, spec, dtype, case):
    if case == "learned_with_target":
        spec = with_options(spec, merging=Merging(include_target=True))
    model = find_method("learned").start(spec, pool)
    num_sources = len(model.metadata["sources"])
    np.testing.assert_allclose(model.params["trainable"]["weights"], 1 / num_sources)
    state = reference_bags.state(parity / "steph_tcga_gbmlgg_init.pth")
    head = {"kernel": state["pred_head.weight"].T, "bias": state["pred_head.bias"]}
    trainable = {"weights": recorded[f"{case}/w"].astype(np.float32), "pred_head": head}
    frozen = {"stack": encoder_stack(model.params["frozen"])}
    ready = (LearnedModel(model.architecture), trainable, frozen)
    out = outputs(shared, recorded, ready, dtype)
    assert difference(out.logits, recorded[f"{case}/logits"]) < TOLERANCE[dtype]
    assert difference(out.aux["weight"][0], recorded[f"{case}/w"]) < TOLERANCE[dtype]
    assert difference(out.aux["merge"][:1], penalty(recorded[f"{case}/w"][None])) < TOLERANCE[dtype]


def test_dynamic(parity, shared, recorded, pool, spec, dtype):
    model = find_method("dynamic").start(spec, pool)
    state = reference_bags.state(parity / "steph_tcga_gbmlgg_init.pth")
    linear = {
        name: {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
        for name in (
            "pred_head",
            "regulate_layer_emb.0",
            "regulate_layer_prj.0",
            "regulate_layer_prj.3",
        )
    }
    trainable = {
        "pred_head": linear["pred_head"],
        "embedding": linear["regulate_layer_emb.0"],
        "weights": {
            "hidden": linear["regulate_layer_prj.0"],
            "output": linear["regulate_layer_prj.3"],
        },
    }
    method = DynamicModel(model.architecture, len(spec.sources))
    frozen = {"stack": encoder_stack(model.params["frozen"])}
    out = outputs(shared, recorded, (method, trainable, frozen), dtype)
    assert difference(out.aux["weight"], recorded["dynamic/w"]) < TOLERANCE[dtype]
    assert difference(out.aux["merge"], penalty(recorded["dynamic/w"])) < TOLERANCE[dtype]
    assert difference(out.logits, recorded["dynamic/logits"]) < TOLERANCE[dtype]


def test_missing_and_misshapen_sources_are_refused(pool, spec):
    with pytest.raises(ValueError, match="none, ties, iso_c, iso_cts, not 'dare'"):
        Merging(prepare="dare")
    two = Merging(include_target=False, weights=(0.1, 0.2))
    with pytest.raises(ValueError, match="expected 7, found 2"):
        find_method("fix").start(with_options(spec, merging=two), pool)
    with pytest.raises(ValueError, match=r"32 outputs where loss.terms and bins ask for 1"):
        find_method("zero_shot").start(dataclasses.replace(spec, num_outputs=1), pool)
    with pytest.raises(ValueError, match=r"transfer.source is the target itself"):
        find_method("fine_tune").start(with_options(spec, transfer=Transfer(TARGET)), pool)
    with pytest.raises(FileNotFoundError, match="no model of 'tcga_gbmlgg' for fold 3"):
        find_method("learned").start(dataclasses.replace(spec, fold=3), pool)
    with pytest.raises(ValueError, match="method is one of abmil, mean_pool"):
        find_method("lora")
    alone = dataclasses.replace(spec, sources=(TARGET,))
    with pytest.raises(ValueError, match="no cohort is left to be joined"):
        find_method("joint").start(alone, pool)
    with pytest.raises(ValueError, match="no source model is left to merge"):
        gather(alone, pool, False, "mil_encoder")


def test_a_preparation_without_result_is_refused(pool, spec, monkeypatch):
    def without_last(kind, target, sources):
        return jax.tree.map(
            lambda x: np.where(np.arange(len(x)) < len(x) - 1, x.T, np.nan).T, sources
        )

    monkeypatch.setattr(preparation, "prepare", without_last)
    asked = with_options(spec, merging=Merging("iso_cts", include_target=False))
    name = source_names(asked, pool, False)[-1]
    with pytest.raises(ValueError, match=f"iso_cts of the task vectors .* of {name} is not finite"):
        gather(asked, pool, False, "mil_encoder")
