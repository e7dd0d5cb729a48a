"""Random pickles of tensors that are rebuilt from storages, other tensors, arrays and parameters.

Offsets, sizes and strides lie about the ends of the storages; about half of the tensors are sound.
"""

import math
import pickle
import random
from collections.abc import Callable

import numpy as np
from torch_writer import Raw, Writer, load_from_bytes, pickled, zip_bytes_of

LAYOUTS = ("zip", "zip, big-endian", "stream", "stream of parts", "pickle")
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_TYPES = (*_FLOATS, "int64", "bool")
_HUGE = (2**31, 2**40, 2**47, 2**48, 2**62, 2**63, 2**70)


def random_rebuilds(chance: random.Random) -> bytes:
    """A file of one to four tensors."""
    layout = chance.choice(LAYOUTS)
    rebuilds = _Rebuilds(chance, layout)
    depths = chance.choices((0, 1, 2), (6, 1, 1), k=chance.choice((1, 1, 1, 2, 3)))
    value = {str(number): rebuilds.tensor(depth) for number, depth in enumerate(depths)}
    if layout == "pickle":
        return pickled(rebuilds.writer, value)
    if layout.startswith("stream"):
        return rebuilds.writer.stream(value)
    order = b"big" if layout.endswith("big-endian") else b"little"
    return zip_bytes_of(rebuilds.writer, value, {"archive/byteorder": order})


class _Rebuilds:
    """Opcodes of tensors for one file."""

    def __init__(self, chance: random.Random, layout: str) -> None:
        self.chance = chance
        self.layout = layout
        self.writer = Writer("zip" if layout.startswith("zip") else "stream")
        self.arrays: list[np.ndarray] = []

    def tensor(self, depth: int) -> Raw:
        """A tensor whose storage is a tensor, an array or a parameter where `depth` is above 0."""
        if depth:
            source, count, dtype = self.within(depth)
        else:
            source, count, dtype = self.storage()
        tensor = self.rebuilt(source, count, dtype)
        if self.chance.random() < 0.2:
            empty = Raw(b"ccollections\nOrderedDict\n)R")
            tensor = self.call("torch._utils _rebuild_parameter", (tensor, True, empty))
        return tensor

    def within(self, depth: int) -> tuple[Raw, int, str]:
        """What stands in place of a storage, the number of its entries and their type."""
        count = self.chance.choice((1, 64, 4096, 2**17))
        kind = self.chance.randrange(4)
        if kind == 0:
            array = np.zeros(count % 1000, np.float32)
            return Raw(pickle.dumps(array, 2)[2:-1]), array.size, "float32"
        if kind == 1:
            return self.tensor(depth - 1), count, "float32"
        # One entry of a storage that is repeated: larger than what it is a view of.
        source, _, dtype = self.storage()
        repeated = (source, 0, (count,), (0,), False, Raw(b"ccollections\nOrderedDict\n)R"))
        return self.call("torch._utils _rebuild_tensor_v2", repeated), count, dtype

    def storage(self) -> tuple[Raw, int, str]:
        """Opcodes of a storage, the number of its entries and their type."""
        if self.arrays and self.chance.random() < 0.5:
            array = self.chance.choice(self.arrays)
        else:
            # Sizes about that of a page are those at which nothing separates a buffer from guards.
            size = self.chance.choice((1, 2, 7, 64, 511, 512, 1024, 1025))
            array = np.zeros(size, self.chance.choice(["f4", "f8", "f2", "i8", "?"]))
            self.arrays.append(array)
        name, count = array.dtype.name, array.size
        if self.chance.random() < 0.05:
            count += self.chance.choice((-1, 1, 2**40))
        if self.layout == "pickle":
            return load_from_bytes(array), array.size, name
        part = None
        if self.layout == "stream of parts" and self.chance.random() < 0.7:
            start = self.near(self.chance.randrange(array.size))
            size = self.near(max(0, array.size - start))
            part = ("0", start, size)
        source = self.writer.storage_of(array, count, part)
        return source, part[2] if part else array.size, name

    def rebuilt(self, source: Raw, count: int, dtype: str) -> Raw:
        """A call that makes a tensor of a storage of `count` entries."""
        offset = self.chance.randrange(count) if count > 0 and self.chance.random() < 0.5 else 0
        shape = self.shape(max(1, count - offset))
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if self.chance.random() < 0.3:  # overlaps, repetitions, gaps
            strides = [self.chance.choice((0, 1, 2, stride)) for stride in strides]
        if self.chance.random() < 0.4:
            numbers = self.chance.choice(("offset", "shape", "strides"))
            if numbers == "offset":
                offset = self.near(offset)
            elif shape:
                changed = shape if numbers == "shape" else strides
                at = self.chance.randrange(len(changed))
                changed[at] = self.near(changed[at])
        arguments = (source, offset, tuple(shape), tuple(strides))
        hooks = Raw(b"ccollections\nOrderedDict\n)R")
        kind = self.chance.randrange(4)
        if kind == 0:
            return self.call("torch._utils _rebuild_tensor", arguments)
        if kind == 1:
            other = dtype if self.chance.random() < 0.5 else self.chance.choice(_TYPES)
            name = Raw(f"ctorch\n{other}\n".encode())
            return self.call("torch._utils _rebuild_tensor_v3", (*arguments, False, hooks, name))
        return self.call("torch._utils _rebuild_tensor_v2", (*arguments, False, hooks))

    def shape(self, size: int) -> list[int]:
        """A shape of `size` entries at most, and mostly of exactly so many."""
        rank = self.chance.choice((0, 1, 1, 2, 2, 3))
        shape = []
        for _ in range(rank - 1):
            shape.append(self.chance.choice([n for n in (1, 2, 3, 4, 8) if n <= size]))
            size //= shape[-1]
        return [*shape, size] if rank else []

    def near(self, number: int) -> int:
        """A number beside another, or far beyond it."""
        small: tuple[Callable[[], int], ...] = (
            lambda: number,
            lambda: number + 1,
            lambda: number - 1,
            lambda: 2 * number,
            lambda: 0,
            lambda: number + self.chance.choice((64, 4096, 2**20)),
            lambda: self.chance.choice((1, -1)) * self.chance.choice(_HUGE),
        )
        return self.chance.choice(small)()

    def call(self, function: str, arguments: tuple[object, ...]) -> Raw:
        module, name = function.split()
        return Raw(f"c{module}\n{name}\n".encode() + self.writer.dump(arguments) + b"R")
