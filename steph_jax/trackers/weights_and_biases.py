"""Weights & Biases: a run for each fold, grouped by dataset and method.

Its own variables hold: WANDB_MODE=offline writes files alone (`wandb sync` uploads them),
WANDB_PROJECT names another project, WANDB_DIR another folder than the run's.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from steph_jax.trackers.protocol import TrackedFold

_PROJECT = "steph_jax"
#: Seconds that the end of a run waits for a server; the library alone waits for hours.
FINISH_SECONDS = 60.0


class WeightsAndBiases:
    """A `Tracker`."""

    _run: Any

    def start(self, fold: TrackedFold, run_id: str | None, step: int) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at its import
        import wandb

        name = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=os.environ.get("WANDB_DIR", str(fold.workdir)),
            id=name,
            resume="allow",
            reinit="create_new",
            group=fold.group,
            job_type="train",
            name=f"{fold.group}/{fold.name}",
            config={**fold.settings, "fold": fold.fold},
            # It would take over the streams of the terminal, and look for the code of the run.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        return name

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self, results: Mapping[str, float] | None) -> None:
        self._run.summary.update({f"result/{name}": x for name, x in (results or {}).items()})
        self._run.finish(exit_code=1 if results is None else 0)
