"""Published names and shapes against our trees."""

import ml_dtypes
import numpy as np
import pytest
import released
from released import A, D, E, T

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
def test_round_trip_is_exact(pooling):
    state = released.abmil(pooling=pooling, num_layers=2)
    state["pred_head.bias"] = state["pred_head.bias"].astype(ml_dtypes.bfloat16)
    _, tree = torch_names.abmil_from_torch(state)
    back = torch_names.abmil_to_torch(tree)
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name].dtype == np.float32
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


def test_table_of_differences():
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


@pytest.mark.parametrize(
    ("pooling", "lost", "missing"),
    [
        ("gated", ("feat_proj.", "attention_net.", "pred_head."), 10),
        ("gated", ("attention_net.", "pred_head."), 8),
        ("gated", ("pred_head.",), 2),
        ("mean", ("pred_head.bias",), 1),
    ],
)
def test_every_missing_tensor_is_counted(pooling, lost, missing):
    state = {n: x for n, x in released.abmil(pooling=pooling).items() if not n.startswith(lost)}
    with pytest.raises(ValueError, match=rf"\({missing} missing, 0 unexpected, 0 misshapen\)"):
        torch_names.abmil_from_torch(state)


@pytest.mark.parametrize("name", ["feat_proj.0.weight", "attention_net.attention_c.bias"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(-1e39), r"holds -1e\+39 \(float64\), beyond the range of float32"),
        (np.float64(np.inf), r"NaN or infinity in {name} \(1 of "),
        (np.float32(np.nan), r"NaN or infinity in {name} \(1 of "),
        (np.float16(np.inf), r"NaN or infinity in {name} \(1 of "),
    ],
)
def test_values_are_checked_after_the_cast_to_float32(name, value, message):
    state = released.abmil()
    state[name] = state[name].astype(value.dtype)
    state[name].flat[-1] = value
    with pytest.raises(ValueError, match=message.replace("{name}", name)) as raised:
        torch_names.abmil_from_torch(state)
    assert name in str(raised.value)


def test_float64_within_the_range_is_rounded():
    state = {name: x.astype(np.float64) * (1 + 1e-12) for name, x in released.abmil().items()}
    state["pred_head.bias"][0] = 3.4e38
    _, tree = torch_names.abmil_from_torch(state)
    assert tree["pred_head"]["bias"].dtype == np.float32
    assert tree["pred_head"]["bias"][0] == np.float32(3.4e38)
