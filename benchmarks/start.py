"""Time from the command to the first number, with compiled programs in their cache.

    python benchmarks/start.py [--json FILE] [--repeats 5] [--folder DIR] [--quick]

In turn, each in a process of its own:

    bare       python -c "import jax, flax, orbax.checkpoint"
    train      steph_jax.train of STEPH with 12 sources, until the line of its first epoch
    predict    steph_jax.predict for one slide, until it ends

The cohort is small (64 patients of 200 patches of 1,536 features), so that what is timed is the
start. `parts` is where the time of one more run of each goes, by a sampler (start_probe.py);
of training also what comes after that line, with one fold of one epoch.

    {"seconds": {"bare", "train", "predict"},
     "parts": {"train", "train, after", "predict"}, "about"}
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from streaming import TARGET, Cohort, Sizes, make_cohort

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROBE = pathlib.Path(__file__).with_name("start_probe.py")
BARE = ("-c", "import jax, flax, orbax.checkpoint")
SIZES = Sizes(patients=64, patches=200, dim=1536, epochs=1)
QUICK = Sizes(patients=12, patches=8, dim=24, epochs=1)
#: In the line of the log that ends the start of training.
FIRST_EPOCH = " epoch 1/1: "


class Commands:
    """The commands that are timed, on a cohort of their own.

    Args:
        folder: for cohort, runs and compiled programs.
        sizes: of the cohort.
    """

    def __init__(self, folder: pathlib.Path, sizes: Sizes) -> None:
        self._folder = folder
        self._cohort: Cohort = make_cohort(folder, sizes)
        self._sizes = sizes
        self._runs = 0
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }

    def train(self) -> list[str]:
        """The flags of a run in a new directory."""
        self._runs += 1
        root, batch = self._cohort.root, min(16, self._cohort.patients // 2)
        return [
            *("--config", str(ROOT / "configs" / "default.py")),
            *("--workdir", str(self._workdir())),
            f"--config.dataset={TARGET}",
            f"--config.data.root={root}",
            f"--config.data.features={self._cohort.store}",
            f"--config.pool.root={root / 'pool'}",
            f"--config.model.feature_dim={self._sizes.dim}",
            f"--config.batch_size={batch}",
            "--config.folds=(0,)",
            "--config.epochs=1",
        ]

    def predict(self) -> list[str]:
        """The flags of a prediction by the latest run."""
        slide = self._cohort.hdf5 / f"{self._cohort.slides[0]}.h5"
        return [
            *("--checkpoint", str(self._workdir() / "fold_0")),
            *("--features", str(slide)),
            *("--out", str(self._folder / "predictions.csv")),
        ]

    def _workdir(self) -> pathlib.Path:
        return self._folder / f"run_{self._runs}"

    def seconds(self, *words: str, until: str = "") -> float:
        """Seconds that Python takes with some arguments, to a line of its log or to its end."""
        began, marked = time.perf_counter(), None
        with subprocess.Popen(
            [sys.executable, *words],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if until and until in line and marked is None:
                    marked = time.perf_counter() - began
        ended = time.perf_counter() - began
        if process.returncode or (until and marked is None):
            text = "".join(log)[-2000:]
            raise RuntimeError(f"{' '.join(words[:4])} ended with {process.returncode}:\n{text}")
        return ended if marked is None else marked

    def parts(self, program: str, flags: list[str]) -> dict[str, dict[str, float]]:
        """Seconds of a run by part: "to_mark", until the first epoch's line, and "after"."""
        file = self._folder / "parts.json"
        self.seconds(str(PROBE), repr(time.time()), str(file), FIRST_EPOCH, program, *flags)
        parts: dict[str, dict[str, float]] = json.loads(file.read_text())
        return parts


def measure(folder: pathlib.Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Numbers as in the head of this module."""
    commands = Commands(folder, sizes)

    def round_of() -> dict[str, float]:
        bare = commands.seconds(*BARE)
        training = commands.train()
        train = commands.seconds("-m", "steph_jax.train", *training, until=FIRST_EPOCH)
        predict = commands.seconds("-m", "steph_jax.predict", *commands.predict())
        return {"bare": bare, "train": train, "predict": predict}

    round_of()  # compiles
    rounds = [round_of() for _ in range(repeats)]
    train = commands.parts("train", commands.train())
    predict = commands.parts("predict", commands.predict())
    return {
        "seconds": {name: statistics.median(row[name] for row in rounds) for name in rounds[0]},
        "parts": {
            "train": train["to_mark"],
            "train, after": train["after"],
            "predict": predict["to_mark"],
        },
        "about": {"patients": sizes.patients, "repeats": repeats, "cores": os.cpu_count()},
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    parser.add_argument("--repeats", type=int, default=5, help="of every command")
    parser.add_argument("--folder", type=pathlib.Path, help="where 0.4 GB are written for a while")
    parser.add_argument("--quick", action="store_true", help="a tiny cohort, to see that it works")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sizes = QUICK if arguments.quick else SIZES
        result = measure(pathlib.Path(folder), sizes, arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    bare = result["seconds"]["bare"]
    for name, seconds in result["seconds"].items():
        print(f"{name:<10}{seconds:7.2f} s  {seconds / bare:5.2f} x bare")
    for name, parts in result["parts"].items():
        print(f"\n{name}: {sum(parts.values()):.2f} s")
        for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"  {part:<28}{seconds:6.2f}")


if __name__ == "__main__":
    main()
