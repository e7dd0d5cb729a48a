"""Locks between processes, on one machine or several, and which process made a file.

A lock is a file that one process at a time holds, whose text names that process. It ends with the
process, however that ends. The number of a process means nothing on another machine, after a
restart, or in another container: `Process` names all of these, so that what a killed process left
is removed only where that process is known to be gone.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import re
from collections.abc import Iterator
from typing import NamedTuple

import filelock

#: What file systems answer that have no locks, or whose locks are switched off.
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = pathlib.Path("/proc/self/ns/pid")
_NAME = re.compile(r"(?P<host>[\w-]*)-(?P<system>[0-9a-f]{12})-(?P<number>\d+)-[0-9a-f]{8}")


class Process(NamedTuple):
    """A process, unique among machines and containers.

    Attributes:
        host: name of its machine, as far as it may be a part of a file's name.
        system: digest of the host, its last start and the namespace of process numbers.
        number: of the process there.
    """

    host: str
    system: str
    number: int

    def temporary_suffix(self) -> str:
        """Ends a name that no other process, and no other call, gives."""
        return f"{self.host}-{self.system}-{self.number}-{os.urandom(4).hex()}"

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False for one that cannot be seen here."""
        if self.system != this_process().system:
            return False
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def this_process() -> Process:
    """The process that runs this."""
    return Process(*_system(), os.getpid())


def process_of(name: str) -> Process | None:
    """The process that made a file of a name ending as `temporary_suffix`; None for other names."""
    match = _NAME.fullmatch(name.rpartition(".")[2])
    return match and Process(match["host"], match["system"], int(match["number"]))


@functools.cache
def _system() -> tuple[str, str]:
    host = platform.node()
    boot = _BOOT.read_text(encoding="ascii") if _BOOT.is_file() else ""
    namespace = os.readlink(_NAMESPACE) if _NAMESPACE.exists() else ""
    digest = hashlib.sha256("\n".join((host, boot, namespace)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9]", "_", host)[:24], digest[:12]


class _Held(NamedTuple):
    """A lock that this process holds: its file, and what identifies that file."""

    path: pathlib.Path
    device: int
    inode: int


#: Locks of this process that could be taken from it by removing their files.
_removable: set[_Held] = set()


@contextlib.contextmanager
def hold(
    path: pathlib.Path,
    busy: str,
    wait: float = 0.0,
    directory: pathlib.Path | None = None,
) -> Iterator[None]:
    """Holds the lock `path`, whose file is made if need be and stays.

    Args:
        path: of the lock's file.
        busy: message for a lock that another process holds; ends in what to do.
        wait: seconds to wait for it; less than 0 for as long as it takes.
        directory: that is locked too, where the file system can: it is there as long as what it
            protects, so that removing the lock's file lets no second process in.

    Raises:
        ValueError: another process holds it; the message names that process.
        OSError: the file system cannot lock.
    """
    lock = filelock.FileLock(
        path,
        timeout=wait,
        poll_interval=0.2,
        thread_local=False,
        fallback_to_soft=False,
        preserve_lock_file=True,
        on_acquired=_write_holder,
    )
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"{busy} (it is held by {_holder(path)})") from None
    except OSError as error:
        raise _explained(error, path) from None
    try:
        with contextlib.ExitStack() as stack:
            if directory is None or not stack.enter_context(_directory_held(directory, busy, path)):
                stack.enter_context(_noted(path))
            yield
    finally:
        lock.release()


def lock_open_file(descriptor: int, path: pathlib.Path, busy: str) -> None:
    """Locks an open file until it is closed.

    Raises:
        ValueError: another process holds it.
        OSError: the file system cannot lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(busy) from None
    except OSError as error:
        raise _explained(error, path) from None


def check_held() -> None:
    """Checks that the file of a lock that this process holds has not been removed.

    Raises:
        OSError: a lock is lost.
    """
    for lock in _removable:
        try:
            status = os.stat(lock.path)
        except FileNotFoundError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != (lock.device, lock.inode):
            raise OSError(
                f"{lock.path}: this lock was removed while its run was at work, and another run "
                "may have begun; when no other is at work, give the same command again"
            )


def _write_holder(descriptor: int) -> None:
    me = this_process()
    text = f"process {me.number} on {platform.node() or 'this machine'}\n".encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)


def _holder(path: pathlib.Path) -> str:
    """Who holds a lock, by its file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        text = ""
    return text if text.isprintable() and text else "a process that left no name"


@contextlib.contextmanager
def _directory_held(directory: pathlib.Path, busy: str, path: pathlib.Path) -> Iterator[bool]:
    """Locks a directory; yields whether its file system could."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{busy} (its lock {path.name} was removed, and it is still at work)"
            ) from None
        except OSError:  # over NFS, only what is open for writing can be locked
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _noted(path: pathlib.Path) -> Iterator[None]:
    status = os.stat(path)
    lock = _Held(path, status.st_dev, status.st_ino)
    _removable.add(lock)
    try:
        yield
    finally:
        _removable.discard(lock)


def _explained(error: OSError, path: pathlib.Path) -> OSError:
    """The error that locking a file raised, with what to do where the file system is to blame."""
    if error.errno not in _WITHOUT_LOCKS:
        return OSError(f"{path}: cannot be locked ({error.strerror or error})")
    return OSError(
        f"{path}: the file system of this folder cannot lock files ({error.strerror}), so that two "
        "runs could overwrite each other; choose a folder on another one, or have this one mounted "
        "with locks (Lustre: option flock; NFS: without nolock)"
    )
