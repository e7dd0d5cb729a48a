"""Paths that users name, and files that are written whole or not at all."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from steph_jax import locks

if TYPE_CHECKING:  # every program imports this file, and few write tables before they work
    import pandas as pd

#: Names of standard output where a file is expected.
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
#: Bytes of a name that its hidden name repeats; names have 255 at most.
_REPEATED = 120
#: What to do about an error of the disk, by its number.
_ADVICE = {
    errno.ENOSPC: "free some space on this disk, and give the same command again",
    errno.EDQUOT: (
        "your quota of this disk is used up: free some space, and give the same command again"
    ),
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), and give the same command again",
}


def path_of(name: str | os.PathLike[str]) -> pathlib.Path:
    """The path that a user means, `~` being the home directory; for all flags and configs.

    Raises:
        ValueError: a name that no file can have, or that is not UTF-8.
    """
    check_name(os.fspath(name))
    return pathlib.Path(os.path.expanduser(name))


def expanded(text: str) -> str:
    """As `path_of`, as text that is the same where it needs no change; commas part several paths.

    Raises:
        ValueError: as `path_of`.
    """
    check_name(text)
    return ",".join(map(os.path.expanduser, text.split(",")))


def check_name(text: str) -> None:
    """Checks a word of a command or config that may name a file.

    Raises:
        ValueError: as `path_of`.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        printable_name = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise ValueError(f"{printable_name}: expected a name in UTF-8; rename it") from None
    if "\0" in text:
        raise ValueError(f"{text!r}: no file can have this name")


def is_stdout(path: pathlib.Path) -> bool:
    """Whether a path names standard output."""
    return str(path) in _STDOUT


def check_output(path: pathlib.Path, inputs: Iterable[pathlib.Path] = ()) -> None:
    """Checks, before any work, that a file can be written and takes the place of nothing else.

    Args:
        path: of the file; its folder must be there.
        inputs: files that the program reads, and folders whose every file it may read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder, a link, a special file or an input is in its place.
        OSError: nothing can be written there.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: no folder {path.parent}; make it first")
    _check_replaceable(path)
    for path_of_input in inputs:
        if is_input(path, path_of_input):
            raise ValueError(
                f"{path}: this is an input of the same command, which would be lost; choose "
                "another name for the output"
            )
    with whole(path, keep=False) as temporary:
        temporary.write_bytes(b"\0")


def check_output_folder(path: pathlib.Path) -> None:
    """Checks that a folder is there, or can be made: nothing else is in its place.

    Raises:
        ValueError: a file, or a link to nothing, is there, or in the place of a folder above it.
    """
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            raise ValueError(f"{place}: expected a folder or a new name, found {_kind(place)}")


def is_input(path: pathlib.Path, input_path: pathlib.Path) -> bool:
    """Whether writing the file `path` would change the file `input_path`, or one in the folder."""
    if input_path.is_dir():
        return path.exists() and path.resolve().is_relative_to(input_path.resolve())
    if path.absolute() == input_path.absolute():
        return True
    # Names end alike, so that many slides in the folder of a table are not all looked up.
    return input_path.suffix == path.suffix and path.resolve() == input_path.resolve()


def _check_replaceable(path: pathlib.Path) -> None:
    """Raises ValueError where something other than a plain file is in the place of one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{path}: expected a new name or a file to replace, found {_kind(path)}; choose another"
        )


def _kind(path: pathlib.Path) -> str:
    """What is at a path, in words."""
    if path.is_symlink():
        return f"a link to {os.readlink(path)}"
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"


@contextlib.contextmanager
def whole(path: pathlib.Path, keep: bool = True) -> Iterator[pathlib.Path]:
    """Yields a hidden name in the folder of `path` to write to, which becomes `path` at the end.

    Where writing fails, or is interrupted, nothing of it is left and what was there stays.

    Args:
        path: of the file.
        keep: False only tries, and leaves nothing.

    Raises:
        ValueError: something that is no file is in its place.
        OSError: it cannot be written; names the file.
    """
    _check_replaceable(path)
    temporary = hidden_name(path)
    try:
        with writing(path):
            remove_leftovers(path.parent, glob.escape(_repeated(path)))
            yield temporary
            locks.check_held()
            if keep:
                os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Names a file in what the system answers to writing it.

    Raises:
        OSError: the answer, with the file and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it is one of ours
            raise
        advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
        reason = os.strerror(error.errno)
        raise OSError(f"{path}: cannot be written ({reason}){advice}") from error


def write_output(path: pathlib.Path, table: "pd.DataFrame") -> None:
    """As `write_table`, to standard output where `path` names it."""
    if is_stdout(path):
        sys.stdout.write(_csv(table))
        sys.stdout.flush()
    else:
        write_table(path, table)


def write_table(path: pathlib.Path, table: "pd.DataFrame") -> None:
    """Writes a CSV whole or not at all; float32 values read back as they were."""
    write_text(path, _csv(table))


def _csv(table: "pd.DataFrame") -> str:
    text: str = table.to_csv(index=False, float_format="%.9g")
    return text


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes text in UTF-8, whole or not at all; see `whole`."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def hidden_name(path: pathlib.Path) -> pathlib.Path:
    """A hidden name in the folder of `path` that no other call, process or machine gives."""
    return path.with_name(f".{_repeated(path)}.{locks.this_process().temporary_suffix()}")


def _repeated(path: pathlib.Path) -> str:
    return os.fsencode(path.name)[:_REPEATED].decode("utf-8", "ignore")


def remove_leftovers(folder: pathlib.Path, pattern: str = "*") -> None:
    """Removes the files under hidden names whose processes have ended.

    Those of other machines and containers stay: whether their process still writes them cannot be
    seen from here.

    Args:
        folder: where they are.
        pattern: of the names that the files were to have.
    """
    for leftover in folder.glob(f".{pattern}.*"):
        process = locks.process_of(leftover.name)
        if process is not None and process.is_gone() and leftover.is_file():
            leftover.unlink(missing_ok=True)
