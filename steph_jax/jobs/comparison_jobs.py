"""The runs of a comparison as jobs: what has become of them, and a script that does the rest."""

import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence

from steph_jax.evaluation.comparison import run_directory
from steph_jax.jobs import command_line, states
from steph_jax.jobs.slurm_script import text as script_text
from steph_jax.training.config import Config

#: Where jobs have their scripts and logs, below --workdir.
JOBS = "jobs"


def status(
    config: Config, methods: Sequence[str], seeds: Sequence[int], workdir: pathlib.Path
) -> str:
    """What has become of the runs of a comparison, as a table."""
    named = {
        run_directory(workdir, *run).name: run_directory(workdir, *run)
        for run in itertools.product(methods, seeds)
    }
    return states.table(named, config.folds, workdir / JOBS)


def slurm_script(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    words: Sequence[str],
    options: Mapping[str, str],
    jobs: int,
) -> str:
    """A script for sbatch that does what is missing of a comparison.

    Args:
        config: of the comparison.
        methods, seeds: its runs.
        workdir: that keeps them.
        words: arguments of the call of `steph_jax.compare`, which every job gets for one run.
        options: of sbatch.
        jobs: how many run at the same time; 0 for all.
    """
    program = [sys.executable, "-m", "steph_jax.compare"]
    of_a_run = command_line.without(words, ("methods", "seeds", "reference"))
    of_a_run = [word for word in of_a_run if word.lstrip("-") not in ("controls", "nocontrols")]
    runs_left = [
        (method, seed)
        for method, seed in itertools.product(methods, seeds)
        if states.finished_folds(run_directory(workdir, method, seed), config.folds)
        < len(config.folds)
    ]
    commands = [[*program, *of_a_run, f"--methods={m}", f"--seeds={s}"] for m, s in runs_left]
    last = [*program, *command_line.without(words)]
    return script_text(commands or [last], last, workdir / JOBS, jobs, options)
