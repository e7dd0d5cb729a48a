"""A disk that refuses: at one moment, or every file beyond a size."""

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Iterator

_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


class _Disk:
    """Counts what changes files under a folder, by Python's audit events, which never end."""

    def __init__(self) -> None:
        self.folder, self.steps, self.refused = "", 0, -1
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if not self.folder:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if (event in _EVENTS or writes) and str(arguments[0]).startswith(self.folder):
            self.steps += 1
            if self.steps == self.refused:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(arguments[0]))


_DISK: list[_Disk] = []


@contextlib.contextmanager
def refusing(folder: str, step: int) -> Iterator[_Disk]:
    """Refuses the step with a number, from 1, of those that change files under a folder."""
    if not _DISK:
        _DISK.append(_Disk())
    disk = _DISK[0]
    disk.folder, disk.steps, disk.refused = folder, 0, step
    try:
        yield disk
    finally:
        disk.folder = ""


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Refuses to let any file of this process grow beyond a number of bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
