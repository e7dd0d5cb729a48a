"""All trackers of a fold's training: opened, given every epoch once, closed.

fold_{k}/trackers.json holds, by tracker, the id of its run and how many epochs of each start
(`training.restarts`) it has, so that a run that was interrupted goes on under its id, and a
tracker that joins late gets the epochs before. A tracker that fails is left out of this fold
and of those after it, with one warning: no training ends for it, or waits for it in every fold.
"""

import contextlib
import importlib.util
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from typing import Any, NamedTuple

from absl import logging

from steph_jax import files, records
from steph_jax.messages import on_one_line
from steph_jax.trackers.mlflow_store import MLflow
from steph_jax.trackers.protocol import TrackedFold, Tracker
from steph_jax.trackers.tensorboard import TensorBoard
from steph_jax.trackers.weights_and_biases import WeightsAndBiases

STATE = "trackers.json"


class _Kind(NamedTuple):
    """A tracker by name: its class, and the module and the package that it needs."""

    make: type[Any]
    module: str
    package: str


TRACKERS = {
    "tensorboard": _Kind(TensorBoard, "tensorboardX", "tensorboardX"),
    "wandb": _Kind(WeightsAndBiases, "wandb", "wandb"),
    "mlflow": _Kind(MLflow, "mlflow", "mlflow-skinny"),
}
_STATE = records.mapping(
    records.record({"id": records.NAME, "epochs": records.mapping(records.WHOLE)})
)
#: What all trackers take in a name.
_OTHER = re.compile(r"[^\w./ -]")


def expect_names(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that is not known, or named twice."""
    unknown = [name for name in names if name not in TRACKERS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"track names some of {', '.join(TRACKERS)}, each once, as "
            f"--config.track=\"('tensorboard',)\"; found {list(names)!r}"
        )


def expect_installed(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name].module) is None:
            raise ValueError(
                f"config.track: {name} needs the package {TRACKERS[name].package}; pip install "
                f"'steph_jax[{name}]', or leave {name} out of --config.track"
            )


class Track:
    """The trackers of one fold.

    Args:
        trackers: by name; one that fails is taken out.
        state: as trackers.json holds it.
        path: of trackers.json.
        names: of trackers; one that fails is taken out of it too.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker] | None = None,
        state: dict[str, Any] | None = None,
        path: pathlib.Path | None = None,
        names: MutableSequence[str] | None = None,
    ) -> None:
        self._trackers = dict(trackers or {})
        self._state = state or {}
        self._path = path
        self._names = [] if names is None else names

    def log(self, start: str, history: Sequence[Mapping[str, float]]) -> None:
        """Tells every tracker of the epochs that it does not know.

        Args:
            start: name of the start that is trained; its epochs follow those of starts before it.
            history: a row for each epoch of this start so far.
        """
        for name, tracker in list(self._trackers.items()):
            epochs = self._state[name]["epochs"]
            with self._guarded(name):
                for row in history[epochs.setdefault(start, 0) :]:
                    tracker.log(sum(epochs.values()) + 1, _numbers(row))
                    epochs[start] += 1
        self._store()

    def finish(self, results: Mapping[str, float] | None) -> None:
        """Closes every tracker; None where training ended early."""
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                tracker.finish(None if results is None else _numbers(results))
        self._trackers = {}

    def start(self, fold: TrackedFold) -> None:
        """Opens trackers, those of an interrupted run under their ids."""
        for name in list(self._names):
            known = self._state.setdefault(name, {"id": None, "epochs": {}})
            self._trackers[name] = TRACKERS[name].make()
            with self._guarded(name):
                steps = sum(known["epochs"].values())
                known["id"] = self._trackers[name].start(fold, known["id"], steps)
        self._store()

    def _store(self) -> None:
        if self._path is not None and self._state:
            known = {name: entry for name, entry in self._state.items() if entry["id"]}
            files.write_json(self._path, known)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Takes a tracker out where its library raises anything, with one warning."""
        try:
            yield
        except Exception as error:  # whatever a library or a server comes up with
            reason = on_one_line(str(error).strip().split("\n")[0][:200] or type(error).__name__)
            logging.warning("%s: no more is tracked there, training goes on: %s", name, reason)
            self._trackers.pop(name, None)
            self._names.remove(name)


def _numbers(row: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers of a row, under names that every tracker takes."""
    return {_OTHER.sub("_", name): x for name, x in row.items() if math.isfinite(x)}


@contextlib.contextmanager
def tracked(names: MutableSequence[str], fold: TrackedFold) -> Iterator[Track]:
    """The trackers of a fold while it is trained; `Track.finish` closes them with its results.

    Args:
        names: of the trackers; those that fail are taken out, so that the next fold does not wait.
        fold: what is tracked.

    Raises:
        ValueError: trackers.json of an interrupted run is damaged.
    """
    path = fold.directory / STATE
    state: dict[str, Any] = {}
    if names and path.is_file():
        advice = "remove the file, and trackers begin new runs"
        state = records.read(path, _STATE, "the runs of trackers", advice)
    track = Track({}, state, path if names else None, names)
    track.start(fold)
    try:
        yield track
    finally:
        track.finish(None)
