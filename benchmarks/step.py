"""Slides per second of training and prediction, and how fast the machine multiplies matrices.

    python benchmarks/step.py --json FILE [--lengths 76 1000 4000 16000 tcga] [--dtype float32]

For every length, our program, a PyTorch program of the published shape (where PyTorch is installed:
extra `bench`) and the matrix-product ceiling run in turn, round after round, each in a process of
its own; shares and ratios are taken within a round, and medians over rounds are written. FILE gets
the numbers, FILE with the suffix .png a picture:

    {"train": {"76": {...}, ...}, "predict": {...}, "ceiling_gflops": ..., "about": {...}}

    slides_per_second       patients' bags, dropout on in training
    fraction_of_ceiling     work of the real patches (see `workload.flops_per_patch`) per second,
                            over that of the best of three matrix products of the same dtype
    ratio_to_pytorch        speed over that of the PyTorch program; null without PyTorch
    padding_waste           (padded - real) / padded patches
    compilations            shapes for which the phase over patches was compiled
    peak_bytes              high water of our process up to the end of a first pass, the cohort's
                            features in it; of the device's memory on a GPU
    waiting_share           of training, for data
    compiled_while_timed    functions compiled in timed passes; expected 0

About 8 minutes on two cores.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import workload
from ceiling import Ceiling
from engine import Engine, Pass
from workers import Worker
from workload import LENGTHS, MODES, Sizes

from steph_jax.plots import speed

DTYPES = ("float32", "bfloat16")


def measure(
    lengths: list[str], dtype: str, repeats: int, sizes: Sizes, with_torch: bool
) -> dict[str, Any]:
    """All numbers; see the head of this module.

    Args:
        lengths: as in `workload`.
        dtype: of products over patches, ours and the ceiling's; autocast in PyTorch.
        repeats: rounds.
        sizes: of the models and the run.
        with_torch: whether the PyTorch program is measured too.
    """
    results: dict[str, Any] = {mode: {} for mode in MODES}
    ceilings: list[float] = []
    with Worker(Ceiling, dtype, sizes) as ceiling:
        for length in lengths:
            began = time.perf_counter()
            rows, about = measure_length(length, dtype, repeats, sizes, with_torch, ceiling)
            for mode, row in rows.items():
                ceilings += row.pop("ceilings")
                results[mode][length] = row
                _say(f"{length:>6} {mode:<8}{_line(row)}")
            _say(f"{length:>6} took {time.perf_counter() - began:.0f} s")
    results["ceiling_gflops"] = statistics.median(ceilings)
    results["about"] = about | {"dtype": dtype, "repeats": repeats, "torch": _torch_version()}
    return results


def measure_length(
    length: str, dtype: str, repeats: int, sizes: Sizes, with_torch: bool, ceiling: Worker
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A row of numbers for each mode, and what is known of the device."""
    with contextlib.ExitStack() as stack:
        jax_worker = stack.enter_context(Worker(Engine, length, dtype, sizes))
        # Prediction first: the high water of a process never falls, and training's is higher.
        warm = {mode: jax_worker.call(f"warm_{mode}") for mode in reversed(MODES)}
        torch_worker = (
            stack.enter_context(_torch_worker(length, dtype, sizes)) if with_torch else None
        )
        compiled = jax_worker.call("compiled")
        passes: dict[str, list[Pass]] = {mode: [] for mode in MODES}
        ceilings: dict[str, list[float]] = {mode: [] for mode in MODES}
        ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
        for turn in range(repeats):
            for mode in MODES:
                if torch_worker and not turn:
                    torch_worker.call(mode)
                ceilings[mode].append(ceiling.call("measure"))
                passes[mode].append(jax_worker.call(mode))
                if torch_worker:
                    jax_pass = passes[mode][-1]
                    ratios[mode].append(
                        torch_worker.call(mode) * jax_pass.patches / jax_pass.seconds
                    )
            _say(f"{length:>6} round {turn + 1} of {repeats}")
        compiled = jax_worker.call("compiled") - compiled
        rows = {
            mode: _row(passes[mode], ceilings[mode], ratios[mode], sizes, mode)
            | warm[mode]
            | {"compiled_while_timed": compiled, "ceilings": ceilings[mode]}
            for mode in MODES
        }
        return rows, jax_worker.call("about")


def _row(
    passes: list[Pass], ceilings: list[float], ratios: list[float], sizes: Sizes, mode: str
) -> dict[str, Any]:
    work = workload.flops_per_patch(sizes, mode) / 1e9
    shares = [
        work * p.patches / p.seconds / ceiling for p, ceiling in zip(passes, ceilings, strict=True)
    ]
    return {
        "slides_per_second": statistics.median(p.slides / p.seconds for p in passes),
        "fraction_of_ceiling": statistics.median(shares),
        "ratio_to_pytorch": statistics.median(ratios) if ratios else None,
        "waiting_share": statistics.median(p.seconds_waiting / p.seconds for p in passes),
    }


def _torch_worker(length: str, dtype: str, sizes: Sizes) -> Worker:
    from torch_loop import TorchLoop

    return Worker(TorchLoop, length, dtype, sizes)


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def _torch_version() -> str | None:
    return importlib.metadata.version("torch") if has_torch() else None


def _line(row: dict[str, Any]) -> str:
    ratio = row["ratio_to_pytorch"]
    return (
        f"{row['slides_per_second']:9.2f} slides/s {row['fraction_of_ceiling']:6.1%} of ceiling  "
        f"{'no PyTorch' if ratio is None else f'{ratio:.2f} x PyTorch'}  "
        f"padding {row['padding_waste']:.1%}  {row['compilations']} shapes  "
        f"{row['peak_bytes'] / 1e9:.2f} GB  waiting {row['waiting_share']:.1%}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def length(text: str) -> str:
    """A value of --lengths."""
    if text != workload.TCGA and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a number of patches or {workload.TCGA}, not {text!r}")
    return text


def main() -> None:
    """Measures, and writes the JSON file and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, required=True, help="file to write")
    parser.add_argument("--lengths", nargs="+", type=length, default=list(LENGTHS))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=4, help="rounds; medians are written")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats is 1 or more")
    # Several processes share the card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    results = measure(arguments.lengths, arguments.dtype, arguments.repeats, Sizes(), has_torch())
    results["about"]["date"] = datetime.date.today().isoformat()
    results["about"]["command"] = " ".join(["python", *sys.argv])
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    picture = speed(results, arguments.json.with_suffix(".png"))
    _say(f"ceiling {results['ceiling_gflops']:.0f} GFLOP/s; wrote {arguments.json} and {picture}")


if __name__ == "__main__":
    main()
