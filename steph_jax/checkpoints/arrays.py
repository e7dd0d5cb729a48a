"""Trees of arrays on disk, as orbax writes them, with a checksum of every file. The home of orbax.

Orbax stores values compressed and without checksums of its own: one flipped bit gives other values,
not an error. Whoever writes a tree therefore keeps what `write` returns, and hands it to `read`,
which compares all files before anything is parsed.
"""

import contextlib
import functools
import hashlib
import io
import logging
import math
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from steph_jax import files, hosts

#: By file, relative to the directory and with "/": SHA-256 of its bytes.
Checksums = Mapping[str, str]

#: Paths that orbax and the libraries below it take as they are. They read brackets and `*` as a
#: pattern, a backslash as a separator, and /gs/ as the root of a bucket.
_PLAIN = re.compile(r"(?!/(?:gs|s3|az|hf)/)[\w /.,:;=+@%#~!$&'(){}^-]*")
#: What arrays may take in memory: so many times what their files take on disk, and a bit more.
#: Trained values hardly shrink; a few KB that claim gigabytes are no model.
_MOST_EXPANSION, _ALWAYS_ALLOWED = 200, 1 << 26
_BLOCK = 1 << 20
#: Seconds after which no other write ends, once one has failed.
_LAST_WRITE = 2.0
#: What a write says that ends then.
_NOBODY_WAITS = "Event loop is closed"
#: How tensorstore names what the system answered.
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


class _WithoutOrbax(logging.Filter):
    """Drops what orbax logs, errors excepted that it does not raise as well.

    Every user of absl's log shares one logger.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        is_news = record.levelno >= logging.ERROR and not record.exc_info
        return is_news or "orbax" not in record.pathname


absl_logging.get_absl_logger().addFilter(_WithoutOrbax())


def write(directory: pathlib.Path, tree: Any) -> dict[str, str]:
    """Writes a tree of arrays to a directory that is not there yet, in a folder that is.

    Args:
        directory: absolute.
        tree: of numpy or JAX arrays, without empty branches.

    Returns:
        checksums of the files.

    Raises:
        OSError: it cannot be written; names the directory.
    """
    with (
        files.writing(directory),
        _plain(directory) as place,
        _checkpointer() as checkpointer,
    ):
        _save(checkpointer, place, tree)
    return checksums(directory)


def _checkpointer() -> ocp.Checkpointer:
    """Orbax for this process alone: it waits for no other one that shares the run."""
    options = ocp.options.MultiprocessingOptions()
    if hosts.count() > 1:
        me = hosts.index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _save(checkpointer: ocp.Checkpointer, place: pathlib.Path, tree: Any) -> None:
    """Writes a tree; where the disk refuses, the answer of the system is raised."""
    late_writes = _late_writes()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            checkpointer.save(place, args=ocp.args.PyTreeSave(tree))
    except (ValueError, RuntimeError) as error:  # of tensorstore
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        late_writes.wait()
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    sys.stderr.write(printed.getvalue())


class _LateWrites:
    """Writes with which tensorstore's threads go on for a moment when another one has failed.

    Nobody waits for them any more, of which each would print a traceback.
    """

    def __init__(self) -> None:
        self._another = threading.Event()
        self._print_error = sys.unraisablehook
        sys.unraisablehook = self._note

    def _note(self, error: "sys.UnraisableHookArgs") -> None:
        if str(error.exc_value) == _NOBODY_WAITS:
            self._another.set()
        else:
            self._print_error(error)

    def wait(self) -> None:
        """Returns when none has ended for a while: what they leave can be removed."""
        while self._another.wait(_LAST_WRITE):
            self._another.clear()


@functools.cache
def _late_writes() -> _LateWrites:
    return _LateWrites()


def read(directory: pathlib.Path, like: Any, expected: Checksums | None) -> Any:
    """Reads a tree of arrays.

    Args:
        directory: absolute.
        like: the tree, with leaves that have shape and dtype.
        expected: what `write` returned; None for files that were written before it returned any.

    Returns:
        the tree with numpy arrays of these shapes and dtypes.

    Raises:
        FileNotFoundError, ValueError: files that are missing or damaged, or arrays of other shapes
            or dtypes; names the file or the directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: not there")
    if expected is not None:
        verify(directory, expected)
    restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    try:
        with (
            _plain(directory) as place,
            _checkpointer() as checkpointer,
        ):
            _expect_sizes(directory, like, checkpointer.metadata(place).item_metadata)
            arrays = checkpointer.restore(
                place, args=ocp.args.PyTreeRestore(item=like, restore_args=restore)
            )
    # Files without checksums may hold any bytes, and orbax and tensorstore raise what they like.
    except Exception as error:
        reason = str(error).strip().split("\n")[0].replace(str(directory), "")[:200]
        raise ValueError(f"{directory}: damaged arrays ({reason})") from None
    jax.tree_util.tree_map_with_path(
        lambda at, leaf, array: _expect_alike(directory, at, leaf, array), like, arrays
    )
    return arrays


def checksums(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): _sha256(path) for path in files}


def verify(directory: pathlib.Path, expected: Checksums) -> None:
    """Compares the files of a directory with their checksums.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or has other bytes; names it.
    """
    for name, checksum in expected.items():
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there")
        if _sha256(path) != checksum:
            raise ValueError(f"{path}: damaged, its bytes are not those that were written")


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _plain(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name for a path that orbax takes as it is: the path, or a link to its folder."""
    if _PLAIN.fullmatch(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="steph_jax-") as folder:
        link = pathlib.Path(folder).absolute() / "folder"
        if not (_PLAIN.fullmatch(str(link)) and _PLAIN.fullmatch(path.name)):
            raise ValueError(
                f"{path}: needs a link in the folder for temporary files, but {folder} has special "
                "characters too; set TMPDIR to another folder"
            )
        link.symlink_to(path.parent, target_is_directory=True)
        try:
            yield link / path.name
        finally:
            link.unlink()


def _expect_sizes(directory: pathlib.Path, like: Any, sizes: Any) -> None:
    """Raises ValueError where arrays take more memory than they may, before any is read."""
    on_disk = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    limit = _MOST_EXPANSION * on_disk + _ALWAYS_ALLOWED
    stored_arrays = [leaf for leaf in jax.tree.leaves(sizes) if hasattr(leaf, "storage")]
    claimed = max(
        sum(_nbytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like)),
        sum(_nbytes(leaf.shape, leaf.dtype) for leaf in stored_arrays),
        # Whole chunks are unpacked, whatever part of them the array is.
        sum(_nbytes(leaf.storage.chunk_shape, leaf.dtype) for leaf in stored_arrays),
    )
    if claimed > limit:
        raise ValueError(f"arrays of {claimed:,} bytes in files of {on_disk:,} bytes")


def _nbytes(shape: Any, dtype: Any) -> int:
    return math.prod(map(int, shape)) * np.dtype(dtype).itemsize


def _expect_alike(directory: pathlib.Path, at: Any, leaf: Any, array: Any) -> None:
    if (array.shape, array.dtype) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
        name = jax.tree_util.keystr(at, simple=True, separator="/")
        raise ValueError(
            f"{directory}: {name}: expected an array {list(leaf.shape)} of {leaf.dtype}, found "
            f"{list(array.shape)} of {array.dtype}"
        )
