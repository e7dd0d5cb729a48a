"""What a job does in a process of its own: its call, and the end that a cluster asks it for."""

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from steph_jax import interrupts
from steph_jax.messages import USER_ERRORS

#: Seconds that Slurm may take for an answer.
_ANSWER = 30
_RESUMING = "the same command goes on after the last finished epoch"


def submitit() -> Any:
    """submitit, which starts the jobs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "--launcher needs submitit: pip install 'steph_jax[jobs]'; --print needs nothing"
        ) from None
    return submitit


class Mistake(Exception):
    """A user's mistake: its message says all."""


class JobProcess:
    """A call that ends within seconds when it is asked to, and can be queued again.

    SIGUSR2, which Slurm sends before the job's time is over, is submitit's: it queues the job again
    up to three times. SIGTERM comes when a job is cancelled or preempted.

    Args:
        call: as of `job.Job`.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __call__(self) -> None:
        interrupts.install((signal.SIGINT, signal.SIGTERM), before_end=_queue_again)
        with interrupts.working(_RESUMING):
            try:
                self.call()
            except USER_ERRORS as error:
                raise Mistake(str(error) or type(error).__name__) from None

    def checkpoint(self) -> Any:
        """What submitit queues when a cluster takes the job away: the same call, which goes on."""
        return submitit().helpers.DelayedSubmission(self)


def _queue_again(number: signal.Signals) -> None:
    """Has Slurm queue this job again if it takes the job away.

    One that ends by itself in the grace time of a preemption would count as failed. Slurm knows one
    that was cancelled, is queued again already or has used up its time as no longer running.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if number != signal.SIGTERM or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    state = _answer("squeue", "--noheader", "--format=%T", f"--jobs={job}")
    if state.strip() == "RUNNING":
        _answer("scontrol", "requeue", job)


def _answer(*command: str) -> str:
    """What a command of Slurm prints; "" where it fails, as when its controller is down."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ANSWER)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout
