"""A job, and where jobs run."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to run in a process of its own.

    Attributes:
        name: of the run, unique within the command.
        call: a function of a module, with its arguments bound by `functools.partial`; what it does
            is on disk, and another call goes on with it.
    """

    name: str
    call: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Where jobs run.

    Attributes:
        kind: "local" or "slurm".
        number: jobs at a time; 0 = one for each GPU of this machine, or one; all, on a cluster.
        folder: of scripts and logs.
        options: of sbatch by name, as {"partition": "gpu", "gres": "gpu:1"}; "time" in minutes, a
            day by default.
        waits: whether `run` returns when the jobs have ended, or when Slurm has them.
    """

    kind: str
    number: int
    folder: pathlib.Path
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    waits: bool = True
