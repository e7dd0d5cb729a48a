"""The state of training after each epoch, so that an interrupted run goes on.

DIRECTORY/epoch_{n}/state/        arrays, as `checkpoints.arrays` writes them
DIRECTORY/epoch_{n}/record.json   history, what training started from, checksums of the files
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from steph_jax import hosts, locks, records
from steph_jax.checkpoints import arrays
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.placement import place
from steph_jax.files import writing

_FORMAT = 1
_STATE, _RECORD = "state", "record.json"
#: A state, and one of versions that stored the record, without checksums, through orbax too.
_EPOCH = re.compile(r"(?:epoch_)?(\d+)")
_UNSEALED_RECORD = pathlib.Path("record", "metadata")

_WHAT = "the record of an interrupted training"
_HISTORY = records.list_of(records.mapping(records.ANY_NUMBER))
_UNSEALED = records.record({"start": records.TEXT, "history": _HISTORY})
_SEALED = records.record(
    {"format": records.one_of(_FORMAT), "start": records.TEXT, "history": _HISTORY}
)


def fingerprint(model: SavedModel, data: Mapping[str, np.ndarray] | None = None) -> str:
    """A digest of what training starts from.

    Args:
        model: all of its parameters count.
        data: arrays by name of who is trained on, and with what outcome, if that counts.
    """
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path((model.params, dict(data or {}))):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class EpochStore:
    """The state of training after each epoch, for a run that is interrupted.

    Only the last is kept. A state is there whole or not at all, whenever the run is killed.

    Args:
        directory: of the states; no other process writes there.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory.absolute()
        self._advice = f"remove {directory} to train the fold from its beginning"

    def restore(self, state: Any, start: str) -> tuple[int, Any, list[dict[str, Any]]]:
        """(finished epochs, state after them, rows of their history); (0, state, []) at first.

        Args:
            state: the initial state, which gives structure, types and devices.
            start: fingerprint of the model that training started from.

        Raises:
            FileNotFoundError, ValueError: the stored state began from another model, or is damaged;
                names the file.
        """
        stored = self._epochs()
        epoch = hosts.agreed(max(stored, default=0))
        if not epoch:
            return 0, state, []
        if epoch not in stored:
            raise FileNotFoundError(
                f"{self._directory}: process 0 has the state after epoch {epoch}, this one not; "
                "all hosts need the same --workdir, on a disk that they share"
            )
        record = self._record(stored[epoch])
        if record["start"] != start:
            raise ValueError(
                f"{self._directory}: the models of the pool, the survival table, the splits, the "
                "number of patches of a slide, or the code that starts a fold have changed since "
                f"this fold began; put them back, or {self._advice}"
            )
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        try:
            values = arrays.read(stored[epoch] / _STATE, like, record.get("files"))
        except (OSError, ValueError) as error:
            raise type(error)(
                f"the state of an interrupted run cannot be read: {error}; {self._advice}"
            ) from None
        return epoch, jax.tree.map(_placed, state, values), record["history"]

    def save(self, epoch: int, state: Any, history: list[dict[str, Any]], start: str) -> None:
        """Stores the state after an epoch, in place of any other."""
        hosts.written(lambda: self._write(epoch, state, history, start))

    def _write(self, epoch: int, state: Any, history: list[dict[str, Any]], start: str) -> None:
        with writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"epoch_{epoch}"
        new = self._directory / f".new-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            locks.check_held()
            new.mkdir()
            files = arrays.write(new / _STATE, jax.device_get(state))
            record = {"format": _FORMAT, "start": start, "history": history, "files": files}
            text = json.dumps(records.sealed(record)) + "\n"
            with writing(path):
                (new / _RECORD).write_text(text, encoding="utf-8")
                os.rename(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        # Earlier states, and what a killed process left here.
        for other in self._directory.iterdir():
            if other != path:
                shutil.rmtree(other)

    def _epochs(self) -> dict[int, pathlib.Path]:
        """Where the state after each epoch is, of those that are stored."""
        if not self._directory.is_dir():
            return {}
        matches = [(_EPOCH.fullmatch(path.name), path) for path in self._directory.iterdir()]
        return {int(match[1]): path for match, path in matches if match}

    def _record(self, path: pathlib.Path) -> dict[str, Any]:
        """What is stored with a state."""
        if not path.name.startswith("epoch_"):
            return records.read(path / _UNSEALED_RECORD, _UNSEALED, _WHAT, self._advice)
        file = path / _RECORD
        record = records.read(file, _SEALED, _WHAT, self._advice)
        records.expect(file, records.SEALED_FILES, record, _WHAT, self._advice)
        records.expect_unchanged(file, record, self._advice)
        return record


def _placed(leaf: Any, value: np.ndarray) -> Any:
    """A stored value where the leaf of the initial state is."""
    return place(value, leaf.sharding) if isinstance(leaf, jax.Array) else value
