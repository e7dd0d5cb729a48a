"""What inference with a trained model costs."""

import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from steph_jax import files, hosts, records
from steph_jax import run_directory as runs
from steph_jax.data.bags import OnDiskBags
from steph_jax.engine.placement import device_mesh
from steph_jax.evaluation import cost, fold_results
from steph_jax.evaluation.comparison import run_directory
from steph_jax.methods.registry import load_model
from steph_jax.training import experiment
from steph_jax.training.config import Config

_MEASURED = records.record(
    {
        "num_patches": records.WHOLE,
        "flops_per_slide": records.NUMBER,
        "seconds_per_slide": records.NUMBER,
    }
)


def inference_cost(config: Config, workdir: pathlib.Path, method: str, seed: int) -> dict[str, Any]:
    """Operations and seconds per slide of a method's first model, measured once per device.

    The slide has as many patches as the median test patient of the fold.
    """
    directory = run_directory(workdir, method, seed)
    fold = runs.fold_directory(directory, config.folds[0])
    file = directory / "inference.json"
    mesh = device_mesh()
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    conditions = {"device": device, "jax": jax.__version__, "batch_size": config.batch_size}
    record: dict[str, Any] = {}
    if file.is_file():
        record = records.read(file, _MEASURED, "a measurement of inference", f"remove {file}")
    if hosts.agreed(all(record.get(name) == value for name, value in conditions.items())):
        return hosts.agreed(record)
    model = load_model(fold / "model")
    num_patches = median_patches(config, fold)
    dtype = config.precision.operands
    logging.info("%s: measuring inference", method)
    measurement = conditions | {
        "num_patches": num_patches,
        "flops_per_slide": cost.flops_per_slide(model, num_patches),
        "seconds_per_slide": cost.seconds_per_slide(model, num_patches, config.batch_size, dtype),
    }
    hosts.written(lambda: files.write_json(file, measurement))
    return measurement


def median_patches(config: Config, fold: pathlib.Path) -> int:
    """The median number of patches of the test patients of a finished fold."""
    table, split = fold_results.read_patients(fold)
    source = experiment.open_source(config, config.dataset)
    slides = [table.slides[i] for i in split.test]
    bags = OnDiskBags(source, slides, config.precision.features)
    return max(1, int(np.median(bags.num_patches)))
