"""Which values the settings of a config may have that stand in no section."""

import math
from typing import Any

from steph_jax.methods import registry
from steph_jax.models.abmil import Architecture
from steph_jax.trackers.track import expect_names
from steph_jax.training.sections import Precision, expect_within

#: More than this is a mistake, and would end in a machine without memory or a run without end.
MOST_EPOCHS = 100_000
MOST_PATIENTS_A_STEP = 65_536
MOST_DIMENSIONS = 65_536
MOST_LAYERS = 100


def check_value(name: str, value: Any) -> None:
    """Raises ValueError for a value that no run can use."""
    if name in VALUE_CHECKS:
        VALUE_CHECKS[name](name, value)


def _expect_name(name: str, value: str) -> None:
    if not value or not value.isprintable():
        raise ValueError(f"{name} is the name of a folder of data.root; found {value!r}")


def _expect_seed(name: str, value: int) -> None:
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} is 0 or more, below 2^63; found {value}")


def _expect_rate(name: str, value: float) -> None:
    least = "above 0" if name == "learning_rate" else "0 or more"
    if not 0 <= value < math.inf or (name == "learning_rate" and not value):
        raise ValueError(f"{name} is a number {least}; found {value}")


def _expect_sources(name: str, value: tuple[str, ...]) -> None:
    if not all(source and source.isprintable() and "," not in source for source in value):
        raise ValueError(
            "sources are names of datasets, as --config.sources=\"('tcga_blca','tcga_kirc')\"; "
            f"found {list(value)!r}"
        )
    if len(set(value)) < len(value):
        raise ValueError(f"a source is named twice: {list(value)}")


def _expect_folds(name: str, value: tuple[int, ...]) -> None:
    if not value or any(fold < 0 for fold in value):
        raise ValueError(f"folds are numbers of splits files, as (0, 1); found {list(value)!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"a fold is named twice: {list(value)}")


def _expect_model(name: str, value: Architecture) -> None:
    for field in ("feature_dim", "embed_dim", "attention_dim"):
        expect_within(f"model.{field}", getattr(value, field), 0, MOST_DIMENSIONS)
    expect_within("model.num_layers", value.num_layers, 1, MOST_LAYERS)


#: The values that a setting may have.
VALUE_CHECKS: dict[str, Any] = {
    "dataset": _expect_name,
    "method": lambda name, value: registry.find_method(value),
    "folds": _expect_folds,
    "seed": _expect_seed,
    "sources": _expect_sources,
    "train_patients": lambda name, value: expect_within(name, value, 0, 2**31 - 1),
    "epochs": lambda name, value: expect_within(name, value, 1, MOST_EPOCHS),
    "batch_size": lambda name, value: expect_within(name, value, 1, MOST_PATIENTS_A_STEP),
    "learning_rate": _expect_rate,
    "warmup_epochs": lambda name, value: expect_within(name, value, 0, MOST_EPOCHS),
    "weight_decay": _expect_rate,
    "eval_every": lambda name, value: expect_within(name, value, 0, 2**63 - 1),
    "track": lambda name, value: expect_names(value),
    "compute_dtype": lambda name, value: Precision(value),
    "model": _expect_model,
}
