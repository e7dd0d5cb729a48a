"""Training speed by number of devices, which share a batch or train a model each.

    python benchmarks/scaling.py [--json FILE] [--lengths 4000 tcga] [--dtype float32]

Devices are all that JAX sees on this machine: 1, 2, 4 .. of them, and all. Every number of devices
is measured in a process of its own, with 16 slides of a step for each device. The efficiency is
the speed over that of one device, over the number of devices; the imbalance is the patches of the
fullest device over their mean, less 1. "side_by_side" is one process for each device, all at once,
as `compare --launcher local` runs methods and seeds: the sum of their speeds.
`JAX_NUM_CPU_DEVICES=2` makes two devices of a CPU, to see that it works: they share its cores.

    {"train": {"4000": {"1": {"slides_per_second", "efficiency", "imbalance"}, ...}},
     "side_by_side": {"4000": {"slides_per_second", "efficiency"}}, "about": ...}

With one device "side_by_side" is empty.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine import Engine
from step import DTYPES, length
from workers import Worker
from workload import TCGA, Sizes


def measure(lengths: list[str], dtype: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """Numbers by length and number of devices; see the head of this module."""
    results: dict[str, Any] = {"train": {}, "side_by_side": {}}
    for name in lengths:
        rows: dict[str, Any] = {}
        number = most = 1
        while number <= most:
            with Worker(Engine, name, dtype, sizes, number) as engine:
                about = engine.call("about")
                most = about["devices"]
                engine.call("warm_train")
                passes = [engine.call("train") for _ in range(repeats)]
                speed = statistics.median(p.slides / p.seconds for p in passes)
                one_device = rows["1"]["slides_per_second"] if rows else speed
                rows[str(number)] = {
                    "slides_per_second": speed,
                    "efficiency": speed / one_device / number,
                    "imbalance": engine.call("imbalance"),
                }
            row = rows[str(number)]
            print(
                f"{name:>6} on {number} of {most} devices {speed:9.2f} slides/s  "
                f"efficiency {row['efficiency']:.1%}  imbalance {row['imbalance']:.1%}",
                flush=True,
            )
            number = 2 * number if 2 * number <= most or number == most else most
        results["train"][name] = rows
        if most > 1:
            speed = side_by_side(name, dtype, repeats, sizes, most)
            efficiency = speed / rows["1"]["slides_per_second"] / most
            results["side_by_side"][name] = {"slides_per_second": speed, "efficiency": efficiency}
            print(
                f"{name:>6} a model on each of {most}  {speed:9.2f} slides/s  "
                f"efficiency {efficiency:.1%}",
                flush=True,
            )
    results["about"] = about | {"dtype": dtype, "repeats": repeats}
    return results


def side_by_side(length: str, dtype: str, repeats: int, sizes: Sizes, number: int) -> float:
    """Slides per second of one process for each device, all training at once."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(number) as pool:
        engines = [
            stack.enter_context(Worker(Engine, length, dtype, sizes, 1, device))
            for device in range(number)
        ]
        for engine in engines:
            engine.call("warm_train")
        speeds = []
        for _ in range(repeats):
            passes = list(pool.map(lambda engine: engine.call("train"), engines))
            # Until the last has ended: what a user waits for.
            speeds.append(sum(p.slides for p in passes) / max(p.seconds for p in passes))
        return statistics.median(speeds)


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    parser.add_argument("--lengths", nargs="+", type=length, default=["4000", TCGA])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=4, help="passes; medians are written")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats is 1 or more")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    results = measure(arguments.lengths, arguments.dtype, arguments.repeats, Sizes())
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
