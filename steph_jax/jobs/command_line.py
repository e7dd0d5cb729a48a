"""Flags of programs whose runs can be jobs."""

import pathlib
from collections.abc import Sequence

from absl import flags

from steph_jax import hosts
from steph_jax.jobs import launch
from steph_jax.jobs.job import Launcher


def define() -> None:
    """Defines the flags of programs whose runs can be jobs (`jobs.launch`)."""
    flags.DEFINE_enum(
        "launcher",
        "here",
        launch.LAUNCHERS,
        "Where runs are done: here one after the other, local side by side, or on a slurm cluster.",
    )
    flags.DEFINE_integer("jobs", 0, "Runs at a time; 0 = one a GPU, or all on a cluster.")
    flags.DEFINE_string(
        "slurm", "", "Options of sbatch: partition=gpu,gres=gpu:1,time=240 (minutes), ..."
    )
    flags.DEFINE_bool("wait", True, "Wait for the jobs of a cluster; --nowait only submits them.")
    flags.DEFINE_bool("status", False, "Print what has become of the runs; start nothing.")
    flags.DEFINE_bool("print", False, "Print a script for sbatch instead; start nothing.")


#: The flags of `define` that take a value, and those that take none.
_NAMES = ("launcher", "jobs", "slurm"), ("wait", "nowait", "status", "print")


def launcher(workdir: pathlib.Path) -> Launcher | None:
    """The launcher that the flags name; None to run here, one after the other.

    Raises:
        ValueError: as `launch.chosen` does; jobs are to be started from several processes.
    """
    values = flags.FLAGS
    chosen = launch.chosen(
        values.launcher, values.jobs, workdir / launch.JOBS, values.slurm, values.wait
    )
    if chosen is not None and hosts.count() > 1:
        raise ValueError(
            f"--launcher {values.launcher} starts jobs from one process, but this command was "
            f"started in {hosts.count()}; start it in one, or leave --launcher out"
        )
    return chosen


def without(
    words: Sequence[str], more: Sequence[str] = (), more_alone: Sequence[str] = ()
) -> list[str]:
    """The words of a command but for the flags of `define`.

    Args:
        words: of a command line, without the program's.
        more: names of other flags with a value to leave out.
        more_alone: of other flags without one.
    """
    with_value, alone = {*_NAMES[0], *more}, {*_NAMES[1], *more_alone}
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in with_value | alone:
            kept.append(word)
        elif name in with_value and not equals and words:
            words.pop(0)
    return kept
