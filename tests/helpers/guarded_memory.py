"""Memory with pages on either side that must not be touched: a read beyond it ends the process."""

import contextlib
import ctypes
import itertools
import mmap
from collections.abc import Iterator

import numpy as np

from steph_jax.data.torch_format import allowed_globals

_NO_ACCESS = 0


def guarded(data: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of a one-dimensional array that ends (or begins) where its pages do."""
    if not data.size:
        return data
    page = mmap.PAGESIZE
    size = -(-data.nbytes // page) * page
    mapping = mmap.mmap(-1, size + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (start, start + page + size):
        if mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (size - data.nbytes if at_end else 0)
    copy = np.frombuffer(mapping, data.dtype, data.size, offset)
    copy[:] = data
    return copy


class GuardedStorages:
    """Every buffer that the reader of PyTorch files makes arrays of, in guarded memory."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._at_end = itertools.cycle((True, False))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within, the reader takes its buffers from here."""
        original = allowed_globals.from_bytes

        def from_bytes(*arguments: object) -> np.ndarray:
            copy = guarded(original(*arguments), next(self._at_end))
            self._ranges.append(np.lib.array_utils.byte_bounds(copy))
            return copy

        allowed_globals.from_bytes = from_bytes
        try:
            yield
        finally:
            allowed_globals.from_bytes = original
            self._ranges.clear()

    def hold(self, array: np.ndarray) -> bool:
        """Whether all entries of an array lie within one of the buffers."""
        low, high = np.lib.array_utils.byte_bounds(array)
        return not array.size or any(start <= low and high <= stop for start, stop in self._ranges)
