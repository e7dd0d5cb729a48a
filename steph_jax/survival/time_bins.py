"""Time bins: how times in days become the classes of a discrete-time model."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32
from numpy.typing import ArrayLike

from steph_jax.survival.labels import survival_labels

#: A year of bins, metrics and pictures, whose horizons so are edges of the default bins.
DAYS_PER_YEAR = 365.0
#: Ways of cutting time, by the function of this module that does it.
BIN_KINDS = ("uniform", "quantile", "sqrt_events")


@dataclasses.dataclass(frozen=True)
class TimeBins:
    """T intervals [a_y, a_{y+1}) of time in days, the last one open.

    Attributes:
        edges: a_0 = 0 < a_1 < ... < a_T in days. The last bin holds everything from a_{T-1} on;
            a_T is only its nominal end.
        kind: one of `BIN_KINDS`, how the edges were chosen.

    Raises:
        ValueError: for other edges or kinds.
    """

    edges: tuple[float, ...]
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in BIN_KINDS:
            raise ValueError(
                f"the kind of bins is one of {', '.join(BIN_KINDS)}, not {self.kind!r}"
            )
        edges = np.asarray(self.edges, np.float64)
        increasing = len(edges) > 1 and bool((np.diff(edges) > 0).all())
        if not increasing or edges[0] != 0 or not np.isfinite(edges).all():
            raise ValueError(f"edges of bins start at 0 and increase, found {self.edges}")

    @property
    def num_bins(self) -> int:
        """T."""
        return len(self.edges) - 1

    def index(self, time: ArrayLike) -> Int32[np.ndarray, "*times"]:
        """The bin y of each time: a_y <= time < a_{y+1}, and T - 1 for all from a_{T-1} on.

        Args:
            time: [...] days, finite, at least 0.

        Returns:
            y [...] in [0, T).

        Raises:
            ValueError: for times that are negative or not finite.
        """
        days = np.asarray(time, np.float64)
        if not np.isfinite(days).all() or (days < 0).any():
            raise ValueError("times to be binned must be finite and not negative")
        return np.searchsorted(self.edges[1:-1], days, side="right").astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, which `from_json` reads."""
        return {"kind": self.kind, "edges": list(self.edges)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TimeBins":
        """The bins that `to_json` wrote.

        Raises:
            ValueError: if a field is missing, unknown or invalid.
        """
        if set(record) != {"kind", "edges"}:
            fields = ", ".join(record) or "none"
            raise ValueError(f"a record of time bins has the fields kind and edges, found {fields}")
        return cls(tuple(map(float, record["edges"])), record["kind"])


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"the number of bins is at least 1, not {num_bins}")


def _event_times(time: ArrayLike, event: ArrayLike) -> Float64[np.ndarray, " M"]:
    """Times of the events; a ValueError unless one is positive."""
    times, events = survival_labels(time, event)
    days = times[events]
    if not days.any():
        raise ValueError(
            f"bins by events need an event after day 0; found {days.size} events, none later"
        )
    return days


def uniform_bins(num_bins: int = 32, width_days: float = DAYS_PER_YEAR) -> TimeBins:
    """Bins of one width from 0 on; by default the 32 years of the paper.

    Raises:
        ValueError: for fewer than one bin, or a width that is not positive.
    """
    _check_num_bins(num_bins)
    if not (math.isfinite(width_days) and width_days > 0):
        raise ValueError(f"the width of bins is a positive number of days, not {width_days}")
    return TimeBins(tuple(float(width_days) * i for i in range(num_bins + 1)), "uniform")


def quantile_bins(time: ArrayLike, event: ArrayLike, num_bins: int) -> TimeBins:
    """Bins with about as many events each: cut at the i/T quantiles of the event times.

    The published program takes the events of all patients, test ones included; here the caller
    passes the fold's training patients.

    Args:
        time: [P] days of the training patients.
        event: [P] in {0, 1}.
        num_bins: T.

    Returns:
        bins from 0 to the last event; quantiles between two events are interpolated.

    Raises:
        ValueError: if cut points coincide (with each other, with 0, or with the last event), and
            for invalid labels, no event after day 0, or fewer than one bin.
    """
    _check_num_bins(num_bins)
    days = _event_times(time, event)
    cuts = np.quantile(days, np.linspace(0, 1, num_bins + 1)[1:-1])
    edges = np.concatenate([[0.0], cuts, [days.max()]])
    coincide = np.unique(edges[1:][np.diff(edges) <= 0])
    if coincide.size:
        raise ValueError(
            f"cut points of {num_bins} quantile bins of {days.size} events coincide at "
            f"{', '.join(f'{day:g}' for day in coincide)} days; ask for fewer bins, or for uniform "
            "ones"
        )
    return TimeBins(tuple(edges.tolist()), "quantile")


def sqrt_event_bins(time: ArrayLike, event: ArrayLike) -> TimeBins:
    """ceil(sqrt(M)) bins of one width, from 0 to the last of the M events.

    Args:
        time: [P] days of the training patients.
        event: [P] in {0, 1}.

    Raises:
        ValueError: for invalid labels, or no event after day 0.
    """
    days = _event_times(time, event)
    num_bins = math.isqrt(days.size - 1) + 1
    return TimeBins(tuple(np.linspace(0.0, days.max(), num_bins + 1).tolist()), "sqrt_events")
