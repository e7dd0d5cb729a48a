"""A script for sbatch that needs nothing but this package where the jobs run."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence


def text(
    commands: Sequence[Sequence[str]],
    last: Sequence[str],
    folder: pathlib.Path,
    number: int,
    options: Mapping[str, str],
) -> str:
    """The script of an array of jobs.

    Args:
        commands: the words of each job's command.
        last: the words of what is to be run when all have ended.
        folder: of the logs.
        number: of jobs at a time; 0 for all.
        options: of sbatch by name; "time" in minutes.
    """
    limit = f"%{number}" if number else ""
    flags = {
        "job-name": "steph_jax",
        "array": f"0-{len(commands) - 1}{limit}",
        "output": f"{folder}/%A_%a.log",
        "open-mode": "append",
    }
    quoted = "\n".join(f"    {shlex.quote(shlex.join(words))}" for words in commands)
    return "\n".join(
        [
            "#!/bin/bash",
            *(
                f"#SBATCH --{name}={shlex.quote(value)}"
                for name, value in {**flags, **options}.items()
            ),
            "#SBATCH --requeue",
            "# A job that was taken away is queued again and goes on after its last epoch.",
            f"# mkdir -p {shlex.quote(str(folder))}; jobs=$(sbatch --parsable THIS_FILE)",
            "# When all have ended, the tables:",
            f"# sbatch --dependency=afterok:$jobs --wrap {shlex.quote(shlex.join(last))}",
            "commands=(",
            quoted,
            ")",
            'eval "exec ${commands[$SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    )
