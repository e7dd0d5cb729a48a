"""Files that are written whole or not at all."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import pandas as pd


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
