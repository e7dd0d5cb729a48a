"""A process that reads slides for another one, so that a crash in libhdf5 or LMDB ends only this.

    python -m steph_jax.checks.reader LOCATION DATASET_NAME

Writes a line of JSON with the slides at LOCATION, then one for each line of JSON it is given; see
`reading`, which is at the other end.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from steph_jax.data.features import FeatureSource, open_features
from steph_jax.data.patches import refuse_nonfinite

#: What makes a slide unreadable without ending this process.
_PROBLEMS = (ValueError, OSError, MemoryError)


def answers(location: str, dataset_name: str, requests: TextIO) -> Iterator[dict[str, Any]]:
    """The slides, then an answer to every request."""
    try:
        source = open_features(location, dataset_name=dataset_name)
    except _PROBLEMS as problem:
        yield {"problem": str(problem)}
        return
    yield {"slides": {slide: source.path_of(slide) for slide in source.slide_ids}}
    for line in requests:
        request = json.loads(line)
        try:
            yield look_at(source, request["slide"], request["values"], request["profile"])
        except _PROBLEMS as problem:
            text, where = str(problem) or type(problem).__name__, source.path_of(request["slide"])
            yield {"problem": text if where in text else f"{where}: {text}"}


def look_at(source: FeatureSource, slide: str, values: bool, profile: bool) -> dict[str, Any]:
    """What a slide holds.

    Args:
        source: where it is.
        slide: its id.
        values: read all patches and look for NaN and infinity.
        profile: with `values`, the mean of each dimension and the mean length of a patch too.

    Raises:
        FileNotFoundError, ValueError, MemoryError: it cannot be read.
    """
    layout = source.layout(slide)
    answer: dict[str, Any] = {
        "num_patches": layout.num_patches,
        "dim": layout.dim,
        "dtype": layout.dtype.newbyteorder("=").name,
    }
    if not values or not layout.num_patches:
        return answer
    rows = source.read(slide, dtype=np.float32)
    try:
        refuse_nonfinite(rows, source.path_of(slide), 0)
    except ValueError as problem:
        return answer | {"nonfinite": str(problem)}
    answer["digest"] = hashlib.blake2b(rows.data, digest_size=16).hexdigest()
    if profile:
        answer["mean"] = rows.mean(axis=0, dtype=np.float64).tolist()
        answer["length"] = float(np.linalg.norm(rows[:1000], axis=1).mean())
    return answer


def main() -> None:
    """Answers on what was standard output; whatever else is printed goes nowhere."""
    location, dataset_name = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for answer in answers(location, dataset_name, sys.stdin):
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
