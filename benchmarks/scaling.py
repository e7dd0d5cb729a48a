"""Training speed by number of devices, each with 16 slides of a step.

    python benchmarks/scaling.py [--json FILE] [--lengths 4000 tcga] [--dtype float32]

Devices are all that JAX sees on this machine: 1, 2, 4 .. of them, and all. Every number of devices
is measured in a process of its own. The efficiency is the speed over that of one device, over the
number of devices; the imbalance is the patches of the fullest device over their mean, less 1.
`JAX_NUM_CPU_DEVICES=2` makes two devices of a CPU, to see that it works: they share its cores.

    {"train": {"4000": {"1": {"slides_per_second", "efficiency", "imbalance"}, ...}}, "about": ...}
"""

import argparse
import json
import os
import pathlib
import statistics
from typing import Any

from engine import Engine
from step import DTYPES, length
from workers import Worker
from workload import TCGA, Sizes


def measure(lengths: list[str], dtype: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """Numbers by length and number of devices; see the head of this module."""
    results: dict[str, Any] = {"train": {}}
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
    results["about"] = about | {"dtype": dtype, "repeats": repeats}
    return results


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
