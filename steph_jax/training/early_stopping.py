"""Which epoch of a training is selected, and when training ends early, by a validation split."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

SELECTS = ("none", "loss", "c_index")
#: Column of the history that each criterion reads, and whether higher is better.
_COLUMNS = {"loss": ("validation_nll", False), "c_index": ("validation_c_index", True)}


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Which epoch is kept and when training ends; the section `validation` of a config.

    Attributes:
        select: "loss" or "c_index" of the validation patients, or "none" for the last epoch.
        patience: epochs without a better one before training ends.
    """

    select: str = "none"
    patience: int = 20

    def __post_init__(self) -> None:
        if self.select not in SELECTS:
            raise ValueError(
                f"validation.select is one of {', '.join(SELECTS)}, not {self.select!r}"
            )
        if self.patience < 1:
            raise ValueError(f"validation.patience is 1 epoch or more, not {self.patience}")

    @property
    def is_on(self) -> bool:
        """Whether an epoch is selected at all."""
        return self.select != "none"

    def best_epoch(self, history: Sequence[Mapping[str, float]]) -> int:
        """The number (from 1) of the best epoch, the first of equals; the last without selection.

        Args:
            history: a row per epoch, with "validation_nll" and "validation_c_index" where an epoch
                is selected. A value that is not a number is worse than any that is.

        Returns:
            0 for an empty history.
        """
        if not self.is_on or not history:
            return len(history)
        column, higher = _COLUMNS[self.select]
        values = [row[column] if higher else -row[column] for row in history]
        comparable = [-math.inf if math.isnan(value) else value for value in values]
        return comparable.index(max(comparable)) + 1

    def is_over(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.is_on and len(history) - self.best_epoch(history) >= self.patience
