"""Files that are written whole or not at all."""

import glob
import json
import os
import pathlib
from typing import Any

import numpy as np
import pandas as pd


def expect_folder(path: pathlib.Path) -> None:
    """Raises FileNotFoundError where a file is to be written to a folder that is not there."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: no folder {path.parent}; make it first")


def write_table(path: pathlib.Path, table: pd.DataFrame) -> None:
    """Writes a CSV whole or not at all; float32 values read back as they were."""
    write_text(path, table.to_csv(index=False, float_format="%.9g"))


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
    """Writes under a temporary name, then renames."""
    temporary = temporary_name(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path` for this process; removes what killed processes left there."""
    remove_leftovers(path.parent, glob.escape(path.name))
    return hidden_name(path)


def hidden_name(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path` for this process."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_leftovers(folder: pathlib.Path, pattern: str = "*") -> None:
    """Removes the files under hidden names that killed processes left in a folder.

    Args:
        folder: where they are.
        pattern: of the names that the files were to have.
    """
    for leftover in folder.glob(f".{pattern}.*"):
        process = leftover.name.rpartition(".")[2]
        if process.isdigit() and leftover.is_file() and not is_running(int(process)):
            leftover.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
