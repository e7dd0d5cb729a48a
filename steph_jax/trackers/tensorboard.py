"""TensorBoard's event files, by tensorboardX: W/tensorboard/{dataset}/{method}/fold_{k}."""

import uuid
from collections.abc import Mapping
from typing import Any

from steph_jax.trackers.protocol import TrackedFold


class TensorBoard:
    """A `Tracker`; its id is the folder of the fold below W/tensorboard."""

    _writer: Any

    def start(self, fold: TrackedFold, run_id: str | None, step: int) -> str:
        from tensorboardX import SummaryWriter

        name = run_id or f"{fold.group}/{fold.name}"
        folder = fold.workdir / "tensorboard" / name
        # Steps from there on may have been written by a process that was killed before it said so.
        purge_step = step + 1 if run_id else None
        # Two files that begin within a second would have one name without it.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)
        self._step = step
        return name

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()
        self._step = step

    def finish(self, results: Mapping[str, float] | None) -> None:
        for name, number in (results or {}).items():
            self._writer.add_scalar(f"result/{name}", number, self._step)
        self._writer.close()
