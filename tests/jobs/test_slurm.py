"""Jobs on a Slurm of two nodes that the tests start: arrays, dependencies, cancels, requeues."""

import concurrent.futures
import contextlib
import csv
import pathlib
import shlex
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

from steph_jax import compare
from steph_jax.jobs import comparison_jobs, launch
from steph_jax.jobs.launch import Job, Launcher
from steph_jax.training.config import Config

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


def test_an_array_one_of_which_is_cancelled(tmp_path):
    jobs = [Job(name, partial(job_calls.counted, tmp_path, name)) for name in "abc"]
    launcher = Launcher("slurm", 2, tmp_path / "jobs")
    with beside(lambda: launch.run(jobs, launcher)) as work:
        until(started(tmp_path / "a", tmp_path / "b"), work)
        ids = launch.job_ids(launcher.folder)
        (array,) = {job_id.split("_")[0] for job_id in ids.values()}
        assert ids == {name: f"{array}_{index}" for index, name in enumerate("abc")}
        assert launch.queued([ids["c"]]) == {ids["c"]: "PENDING"}  # two at a time
        run("scancel", ids["b"])
        until(lambda: not launch.queued([ids["b"]]), work)
        (tmp_path / "go").touch()
        with pytest.raises(ValueError, match="1 of 3 jobs failed; the same command") as error:
            work.result(PATIENCE)
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith("b: ended without a result")
    assert [(tmp_path / name).read_text() for name in "ac"] == ["0\n", "2\n"]
    assert "CANCELLED" in next(launcher.folder.glob(f"{ids['b']}_0_log.out")).read_text()


def test_a_second_call_waits_for_the_jobs_of_the_first(tmp_path):
    jobs = [Job("a", partial(job_calls.counted, tmp_path, "a"))]
    launcher = Launcher("slurm", 0, tmp_path / "jobs")
    with beside(lambda: launch.run(jobs, launcher)) as first:
        until(started(tmp_path / "a"), first)
        ids = launch.job_ids(launcher.folder)
        with beside(lambda: launch.run(jobs, launcher)) as second:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                second.result(1)
            (tmp_path / "go").touch()
            second.result(PATIENCE)
        first.result(PATIENCE)
    assert launch.job_ids(launcher.folder) == ids
    assert (tmp_path / "a").read_text().count("\n") == 1


def test_a_comparison_and_then_a_script_for_one_method_more(home, tmp_path):
    """The script's last line makes the tables, when its array has ended."""
    words = simulated.flags(home, "--config.folds=(0,)", "--config.epochs=1", "--seeds=1")
    place = f"--workdir={tmp_path / 'w'}"
    program = [sys.executable, "-m", "steph_jax.compare", *words, place]
    run(*program, "--methods=abmil,average", "--launcher=slurm", "--jobs=2")
    assert set(launch.job_ids(tmp_path / "w/jobs")) == {"abmil-seed_1", "average-seed_1"}
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("w/*/fold_0/metrics.json")}
    assert len(results) == 2
    assert methods_of(tmp_path / "w") == {"abmil", "average"}

    config = Config.from_dict(pools.config(home) | {"folds": [0]})
    methods = ("abmil", "average", "learned")
    words += [place, f"--methods={','.join(methods)}"]
    options = {"partition": "p"}
    script = comparison_jobs.slurm_script(
        config, methods, (1,), tmp_path / "w", words, options, jobs=1
    )
    (tmp_path / "script").write_text(script)
    array = run("sbatch", "--parsable", str(tmp_path / "script")).strip()
    (line,) = (line for line in script.splitlines() if line.startswith("# sbatch"))
    last = shlex.split(line.removeprefix("# ").replace("$jobs", array))
    run(last[0], "--wait", f"--output={tmp_path / 'last.log'}", *last[1:])
    assert methods_of(tmp_path / "w") == set(methods)
    assert results == {path: path.stat().st_mtime_ns for path in results}


def methods_of(workdir: pathlib.Path) -> set[str]:
    """The methods that the table of a comparison has."""
    with (workdir / "compare.csv").open() as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_a_requeued_job_goes_on(home, tmp_path):
    """As when its time is over, or its node is taken for another job."""
    record = pools.config(home) | {"epochs": EPOCHS}
    launcher = Launcher("slurm", 0, tmp_path / "jobs")
    call = partial(compare.compare, record, ("learned",), (1,), tmp_path, "", launcher=launcher)
    fold_0, fold_1 = (tmp_path / "learned-seed_1" / f"fold_{fold}" for fold in (0, 1))
    with beside(call) as work:
        until(lambda: any(fold_1.glob("checkpoints/epoch_*")), work)
        finished = (fold_0 / "metrics.json").stat().st_mtime_ns
        (job,) = launch.job_ids(launcher.folder).values()
        run("scancel", "--signal=USR2", job)
        work.result(PATIENCE)
    log = next(launcher.folder.glob(f"{job}_0_log.out")).read_text()
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
