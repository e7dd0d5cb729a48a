"""Tensors never reach beyond the storage they began from, however they are nested."""

import itertools
import pickle

import numpy as np
import pytest
from guarded_memory import GuardedStorages
from torch_writer import Raw, Writer, load_from_bytes, pickled, zip_bytes_of

from steph_jax.data.features.open import open_features
from steph_jax.data.torch_format.reader import TorchFileError, UnknownGlobal, foreign_names, loads

N, D = 30, 16
ONE = np.ones(1, np.float32)
EMPTY = Raw(b"ccollections\nOrderedDict\n)R")


def call(writer: Writer, name: str, *arguments: object) -> Raw:
    return Raw(f"ctorch._utils\n{name}\n".encode() + writer.dump(arguments) + b"R")


def rebuilt(writer: Writer, name: str, storage: Raw, *numbers: object) -> Raw:
    """A tensor by one of the functions of PyTorch: offset, shape and strides of a storage."""
    if name == "_rebuild_tensor":
        return call(writer, name, storage, *numbers)
    dtype = (Raw(b"ctorch\nfloat32\n"),) if name.endswith("v3") else ()
    return call(writer, name, storage, *numbers, False, EMPTY, *dtype)


def repeated(writer: Writer, storage: Raw, count: int) -> Raw:
    """A tensor that repeats the first entry of a storage."""
    return rebuilt(writer, "_rebuild_tensor_v2", storage, 0, (count,), (0,))


def wrapped(writer: Writer, storage: Raw, count: int) -> Raw:
    """The same as a parameter."""
    return call(writer, "_rebuild_parameter", repeated(writer, storage, count), True, EMPTY)


def pickled_array(writer: Writer, storage: Raw, count: int) -> Raw:
    """An array in place of the tensor."""
    return Raw(pickle.dumps(np.zeros(count, np.float32), 2)[2:-1])


def numbers_from_text(writer: Writer, storage: Raw, count: int) -> Raw:
    """An array that names its bytes itself."""
    raw = Raw(b"C\x04\0\0\0\0")
    dtype = Raw(b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xff")
    dtype = Raw(dtype + b"J\xff\xff\xff\xffK\0tb")
    name = b"cnumpy._core.numeric\n_frombuffer\n"
    return Raw(name + writer.dump((raw, dtype, (1,), "C")) + b"R")


FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
WITHIN = (repeated, wrapped, pickled_array, numbers_from_text)
LAYOUTS = ("zip", "zip, big-endian", "stream", "stream of a part", "pickle")


def hostile(layout: str, function: str, within=repeated, key: str | None = None) -> bytes:
    """A file with a tensor [N, D] over a storage of one entry, through another tensor."""
    writer = Writer("zip" if layout.startswith("zip") else "stream")
    if layout == "pickle":
        storage = load_from_bytes(ONE)
    else:
        part = ("0", 0, 1) if layout == "stream of a part" else None
        storage = writer.storage_of(ONE, part=part)
    inner = within(writer, storage, N * D)
    tensor = rebuilt(writer, function, inner, 0, (N, D), (D, 1))
    value = tensor if key is None else {key: tensor}
    if layout == "pickle":
        return pickled(writer, value)
    if layout.startswith("stream"):
        return writer.stream(value)
    order = b"big" if layout.endswith("big-endian") else b"little"
    return zip_bytes_of(writer, value, {"archive/byteorder": order})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("within", WITHIN)
def test_a_tensor_is_no_storage(layout, function, within):
    with pytest.raises(TorchFileError, match=r"f\.pt: .*a tensor w"):
        loads(hostile(layout, function, within), "f.pt")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_beyond_their_storage_are_refused(tmp_path, layout):
    """What once ended `predict` and `train` by a bus error."""
    (tmp_path / "slide.pt").write_bytes(hostile(layout, "_rebuild_tensor_v2", key="features"))
    with pytest.raises(TorchFileError, match=r"slide\.pt: .*whose storage is another tensor"):
        open_features(tmp_path).read("slide")


@pytest.mark.parametrize(
    ("start", "count", "strides", "fits"),
    [
        (0, 12, (4, 1), True),
        (0, 12, (0, 0), True),
        (0, 12, (1, 2), True),
        (4, 8, (3, 1), False),
        (1, 11, (4, 1), False),
        (11, 1, (0, 0), True),
        (11, 1, (0, 1), False),
    ],
)
def test_a_part_of_a_storage_bounds_its_tensors(start, count, strides, fits):
    """Entries of the storage beyond the part are not the tensor's."""
    base = np.arange(12, dtype=np.float32)
    writer = Writer("stream")
    storage = writer.storage_of(base, part=("0", start, count))
    data = writer.stream(rebuilt(writer, "_rebuild_tensor_v2", storage, 0, (3, 4), strides))
    if not fits:
        with pytest.raises(TorchFileError, match=f"of a storage of {count}"):
            loads(data, "f.pt")
        return
    places = [
        start + row * strides[0] + column * strides[1]
        for row, column in itertools.product(range(3), range(4))
    ]
    np.testing.assert_array_equal(loads(data, "f.pt").ravel(), base[places])


@pytest.mark.parametrize("layout", ["zip", "zip, big-endian", "stream"])
def test_a_storage_read_as_another_type(layout):
    """Bytes change their order by the width of the type that a tensor has, not the storage's."""
    values = np.array([1.5, -2.0, 1e-3], np.float32)
    stored = values.byteswap() if layout.endswith("big-endian") else values
    writer = Writer("zip" if layout.startswith("zip") else "stream")
    storage = writer.storage_of(stored.view(np.uint8))
    tensor = rebuilt(writer, "_rebuild_tensor_v3", storage, 1, (2,), (1,))
    order = {"archive/byteorder": b"big" if layout.endswith("big-endian") else b"little"}
    data = writer.stream(tensor) if layout == "stream" else zip_bytes_of(writer, tensor, order)
    guards = GuardedStorages()
    with guards.installed():
        read = loads(data, "f.pt")
        assert guards.hold(read)
        np.testing.assert_array_equal(read, values[1:])


def test_booleans_are_zero_or_one():
    writer = Writer()
    storage = writer.storage_of(np.frombuffer(b"\x00\x01\x02\xff" * 4, np.float32))
    dtype = Raw(b"ctorch\nbool\n")
    numbers = (storage, 0, (16,), (1,), False, EMPTY, dtype)
    read = loads(zip_bytes_of(writer, call(writer, "_rebuild_tensor_v3", *numbers)), "f.pt")
    assert read.dtype == np.bool_
    np.testing.assert_array_equal(read.view(np.uint8), [0, 1, 1, 1] * 4)


def test_a_storage_without_a_tensor_counts_as_unknown():
    writer = Writer()
    value = loads(zip_bytes_of(writer, {"a": writer.storage_of(ONE), "b": 1}), "f.pt")
    assert isinstance(value["a"], UnknownGlobal)
    assert value["b"] == 1
    assert foreign_names(value) == ["a storage of float32"]
