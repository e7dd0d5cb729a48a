"""Restricted reader of PyTorch files: no PyTorch, and no code of the file is ever run.

Three layouts hold tensors in the field, and `load` distinguishes them by their bytes:

- the zip archive of torch >= 1.6: NAME/data.pkl, and a member NAME/data/KEY for each storage;
- the stream of older programs: pickles of a magic number, the version, the system, the object,
  the keys of its storages, then the storages;
- a plain pickle, as in the values of an LMDB: each tensor carries its storage as such a stream.

The pickles run on the machine of `unpickler`, with the globals listed in `allowed_globals`.
Tensors and arrays become NumPy arrays, read-only views of the file's bytes where possible (bfloat16
by ml_dtypes). A global that is not listed becomes an `UnknownGlobal` and is never called; the
caller decides whether it stands where it matters (`refuse_foreign`) or not (`foreign_names`).
"""

import mmap
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from steph_jax.data.torch_format import allowed_globals, unpickler, zip_archive
from steph_jax.data.torch_format.placeholders import Budget, Malformed, UnknownGlobal, printable

__all__ = ["TorchFileError", "UnknownGlobal", "foreign_names", "load", "loads", "refuse_foreign"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_SWAPPED = {"little": sys.byteorder != "little", "big": sys.byteorder != "big"}
_AGAIN = "copy or download the file again"

#: How files begin that are given in place of PyTorch's, what they are, and what to do.
_OTHER_FILES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer", "fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "an HTML page", "download the file itself, not the page about it"),
    (b"<html", "an HTML page", "download the file itself, not the page about it"),
    (b"<?xml", "an XML page", "download the file itself, not the page about it"),
    (b"\x89hdf\r\n", "an HDF5 file", "name it .h5"),
    (b"\x93numpy", "a NumPy array", "name it .npy"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"{", "JSON or other text", _AGAIN),
)


class TorchFileError(ValueError):
    """A file or a pickled value that is not what PyTorch writes for tensors in plain containers."""


def load(path: str | os.PathLike[str]) -> object:
    """Reads a PyTorch file (`torch.save`, or a pickle of tensors).

    Args:
        path: the file. It stays mapped into memory for as long as arrays of it live.

    Returns:
        plain containers (dict, OrderedDict, list, tuple, set), numbers, text, read-only memoryviews
        for bytes, NumPy arrays of native byte order in place of tensors (read-only, not contiguous
        where the tensor was not), and `UnknownGlobal` in place of anything else.

    Raises:
        FileNotFoundError: no such file.
        TorchFileError: not such a file, or a damaged or hostile one; the message names the file,
            what was found and what to do.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a PyTorch file")
    if not path.is_file():
        raise TorchFileError(f"{path}: expected a PyTorch file, found a directory")
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise TorchFileError(f"{path}: expected a PyTorch file, found no bytes; {_AGAIN}")
        return loads(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))


def loads(buffer: bytes | bytearray | memoryview | mmap.mmap, name: str) -> object:
    """Reads the content of a PyTorch file, or a pickled tensor or array, from memory.

    Args:
        buffer: the bytes. Arrays of the result are views of it: copy what must outlive a buffer
            that is not yours (a value of an LMDB within its transaction).
        name: of the file or of the value's key, for messages.

    Returns:
        as `load`.

    Raises:
        TorchFileError: as `load`.
    """
    data = memoryview(buffer).toreadonly().cast("B")
    head = bytes(data[:512]).lstrip()
    for start, kind, what_to_do in _OTHER_FILES:
        if head.lower().startswith(start):
            raise TorchFileError(f"{name}: expected a PyTorch file, found {kind}; {what_to_do}")
    try:
        if head[:4] == b"PK\x03\x04":
            return _read_archive(data)
        if head[:1] == b"\x80":
            return _read_stream(data, Budget(len(data)), is_nested=False)
    except Malformed as error:
        raise TorchFileError(
            f"{name}: expected a PyTorch file of tensors in plain containers, found {error}; "
            + (error.advice or f"{_AGAIN}, or save the tensors alone with torch.save")
        ) from None
    text = printable(head[:16].decode("latin-1"))
    raise TorchFileError(
        f"{name}: expected a PyTorch file, found {len(data)} bytes that begin with '{text}'; "
        f"{_AGAIN}"
    )


def foreign_names(value: object) -> list[str]:
    """Names of the globals that stand unresolved anywhere in a loaded value, in order."""
    return list(
        dict.fromkeys(part.name for part in _parts(value) if isinstance(part, UnknownGlobal))
    )


def refuse_foreign(value: object, name: str) -> None:
    """Raises `TorchFileError` if anything but tensors and plain values stands in `value`.

    Args:
        value: a loaded value, or a part of one.
        name: of the file and the part, for the message.
    """
    names = foreign_names(value)
    if names:
        rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise TorchFileError(
            f"{name}: expected tensors and plain containers, found {', '.join(names[:5])}{rest}, "
            "which was not called; save the tensors alone (a state dict) with torch.save"
        )


def _parts(value: object) -> Iterator[object]:
    """Every value in nested containers, keys included; each container once."""
    pending, visited = [value], set()
    while pending:
        part = pending.pop()
        yield part
        if isinstance(part, (dict, list, tuple, set)) and id(part) not in visited:
            visited.add(id(part))
            children = [*part, *part.values()] if isinstance(part, dict) else list(part)
            pending.extend(reversed(children))


def _storage_id(value: object) -> tuple[np.dtype | UnknownGlobal, str, int, object]:
    """Type, key, number of entries and view of a storage, from its persistent id."""
    if (
        not isinstance(value, tuple)
        or len(value) not in (5, 6)
        or value[0] != "storage"
        or not isinstance(value[2], str)
        or not isinstance(value[4], int)
        or value[4] < 0
    ):
        raise Malformed("a persistent id that names no storage")
    return allowed_globals.storage_type(value[1]), value[2], value[4], (*value, None)[5]


def _storage(
    content: memoryview, key: str, dtype: np.dtype, count: int, swapped: bool, budget: Budget
) -> allowed_globals.Storage:
    if len(content) != count * dtype.itemsize:
        raise Malformed(
            f"a storage {printable(key)} of {len(content)} bytes that claims {count} entries of "
            f"type {dtype}"
        )
    return allowed_globals.Storage(content, dtype, swapped, budget)


def _read_archive(data: memoryview) -> object:
    """Reads the zip layout."""
    budget = Budget(len(data))
    members = zip_archive.members(data, budget)
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        kind = "a NumPy .npz archive" if any(n.endswith(".npy") for n in members) else "a zip"
        raise Malformed(f"{kind} with {len(roots)} members */data.pkl instead of one")
    root = roots[0]
    order = bytes(members.get(f"{root}byteorder", b"little")[:16]).decode("latin-1")
    if order not in _SWAPPED:
        raise Malformed(f"the byte order {printable(order)}")

    def persistent(value: object) -> object:
        dtype, key, count, _ = _storage_id(value)
        if isinstance(dtype, UnknownGlobal):
            return UnknownGlobal(dtype.name)
        content = members.get(f"{root}data/{key}")
        if content is None:
            raise Malformed(f"no member data/{printable(key)}, which a tensor needs")
        return _storage(content, key, dtype, count, _SWAPPED[order], budget)

    table = allowed_globals.admitted(budget, _nested_reader(budget))
    pickled = members[f"{root}data.pkl"]
    value, end = unpickler.run(pickled, 0, table, persistent, budget)
    _expect_end(pickled, end)
    return value


def _nested_reader(budget: Budget) -> allowed_globals.StorageReader:
    return lambda content: _read_stream(content, budget, is_nested=True)


def _expect_end(data: memoryview, end: int) -> None:
    if end != len(data):
        raise Malformed(f"{len(data) - end} bytes after the end of its content")


def _read_stream(data: memoryview, budget: Budget, is_nested: bool) -> object:
    """Reads the old stream, or (unless `is_nested` in a pickled tensor) a plain pickle."""
    reader = None if is_nested else _nested_reader(budget)
    table = allowed_globals.admitted(budget, reader)

    def no_storages(value: object) -> object:
        raise Malformed("a storage that is kept elsewhere")

    value, end = unpickler.run(data, 0, table, no_storages, budget)
    if type(value) is not int or value != _MAGIC_NUMBER:
        if is_nested:
            raise Malformed("a storage that is no PyTorch stream")
        _expect_end(data, end)
        return value
    version, end = unpickler.run(data, end, table, no_storages, budget)
    if version != _STREAM_VERSION:
        text = version if isinstance(version, int) else type(version).__name__
        raise Malformed(f"version {text} of the old stream, expected {_STREAM_VERSION}")
    _, start = unpickler.run(data, end, table, no_storages, budget)

    # The storages follow the object that is made of them: once to learn where they are, once more
    # to make it.
    types: dict[str, np.dtype] = {}

    def note_storage(value: object) -> object:
        dtype, key, _, _ = _storage_id(value)
        if isinstance(dtype, UnknownGlobal):
            raise Malformed(f"a storage of type {dtype.name}")
        types[key] = dtype
        return UnknownGlobal("a storage")

    first = Budget(len(data))
    _, end = unpickler.run(
        data, start, allowed_globals.admitted(first, reader), note_storage, first
    )
    keys, end = unpickler.run(data, end, table, no_storages, budget)
    contents, end = _stream_storages(data, end, keys, types)
    _expect_end(data, end)

    def persistent(value: object) -> object:
        dtype, key, count, view = _storage_id(value)
        assert isinstance(dtype, np.dtype)
        if key not in contents:
            raise Malformed(f"no storage {printable(key)}, which a tensor needs")
        return _part(_storage(contents[key], key, dtype, count, _SWAPPED["little"], budget), view)

    value, _ = unpickler.run(data, start, table, persistent, budget)
    return value


def _stream_storages(
    data: memoryview, position: int, keys: object, types: dict[str, np.dtype]
) -> tuple[dict[str, memoryview], int]:
    """Content of the storages of the old stream: each a count of 8 bytes, then the entries."""
    if not isinstance(keys, list):
        raise Malformed("no list of storages")
    contents: dict[str, memoryview] = {}
    for key in keys:
        if not isinstance(key, str) or key not in types:
            raise Malformed("a storage that belongs to no tensor")
        size = int.from_bytes(data[position : position + 8], "little") * types[key].itemsize
        position += 8
        if position + size > len(data):
            raise Malformed(
                f"a storage of {size} bytes at byte {position} of {len(data)}: the file is cut off"
            )
        contents[key] = data[position : position + size]
        position += size
    return contents, position


def _part(storage: allowed_globals.Storage, view: object) -> allowed_globals.Storage:
    """The part of a storage that a storage of the oldest files was: (key, offset, size)."""
    if view is None:
        return storage
    if (
        not isinstance(view, tuple)
        or len(view) != 3
        or not isinstance(view[1], int)
        or not isinstance(view[2], int)
    ):
        raise Malformed("a view of a storage that is no place in it")
    return storage.part(view[1], view[2])
