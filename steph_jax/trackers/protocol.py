"""The three calls that a tracker of experiments answers, and what it learns of a run."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class TrackedFold:
    """The fold of a run as trackers show it, grouped by dataset, method and fold.

    Attributes:
        dataset: the target.
        method: value of `config.method`, and the control behind a +, where there is one.
        fold: number.
        seed: of the run.
        directory: of the fold; trackers without a place of their own write beside it.
        settings: every setting by its name with dots, as JSON.
    """

    dataset: str
    method: str
    fold: int
    seed: int
    directory: pathlib.Path
    settings: Mapping[str, Any]

    @property
    def workdir(self) -> pathlib.Path:
        """Of the run."""
        return self.directory.absolute().parent

    @property
    def group(self) -> str:
        """The folds of a method on a dataset."""
        return f"{self.dataset}/{self.method}"

    @property
    def name(self) -> str:
        """Of the fold within its group."""
        return f"fold_{self.fold}"


class Tracker(Protocol):
    """One run of a tracker; any call may raise what its library raises."""

    def start(self, fold: TrackedFold, run_id: str | None, step: int) -> str:
        """Opens a new run, or goes on with an earlier one.

        Args:
            fold: what is tracked.
            run_id: of the run to go on with; None for a new one.
            step: the last one that was logged, 0 for none.

        Returns:
            the id of the run.
        """

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of an epoch; steps count from 1 and only rise."""

    def finish(self, results: Mapping[str, float] | None) -> None:
        """Closes the run with its results; None where training ended early."""
