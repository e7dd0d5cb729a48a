"""Writes PyTorch files by hand, so that tests of the reader need no PyTorch (and can lie)."""

import dataclasses
import io
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np

CLASSES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
}
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Raw(bytes):
    """Pickle opcodes to be written as they are."""


@dataclasses.dataclass
class View:
    """A tensor as the pickle describes it; what is None is taken from the storage."""

    storage: np.ndarray
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    offset: int = 0
    count: int | None = None
    key: str | None = None


class Writer:
    """Pickles an object for one layout and collects its storages."""

    def __init__(self, layout: str = "zip") -> None:
        self.layout = layout
        self.storages: dict[str, np.ndarray] = {}
        self.keys: dict[int, str] = {}

    def text(self, value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def dump(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, np.ndarray):
            return self.view(View(value))
        if isinstance(value, View):
            return self.view(value)
        if isinstance(value, dict):
            start = b"ccollections\nOrderedDict\n)R" if type(value) is OrderedDict else b"}"
            return start + b"(" + b"".join(map(self.dump, sum(value.items(), ()))) + b"u"
        if isinstance(value, (list, tuple)):
            start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
            return start + b"".join(map(self.dump, value)) + end
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        width = max(9, int(value).bit_length() // 8 + 1)
        data = int(value).to_bytes(width, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def view(self, view: View) -> bytes:
        array = view.storage
        key = self.keys.setdefault(id(array), str(len(self.keys)))
        flat = np.ascontiguousarray(array).reshape(-1)
        self.storages[key] = flat
        shape = array.shape if view.shape is None else view.shape
        strides = view.strides
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        count = flat.size if view.count is None else view.count
        storage = self.storage(array.dtype.name, view.key or key, count)
        return self.tensor(storage, view.offset, tuple(shape), tuple(strides))

    def storage(
        self, dtype: str, key: str, count: int, part: tuple[str, int, int] | None = None
    ) -> Raw:
        cls = Raw(b"ctorch\n" + CLASSES[dtype].encode() + b"\n")
        identity = ("storage", cls, key, "cpu", count)
        return Raw(self.dump((*identity, part) if self.layout == "stream" else identity) + b"Q")

    def storage_of(
        self, array: np.ndarray, count: int | None = None, part: tuple[str, int, int] | None = None
    ) -> Raw:
        """The storage with the entries of `array`, which must outlive the writer."""
        key = self.keys.setdefault(id(array), str(len(self.keys)))
        flat = np.ascontiguousarray(array).reshape(-1)
        self.storages[key] = flat
        return self.storage(array.dtype.name, key, flat.size if count is None else count, part)

    def stream(self, value: Any) -> bytes:
        """`value` as the old stream."""
        return _stream(self, value)

    def tensor(
        self, storage: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> bytes:
        numbers = b"".join(map(self.dump, (offset, shape, strides)))
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + numbers
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )


def zip_bytes(value: Any, extra: dict[str, bytes] | None = None, compress: bool = False) -> bytes:
    """`torch.save(value)` as a zip archive; `extra` members are added under their full names."""
    return zip_bytes_of(Writer(), value, extra, compress)


def zip_bytes_of(
    writer: Writer, value: Any, extra: dict[str, bytes] | None = None, compress: bool = False
) -> bytes:
    """`zip_bytes` of a value that names storages of `writer`."""
    members = {"archive/data.pkl": b"\x80\x02" + writer.dump(value) + b"."}
    members["archive/byteorder"] = b"little"
    for key, storage in writer.storages.items():
        members[f"archive/data/{key}"] = storage.tobytes()
    members["archive/version"] = b"3\n"
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in (members | (extra or {})).items():
            archive.writestr(name, content)
    return file.getvalue()


def stream_bytes(value: Any) -> bytes:
    """`torch.save(value)` as the old stream."""
    return _stream(Writer("stream"), value)


def _stream(writer: Writer, value: Any) -> bytes:
    pickled = b"\x80\x02" + writer.dump(value) + b"."
    system = b"\x80\x02" + writer.dump({"little_endian": True}) + b"."
    keys = b"\x80\x02" + writer.dump(list(writer.storages)) + b"."
    content = b"".join(
        struct.pack("<q", storage.size) + storage.tobytes() for storage in writer.storages.values()
    )
    return MAGIC + b"\x80\x02M\xe9\x03." + system + pickled + keys + content


def load_from_bytes(array: np.ndarray) -> Raw:
    """A storage that carries its entries along, as a stream of its own."""
    writer = Writer("stream")
    inner = writer.stream(writer.storage_of(array.reshape(-1)))
    data = b"B" + struct.pack("<I", len(inner)) + inner
    return Raw(b"ctorch.storage\n_load_from_bytes\n" + data + b"\x85R")


def pickled(writer: Writer, value: Any) -> bytes:
    """A plain pickle of a value of tensors that carry their storages along."""
    return b"\x80\x03" + writer.dump(value) + b"."


def pickled_tensor(array: np.ndarray) -> bytes:
    """`pickle.dumps(tensor)`, as the values of an LMDB are."""
    writer = Writer("stream")
    strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
    tensor = writer.tensor(load_from_bytes(array), 0, array.shape, strides)
    return pickled(writer, Raw(tensor))


def save(path: Any, value: Any) -> Any:
    """Writes `value` to `path` as a zip archive and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(value))
    return path
