"""State dicts out of checkpoints as other programs wrap them."""

import ml_dtypes
import numpy as np
import pytest
import released
import torch_writer
from safetensors.numpy import save_file

from steph_jax.checkpoints import torch_checkpoints

STATE = released.abmil()
LIGHTNING = {"epoch": 3, "global_step": 10, "optimizer_states": [], "hyper_parameters": {"lr": 0.1}}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{name}": value for name, value in state.items()}


def assert_read(file, expected=STATE):
    checkpoint = torch_checkpoints.read(file)
    assert set(checkpoint.state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(checkpoint.state[name], value)
    return checkpoint


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "epoch": 3},
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
        {"model": {"state_dict": STATE}},
        {"net": STATE, "epoch": 3},
        {"model": prefixed("module.")},
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module.model."),
        LIGHTNING | {"state_dict": prefixed("model.")},
        LIGHTNING | {"state_dict": prefixed("net.mil.")},
        {name.replace("feat_proj.", "feat_proj._orig_mod."): x for name, x in STATE.items()},
        {"model": STATE, "ema": {name: 0 * value for name, value in STATE.items()}},
    ],
)
def test_wrappers_and_prefixes(tmp_path, content):
    checkpoint = assert_read(torch_writer.save(tmp_path / "x.ckpt", content))
    assert checkpoint.epoch == content.get("epoch")
    assert checkpoint.warnings == ()


def test_prefixes_of_merged_models(tmp_path):
    state = released.steph()
    assert_read(torch_writer.save(tmp_path / "x.pth", {"model": prefixed("module.", state)}), state)


def test_a_second_state_dict_is_named(tmp_path):
    other = {name: 0 * value for name, value in STATE.items()}
    file = torch_writer.save(tmp_path / "x.pth", {"state_dict": other, "model": STATE})
    checkpoint = assert_read(file)
    assert checkpoint.warnings == (
        "`model` is imported; the state dict under `state_dict` is not read",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": STATE, "teacher": STATE}, "one state dict, found 2, under student, teacher"),
        (prefixed("a.") | prefixed("b."), r"one model, found those of 2, under a\., b\."),
        (prefixed("_orig_mod.") | STATE, r"with and without _orig_mod\. before the same name"),
        ({"epoch": 3}, "with `model`, `state_dict` or tensors by name, found the keys epoch"),
        ({"state_dict": [1, 2]}, "tensors by name in `state_dict`, found a list"),
        ({"model": {"state_dict": 3}}, "tensors by name in `model.state_dict`, found a int"),
    ],
)
def test_no_single_state_dict(tmp_path, content, message):
    file = torch_writer.save(tmp_path / "x.pth", content)
    with pytest.raises(ValueError, match=message) as raised:
        torch_checkpoints.read(file)
    assert str(file) in str(raised.value)


def test_an_incomplete_model_keeps_the_names_of_its_parts(tmp_path):
    head = {name: value for name, value in STATE.items() if name.startswith("pred_head")}
    assert_read(torch_writer.save(tmp_path / "x.pth", {"model": head}), head)


def test_tensors_outside_of_the_model_keep_their_names(tmp_path):
    state = prefixed("model.") | {"loss.weight": np.ones(2, "f4")}
    file = torch_writer.save(tmp_path / "x.ckpt", {"state_dict": state})
    assert_read(file, STATE | {"loss.weight": np.ones(2, "f4")})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_safetensors(tmp_path, dtype):
    state = {name: value.astype(dtype) for name, value in STATE.items()}
    save_file(prefixed("model.", state), tmp_path / "x.safetensors")
    checkpoint = assert_read(tmp_path / "x.safetensors", state)
    assert {value.dtype for value in checkpoint.state.values()} == {np.dtype(dtype)}


def test_damaged_safetensors(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(STATE, file)
    whole = file.read_bytes()
    for content in (whole[:-4], whole[:40], whole[:8] + b"{" * 20 + whole[28:], whole + b"x"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.safetensors: expected a .safetensors file, found"):
            torch_checkpoints.read(file)
    file.write_bytes(b"<!DOCTYPE html><p>404")
    with pytest.raises(ValueError, match="found an HTML page; download the file itself"):
        torch_checkpoints.read(file)


def test_safetensors_of_our_own_trees_are_named(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"trainable/router/bias": np.ones(2, "f4")}, file, metadata={"kind": "roupkt"})
    with pytest.raises(ValueError, match="an export of a model of kind roupkt, which cannot be"):
        torch_checkpoints.read(file)
