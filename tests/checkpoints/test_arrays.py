"""Trees of arrays on disk: any path, and never more than the files can hold."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from steph_jax.checkpoints import arrays

TREE = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": {"c": np.array(7, np.int32)}}
#: Names that orbax, etils or tensorstore read as something else, and others that users give.
NAMES = [
    "steph[lr=1e-4]",
    "back\\slash",
    "star*",
    "question?",
    "two words",
    "Größe♥",
    "{braces},commas",
    "]reversed[",
    "100%41",
    "line\nbreak",
    "quotes'\"",
    "~tilde",
    "$HOME",
    "not-utf8-\udcff",
]


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (type(left), left.dtype) == (np.ndarray, right.dtype)
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", NAMES)
def test_any_path(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    digests = arrays.write(folder / "p", TREE)
    assert_same(arrays.read(folder / "p", like(TREE), digests), TREE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert [path.name for path in folder.iterdir()] == ["p"]


def test_temporary_folder_with_such_a_name(tmp_path, monkeypatch):
    for name in ("run[1]", "tmp[1]"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp[1]"))
    with pytest.raises(ValueError, match=r"run\[1\]/p: needs a link .* set TMPDIR to another"):
        arrays.write(tmp_path / "run[1]" / "p", TREE)
    assert list((tmp_path / "tmp[1]").iterdir()) == []


@pytest.mark.parametrize("path", ["/gs/bucket/p", "/s3/x", "/az/x", "/hf/x", "/x[1]/p", "/x\\y/p"])
def test_paths_that_orbax_misreads(path):
    assert not arrays._PLAIN.fullmatch(path)


def test_oversized_claims_are_refused_unread(tmp_path):
    tree = {"a": np.zeros((1 << 14, 1 << 12), np.float32)}
    digests = arrays.write(tmp_path / "p", tree)
    with pytest.raises(
        ValueError, match=r"p: damaged arrays \(arrays of 268,435,456 bytes in files"
    ):
        arrays.read(tmp_path / "p", like(tree), digests)
    small = {"a": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"p: damaged arrays \(arrays of"):
        arrays.read(tmp_path / "p", like(small), digests)


def test_other_shapes_and_types_are_refused(tmp_path):
    digests = arrays.write(tmp_path / "p", TREE)
    for other in (np.zeros((4, 3), np.float32), np.zeros((3, 4), np.int32)):
        with pytest.raises(ValueError, match=r"p: a: expected an array \["):
            arrays.read(tmp_path / "p", like(TREE | {"a": other}), digests)
    with pytest.raises(ValueError, match="p: damaged arrays"):
        arrays.read(tmp_path / "p", like(TREE | {"more": TREE["a"]}), digests)


def test_plain_orbax_checkpoint_is_read(tmp_path):
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "p", args=ocp.args.StandardSave(jax.tree.map(jax.numpy.array, TREE))
        )
    assert_same(arrays.read(tmp_path / "p", like(TREE), None), TREE)


def test_checksums_are_of_every_file(tmp_path):
    digests = arrays.write(tmp_path / "p", TREE)
    files = {
        p.relative_to(tmp_path / "p").as_posix() for p in (tmp_path / "p").rglob("*") if p.is_file()
    }
    assert set(digests) == files
    json.dumps(digests)
    (tmp_path / "p" / "_METADATA").unlink()
    with pytest.raises(FileNotFoundError, match="p/_METADATA: not there"):
        arrays.verify(tmp_path / "p", digests)
