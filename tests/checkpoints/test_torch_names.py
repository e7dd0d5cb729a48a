"""Published names and shapes against our trees."""

import ml_dtypes
import numpy as np
import pytest
import released
from released import HIDDEN, A, D, E, T

from steph_jax.checkpoints import torch_names
from steph_jax.models.abmil import Architecture


def test_gated_model():
    state = released.abmil()
    architecture, tree = torch_names.abmil_from_torch(state)
    assert architecture == Architecture(D, E, A, T, "gated", 1)
    assert set(tree) == {"feat_proj", "attention_net", "pred_head"}
    attention = tree["attention_net"]
    for name in ("attention_a", "attention_b"):
        kernel = state[f"attention_net.{name}.0.weight"].T
        np.testing.assert_array_equal(attention[name]["kernel"], kernel)
    np.testing.assert_array_equal(
        attention["attention_c"]["kernel"], state["attention_net.attention_c.weight"].T
    )
    np.testing.assert_array_equal(tree["pred_head"]["bias"], state["pred_head.bias"])
    assert tree["feat_proj"]["layers_0"]["kernel"].shape == (D, E)


@pytest.mark.parametrize("pooling", ["plain", "mean", "max"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_variants(pooling, num_layers):
    state = released.abmil(pooling=pooling, num_layers=num_layers)
    architecture, tree = torch_names.abmil_from_torch(state, without_attention=pooling)
    attention_dim = A if pooling == "plain" else 0
    assert architecture == Architecture(D, E, attention_dim, T, pooling, num_layers)
    assert list(tree["feat_proj"]) == [f"layers_{i}" for i in range(num_layers)]
    for i in range(num_layers):
        np.testing.assert_array_equal(
            tree["feat_proj"][f"layers_{i}"]["kernel"], state[f"feat_proj.{3 * i}.weight"].T
        )
    if pooling == "plain":
        assert list(tree["attention_net"]) == ["attention_a", "attention_c"]
        np.testing.assert_array_equal(
            tree["attention_net"]["attention_c"]["kernel"], state["attention_net.module.3.weight"].T
        )
    else:
        assert "attention_net" not in tree


@pytest.mark.parametrize("pooling", ["gated", "plain", "mean"])
def test_there_and_back_is_exact(pooling):
    state = released.abmil(pooling=pooling, num_layers=2)
    state["pred_head.bias"] = state["pred_head.bias"].astype(ml_dtypes.bfloat16)
    _, tree = torch_names.abmil_from_torch(state)
    back = torch_names.abmil_to_torch(tree)
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], value)


def test_variants_of_the_published_classes(parity):
    arrays = np.load(parity / "variants.npz")
    expected = {
        "gated": ("gated", 1),
        "plain": ("plain", 1),
        "mean": ("mean", 1),
        "max": ("max", 1),
        "two_layers": ("gated", 2),
        "three_layers": ("plain", 3),
    }
    for variant, (pooling, num_layers) in expected.items():
        prefix = f"{variant}/param/"
        state = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
        architecture, _ = torch_names.abmil_from_torch(state, without_attention=pooling)
        assert (architecture.pooling, architecture.num_layers) == (pooling, num_layers)


def test_table_of_what_does_not_fit():
    state = released.abmil()
    del state["attention_net.attention_b.0.bias"]
    state["pred_head.bias"] = np.zeros(T + 1, np.float32)
    state["attention_net.attention_c.bias"] = np.zeros(1, np.int64)
    state["extra.weight"] = np.zeros((2, 3), np.float32)
    state["note"] = "text"
    table = (
        r"not those of an ABMIL model \(1 missing, 2 unexpected, 2 misshapen\):\n"
        r"  missing     attention_net.attention_b.0.bias  \[5\]\n"
        r"  unexpected  extra.weight                      \[2, 3\]\n"
        r"  unexpected  note                              a str, not a tensor\n"
        r"  misshapen   attention_net.attention_c.bias    expected floats, found int64\n"
        r"  misshapen   pred_head.bias                    expected \[4\], found \[5\]$"
    )
    with pytest.raises(ValueError, match=table):
        torch_names.abmil_from_torch(state)


def test_a_lost_matrix_is_missed_without_blaming_the_others():
    state = released.abmil()
    del state["feat_proj.0.weight"]
    with pytest.raises(ValueError, match=r"1 missing, 0 unexpected, 0 misshapen.*\n.*\[\?, \?\]"):
        torch_names.abmil_from_torch(state)


@pytest.mark.parametrize("mixing", ["nn", "fnn", "param", "fix"])
@pytest.mark.parametrize("retrained", [True, False])
def test_steph_model(mixing, retrained):
    state = released.steph(3, mixing, retrained)
    found = torch_names.steph_from_torch(state, vector_mixing=mixing)
    assert found.architecture == Architecture(D, E, A, T, "gated", 1)
    assert (found.num_sources, found.mixing) == (3, mixing)
    assert found.retrained == ("pred_head" if retrained else "none")
    assert ("pred_head" in found.trainable) is retrained
    assert found.trainable["embedding"]["kernel"].shape == (D, HIDDEN)
    assert found.trainable["weights"]["output"]["kernel"].shape == (HIDDEN, 3)
    assert ("mixing_embedding" in found.trainable) is (mixing == "fnn")
    assert ("mixing" in found.trainable) is (mixing in ("nn", "fnn"))
    assert found.fixed_mixing == ((0.25, 0.5, 0.75) if mixing == "fix" else ())
    if mixing == "param":
        np.testing.assert_array_equal(found.trainable["mixing_ratio"], state["vecmix_layer"])
    kernels = found.frozen["task_vectors"]["attention_net"]["attention_b"]["kernel"]
    assert kernels.shape == (3, E, A)
    name = "task_vectors.2.attention_net_attention_b_0_weight"
    np.testing.assert_array_equal(kernels[2], state[name].T)
    np.testing.assert_array_equal(
        found.frozen["target_task_vector"]["pred_head"]["bias"],
        found.frozen["target"]["pred_head"]["bias"] - found.frozen["null"]["pred_head"]["bias"],
    )
    back = torch_names.steph_to_torch(found.trainable, found.frozen, found.fixed_mixing)
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_steph_model_whose_task_vectors_are_encoders():
    state = released.steph(with_heads=False)
    found = torch_names.steph_from_torch(state)
    assert set(found.frozen["task_vectors"]) == {"feat_proj", "attention_net"}
    back = torch_names.steph_to_torch(found.trainable, found.frozen)
    assert set(back) == set(state)


def test_steph_model_with_one_task_vector_too_short():
    state = released.steph()
    del state["task_vectors.1.pred_head_bias"]
    state["task_vectors.3.odd"] = np.zeros(1, np.float32)
    with pytest.raises(
        ValueError, match=r"of a STEPH model \((?s:.*)missing +task_vectors.1.pred_head_bias +\[4\]"
    ):
        torch_names.steph_from_torch(state)


def test_trainable_part_alone_is_no_model(parity):
    arrays = np.load(parity / "steph_tcga_gbmlgg.npz")
    names = [name for name in arrays.files if name.startswith("after/")]
    state = {name.removeprefix("after/"): arrays[name] for name in names}
    assert torch_names.is_steph(state)
    with pytest.raises(ValueError, match=r"missing +null_model.feat_proj.0.weight"):
        torch_names.steph_from_torch(state)
