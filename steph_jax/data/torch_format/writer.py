"""Writes PyTorch's zip format without PyTorch: an ordered dict of tensors, as torch.save does.

The file holds a pickle that rebuilds every tensor from a member with its bytes; only the opcodes
that this needs are written.
"""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from steph_jax import files

_STORAGES = {
    np.dtype(np.float32): b"FloatStorage",
    np.dtype(np.float64): b"DoubleStorage",
    np.dtype(np.int64): b"LongStorage",
}
_EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def write_state_dict(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes {"model": state}, whole or not at all; `torch.load` reads it with weights_only=True.

    Args:
        path: of the file.
        state: float32, float64 or int64 arrays by name, in order.

    Raises:
        ValueError: an array of another type.
    """
    entries = b"".join(
        _text(name) + _tensor(name, array, key) for key, (name, array) in enumerate(state.items())
    )
    model = _EMPTY_DICT + b"(" + entries + b"u"
    members: dict[str, bytes] = {
        "data.pkl": b"\x80\x02}(" + _text("model") + model + b"u.",
        "byteorder": b"little",
    }
    for key, array in enumerate(state.values()):
        values = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        members[f"data/{key}"] = values.tobytes()
    members["version"] = b"3\n"
    with (
        files.whole(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for member, content in members.items():
            # Without a time: one model always gives the same file.
            archive.writestr(zipfile.ZipInfo(f"archive/{member}"), content)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tensor(name: str, array: np.ndarray, key: int) -> bytes:
    """The call that rebuilds one contiguous tensor from the storage `key`."""
    if array.dtype not in _STORAGES:
        dtypes = ", ".join(str(dtype) for dtype in _STORAGES)
        raise ValueError(f"{name}: expected {dtypes} to write for PyTorch; found {array.dtype}")
    storage = (
        b"("
        + _text("storage")
        + b"ctorch\n"
        + _STORAGES[array.dtype]
        + b"\n"
        + _text(str(key))
        + _text("cpu")
        + _integer(array.size)
        + b"tQ"
    )
    strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
    shape, steps = (
        b"(" + b"".join(_integer(n) for n in numbers) + b"t" for numbers in (array.shape, strides)
    )
    arguments = b"(" + storage + _integer(0) + shape + steps + b"\x89" + _EMPTY_DICT + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
