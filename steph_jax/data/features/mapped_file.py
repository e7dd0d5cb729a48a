"""Reading files that are mapped into memory while somebody may cut them.

    mapped = MappedFile(path, size, "copy it again")
    with mapped.reading():                           BadFeatures where the file is another size
        np.copyto(out, rows)                         before or after, or lost pages in between

A page that a mapped file has lost cannot be read: the kernel sends SIGBUS, which ends the process.
Reading by `pread` would fail instead, but a copy from the page cache takes twice the time of one
from a mapping. So the mapping stays, and on Linux a handler of the signal puts an empty page in
place of the lost one, where a thread is `reading` alone, and notes it; whatever was made of it is
refused. Elsewhere sizes are compared, and nothing else.
"""

import contextlib
import ctypes
import mmap
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from steph_jax.data.features.slide import BadFeatures

#: The usual advice.
CHANGED = "it was changed while it was in use: copy it again"

_SA_SIGINFO, _SA_NODEFER = 4, 0x40000000
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x02, 0x10, 0x20
#: Offsets in the kernel's record of a signal, 64 bits: its reason, and the address.
_CODE_AT, _ADDRESS_AT = 8, 16
#: The reason: there is nothing at the address.
_BUS_ADRERR = 2
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """`struct sigaction` of the C libraries of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class MappedFile:
    """A file that is mapped, and what it has to be for as long as its mapping is read.

    Attributes:
        has_lost_pages: the mapping holds empty pages in place of some that could not be read.
    """

    def __init__(
        self, path: pathlib.Path, size: int, advice: str, *, may_grow: bool = False
    ) -> None:
        """Reads nothing yet.

        Args:
            path: the file.
            size: bytes that it had when it was mapped.
            advice: what has happened or is to be done where it changed, for the message.
            may_grow: take a file that has grown.
        """
        self.has_lost_pages = False
        self._path = os.fspath(path)
        self._size = size
        self._advice = advice
        self._may_grow = may_grow

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Where the mapping may be read, from any thread.

        Raises:
            BadFeatures: the file has another size, or its mapping has lost pages.
        """
        self._check()
        _lost_pages.begin(self)
        try:
            yield
        except Exception:
            self._check()  # empty pages fail in ways of their own
            raise
        finally:
            _lost_pages.end()
        self._check()

    def _check(self) -> None:
        size = os.stat(self._path).st_size
        if size < self._size or (size > self._size and not self._may_grow):
            raise BadFeatures(
                f"{self._path}: expected {self._size:,} bytes, found {size:,}; {self._advice}"
            )
        if self.has_lost_pages:
            raise BadFeatures(
                f"{self._path}: parts of it are not there, for it was cut or is damaged; "
                f"{self._advice}"
            )


class _LostPages:
    """Replaces pages that mapped files have lost, for threads that are reading them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._installed = False
        #: What each thread is reading, by its number; the innermost file last.
        self._reading: dict[int, list[MappedFile]] = {}

    def begin(self, file: MappedFile) -> None:
        """From here on, pages that this thread cannot read are replaced; the file takes note."""
        if not self._installed:
            with self._lock:
                if not self._installed:
                    self._install()
                    self._installed = True
        self._reading.setdefault(threading.get_ident(), []).append(file)

    def end(self) -> None:
        """Ends what this thread began last."""
        thread = threading.get_ident()
        files = self._reading[thread]
        files.pop()
        if not files:
            del self._reading[thread]

    def _install(self) -> None:
        if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
        )
        former = _Action()
        self._handler = _HANDLER(self._handling(libc, former))  # it lives as long as the process
        handler = ctypes.cast(self._handler, ctypes.c_void_p).value
        action = _Action(handler=handler, flags=_SA_SIGINFO | _SA_NODEFER)
        if libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(former)):
            raise OSError(ctypes.get_errno(), "sigaction")

    def _handling(self, libc: Any, former: _Action) -> Callable[[int, int, int], None]:
        def handle(number: int, record: int, context: int) -> None:
            """Runs in the thread that read the page, at the instruction that did."""
            files = self._reading.get(threading.get_ident())
            code = ctypes.c_int.from_address(record + _CODE_AT).value
            if files and code == _BUS_ADRERR:
                files[-1].has_lost_pages = True  # first: others may read the empty page
                address = ctypes.c_uint64.from_address(record + _ADDRESS_AT).value
                page = address // mmap.PAGESIZE * mmap.PAGESIZE
                flags = _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS
                if libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0) == page:
                    return
            # Another's: the instruction runs again, and the signal reaches the handler of before.
            libc.sigaction(number, ctypes.byref(former), None)

        return handle


_lost_pages = _LostPages()
