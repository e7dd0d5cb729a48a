"""Valid survival labels: the one definition, used everywhere."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike

from steph_jax.messages import join_names


def survival_labels(
    time: ArrayLike, event: ArrayLike, names: Sequence[str] | None = None
) -> tuple[Float64[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Checks survival labels and brings them into one form.

    Args:
        time: [P] time to the event or to the end of follow-up, in any unit; finite, at least 0.
        event: [P] True or 1 where death was seen, False or 0 where follow-up ended before.
        names: [P] names of the patients for the messages; their positions if left out.

    Returns:
        time [P] in float64 and event [P] as booleans.

    Raises:
        ValueError: for other shapes, lengths or values; names at most ten patients.
    """
    times, events = np.asarray(time), np.asarray(event)
    if times.ndim != 1 or times.shape != events.shape:
        raise ValueError(
            "expected one time and one event per patient, in two vectors of one length; "
            f"found shapes {times.shape} and {events.shape}"
        )
    if names is None:
        names = [f"patient {i}" for i in range(len(times))]
    if len(names) != len(times):
        raise ValueError(f"{len(names)} names for {len(times)} patients")
    times = times.astype(np.float64)
    for values, bad, rule in (
        (times, ~np.isfinite(times), "times must be finite"),
        (times, times < 0, "times must not be negative"),
        (events, (events != 0) & (events != 1), "events must be 0 or 1"),
    ):
        if bad.any():
            problems = join_names(f"{names[int(i)]}: {values[i]}" for i in np.flatnonzero(bad))
            raise ValueError(f"{rule}; found {problems}")
    return times, events.astype(bool)
