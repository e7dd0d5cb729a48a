"""What a run leaves once its folds are trained.

Imported when there is something to write: the libraries of tables, pictures and pages take seconds,
for which no training waits.
"""

import pathlib
from typing import Any

from steph_jax import run_directory
from steph_jax.evaluation import run_summary
from steph_jax.reports import run_page
from steph_jax.training.config import Config


def summarize(workdir: pathlib.Path, config: Config) -> dict[str, Any]:
    """Writes and returns the summary of the finished folds of a run."""
    with run_directory.locked(workdir, run_directory.TURN_SECONDS):
        folds = run_directory.finished_folds(workdir)
        return run_summary.write(workdir, config.dataset, config.method, config.seed, folds)


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes the report of a run; returns the page."""
    return run_page.write(workdir)
