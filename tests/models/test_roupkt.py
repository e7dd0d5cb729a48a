"""ROUPKT: its equations, and parity with the published program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_bags
from reference_bags import difference

from steph_jax.checkpoints import torch_names
from steph_jax.data.batches import make_batch
from steph_jax.data.chunks import GroupShapes
from steph_jax.data.tables import read_table
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import device_mesh
from steph_jax.engine.step import evaluate
from steph_jax.methods.roupkt import REPRESENTATIONS, RoupktModel
from steph_jax.models import roupkt
from steph_jax.models.abmil import Architecture
from steph_jax.survival import losses
from steph_jax.survival.time_bins import uniform_bins

COHORT = "tcga_gbmlgg"
#: Bags cut into chunks of two lengths, with padding.
GROUP_SHAPES = GroupShapes(((3, 40), (5, 11)))


def test_routing_and_mixture_by_hand():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 4)).astype(np.float32)
    z = rng.standard_normal((3, 4, 5)).astype(np.float32)
    experts = {
        f"expert_{s}": {
            "kernel": rng.standard_normal((5, 5)).astype(np.float32),
            "bias": rng.standard_normal(5).astype(np.float32),
        }
        for s in range(4)
    }
    routing = roupkt.route(jnp.asarray(q), 2)
    mixed = roupkt.mixture(experts, jnp.asarray(z), routing)
    plain = roupkt.mixture({}, jnp.asarray(z), routing)
    for b in range(3):
        p = np.exp(q[b]) / np.exp(q[b]).sum()
        best = np.argsort(-p)[:2]
        assert set(np.flatnonzero(routing.selected[b])) == set(best)
        applied = {
            s: np.maximum(
                z[b, s] @ experts[f"expert_{s}"]["kernel"] + experts[f"expert_{s}"]["bias"], 0
            )
            for s in best
        }
        np.testing.assert_allclose(mixed[b], sum(p[s] * applied[s] for s in best), rtol=1e-4)
        np.testing.assert_allclose(plain[b], sum(p[s] * z[b, s] for s in best), rtol=1e-4)
        assert float(routing.balance[b]) == pytest.approx(p.max(), rel=1e-5)
        assert float(routing.z[b]) == pytest.approx(np.log(np.exp(q[b]).sum()) ** 2, rel=1e-4)


def test_biases_of_experts_are_vectors_so_that_they_do_not_decay():
    trainable = roupkt.init(jax.random.key(0), Architecture(6, 5, 4), 3, 2, "relu")
    assert {x.shape for x in jax.tree.leaves(trainable["experts"])} == {(5, 5), (5,)}
    assert trainable["gate"]["kernel"].shape == (5, 3)
    identity = roupkt.init(jax.random.key(0), Architecture(6, 5, 4), 3, 2, "identity")
    assert "experts" not in identity


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="relu, identity, not 'gelu'"):
        roupkt.Options(expert="gelu")
    with pytest.raises(ValueError, match="0 for all, not -1"):
        roupkt.Options(top_k=-1)
    with pytest.raises(ValueError, match=r"top_k = 5 is larger than the number of experts, 3"):
        roupkt.Options().check_sources(3)
    with pytest.raises(ValueError, match="no source model"):
        roupkt.Options().check_sources(0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 3e-6)])
def test_parity(shared, parity, dtype, tolerance):
    recorded = np.load(parity / "roupkt_tcga_gbmlgg.npz")
    state = reference_bags.state(parity / "roupkt_tcga_gbmlgg.pth")
    names = recorded["experts"]
    router_state = {n: x for n, x in state.items() if n.startswith(("feat_proj", "attention_net"))}
    head = {n: x for n, x in state.items() if n.startswith("pred_head")}
    architecture, router = torch_names.abmil_from_torch(router_state | head)
    trainable = {
        "router": {name: router[name] for name in ("feat_proj", "attention_net")},
        "gate": {"kernel": state["router.weight"].T},
        "experts": {
            f"expert_{s}": {
                "kernel": state[f"experts.{s}.0.weight"].T,
                "bias": state[f"experts.{s}.0.bias"],
            }
            for s in range(len(names))
        },
        "pred_head": router["pred_head"],
    }
    models = [
        torch_names.abmil_from_torch(reference_bags.abmil_state(parity, name))[1] for name in names
    ]
    patients = [str(patient) for patient in recorded["patient_id"]]
    mesh = device_mesh(jax.devices()[:1])
    # Representations are kept in float32, whatever the rest is computed in.
    loader = DeviceLoader(
        reference_bags.bags(shared, COHORT, patients, np.float32), GROUP_SHAPES, mesh, 4
    )
    z = Representations(loader)(architecture, models)
    assert difference(z, recorded["bag_feature"]) < 1e-5

    table = read_table(shared / "tcga_rna" / COHORT / f"{COHORT}_survival.csv")
    rows = [table.patients.index(patient) for patient in patients]
    time_bin, event = uniform_bins().index(table.time[rows]), table.event[rows]
    with jax.enable_x64(dtype == "float64"):
        store = reference_bags.bags(shared, COHORT, patients, dtype)
        labels = {REPRESENTATIONS: z.astype(dtype)}
        batch = make_batch(store, GROUP_SHAPES, range(6), labels, 6, 1)
        trainable = jax.tree.map(lambda x: jnp.asarray(x, dtype), trainable)
        out = evaluate(RoupktModel(architecture), mesh, trainable, {}, batch)
        nll = losses.mean(losses.nll(out.logits, jnp.asarray(time_bin), jnp.asarray(event)))
    assert out.logits.dtype == dtype
    assert difference(out.logits, recorded["logits"]) < tolerance
    assert difference(out.aux["weight"], recorded["p"]) < tolerance
    assert difference(np.mean(np.asarray(out.aux["balance"])), recorded["balance"]) < tolerance
    assert difference(np.mean(np.asarray(out.aux["z"])), recorded["z"]) < tolerance
    assert difference(nll, recorded["nll"]) < tolerance
