"""One run in two processes: the bytes of one process, whatever becomes of them on the way."""

import contextlib
import json
import multiprocessing
import pathlib
import re
import signal
import subprocess
import threading
from collections.abc import Callable

import hosts_of_a_run as together
import pools
import pytest
import simulated

from steph_jax import train
from steph_jax.hosts import processes

RESULTS = ("predictions_test.csv", "merge_weights_test.csv")
#: One that merges, and one with inputs from frozen models.
METHODS = ("roupkt", "learned")
EPOCHS = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    return pools.make(tmp_path_factory.mktemp("home"))


def results(fold: pathlib.Path) -> dict[str, bytes]:
    """Predictions and weights of a fold, by their names."""
    return {name: (fold / name).read_bytes() for name in RESULTS if (fold / name).is_file()}


def expect_success(ended: list[tuple[int, str, str]]) -> None:
    assert [status for status, *_ in ended] == [0, 0], ended


def run_methods(home: pathlib.Path, out: pathlib.Path, settings: str, *methods: str) -> None:
    words = [together.__file__, "methods", str(home), str(out), settings, *methods]
    expect_success(together.ended(together.start(2, lambda index: words)))


def test_methods_give_the_bytes_of_one_process(home, tmp_path):
    """The tests have two devices, as the two processes have together."""
    run_methods(home, tmp_path / "two", "", *METHODS)
    together.train_methods(home, tmp_path / "one", "", list(METHODS))
    for method in METHODS:
        alone = results(tmp_path / "one" / method / "fold_0")
        assert alone == results(tmp_path / "two" / method / "fold_0"), method
    assert len(alone) == 2  # those of a method with weights


def test_patches_on_the_devices(home, tmp_path):
    run_methods(home, tmp_path / "two", "data.device_gb=0.1", "abmil")
    together.train_methods(home, tmp_path / "one", "", ["abmil"])
    alone = results(tmp_path / "one/abmil/fold_0")
    assert alone == results(tmp_path / "two/abmil/fold_0")


def test_each_host_reads_its_own_patches():
    ended = together.ended(together.start(2, lambda index: [together.__file__, "reads"]))
    expect_success(ended)
    first, second = (json.loads(output.splitlines()[-1]) for _, output, _ in ended)
    everything = list(range(len(together.PATCHES)))
    assert sorted(first["batch"] + second["batch"]) == everything
    # The bag in the middle of all rows is cut; the first part of a split cache goes on after it.
    for cache, most in (("cache", 1), ("split_cache", 2)):
        assert sorted({*first[cache], *second[cache]}) == everything
        assert len(first[cache]) + len(second[cache]) <= len(everything) + most


def training(home: pathlib.Path, workdir: pathlib.Path) -> Callable[[int], list[str]]:
    flags = simulated.flags(home, "--config.method=learned", "--config.folds=(0,)")
    more = [f"--config.epochs={EPOCHS}", f"--workdir={workdir}"]
    return lambda index: ["-m", "steph_jax.train", *flags, *more]


def begin(home: pathlib.Path, workdir: pathlib.Path) -> list[subprocess.Popen[str]]:
    """Starts two processes, and returns when another epoch of theirs is finished."""
    before = set(workdir.glob("fold_0/checkpoints/epoch_*"))
    processes = together.start(2, training(home, workdir))
    while not set(workdir.glob("fold_0/checkpoints/epoch_*")) - before:
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(0.02)
            pytest.fail(str(together.ended(processes)))
    return processes


def lines_of(errors: str) -> list[str]:
    """What is left of standard error without the log."""
    return [
        line for line in errors.splitlines() if line and not re.match(r"[IWE]\d{4} |WARNING:", line)
    ]


def test_one_that_dies_ends_the_other_and_all_go_on(home, tmp_path):
    workdir = tmp_path / "two"
    for dying in (1, 0):
        processes = begin(home, workdir)
        processes[dying].kill()
        ended = together.ended(processes, timeout=120)
        status, _, errors = ended[1 - dying]
        (line,) = lines_of(errors)
        assert re.match(rf"error: process {dying} on \S+ has ended; the same command", line)
        assert (status, ended[dying][0]) == (1, -signal.SIGKILL)
    processes = begin(home, workdir)
    for process in processes:
        process.terminate()
    for status, _, errors in together.ended(processes, timeout=120):
        assert status == 128 + signal.SIGTERM
        assert lines_of(errors) == [
            "terminated; the same command goes on after the last finished epoch"
        ]
    expect_success(together.ended(together.start(2, training(home, workdir))))
    record = pools.config(home) | {"method": "learned", "folds": [0], "epochs": EPOCHS}
    train.train(record, tmp_path / "one")
    alone = results(tmp_path / "one/fold_0")
    assert len(alone) == 2
    assert alone == results(workdir / "fold_0")


def test_a_mistake_on_one_host_is_told_once(home, tmp_path):
    def command(index: int) -> list[str]:
        missing = [f"--config.data.root={tmp_path / 'absent'}"] if index else []
        return [*training(home, tmp_path / "out")(index), *missing]

    first, second = together.ended(together.start(2, command), timeout=120)
    assert (first[0], second[0]) == (1, 1)
    (line,) = lines_of(first[2])
    assert re.match(r"error: process 1 on \S+: .*absent", line)
    assert lines_of(second[2]) == []
    assert not (tmp_path / "out").exists()


def test_jobs_are_started_by_one_process(home, tmp_path):
    flags = simulated.flags(home, "--methods=abmil", "--launcher=local", f"--workdir={tmp_path}")
    command = ["-m", "steph_jax.compare", *flags]
    first, second = together.ended(together.start(2, lambda index: command), timeout=120)
    assert (first[0], second[0]) == (1, 1)
    assert lines_of(first[2]) == [
        "error: --launcher local starts jobs from one process, but this command was started in 2; "
        "start it in one, or leave --launcher out"
    ]


def test_a_silent_host_is_lost(monkeypatch):
    lost = []
    monkeypatch.setattr(processes, "_BEAT", 0.01)
    monkeypatch.setattr(processes, "_MOST_MISSED", 10**9)
    monkeypatch.setattr(processes, "_lost", lost.append)
    here, there = multiprocessing.Pipe()
    line = processes._Line(here, 3, "node7")
    line.start()
    there.send_bytes(b'["alive", null]')
    there.send_bytes(b'["value", 5]')
    assert line.value() == 5
    assert lost == []
    monkeypatch.setattr(processes, "_MOST_MISSED", 3)
    line.wait_for_end()
    while not lost:
        threading.Event().wait(0.01)
    assert lost[0].startswith("process 3 on node7 has been silent for ")
    assert there.recv_bytes() == b'["alive", null]'
