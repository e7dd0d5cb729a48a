"""Starts runs as jobs and waits for them; submitit (extra `jobs`) does the starting.

A job is one call with all folds of a run (`Job`). Runs keep what they have done on disk, epoch by
epoch, so nothing has to come back through the launcher: a job that a cluster preempts or that runs
out of time is queued again and goes on, and the same command, given again, finds what is finished,
waits for what is running and starts the rest.

    local    as many jobs at a time as asked for, a GPU of its own for each where there are any
    slurm    one array of jobs; `options` are those of sbatch
"""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from steph_jax import files, records
from steph_jax.hosts.discovery import visible_gpus
from steph_jax.messages import USER_ERRORS

LAUNCHERS = ("here", "local", "slurm")
SUBMITTED = "submitted.json"
#: Seconds between two looks at the jobs, and after which one that Slurm has forgotten has ended.
_INTERVAL, _GRACE = 2.0, 20.0
_NO_LIMIT_MINUTES, _DEFAULT_MINUTES = 10**7, 24 * 60
_IDS = records.mapping(records.TEXT)


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
    """

    kind: str
    number: int
    folder: pathlib.Path
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _Requeued:
    """A job's call in its own process: a user's mistake is a message, not a traceback."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> str:
        try:
            self.job.call()
        except USER_ERRORS as error:
            return str(error) or type(error).__name__
        return ""

    def checkpoint(self) -> Any:
        """What submitit queues when a cluster takes the job away: the same call, which goes on."""
        return _submitit().helpers.DelayedSubmission(self)


def run(jobs: Sequence[Job], launcher: Launcher) -> None:
    """Runs jobs and returns when all have ended.

    Raises:
        ValueError: submitit or Slurm is not there; a job failed: names it, why, and its log. The
            others are waited for all the same.
    """
    submitit = _submitit()
    files.check_output_folder(launcher.folder)
    with files.writing(launcher.folder):
        launcher.folder.mkdir(parents=True, exist_ok=True)
    if launcher.kind == "slurm":
        failures = _run_on_slurm(submitit, jobs, launcher)
    else:
        failures = _run_here(submitit, jobs, launcher)
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(jobs)} jobs failed; the same command goes on with them\n  "
            + "\n  ".join(failures)
        )


def parse_options(text: str) -> dict[str, str]:
    """Options of sbatch from NAME=VALUE,NAME=VALUE; values may hold "=" and ":".

    Raises:
        ValueError: a part without a value; a time that is no number of minutes.
    """
    options = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip("- ") or not value:
            raise ValueError(
                f"--slurm: expected options of sbatch as partition=gpu,time=240; found {part!r}"
            )
        options[name.strip("- ").replace("_", "-")] = value
    if not options.get("time", "1").isdecimal():
        raise ValueError(f"--slurm: time is in minutes, a whole number; found {options['time']}")
    return options


def _run_here(submitit: Any, jobs: Sequence[Job], launcher: Launcher) -> list[str]:
    """Runs jobs on this machine; returns a line for each that failed."""
    gpus = visible_gpus()
    slots = list(range(launcher.number or len(gpus) or 1))
    waiting, running, failures = list(jobs), dict[int, tuple[Job, Any]](), list[str]()
    try:
        while waiting or running:
            for slot in slots:
                if slot in running or not waiting:
                    continue
                executor = submitit.LocalExecutor(folder=launcher.folder)
                executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES)
                if gpus:
                    gpu = gpus[slot % len(gpus)]
                    executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
                job = waiting.pop(0)
                running[slot] = job, executor.submit(_Requeued(job))
                logging.info("%s: started, %d wait", job.name, len(waiting))
            time.sleep(_INTERVAL / 4)
            for slot, (job, submitted) in list(running.items()):
                if submitted.done():
                    del running[slot]
                    failures += _ended(job, submitted)
    finally:
        for _, submitted in running.values():
            submitted.cancel()
    return failures


def _run_on_slurm(submitit: Any, jobs: Sequence[Job], launcher: Launcher) -> list[str]:
    """Runs jobs as an array; returns a line for each that failed."""
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise ValueError(
                f"--launcher slurm: {program} is not on this machine; give the command on a login "
                "node of the cluster, or --print for a script to submit there"
            )
    submitted = _still_there(submitit, jobs, launcher)
    new = [job for job in jobs if job.name not in submitted]
    if new:
        executor = submitit.SlurmExecutor(folder=launcher.folder)
        options = dict(launcher.options)
        minutes = int(options.pop("time", _DEFAULT_MINUTES))
        executor.update_parameters(
            job_name="steph_jax",
            array_parallelism=launcher.number or len(new),
            additional_parameters={"requeue": True, **options},
            time=minutes,
            stderr_to_stdout=True,
        )
        with executor.batch():  # one array, below what a user may have queued
            submitted |= {job.name: executor.submit(_Requeued(job)) for job in new}
        ids = {name: str(job.job_id) for name, job in submitted.items()}
        files.write_json(launcher.folder / SUBMITTED, job_ids(launcher.folder) | ids)
        logging.info("submitted to Slurm: %s", ", ".join(f"{n} {i}" for n, i in ids.items()))
    return _wait(jobs, submitted)


def _wait(jobs: Sequence[Job], submitted: Mapping[str, Any]) -> list[str]:
    """Waits for jobs of Slurm; returns a line for each that failed."""
    waiting, failures = {job.name: job for job in jobs}, list[str]()
    missing_since: dict[str, float] = {}
    states: dict[str, str] = {}
    while waiting:
        queue = queued(submitted[name].job_id for name in waiting)
        for name, job in list(waiting.items()):
            task = submitted[name]
            state = queue.get(str(task.job_id))
            if state is not None and states.get(name) != state:
                states[name] = state
                logging.info("%s: %s (job %s)", name, state.lower(), task.job_id)
            if state is None and not task.paths.result_pickle.exists():
                since = missing_since.setdefault(name, time.monotonic())
                if time.monotonic() - since < _GRACE:
                    continue
            elif state is not None:
                missing_since.pop(name, None)
                continue
            del waiting[name]
            failures += _ended(job, task)
        if waiting:
            time.sleep(_INTERVAL)
    return failures


def _ended(job: Job, submitted: Any) -> list[str]:
    """A line about a job that has ended without success; none about another."""
    log = submitted.paths.stdout
    if not submitted.paths.result_pickle.exists():
        return [f"{job.name}: ended without a result (killed, or out of memory or time); see {log}"]
    outcome, result = _result(submitted)
    if outcome == "error":
        return [f"{job.name}: {_last_words(result)}; see {log}"]
    if result:
        return [f"{job.name}: {result}"]
    logging.info("%s: finished", job.name)
    return []


def _result(submitted: Any) -> tuple[str, Any]:
    """("success", what the call returned) or ("error", a traceback); this user's own file."""
    with contextlib.suppress(Exception):
        return "success", submitted.result()
    return "error", submitted.exception()


def _last_words(error: Any) -> str:
    """The last line of the traceback, which submitit puts between two lines of dashes."""
    parts = [part.strip() for part in re.split(r"-{8,}", str(error))]
    return (parts[1] if len(parts) > 2 and parts[1] else parts[0]).splitlines()[-1]


def queued(ids: Iterable[str]) -> dict[str, str]:
    """States by id of those jobs that Slurm knows as waiting or running."""
    wanted = set(map(str, ids))
    command = ["squeue", "--noheader", "--array", "--format=%F_%K %A %T", "--me"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(f"squeue: {answer.stderr.strip()}; is SLURM_CONF right?")
    states = {}
    for line in answer.stdout.splitlines():
        array_id, plain_id, state = line.split()
        for name in (array_id, plain_id):
            if name in wanted:
                states[name] = state
    return states


def _still_there(submitit: Any, jobs: Sequence[Job], launcher: Launcher) -> dict[str, Any]:
    """Jobs of an earlier call that Slurm still knows, by name."""
    ids = job_ids(launcher.folder)
    known = queued(ids[job.name] for job in jobs if job.name in ids)
    return {
        job.name: submitit.SlurmJob(launcher.folder, ids[job.name])
        for job in jobs
        if ids.get(job.name) in known
    }


def job_ids(folder: pathlib.Path) -> dict[str, str]:
    """Slurm's ids of the jobs that were submitted from this folder, by name."""
    path = folder / SUBMITTED
    if not path.exists():
        return {}
    ids: dict[str, str] = records.read(path, _IDS, "ids of jobs", f"remove {path}")
    return ids


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "--launcher needs submitit: pip install 'steph_jax[jobs]'; --print needs nothing"
        ) from None
    return submitit


def chosen(kind: str, number: int, folder: pathlib.Path, options: str) -> Launcher | None:
    """The launcher that flags name; None to run here, one after the other.

    Raises:
        ValueError: a number of jobs below 0; options of a launcher that has none.
    """
    if number < 0:
        raise ValueError(f"--jobs is a number of jobs at a time; found {number}")
    if kind == "here" and number > 1:
        raise ValueError("--jobs needs --launcher local or slurm")
    if options and kind != "slurm":
        raise ValueError("--slurm needs --launcher slurm")
    return None if kind == "here" else Launcher(kind, number, folder, parse_options(options))
