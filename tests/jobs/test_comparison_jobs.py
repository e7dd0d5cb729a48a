"""What jobs a call of `compare` comes to: with datasets, numbers of patients, a pool to fill."""

import dataclasses
import pathlib
import shlex
import shutil

import pools
import pytest

from steph_jax import compare, train
from steph_jax.checkpoints.pool import Pool
from steph_jax.jobs import comparison_jobs, launch
from steph_jax.training.compared_runs import Request
from steph_jax.training.config import Config

DATASETS = ("sim_a", "sim_b")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    return pools.make(tmp_path_factory.mktemp("home"))


@pytest.fixture
def request_of_two(home, tmp_path) -> Request:
    record = pools.config(home) | {"folds": (0,)}
    return Request(record, ("abmil", "average"), (1,), tmp_path / "W", "", DATASETS)


def saving(request: Request, pool: pathlib.Path) -> Request:
    """The same, which adds to an own pool what that lacks."""
    section = request.record["pool"] | {"root": str(pool), "save": True}
    return dataclasses.replace(request, record=request.record | {"pool": section})


def names(request: Request) -> list[list[str]]:
    stages = comparison_jobs.stages(request, train.train_as_job, train.beginning)
    return [[job.name for job in stage] for stage in stages]


def test_all_runs_of_a_call_are_one_stage(request_of_two):
    runs = ["abmil-seed_1", "average-seed_1"]
    expected = [f"{dataset}/{run}" for dataset in DATASETS for run in runs]
    assert names(request_of_two) == [[], expected]
    numbers = dataclasses.replace(request_of_two, numbers=(0, 6), methods=("abmil",))
    places = [f"{d}/patients_{n}" for d in DATASETS for n in ("6", "all")]
    assert names(numbers) == [[], [f"{place}/abmil-seed_1" for place in places]]
    (line, *_) = comparison_jobs.status(numbers).splitlines()[1:]
    assert line.split() == ["sim_a/patients_6/abmil-seed_1", "0/1", "not", "begun"]


def test_what_the_pool_lacks_is_a_stage_before(home, request_of_two, tmp_path):
    """Where it has the models of one dataset, those of the others."""
    pool = tmp_path / "pool"
    shutil.copytree(home / "pool", pool)
    shutil.rmtree(pool / "sim_b-fold_0")
    request = saving(request_of_two, pool)
    first, second = names(request)
    assert first == ["pool_runs/sim_b"]
    assert len(second) == 4
    (run,) = comparison_jobs.pool_runs(request).values()
    assert (run["dataset"], run["method"], run["folds"]) == ("sim_b", "abmil", (0,))
    assert not any(record["pool"]["save"] for record in request.comparisons().values())
    with pytest.raises(FileNotFoundError, match="no model of 'sim_b' for fold 0"):
        names(
            dataclasses.replace(
                request,
                record=request.record | {"pool": {**request.record["pool"], "save": False}},
                methods=("learned",),
            )
        )


def test_scripts_of_a_call(home, request_of_two, tmp_path):
    """Each line sets one run's dataset, and the settings of the call; the last makes the tables."""
    words = shlex.split("--config=c.py --datasets a,b --methods=x --controls --workdir W --print")
    script = comparison_jobs.script(request_of_two, words, {}, 0)
    lines = [line.strip() for line in script.splitlines()]
    first = shlex.split(shlex.split(lines[lines.index("commands=(") + 1])[0])
    assert first[2:] == [
        *("steph_jax.compare", "--config=c.py"),
        *("--config.dataset=sim_a", "--config.train_patients=0"),
        *("--methods=abmil", "--seeds=1", f"--workdir={request_of_two.workdir / 'sim_a'}"),
    ]
    assert "#SBATCH --array=0-3" in lines
    (last,) = (line for line in lines if line.startswith("# sbatch --dependency=afterany:"))
    assert "--datasets a,b --methods=x --controls --workdir W --tables" in last

    script = comparison_jobs.script(saving(request_of_two, tmp_path / "new"), words, {}, 0)
    lines = [line.strip() for line in script.splitlines()]
    first = shlex.split(shlex.split(lines[lines.index("commands=(") + 1])[0])
    assert first[2:5] == ["steph_jax.train", "--config=c.py", "--config.dataset=sim_a"]
    assert "--config.folds=(0,)" in first
    assert "# When all have ended, the same command prints a script for what needs them." in lines


def test_tables_of_what_is_finished(request_of_two):
    """One of two datasets is; nothing is trained for the other."""
    record = request_of_two.comparisons()[request_of_two.workdir / "sim_a"]
    request = dataclasses.replace(request_of_two, methods=("average",))
    directory = request.workdir / "sim_a" / "average-seed_1"
    config = Config.from_dict(record).with_values({"method": "average", "seed": 1})
    train.train(config.record, directory)
    with pytest.raises(ValueError, match=r"^not finished: sim_b/average-seed_1; 1 of 2 comp"):
        compare.write_tables(request)
    assert (request.workdir / "sim_a/compare.csv").is_file()
    assert not (request.workdir / "sim_b").exists()


def test_a_pool_is_filled_in_this_process(request_of_two, tmp_path):
    request = saving(request_of_two, tmp_path / "pool")
    pool, runs = comparison_jobs.stages(request, train.train, train.beginning)
    assert [job.name for job in pool] == ["pool_runs/sim_a", "pool_runs/sim_b"]
    for job in pool:
        job.call()
    assert Pool(tmp_path / "pool").members() == {"sim_a": [0], "sim_b": [0]}
    assert comparison_jobs.pool_runs(request) == {}
    assert len(runs) == 4


def test_jobs_of_a_script_and_of_the_launcher_have_one_folder(request_of_two):
    script = comparison_jobs.script(request_of_two, [], {}, 0)
    assert f"--output={request_of_two.workdir / launch.JOBS}/" in script
