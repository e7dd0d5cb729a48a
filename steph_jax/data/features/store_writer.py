"""Writes packed stores (`store`): in parallel, resumable after a kill, whole or not at all.

A store grows in OUT.partial, in the folder of OUT. What is to be packed is planned from the
headers of all slides; each finished slide is one line of a journal, with its rows and its checksum.
Packing that was killed plans again, keeps the slides whose line still agrees with the plan and with
the bytes on disk, and writes the others. At the end store.json is written, everything is flushed to
the disk, and the directory gets its name. The same features give the same bytes, however often
packing was interrupted.
"""

import concurrent.futures
import dataclasses
import datetime
import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steph_jax import files
from steph_jax.data.features import store_coordinates
from steph_jax.data.features import store_log as journals
from steph_jax.data.features.slide import BLOCK
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import (
    DATA,
    DTYPES,
    INDEX,
    UNFINISHED,
    Index,
    Record,
    StoreSource,
    checksum,
    raw,
    read_index,
)
from steph_jax.data.features.store_log import Journal, open_journal, write_all
from steph_jax.data.features.store_plan import SAME, make_plan, one_line, scan

Progress = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Packed:
    """What became of a store.

    Attributes:
        index: of the store, or None where bad slides kept it from being finished.
        bad: why, by the id of each slide that cannot be packed; one line each.
        written: slides that this call wrote; the others were there already.
    """

    index: Index | None
    bad: dict[str, str]
    written: int


def partial_path(out: pathlib.Path) -> pathlib.Path:
    """Where a store grows before it has its name."""
    return out.with_name(out.name + UNFINISHED)


def pack(
    source: FeatureSource,
    slide_ids: Sequence[str],
    out: pathlib.Path,
    *,
    dtype: str = SAME,
    workers: int = 4,
    skip_bad: bool = False,
    progress: Progress = lambda slides: None,
) -> Packed:
    """Packs slides into a store, or goes on with packing them.

    Args:
        source: where the slides are.
        slide_ids: slides to pack; one that the source lacks is a bad slide.
        out: directory of the store; a finished one of the same slides is left as it is.
        dtype: one of `store.DTYPES`, or `SAME`.
        workers: threads.
        skip_bad: finish the store without the slides that cannot be packed. By default they keep
            it unfinished; the others are packed all the same, and kept for the next call.
        progress: called with a number of slides that are done.

    Raises:
        ValueError: `out` is something else or ends in .partial, or another process is packing it.
        OSError: the disk is full, or cannot be written.
    """
    if out.name.endswith(UNFINISHED):
        raise ValueError(f"{out}: {UNFINISHED} ends names of unfinished stores; use another")
    bad: dict[str, str] = {}
    headers = scan(source, slide_ids, workers, bad)
    plan = make_plan(source, headers, dtype, bad)
    if out.exists():
        return _already_there(out, plan, bad, skip_bad)
    partial = partial_path(out)
    with files.writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with files.writing(partial / DATA), open_journal(partial) as journal:
        if out.exists():  # another process has just finished it
            shutil.rmtree(partial)
            return _already_there(out, plan, bad, skip_bad)
        header = {
            "dtype": plan.dtype,
            "feature_dim": plan.feature_dim,
            "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        began, finished = journal.resume(header)
        (partial / INDEX).unlink(missing_ok=True)
        descriptor = os.open(partial / DATA, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _reserve(descriptor, partial, plan.nbytes)
            writer = _Writer(source, plan, descriptor, journal)
            with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
                jobs = {
                    pool.submit(writer.write, record, finished.get(record.slide_id)): record
                    for record in plan.slides
                }
                try:
                    for job in concurrent.futures.as_completed(jobs):
                        problem = job.result()
                        if problem:
                            bad[jobs[job].slide_id] = problem
                        progress(1)
                except BaseException:
                    source.give_up()  # the threads write to this file: it stays open for them
                    pool.shutdown(cancel_futures=True)
                    raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        bad = {slide_id: bad[slide_id] for slide_id in sorted(bad)}
        if bad and not skip_bad:
            return Packed(None, bad, len(writer.written))
        if not writer.done:
            raise ValueError(f"{source.location}: none of {len(bad)} slides can be packed")
        slides = tuple(writer.done[r.slide_id] for r in plan.slides if r.slide_id in writer.done)
        places = [(record.slide_id, record.start) for record in slides]
        index = dataclasses.replace(
            plan,
            slides=slides,
            skipped=bad,
            provenance=plan.provenance | {"began": began},
            coordinates=store_coordinates.write(partial, source, places, plan.rows, workers),
        )
        _finish(partial, out, index)
        return Packed(index, bad, len(writer.written))


def verify(
    store: StoreSource,
    source: FeatureSource | None,
    *,
    workers: int = 4,
    progress: Progress = lambda slides: None,
) -> dict[str, str]:
    """Reads a store again, and where it came from, and compares checksums.

    Args:
        store: what to verify.
        source: where its slides came from; None, or slides that it lacks, compare the store alone.
        workers: threads.
        progress: called with a number of slides that are done.

    Returns:
        what is wrong, by slide id; one line each.
    """
    dtype, buffers = DTYPES[store.index.dtype], threading.local()

    def compare(record: Record) -> str | None:
        try:
            with store.reading():
                is_packed = checksum(store.mapped(record.slide_id)) == record.sha256
        except (ValueError, OSError) as error:
            return one_line(error)
        if not is_packed:
            return (
                f"{store.path_of(record.slide_id)}: its bytes do not have the checksum of "
                f"{INDEX}; copy the store again, or pack it again"
            )
        try:
            store.coordinates(record.slide_id)
        except (ValueError, OSError) as error:
            return one_line(error)
        if source is None or source.missing([record.slide_id]):
            return None
        try:
            rows = _read(source, record.slide_id, dtype, buffers)
        except (ValueError, OSError) as error:
            return one_line(error)
        if checksum(rows) != record.sha256:
            return (
                f"{source.path_of(record.slide_id)}: not what {store.location} was packed from; "
                "if the new features are the right ones, pack them again"
            )
        try:
            return store_coordinates.difference(store, source, record.slide_id)
        except (ValueError, OSError) as error:
            return one_line(error)

    problems = {}
    slides = store.index.slides
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for record, problem in zip(slides, pool.map(compare, slides), strict=True):
                if problem:
                    problems[record.slide_id] = problem
                progress(1)
        except BaseException:
            if source is not None:
                source.give_up()
            pool.shutdown(cancel_futures=True)
            raise
    return problems


def _read(
    source: FeatureSource, slide_id: str, dtype: np.dtype[Any], buffers: threading.local
) -> np.ndarray:
    """All patches of a slide, finite, in a buffer of this thread that grows with its slides."""
    header = source.header(slide_id)
    size = header.num_patches * header.dim
    buffer = getattr(buffers, "values", None)
    if buffer is None or buffer.size < size:
        buffer = buffers.values = np.empty(size, dtype)
    rows = buffer[:size].reshape(header.num_patches, header.dim)
    values = source.read(slide_id, rows, check_finite=True)
    if len(values) != header.num_patches:
        raise ValueError(f"{source.path_of(slide_id)}: changed while it was being read")
    return rows


def _reserve(descriptor: int, partial: pathlib.Path, nbytes: int) -> None:
    """Gives features.bin its size; refuses at once what does not fit on the disk."""
    allocated = os.fstat(descriptor).st_blocks * 512
    free = shutil.disk_usage(partial).free
    if nbytes - allocated > free:
        raise OSError(
            f"{partial}: the store takes {nbytes:,} bytes, {free:,} are free on this disk; "
            "free some space, choose another --out, or --dtype float16"
        )
    os.ftruncate(descriptor, nbytes)


class _Writer:
    """Writes slides to their rows of features.bin; safe from several threads at once.

    Attributes:
        done: records of finished slides, by id.
        written: ids of those that were not there before.
    """

    def __init__(
        self, source: FeatureSource, plan: Index, descriptor: int, journal: Journal
    ) -> None:
        self._source = source
        self._dtype = DTYPES[plan.dtype]
        self._row_bytes = plan.feature_dim * self._dtype.itemsize
        self._descriptor = descriptor
        self._journal = journal
        self._buffers = threading.local()
        self.done: dict[str, Record] = {}
        self.written: set[str] = set()

    def write(self, record: Record, finished: Record | None) -> str | None:
        """Writes a slide, unless an earlier call did; returns what is wrong with its features."""
        if finished is not None and self._holds(record, finished):
            self.done[record.slide_id] = finished
            return None
        try:
            rows = _read(self._source, record.slide_id, self._dtype, self._buffers)
            if len(rows) != record.num_patches:
                raise ValueError(
                    f"{self._source.path_of(record.slide_id)}: changed while it was being packed"
                )
        except (ValueError, OSError) as error:
            return one_line(error)
        offset, data = record.start * self._row_bytes, raw(rows)
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + count, data[count:]
        complete = dataclasses.replace(record, sha256=checksum(rows))
        self._journal.add(complete)
        self.written.add(record.slide_id)
        self.done[record.slide_id] = complete
        return None

    def _holds(self, record: Record, finished: Record) -> bool:
        """Whether the slide of the plan is the finished one and its bytes are those on disk."""
        if dataclasses.replace(finished, sha256="") != record:
            return False
        offset = record.start * self._row_bytes
        end = offset + record.num_patches * self._row_bytes
        digest = hashlib.sha256()
        while offset < end:
            data = os.pread(self._descriptor, min(end - offset, BLOCK), offset)
            if not data:
                return False
            digest.update(data)
            offset += len(data)
        return digest.hexdigest() == finished.sha256


def _finish(partial: pathlib.Path, out: pathlib.Path, index: Index) -> None:
    """Writes the index and gives the store its name."""
    descriptor = os.open(partial / INDEX, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, index.to_json().encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(partial, out)
    _sync_directory(out.parent)
    (out / journals.NAME).unlink()


def _sync_directory(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _already_there(out: pathlib.Path, plan: Index, bad: dict[str, str], skip_bad: bool) -> Packed:
    """What a finished store is worth to a call that would write it."""
    if not (out / INDEX).is_file():
        raise ValueError(f"{out}: expected a new name or a packed store, found something else")
    index = read_index(out)
    if index.skipped and not skip_bad:
        raise ValueError(
            f"{out}: this store leaves out {len(index.skipped)} slides that could not be packed; "
            "remove it to pack it again, or give --skip_bad again"
        )
    expected = [r for r in plan.slides if r.slide_id not in index.skipped]
    one, other = (
        [(r.slide_id, r.num_patches, r.source) for r in records]
        for records in (index.slides, expected)
    )
    if (index.dtype, index.feature_dim, one) != (plan.dtype, plan.feature_dim, other):
        raise ValueError(
            f"{out}: a store of other slides, of another --dtype, or of features that have changed "
            "since; remove it to pack it again, or choose another --out"
        )
    (out / journals.NAME).unlink(missing_ok=True)
    return Packed(index, bad, 0)
