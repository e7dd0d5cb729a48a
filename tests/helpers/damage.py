"""Files that are damaged in many ways, one after the other, and whole again afterwards."""

import pathlib
from collections.abc import Iterator

import numpy as np


def flipped(folder: pathlib.Path, times: int = 12) -> Iterator[pathlib.Path]:
    """Flips one bit of a file below a folder, at so many places of each; yields the file."""
    rng = np.random.default_rng(0)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for bit in rng.choice(8 * len(whole), min(times, 8 * len(whole)), replace=False):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            yield file
        file.write_bytes(whole)
