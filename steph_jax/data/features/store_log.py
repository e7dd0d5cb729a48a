"""The journal of a store that is being packed: a line for every finished slide."""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from steph_jax import locks
from steph_jax.data.features.slide import BLOCK
from steph_jax.data.features.store import Record

NAME = "journal.jsonl"


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` at the place of a file where it stands."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


class Journal:
    """Slides that are finished, a line each; it is also the lock of the directory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def resume(self, header: dict[str, Any]) -> tuple[str, dict[str, Record]]:
        """(when packing began, finished slides); starts over where the header differs."""
        text = b""
        while piece := os.pread(self._descriptor, BLOCK, len(text)):
            text += piece
        complete_lines = text[: text.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in complete_lines.splitlines()]
            records = {line["slide_id"]: Record(**line) for line in lines}
            is_same = all(first[name] == header[name] for name in ("dtype", "feature_dim"))
        except (ValueError, KeyError, TypeError):
            is_same = False
        os.ftruncate(self._descriptor, len(complete_lines) if is_same else 0)
        if is_same:
            return first["began"], records
        self._append(header)
        return header["began"], {}

    def add(self, record: Record) -> None:
        """Notes a finished slide."""
        with self._lock:
            self._append(dataclasses.asdict(record))

    def _append(self, value: dict[str, Any]) -> None:
        write_all(self._descriptor, (json.dumps(value) + "\n").encode())


@contextlib.contextmanager
def open_journal(partial: pathlib.Path) -> Iterator[Journal]:
    """Opens the journal of a growing store, made if need be, for this process alone.

    Raises:
        ValueError: another process has it.
    """
    descriptor = os.open(partial / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        busy = f"{partial}: another process is packing this store; wait for it, or choose another"
        locks.lock_open_file(descriptor, partial / NAME, f"{busy} --out")
        yield Journal(descriptor)
    finally:
        os.close(descriptor)
