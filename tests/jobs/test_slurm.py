"""Jobs on a Slurm of two nodes that the tests start: arrays, dependencies, cancels, requeues."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import hosts_of_a_run
import job_calls
import pools
import pytest
import simulated
import slurm_cluster

from steph_jax import train
from steph_jax.jobs import comparison_jobs, launch, slurm_script
from steph_jax.jobs import slurm as slurm_jobs
from steph_jax.jobs.job import Job, Launcher
from steph_jax.training.compared_runs import Request

pytestmark = pytest.mark.slurm
#: Seconds that anything here may take on a busy machine.
PATIENCE = 400
EPOCHS = 30


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Starts Slurm; the environment of its commands."""
    pytest.importorskip("submitit", reason="extra `jobs` is not installed")
    try:
        with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "slurm") as environment:
            yield environment | {
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_COMPILATION_CACHE_DIR": str(simulated.ROOT / ".pytest_cache" / "compiled"),
                "PYTHONPATH": f"{simulated.ROOT}:{simulated.ROOT / 'tests' / 'helpers'}",
            }
    except slurm_cluster.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def in_its_environment(slurm, monkeypatch) -> None:
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    return pools.make(tmp_path_factory.mktemp("home"))


@contextlib.contextmanager
def beside(work: Callable[[], Any]) -> "Iterator[concurrent.futures.Future[Any]]":
    """Work in a thread, while this one does something to its jobs."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        yield threads.submit(work)


def until(condition: Callable[[], Any], *work: "concurrent.futures.Future[Any]") -> Any:
    """What a condition comes to when it is met; work that ends before it fails the test."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline
        for future in work:
            assert not future.done(), future.result()
        threading.Event().wait(0.1)
    return value


def started(*paths: pathlib.Path) -> Callable[[], bool]:
    return lambda: all(path.exists() for path in paths)


def run(*command: str) -> str:
    """What a command that succeeds prints."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=simulated.ROOT
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout + ended.stderr


def jobs_of(folder: pathlib.Path, names: str) -> list[Job]:
    return [Job(name, partial(job_calls.counted, folder, name)) for name in names]


def lines_of(path: pathlib.Path) -> list[str]:
    return path.read_text().split()


def test_an_array_one_of_which_is_cancelled(tmp_path):
    """What waits for all of them is not begun, what waits for their end is."""
    launcher = Launcher("slurm", 2, tmp_path / "jobs")
    stages, last = [jobs_of(tmp_path, "abc"), jobs_of(tmp_path, "d")], jobs_of(tmp_path, "e")[0]
    with beside(lambda: launch.run(stages, launcher, last)) as work:
        until(started(tmp_path / "a", tmp_path / "b"), work)
        ids = until(lambda: (ids := slurm_jobs.job_ids(launcher.folder)).get("e") and ids, work)
        array = ids["a"].split("_")[0]
        assert [ids[name] for name in "abc"] == [f"{array}_{index}" for index in range(3)]
        assert slurm_jobs.queued([ids["c"]]) == {ids["c"]: "PENDING"}  # two at a time
        run("scancel", ids["b"])
        until(lambda: not slurm_jobs.queued([ids["b"]]), work)  # long before it would be killed
        (tmp_path / "go").touch()
        with pytest.raises(ValueError, match="2 of 4 jobs failed; the same command") as error:
            work.result(PATIENCE)
    b, d = map(str.strip, str(error.value).splitlines()[1:])
    assert b.startswith("b: ended without a result")
    assert d.startswith("d: was not begun: cancelled, or a job that it needs has failed")
    assert [lines_of(tmp_path / name) for name in "ace"] == [["start", "end"]] * 3
    assert "terminated; the same command" in log_of(launcher, "b").read_text()


def log_of(launcher: Launcher, name: str) -> pathlib.Path:
    job_id = slurm_jobs.job_ids(launcher.folder)[name]
    return launcher.folder / f"{job_id}_0_log.out"


def test_a_second_call_waits_for_the_jobs_of_the_first(tmp_path):
    stages, last = [jobs_of(tmp_path, "a"), jobs_of(tmp_path, "b")], jobs_of(tmp_path, "c")[0]
    launcher = Launcher("slurm", 0, tmp_path / "jobs", waits=False)
    assert launch.run(stages, launcher, last)
    ids = slurm_jobs.job_ids(launcher.folder)
    assert set(slurm_jobs.queued(ids.values())) == set(ids.values())
    with beside(
        lambda: launch.run(stages, dataclasses.replace(launcher, waits=True), last)
    ) as work:
        until(started(tmp_path / "a"), work)
        (tmp_path / "go").touch()
        assert work.result(PATIENCE)
    assert slurm_jobs.job_ids(launcher.folder) == ids
    assert [lines_of(tmp_path / name) for name in "abc"] == [["start", "end"]] * 3


def test_a_preempted_job_is_queued_again(tmp_path):
    """It ends as soon as it is told to, not when its grace is over, and begins anew."""
    launcher = Launcher("slurm", 0, tmp_path / "jobs")
    with beside(lambda: launch.run([jobs_of(tmp_path, "a")], launcher)) as work:
        until(started(tmp_path / "a"), work)
        run("srun", "--partition=urgent", "--nodes=2", "true")
        (tmp_path / "go").touch()
        work.result(PATIENCE)
    assert lines_of(tmp_path / "a") == ["start", "start", "end"]


def test_a_script_queues_a_job_again_whose_time_is_nearly_over(tmp_path):
    call = f"import job_calls, pathlib; job_calls.counted(pathlib.Path({str(tmp_path)!r}), 'a')"
    script = slurm_script.text([[sys.executable, "-c", call]], [], tmp_path / "jobs", 0, {})
    (tmp_path / "script").write_text(script)
    (tmp_path / "jobs").mkdir()
    job = run("sbatch", "--parsable", str(tmp_path / "script")).strip()
    until(started(tmp_path / "a"))
    run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: lines_of(tmp_path / "a") == ["start", "start"])
    (tmp_path / "go").touch()
    until(lambda: lines_of(tmp_path / "a") == ["start", "start", "end"])


def test_a_comparison_whose_pool_comes_first_and_a_script_for_one_method_more(home, tmp_path):
    """The first command does not wait: its tables are a job."""
    words = [
        *simulated.flags(home, "--config.folds=(0,)", "--config.epochs=1", "--seeds=1"),
        *(f"--config.pool.root={tmp_path / 'pool'}", "--config.pool.save=true"),
        f"--workdir={tmp_path / 'w'}",
    ]
    program = [sys.executable, "-m", "steph_jax.compare", *words]
    run(*program, "--methods=abmil", "--launcher=slurm", "--nowait")
    ids = slurm_jobs.job_ids(tmp_path / "w/jobs")
    assert set(ids) == {"pool_runs/sim_a", "abmil-seed_1", "tables"}
    until(lambda: not slurm_jobs.queued(ids.values()))
    assert methods_of(tmp_path / "w") == {"abmil"}
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("w/**/metrics.json")}
    assert len(results) == 2

    record = pools.config(home) | {"folds": (0,)}
    section = record["pool"] | {"root": str(tmp_path / "pool"), "save": True}
    request = Request(*(record | {"pool": section}, ("abmil", "average"), (1,), tmp_path / "w", ""))
    script = comparison_jobs.script(request, [*words, "--methods=abmil,average"], {}, 1)
    (tmp_path / "script").write_text(script)
    run("sbatch", "--wait", str(tmp_path / "script"))
    assert methods_of(tmp_path / "w") == {"average"}  # of the job for it; its sbatch makes all
    assert results == {path: path.stat().st_mtime_ns for path in results}


def methods_of(workdir: pathlib.Path) -> set[str]:
    """The methods that the table of a comparison has."""
    with (workdir / "compare.csv").open() as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_a_requeued_job_goes_on(home, tmp_path):
    """As when its time is nearly over: the one job of `train` for both folds of a run."""
    record = pools.config(home) | {"epochs": EPOCHS, "method": "learned"}
    launcher = Launcher("slurm", 0, tmp_path / "jobs")
    job = Job("run", partial(train.train_as_job, record, tmp_path, ""))
    fold_0, fold_1 = (tmp_path / f"fold_{fold}" for fold in (0, 1))
    with beside(lambda: launch.run([[job]], launcher)) as work:
        until(lambda: any(fold_1.glob("checkpoints/epoch_*")), work)
        finished = (fold_0 / "metrics.json").stat().st_mtime_ns
        run("scancel", "--signal=USR2", slurm_jobs.job_ids(launcher.folder)["run"])
        work.result(PATIENCE)
    log = log_of(launcher, "run").read_text()
    assert "fold 1: going on after epoch " in log
    assert log.count(f"fold 0 epoch {EPOCHS}/{EPOCHS}: ") == 1
    assert (fold_0 / "metrics.json").stat().st_mtime_ns == finished
    with (fold_1 / "history.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, EPOCHS + 1))


def test_one_model_on_two_nodes(home, tmp_path):
    words = simulated.flags(home, "--config.folds=(0,)", "--config.epochs=1")
    address = f"127.0.0.1:{hosts_of_a_run.free_port()}"  # the nodes' names are known to Slurm alone
    printed = run(
        *("srun", "--nodes=2", "--ntasks=2", f"--export=ALL,JAX_COORDINATOR_ADDRESS={address}"),
        *(sys.executable, "-m", "steph_jax.train", *words, f"--workdir={tmp_path}"),
    )
    assert (tmp_path / "fold_0/metrics.json").is_file()
    (devices,) = (line for line in printed.splitlines() if "devices: " in line)
    assert devices.count(",") == 1
