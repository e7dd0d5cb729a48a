"""A process that reads slides for another one, so that a crash in libhdf5 or LMDB ends only this.

    python -m steph_jax.data.features.sandbox_worker LOCATION DATASET_NAME

Writes a line of JSON with the slides at LOCATION, then answers each line of JSON that it is given:

    {"slide": ID}                                       its header
    {"slide": ID, "encoder": true}                      {"encoder": NAME}
    {"slide": ID, "coordinates": true}                  {"coordinates": {"xy": [[X, Y], ..],
                                                        "patch_size", "unit"}, or null}
    {"slide": ID, "look": {"values": B, "profile": B}}  what it holds; see `look_at`
    {"slide": ID, "rows": [[START, STOP], D], "dtype": NAME}
                                                        {"nbytes": N}, then rows of N bytes

An answer is a line of JSON; {"problem": TEXT} where the slide cannot be read. `sandbox` is at the
other end.
"""

import fcntl
import hashlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import refuse_nonfinite
from steph_jax.data.features.source import FeatureSource

#: Variable that names the open end of a pipe whose other end the parent holds.
PARENT = "STEPH_PARENT_PIPE"
#: What makes a slide unreadable without ending this process.
_PROBLEMS = (ValueError, OSError, MemoryError)
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

Answer = tuple[dict[str, Any], np.ndarray | None]


def dtype_of(name: str) -> np.dtype[Any]:
    """A type of numbers by its name."""
    return _DTYPES.get(name) or np.dtype(name)


def answers(location: str, dataset_name: str, requests: BinaryIO) -> Iterator[Answer]:
    """The slides, then an answer to every request, with rows where they are asked for."""
    try:
        source = open_features(location, dataset_name=dataset_name)
    except _PROBLEMS as problem:
        yield {"problem": str(problem)}, None
        return
    yield {"slides": {slide: source.path_of(slide) for slide in source.slide_ids}}, None
    buffer = np.empty(0, np.uint8)
    for line in requests:
        request = json.loads(line)
        slide = request["slide"]
        try:
            if "look" in request:
                yield look_at(source, slide, **request["look"]), None
            elif "encoder" in request:
                yield {"encoder": source.encoder(slide)}, None
            elif "coordinates" in request:
                yield coordinates_of(source, slide), None
            elif "rows" in request:
                (start, stop), dim = request["rows"]
                dtype = dtype_of(request["dtype"])
                size = (stop - start) * dim * dtype.itemsize
                if buffer.size < size:
                    buffer = np.empty(size, np.uint8)
                rows = buffer[:size].view(dtype).reshape(stop - start, dim)
                source.read_rows(slide, start, stop, rows)
                yield {"nbytes": size}, buffer[:size]
            else:
                yield header_of(source, slide), None
        except _PROBLEMS as problem:
            text, where = str(problem) or type(problem).__name__, source.path_of(slide)
            yield {"problem": text if where in text else f"{where}: {text}"}, None


def header_of(source: FeatureSource, slide: str) -> dict[str, Any]:
    """N, D, the type and the rank of a slide."""
    header = source.header(slide)
    return {
        "num_patches": header.num_patches,
        "dim": header.dim,
        "dtype": header.dtype.newbyteorder("=").name,
        "leading": header.leading,
    }


def coordinates_of(source: FeatureSource, slide: str) -> dict[str, Any]:
    """Where the patches of a slide lie."""
    coordinates = source.coordinates(slide)
    if coordinates is None:
        return {"coordinates": None}
    fields = {"patch_size": coordinates.patch_size, "unit": coordinates.unit}
    return {"coordinates": fields | {"xy": coordinates.xy.tolist()}}


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
    answer = header_of(source, slide) | {"encoder": source.encoder(slide)}
    if not values or not answer["num_patches"]:
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


def end_with_parent() -> None:
    """Has the kernel end this process when its parent ends, whatever a library is busy with then.

    The parent holds the other end of a pipe. Its end closes it, which is a signal to this process,
    and the signal's default action needs no Python.
    """
    pipe = int(os.environ.pop(PARENT, "-1"))
    if pipe < 0:
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, flags | os.O_ASYNC)
    closed = select.poll()
    closed.register(pipe, 0)
    if closed.poll(0):  # it ended before
        sys.exit(1)


def main() -> None:
    """Answers on what was standard output; whatever else is printed goes nowhere."""
    end_with_parent()
    location, dataset_name = sys.argv[1:]
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        for answer, rows in answers(location, dataset_name, sys.stdin.buffer):
            out.write(json.dumps(answer).encode() + b"\n")
            if rows is not None:
                out.write(rows.data)
            out.flush()


if __name__ == "__main__":
    main()
