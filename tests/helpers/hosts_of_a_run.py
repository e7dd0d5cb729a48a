"""Processes that share a run, on this machine, as JAX's variables tell them; and one alone.

    python tests/helpers/hosts_of_a_run.py methods HOME OUT NAME=VALUE,... METHOD ...
    python tests/helpers/hosts_of_a_run.py reads

The first trains methods one after the other in one process, the second prints which bags a loader
reads there, as JSON.
"""

import contextlib
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pictures
import pools
import pytest
import simulated

from steph_jax import cli, hosts, train
from steph_jax.data.bags import InMemoryBags
from steph_jax.data.chunks import GroupShapes
from steph_jax.engine.device_cache import part_nbytes
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import device_mesh, fetch

ROOT = simulated.ROOT
PATCHES = (3, 9, 4, 4, 12, 1, 7, 2)


def free_port() -> int:
    """A port that is free now and that the system gives to no connection of its own accord."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(number: int, command: Callable[[int], Sequence[str]]) -> list[subprocess.Popen[str]]:
    """Starts processes of one run, each with a CPU device of its own.

    Args:
        number: of processes.
        command: the arguments of Python in the process of a number.
    """
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for index in range(number):
        variables = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(number),
            "JAX_PROCESS_ID": str(index),
            "JAX_NUM_CPU_DEVICES": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *command(index)],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def ended(
    processes: Sequence[subprocess.Popen[str]], timeout: float = 300
) -> list[tuple[int, str, str]]:
    """Status, output and errors of each process when all have ended; kills those that do not.

    Raises:
        subprocess.TimeoutExpired: one has not ended in time.
    """
    results = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            results.append((process.returncode, output, errors))
        return results
    finally:
        for process in processes:
            process.kill()


class CountingBags(InMemoryBags):
    """Bags that note which of them are read, and hand out no views."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.numbers: set[int] = set()

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        self.numbers.add(int(index))
        super().read(index, start, out)

    def view(self, index: int, start: int, size: int) -> None:
        return None


def train_methods(home: pathlib.Path, out: pathlib.Path, settings: str, methods: list[str]) -> None:
    """Trains methods on fold 0, one epoch, and draws nothing."""
    values = dict(setting.split("=") for setting in settings.split(",") if setting)
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        for method in methods:
            record = pools.config(home) | {"method": method, "folds": [0]}
            for name, value in values.items():
                section, _, field = name.partition(".")
                record[section] = record[section] | {field: json.loads(value)}
            train.train(record, out / method)


def reads() -> dict[str, list[int]]:
    """The bags that this process reads of one batch, and to fill the device cache; and values."""
    rng = np.random.default_rng(0)
    patches = [rng.standard_normal((n, 2), np.float32) for n in PATCHES]
    bags = CountingBags.of(patches, 2, np.dtype(np.float32))
    shapes = GroupShapes(((2, 3),))
    order = [list(range(len(PATCHES)))]
    sums, numbers = [], []
    for cache in (0, 10**6, part_nbytes(bags, shapes, 2)):
        bags.numbers.clear()
        loader = DeviceLoader(bags, shapes, device_mesh(), len(PATCHES), cache)
        (batch,) = loader.batches(order, {})
        numbers.append(sorted(bags.numbers))
        groups = [fetch(group) for group in batch.groups]
        rows = [g.features[i, : g.length[i]] for g in groups for i in range(len(g.length))]
        sums.append(float(np.concatenate(rows).astype(np.float64).sum()))
    expected = float(np.concatenate(patches).astype(np.float64).sum())
    np.testing.assert_allclose(sums, expected)
    return {"batch": numbers[0], "cache": numbers[1], "split_cache": numbers[2]}


def main() -> None:
    cli.prepare()
    with hosts.joined():
        if sys.argv[1] == "reads":
            print(json.dumps(reads()))
        else:
            home, out, settings, *methods = sys.argv[2:]
            train_methods(pathlib.Path(home), pathlib.Path(out), settings, methods)


if __name__ == "__main__":
    main()
