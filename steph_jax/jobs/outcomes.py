"""How a job has ended: one line for each that has not succeeded."""

import contextlib
import re
from typing import Any

from absl import logging

from steph_jax.jobs.process import Mistake

_MISTAKE = f"{Mistake.__module__}.{Mistake.__qualname__}: "


def failure_of(name: str, submitted: Any) -> list[str]:
    """A line about a job that has ended without success; none about another.

    Args:
        name: of the job.
        submitted: submitit's job.
    """
    log = submitted.paths.stdout
    if not submitted.paths.result_pickle.exists():
        if not log.exists():
            return [f"{name}: was not begun: cancelled, or a job that it needs has failed"]
        return [f"{name}: ended without a result (cancelled, or out of memory or time); see {log}"]
    with contextlib.suppress(Exception):
        submitted.result()
        logging.info("%s: finished", name)
        return []
    text = _traceback(str(submitted.exception()))
    _, is_mistake, message = text.partition(_MISTAKE)
    if is_mistake:
        return [f"{name}: {message.strip()}"]
    return [f"{name}: {text.splitlines()[-1]}; see {log}"]


def _traceback(text: str) -> str:
    """The traceback, which submitit puts between two lines of dashes."""
    parts = [part.strip() for part in re.split(r"-{8,}", text)]
    return parts[1] if len(parts) > 2 and parts[1] else parts[0]
