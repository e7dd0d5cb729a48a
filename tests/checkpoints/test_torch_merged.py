"""Names of merged models in published files and in our first exports, against our trees."""

import numpy as np
import pytest
import released
from released import HIDDEN, A, D, E, T

from steph_jax.checkpoints import torch_merged, torch_merged_layout
from steph_jax.models.abmil import Architecture


def exported(model):
    """The state dict of a model that was read."""
    return torch_merged.merged_to_torch(
        model.trainable,
        model.frozen,
        model.merged or "mil_encoder",
        model.fixed_mixing,
        model.weights,
    )


def assert_same_state(state, expected):
    """The same names in the same order, shapes, types and values."""
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert (state[name].shape, state[name].dtype) == (value.shape, value.dtype), name
        np.testing.assert_array_equal(state[name], value)


@pytest.mark.parametrize("mixing", ["nn", "fnn", "param", "fix"])
@pytest.mark.parametrize("retrained", [True, False])
@pytest.mark.parametrize("merged", ["mil_encoder", "pred_head", "all"])
def test_steph(mixing, retrained, merged):
    state = released.steph(3, mixing, retrained, merged)
    assert torch_merged_layout.is_merged(state)
    model = torch_merged.merged_from_torch(state, vector_mixing=mixing)
    assert model.kind == "steph"
    assert model.architecture == Architecture(D, E, A, T, "gated", 1)
    assert (model.num_sources, model.mixing, model.merged) == (3, mixing, merged)
    assert model.retrained == ("pred_head" if retrained else "none")
    assert model.trainable["embedding"]["kernel"].shape == (D, HIDDEN)
    kernels = model.frozen["task_vectors"]["attention_net"]["attention_b"]["kernel"]
    assert kernels.shape == (3, E, A)
    name = "task_vectors.2.attention_net.attention_b.0.weight"
    np.testing.assert_array_equal(kernels[2], state[name].T)
    assert_same_state(exported(model), state)


def test_a_given_lambda_is_stored_as_its_odds():
    state = released.steph(3, "fix")
    model = torch_merged.merged_from_torch(state, vector_mixing="fix")
    r = state["vecmix_layer"].astype(float)
    np.testing.assert_allclose(model.fixed_mixing, 1 / (1 + r), rtol=1e-12)
    state = torch_merged.merged_to_torch(model.trainable, model.frozen, "mil_encoder", (0, 0.5, 1))
    np.testing.assert_array_equal(state["vecmix_layer"], [np.inf, 1, 0])
    again = torch_merged.merged_from_torch(state, vector_mixing="fix")
    assert again.fixed_mixing == (0, 0.5, 1)
    with pytest.raises(ValueError, match=r"lambda = 1e-40 of a source cannot be written"):
        torch_merged.merged_to_torch(model.trainable, model.frozen, "mil_encoder", (1e-40, 1, 1))
    state["vecmix_layer"] = np.float32([0, -1, 1])
    with pytest.raises(ValueError, match=r"-1 \(an infinite lambda\) in vecmix_layer"):
        torch_merged.merged_from_torch(state, vector_mixing="fix")


@pytest.mark.parametrize("kind", ["fix", "learned", "dynamic"])
def test_rules_without_mixup(kind):
    state = released.rule(kind)
    assert torch_merged_layout.is_merged(state)
    model = torch_merged.merged_from_torch(state)
    assert (model.kind, model.num_sources, model.mixing, model.merged) == (kind, 3, "", "")
    assert model.retrained == ("none" if kind == "fix" else "pred_head")
    if kind == "fix":
        np.testing.assert_array_equal(np.float32(model.weights), state["merge_weight"])
    if kind == "learned":
        np.testing.assert_array_equal(model.trainable["weights"], state["merge_weight"])
    assert_same_state(exported(model), state)


@pytest.mark.parametrize("mixing", ["nn", "fnn", "param", "fix"])
@pytest.mark.parametrize("with_heads", [True, False])
def test_exports_of_our_first_versions(mixing, with_heads):
    state = released.older_export(3, mixing, with_heads=with_heads)
    model = torch_merged.merged_from_torch(state, vector_mixing=mixing)
    assert (model.kind, model.num_sources, model.mixing, model.merged) == ("steph", 3, mixing, "")
    assert ("pred_head" in model.frozen["task_vectors"]) == with_heads
    kernel = model.frozen["task_vectors"]["feat_proj"]["layers_0"]["kernel"][1]
    np.testing.assert_array_equal(kernel, state["task_vectors.1.feat_proj_0_weight"].T)
    if mixing == "fix":
        np.testing.assert_array_equal(np.float32(model.fixed_mixing), state["vecmix_layer"])
    if with_heads and mixing != "fix":
        # The same model in the published layout.
        assert_same_state(exported(model), released.steph(3, mixing))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lost_task_vector_is_missed(number):
    state = released.steph()
    lost = [name for name in state if name.startswith(f"task_vectors.{number}.")]
    for name in lost:
        del state[name]
    # Without the last one only the hypernetworks show that there were three.
    table = rf"10 missing, 0 unexpected, 0 misshapen(?s:.*)task_vectors.{number}.feat_proj.0.weight"
    if number == 2:
        table = r"0 missing, 0 unexpected, 4 misshapen"
    with pytest.raises(ValueError, match=rf"of a STEPH model \({table}"):
        torch_merged.merged_from_torch(state)


def test_numbers_of_task_vectors_are_bounded():
    state = released.steph() | {"task_vectors.99999999.feat_proj.0.weight": np.zeros(1, "f4")}
    with pytest.raises(ValueError, match="unexpected"):
        torch_merged.merged_from_torch(state)


@pytest.mark.parametrize("value", [1e39, np.nan])
def test_vectors_beyond_float32_are_refused(value):
    state = released.steph(3, "param") | {"vecmix_layer": np.array([0.5, value, 0.5])}
    with pytest.raises(ValueError, match="vecmix_layer"):
        torch_merged.merged_from_torch(state)
    rule = released.rule("learned") | {"merge_weight": np.array([0.5, value, 0.5])}
    with pytest.raises(ValueError, match="merge_weight"):
        torch_merged.merged_from_torch(rule)


def test_the_trainable_part_alone_is_no_model(parity):
    arrays = np.load(parity / "steph_tcga_gbmlgg.npz")
    names = [name for name in arrays.files if name.startswith("after/")]
    state = {name.removeprefix("after/"): arrays[name] for name in names}
    assert torch_merged_layout.is_merged(state)
    with pytest.raises(ValueError, match=r"missing +null_model.feat_proj.0.weight"):
        torch_merged.merged_from_torch(state)
