"""Programs that cannot write: one line that names a file, nothing half-written, then go on."""

import pathlib
import shutil

import failing_writes
import pools
import pytest
import released
import torch_writer

from steph_jax import compare, convert, evaluate, run_directory
from steph_jax.training.config import Config

#: Orbax's other writes fail after the first has ended its event loop; programs leave that out.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

METHODS, SEEDS = ("abmil", "average"), (1,)
COMMAND = "python -m steph_jax.compare"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished comparison of one fold, with all its pictures."""
    workdir = tmp_path_factory.mktemp("W") / "runs"
    compared(world, workdir)
    return workdir


def compared(world: pathlib.Path, workdir: pathlib.Path) -> None:
    compare.compare(pools.config(world) | {"folds": [0]}, METHODS, SEEDS, workdir, COMMAND)


def names(folder: pathlib.Path) -> set[str]:
    """Of all that is there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_conversion_under_a_limit_on_the_size_of_files(tmp_path, capsys):
    file = torch_writer.save(tmp_path / "a.pth", {"model": released.abmil(0)})
    command = [str(file), "--name", "null", "--out", str(tmp_path / "pool")]
    with failing_writes.file_size_limit(200):
        assert convert.main(command) == 1
    assert "(File too large); raise the limit of file sizes" in capsys.readouterr().err
    assert not [name for name in names(tmp_path / "pool") if "null" in name]
    assert convert.main(command) == 0


def test_evaluation_under_a_limit_on_the_size_of_files(world, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished / "abmil-seed_1", workdir)
    before = names(workdir)
    config = Config.from_dict(pools.config(world))
    fold = workdir / "fold_0"
    with (
        failing_writes.file_size_limit(200),
        pytest.raises(OSError, match=r"fold_0/.*: cannot be written \(File too large\); raise the"),
    ):
        evaluate.evaluate_fold(fold, config)
    assert names(workdir) == before
    evaluate.evaluate_fold(fold, config)
    assert run_directory.is_finished(fold)


def test_comparison_under_a_limit_on_the_size_of_files(world, finished, tmp_path):
    workdir = tmp_path / "runs"
    shutil.copytree(finished, workdir)
    before = names(workdir)
    with (
        failing_writes.file_size_limit(200),
        pytest.raises(OSError, match=r"/runs/.*: cannot be written \(File too large\); raise the"),
    ):
        compared(world, workdir)
    assert names(workdir) == before


def without_summaries(finished: pathlib.Path, workdir: pathlib.Path) -> None:
    """A comparison whose runs still have to make their pictures and summaries."""
    shutil.copytree(finished, workdir)
    for run in workdir.glob("*-seed_*"):
        (run / "summary.json").unlink()


@pytest.fixture(scope="module")
def steps(world, finished, tmp_path_factory):
    """Number of changes to files that end such a comparison."""
    workdir = tmp_path_factory.mktemp("counted") / "runs"
    without_summaries(finished, workdir)
    with failing_writes.refusing(str(workdir), -1) as disk:
        compared(world, workdir)
    return disk.steps


@pytest.mark.parametrize("part", [0.3, 0.7, 1.0])
def test_comparison_that_a_disk_refuses_at_a_moment(world, finished, steps, tmp_path, part):
    """Pictures, tables and summaries are there after the next call, wherever the first ended."""
    workdir = tmp_path / "runs"
    without_summaries(finished, workdir)
    with (
        failing_writes.refusing(str(workdir), round(part * steps)),
        pytest.raises(OSError, match=str(workdir)),
    ):
        compared(world, workdir)
    compared(world, workdir)
    assert names(workdir) == names(finished)
