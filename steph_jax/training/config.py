"""From a config to the typed settings that the rest of the package takes."""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from steph_jax.data.tables import Columns
from steph_jax.methods.base import Merging, Spec
from steph_jax.models import roupkt, steph
from steph_jax.models.abmil import Architecture
from steph_jax.survival.objectives import objective
from steph_jax.survival.time_bins import TimeBins, quantile_bins, sqrt_event_bins, uniform_bins
from steph_jax.training.early_stopping import Selection

#: Settings that may differ between the parts of one run: they change nothing that is computed.
FREE = ("folds", "data.cache_gb", "data.device_gb", "data.check_values")


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON would give it back (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def columns(data: dict[str, Any]) -> Columns:
    """How the survival table is to be read, from the section `data`."""
    named = ("time_unit", "event_coding", "unlabeled")
    return Columns(**data["columns"], **{name: data[name] for name in named})


def features_location(data: dict[str, Any], dataset: str) -> pathlib.Path:
    """Where the features of a dataset are: `data.features` with {dataset} and {root} filled in.

    Raises:
        ValueError: for another name in braces.
    """
    try:
        return pathlib.Path(data["features"].format(dataset=dataset, root=data["root"]))
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(
            f"data.features may hold {{dataset}} and {{root}}; found {data['features']!r} ({error})"
        ) from None


def time_bins(bins: dict[str, Any], time: np.ndarray, event: np.ndarray) -> TimeBins:
    """The time bins of a fold, from the section `bins` and the fold's training patients."""
    kind = bins["kind"]
    if kind == "uniform":
        return uniform_bins(bins["number"], bins["width_days"])
    if kind == "quantile":
        return quantile_bins(time, event, bins["number"])
    if kind == "sqrt_events":
        return sqrt_event_bins(time, event)
    raise ValueError(f"bins.kind is one of uniform, quantile, sqrt_events; found {kind!r}")


def compute_dtype(name: str) -> Any:
    """dtype of the operands of products over patches; None for float32.

    Raises:
        ValueError: for another name.
    """
    if name == "float32":
        return None
    if name == "bfloat16":
        return jnp.bfloat16
    raise ValueError(f"compute_dtype is float32 or bfloat16; found {name!r}")


def feature_dtype(name: str) -> np.dtype:
    """dtype that features are kept in for a `compute_dtype`."""
    return np.dtype(np.float32 if compute_dtype(name) is None else jnp.bfloat16)


def patches_per_group(platform: str) -> int:
    """Patches that one compiled call takes at most: enough to keep the device busy."""
    return 4096 if platform == "cpu" else 65536


def resident_bytes(data: dict[str, Any], device: jax.Device) -> int:
    """What features may take on a device, from the section `data`.

    Raises:
        ValueError: for less than -1.
    """
    gigabytes = data["device_gb"]
    if gigabytes >= 0:
        return int(gigabytes * 1e9)
    if gigabytes != -1:
        raise ValueError(
            f"data.device_gb is 0 or more, or -1 for half of the device; found {gigabytes}"
        )
    if device.platform == "cpu":
        return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0)) // 2


def spec(
    settings: dict[str, Any], fold: int, num_outputs: int, bins: TimeBins | None = None
) -> Spec:
    """What a fold asks of its method."""
    architecture = Architecture(**settings["model"], num_bins=num_outputs)
    return Spec(
        dataset=settings["dataset"],
        fold=fold,
        seed=settings["seed"],
        architecture=architecture,
        num_outputs=num_outputs,
        output=objective(settings["loss"]).output.name,
        bins=None if bins is None else bins.to_json(),
        sources=tuple(settings["sources"]),
        steph=steph.Options(**settings["steph"]),
        merge_weight=float(settings["loss"]["merge_weight"]),
        mix_weight=float(settings["loss"]["mix_weight"]),
        merging=Merging(**settings["merging"]),
        roupkt=roupkt.Options(**settings["roupkt"]),
        transfer_source=settings["transfer"]["source"],
    )


def check(settings: dict[str, Any]) -> None:
    """Raises ValueError for values that no run can use, before anything is read."""
    for name in ("epochs", "batch_size", "eval_every"):
        value = settings[name]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is a whole number, 1 or more; found {value!r}")
    if settings["warmup_epochs"] < 0:
        raise ValueError(f"warmup_epochs is 0 or more; found {settings['warmup_epochs']}")
    if not 0 <= settings["seed"] < 2**63:
        raise ValueError(f"seed is 0 or more, below 2^63; found {settings['seed']}")
    positive = {"learning_rate": settings["learning_rate"]}
    weights = {f"loss.{name}": settings["loss"][name] for name in ("merge_weight", "mix_weight")}
    for name, value in (positive | weights | {"weight_decay": settings["weight_decay"]}).items():
        if not 0 <= value < math.inf or (name in positive and not value):
            least = "above 0" if name in positive else "0 or more"
            raise ValueError(f"{name} is a number {least}; found {value}")
    sources = settings["sources"]
    if not all(isinstance(name, str) and name and "," not in name for name in sources):
        raise ValueError(
            "sources are names of datasets, as --config.sources=\"('tcga_blca','tcga_kirc')\"; "
            f"found {sources!r}"
        )
    for name in ("steph.fixed_mixing", "merging.weights"):
        section, field = name.split(".")
        given = settings[section][field]
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in given):
            raise ValueError(f'{name} are numbers, one a source, as "(0.1, 0.5)"; found {given!r}')
    for name, lowest in (("cache_gb", 0.0), ("device_gb", -1.0)):
        value = settings["data"][name]
        if not lowest <= value < math.inf:
            raise ValueError(f"data.{name} is a number, {lowest:g} or more; found {value}")
    if len(set(sources)) < len(sources):
        raise ValueError(f"a source is named twice: {sources}")
    folds = settings["folds"]
    if not folds or any(type(f) is not int or f < 0 for f in folds):
        raise ValueError(f"folds are numbers of splits files, as (0, 1); found {folds!r}")
    if len(set(folds)) < len(folds):
        raise ValueError(f"a fold is named twice: {folds}")
    compute_dtype(settings["compute_dtype"])
    objective(settings["loss"])
    steph.Options(**settings["steph"])
    Merging(**settings["merging"])
    roupkt.Options(**settings["roupkt"])
    Selection(**settings["validation"])
