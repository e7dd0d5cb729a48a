"""A script for sbatch that needs nothing but this package where the jobs run."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence

#: How often a job whose time is over is queued again.
_REQUEUES = 3


def text(
    commands: Sequence[Sequence[str]],
    then: Sequence[str],
    folder: pathlib.Path,
    number: int,
    options: Mapping[str, str],
) -> str:
    """The script of an array of jobs.

    Args:
        commands: the words of each job's command.
        then: lines about what is to be done when all have ended, as `dependent` gives them.
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
        "signal": "B:USR1@90",
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
            f"# mkdir -p {shlex.quote(str(folder))}; jobs=$(sbatch --parsable THIS_FILE)",
            *(f"# {line}" for line in then),
            "commands=(",
            quoted,
            ")",
            "# A job that is preempted is queued again by Slurm, and goes on after its last epoch.",
            f"# One whose time is nearly over is so by these lines, up to {_REQUEUES} times.",
            "queue_again() {",
            "    kill -USR1 $work; wait $work",
            f"    if [ ${{SLURM_RESTART_COUNT:-0}} -lt {_REQUEUES} ]; then",
            "        scontrol requeue $SLURM_JOB_ID",
            "    fi",
            "    exit 138",
            "}",
            "trap queue_again USR1",
            "trap 'kill -TERM $work; wait $work; exit 143' TERM",
            'eval "${commands[$SLURM_ARRAY_TASK_ID]} &"',
            "work=$!",
            "wait $work",
            "",
        ]
    )


def dependent(what: str, words: Sequence[str]) -> list[str]:
    """Lines about a command that is to be run when all jobs of a script have ended.

    Args:
        what: it writes.
        words: of the command.
    """
    wrapped = shlex.quote(shlex.join(words))
    return [
        f"When all have ended, {what}:",
        f"sbatch --dependency=afterany:$jobs --wrap {wrapped}",
    ]
