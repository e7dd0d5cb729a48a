"""The state of training on disk: what was stored, or one line that names what is damaged."""

import json
import math

import damage
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from steph_jax.training import resume
from steph_jax.training.epoch import TrainCheckpoint, copy_of, initial_state

HISTORY = [{"epoch": 1, "train_loss": 0.5, "test_c_index": math.nan}]


def state(seed):
    rng = np.random.default_rng(seed)
    trainable = {
        "head": {"kernel": jnp.asarray(rng.standard_normal((8, 5)), jnp.float32)},
        "bias": jnp.asarray(rng.standard_normal(5), jnp.float32),
    }
    made = initial_state(trainable, optax.adamw(1e-3))
    return TrainCheckpoint(made, copy_of(trainable))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.sharding == right.sharding
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", ["c", "c[1]", "c\\d", "c*?"])
def test_there_and_back(tmp_path, name):
    store = resume.EpochStore(tmp_path / name)
    epoch, actual, history = store.restore(state(0), "start")
    assert (epoch, history) == (0, [])
    assert_same(actual, state(0))
    for epoch in (1, 2):
        store.save(epoch, state(epoch), HISTORY * epoch, "start")
    epoch, actual, history = resume.EpochStore(tmp_path / name).restore(state(0), "start")
    assert epoch == 2
    assert_same(actual, state(2))
    assert json.dumps(history) == json.dumps(HISTORY * 2)
    assert [path.name for path in (tmp_path / name).iterdir()] == ["epoch_2"]
    with pytest.raises(ValueError, match="have changed since this fold began"):
        store.restore(state(0), "another start")


def test_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    store = resume.EpochStore(tmp_path / "c")
    store.save(1, state(1), HISTORY, "start")
    messages = []
    for file in damage.flipped(tmp_path / "c"):
        try:
            epoch, actual, history = store.restore(state(0), "start")
        except ValueError as error:
            messages.append((str(error), str(file)))
        else:
            assert (epoch, json.dumps(history)) == (1, json.dumps(HISTORY))
            assert_same(actual, state(1))
    assert len(messages) > 100
    assert all(file in text and "\n" not in text for text, file in messages)
    assert all("to train the fold from its beginning" in text for text, _ in messages)


def test_missing_file_is_named(tmp_path):
    store = resume.EpochStore(tmp_path / "c")
    store.save(1, state(1), HISTORY, "start")
    for file in sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=str(file)):
            store.restore(state(0), "start")
        file.write_bytes(whole)


def test_state_of_an_older_version_is_restored(tmp_path):
    with ocp.CheckpointManager(
        tmp_path / "c",
        options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
    ) as manager:
        manager.save(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state(3)),
                record=ocp.args.JsonSave({"start": "start", "history": HISTORY * 3}),
            ),
        )
    store = resume.EpochStore(tmp_path / "c")
    epoch, actual, history = store.restore(state(0), "start")
    assert (epoch, json.dumps(history)) == (3, json.dumps(HISTORY * 3))
    assert_same(actual, state(3))
    store.save(4, state(4), HISTORY * 4, "start")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["epoch_4"]
    assert store.restore(state(0), "start")[0] == 4


def test_state_of_another_shape_is_refused(tmp_path):
    store = resume.EpochStore(tmp_path / "c")
    store.save(1, state(1), HISTORY, "start")
    other = TrainCheckpoint(
        state(0).state, {"head": {"kernel": jnp.zeros((8, 6))}, "bias": jnp.zeros(5)}
    )
    with pytest.raises(
        ValueError, match=r"c/epoch_1/state: best/head/kernel: expected an array \[8, 6\]"
    ):
        store.restore(other, "start")
