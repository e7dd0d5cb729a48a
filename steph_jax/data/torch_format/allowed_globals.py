"""The globals that a pickle of tensors may name, and what stands in for each of them.

The whole list is in `admitted`. The stand-ins never import or call what they stand for: tensors
and arrays become NumPy arrays that view the bytes of the file, after every size, stride and offset
has been checked against the bytes that are there.

A tensor is a view of a `Storage`, and of nothing else: never of another tensor, whose size says
nothing about the bytes below it (a stride of 0 makes a tensor of any size of one entry).
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from steph_jax.data.torch_format.placeholders import (
    AllowedFunction,
    Budget,
    Malformed,
    Unbuilt,
    UnknownGlobal,
    printable,
)

_BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)
_STORAGES: Mapping[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("f4"),
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": np.dtype("i8"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.storage.UntypedStorage": np.dtype("u1"),
}
_DTYPES: Mapping[str, np.dtype] = {
    "torch.float16": np.dtype("f2"),
    "torch.bfloat16": _BFLOAT16,
    "torch.float32": np.dtype("f4"),
    "torch.float64": np.dtype("f8"),
    "torch.uint8": np.dtype("u1"),
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
    "torch.int8": np.dtype("i1"),
    "torch.int16": np.dtype("i2"),
    "torch.int32": np.dtype("i4"),
    "torch.int64": np.dtype("i8"),
    "torch.bool": np.dtype("?"),
    "ml_dtypes.bfloat16": _BFLOAT16,
}
#: Types of arrays as NumPy writes them: booleans, integers, floats; no objects, text or records.
_ARRAY_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 32


#: Reads the old stream of a storage that is pickled inside a tensor.
StorageReader = Callable[[memoryview], object]


class TypeName(UnknownGlobal):
    """An admitted global that names a type of numbers; never called."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: np.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


def from_bytes(raw: memoryview, dtype: np.dtype, swapped: bool, budget: Budget) -> np.ndarray:
    """[n] array over `raw`, a view of it where the file's byte order is the machine's.

    Args:
        raw: bytes, a multiple of the item size of `dtype`.
        dtype: type of the entries.
        swapped: the bytes are in the other byte order.
        budget: charged when the entries must be copied.
    """
    if not len(raw):
        return np.zeros(0, dtype)
    if dtype == np.bool_:
        budget.charge(len(raw))
        return np.frombuffer(raw, np.uint8) != 0
    if swapped and dtype.itemsize > 1:
        budget.charge(len(raw))
        return np.frombuffer(raw, f"u{dtype.itemsize}").byteswap().view(dtype)
    return np.frombuffer(raw, dtype)


class Storage(UnknownGlobal):
    """Entries that tensors are views of: all of them, and only them, are bytes of the file.

    One that is left over in a result belongs to no tensor, and counts as unknown there.

    Args:
        content: bytes, a multiple of the item size of `dtype`.
        dtype: type of the entries.
        swapped: the bytes are in the other byte order.
        budget: charged when the entries must be copied.
    """

    __slots__ = ("_budget", "_content", "_swapped", "entries")

    def __init__(self, content: memoryview, dtype: np.dtype, swapped: bool, budget: Budget) -> None:
        super().__init__(f"a storage of {dtype}")
        self._content = content
        self._swapped = swapped
        self._budget = budget
        #: [n] array of native byte order.
        self.entries: np.ndarray = from_bytes(content, dtype, swapped, budget)

    def read_as(self, dtype: np.dtype) -> "Storage":
        """The same bytes as entries of another type."""
        if len(self._content) % dtype.itemsize:
            raise Malformed(f"a storage of {len(self._content)} bytes for entries of {dtype}")
        return Storage(self._content, dtype, self._swapped, self._budget)

    def part(self, start: int, count: int) -> "Storage":
        """`count` of its entries from `start` on, as a storage of its own."""
        if min(start, count) < 0 or start + count > self.entries.size:
            raise Malformed("a view that reaches beyond its storage")
        size = self.entries.itemsize
        content = self._content[start * size : (start + count) * size]
        return Storage(content, self.entries.dtype, self._swapped, self._budget)


def storage_type(value: object) -> np.dtype | UnknownGlobal:
    """The type of entries that a storage's class stands for, or the foreign class itself."""
    if isinstance(value, TypeName):
        return value.dtype
    if isinstance(value, UnknownGlobal):
        return value
    raise Malformed("a storage whose class is no class")


def admitted(budget: Budget, load_from_bytes: StorageReader | None) -> dict[str, UnknownGlobal]:
    """Stand-ins by full name: every global that a pickle of tensors may use.

    Args:
        budget: charged for arrays.
        load_from_bytes: reads the old stream of a storage that is pickled inside a tensor; None
            where no such stream may stand.
    """

    def rebuild_tensor(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 4, 8, "a tensor")
        storage, offset, size, stride = arguments[:4]
        if len(arguments) > 6 and arguments[6]:
            raise Malformed(f"a tensor of special kind, {arguments[6]!r}")
        return tensor_view(storage, offset, size, stride, budget)

    def rebuild_tensor_of_type(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 7, 8, "a tensor")
        storage, offset, size, stride, _, _, type_name = arguments[:7]
        if not isinstance(storage, Storage) or not isinstance(type_name, TypeName):
            raise Malformed("a tensor without a storage or a type")
        return tensor_view(storage.read_as(type_name.dtype), offset, size, stride, budget)

    def rebuild_parameter(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 3, 4, "a parameter")
        return arguments[0]

    def reconstruct_array(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 3, 3, "an array")
        return Unbuilt(lambda state: _array(state, budget))

    def array_from_buffer(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 4, 4, "an array")
        raw, dtype, shape, order = arguments
        return _filled(raw, dtype, shape, order == "F", budget)

    def scalar(arguments: tuple[object, ...]) -> object:
        _expect_arguments(arguments, 2, 2, "a number")
        return _filled(arguments[1], arguments[0], (), False, budget)[()]

    def encode(arguments: tuple[object, ...]) -> object:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
            raise Malformed("text encoded otherwise than NumPy does it")
        budget.charge(len(arguments[0]))
        try:
            return memoryview(arguments[0].encode("latin-1"))
        except UnicodeEncodeError:
            raise Malformed("bytes written as text beyond Latin-1") from None

    def storage_from_bytes(arguments: tuple[object, ...]) -> object:
        if load_from_bytes is None or len(arguments) != 1:
            raise Malformed("a storage within a storage")
        if not isinstance(arguments[0], memoryview):
            raise Malformed("a storage that is not bytes")
        return load_from_bytes(arguments[0])

    functions: dict[str, Callable[[tuple[object, ...]], object]] = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": rebuild_tensor_of_type,
        "torch._utils._rebuild_parameter": rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
        "torch.Size": _size,
        "torch.storage._load_from_bytes": storage_from_bytes,
        "numpy.ndarray": _not_callable,
        "numpy.dtype": _dtype,
        "numpy.core.multiarray._reconstruct": reconstruct_array,
        "numpy._core.multiarray._reconstruct": reconstruct_array,
        "numpy.core.multiarray.scalar": scalar,
        "numpy._core.multiarray.scalar": scalar,
        "numpy.core.numeric._frombuffer": array_from_buffer,
        "numpy._core.numeric._frombuffer": array_from_buffer,
        "_codecs.encode": encode,
        "__builtin__.bytes": _empty_bytes,
        "builtins.bytes": _empty_bytes,
    }
    table: dict[str, UnknownGlobal] = {
        name: AllowedFunction(name, call) for name, call in functions.items()
    }
    for name, dtype in (*_STORAGES.items(), *_DTYPES.items()):
        table[name] = TypeName(name, dtype)
    return table


def _expect_arguments(arguments: tuple[object, ...], least: int, most: int, what: str) -> None:
    if not least <= len(arguments) <= most:
        raise Malformed(f"{what} made of {len(arguments)} parts, expected {least} to {most}")


def _not_callable(arguments: tuple[object, ...]) -> object:
    raise Malformed("an array made otherwise than NumPy pickles it")


def _empty_bytes(arguments: tuple[object, ...]) -> object:
    if arguments:
        raise Malformed("bytes made by a call")
    return memoryview(b"")


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    if arguments:
        raise Malformed("an OrderedDict made of something")
    return OrderedDict()


def _size(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise Malformed("a torch.Size that is no tuple")
    return arguments[0]


def _dimensions(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMENSIONS:
        raise Malformed(f"{what} that is not a short tuple")
    dimensions = []
    for entry in value:
        if not isinstance(entry, int) or not 0 <= entry < 2**48:
            text = entry if isinstance(entry, int) else type(entry).__name__
            raise Malformed(f"{what} with the entry {text}")
        dimensions.append(int(entry))
    return tuple(dimensions)


def tensor_view(
    storage: object, offset: object, size: object, stride: object, budget: Budget
) -> np.ndarray:
    """The view of a storage that a tensor is; its elements must lie within the storage."""
    if not isinstance(storage, Storage):
        kind = "another tensor" if isinstance(storage, np.ndarray) else "something else"
        raise Malformed(f"a tensor whose storage is {kind}")
    entries = storage.entries
    shape = _dimensions(size, "a shape")
    strides = _dimensions(stride, "strides")
    if len(shape) != len(strides):
        raise Malformed(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    if not isinstance(offset, int) or offset < 0:
        raise Malformed("a tensor with a negative offset")
    count = math.prod(shape)
    if math.prod(max(n, 1) for n in shape) * entries.itemsize >= 2**62:
        raise Malformed(f"a tensor of shape {list(shape)}")
    if count == 0:
        return np.zeros(shape, entries.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= entries.size:
        raise Malformed(
            f"a tensor of shape {list(shape)}, which reaches entry {last} of a storage of "
            f"{entries.size}"
        )
    # Views cost nothing here but may be copied by the caller.
    budget.charge(count * entries.itemsize)
    return np.lib.stride_tricks.as_strided(
        entries[offset:], shape, [step * entries.itemsize for step in strides], writeable=False
    )


def _dtype(arguments: tuple[object, ...]) -> object:
    """numpy.dtype(code, align, copy), which gets its byte order as state."""
    _expect_arguments(arguments, 1, 3, "a numpy.dtype")
    code = arguments[0]
    if isinstance(code, TypeName):
        dtype = code.dtype
    elif isinstance(code, str) and _ARRAY_TYPE.fullmatch(code):
        dtype = np.dtype(code)
    else:
        name = printable(code) if isinstance(code, str) else "?"
        return UnknownGlobal(f"numpy.dtype of {name}")

    def finish(state: object) -> object:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise Malformed("a numpy.dtype without a byte order")
        return dtype if dtype == _BFLOAT16 else np.dtype(order + dtype.str[1:])

    return Unbuilt(finish)


def _array(state: object, budget: Budget) -> object:
    """The array that NumPy pickles as (version, shape, dtype, is Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise Malformed("an array without its state")
    _, shape, dtype, is_fortran, raw = state
    if isinstance(dtype, UnknownGlobal):
        return UnknownGlobal(dtype.name)
    return _filled(raw, dtype, shape, is_fortran is True, budget)


def _filled(
    raw: object, dtype: object, size: object, is_fortran: bool, budget: Budget
) -> np.ndarray:
    """[size] array of native byte order from its bytes."""
    if not isinstance(dtype, np.dtype):
        raise Malformed("an array without a type of its entries")
    shape = _dimensions(size, "a shape")
    if not isinstance(raw, memoryview):
        raise Malformed("an array whose content is not bytes")
    count = math.prod(shape)
    if count * dtype.itemsize != len(raw):
        raise Malformed(
            f"an array of shape {list(shape)} and type {dtype} with {len(raw)} bytes, expected "
            f"{count * dtype.itemsize}"
        )
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**62:
        raise Malformed(f"an array of shape {list(shape)}")
    entries = from_bytes(raw, dtype.newbyteorder("="), not dtype.isnative, budget)
    return entries.reshape(shape, order="F" if is_fortran else "C")
