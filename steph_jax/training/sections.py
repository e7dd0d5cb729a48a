"""The sections of a config that belong to no method, each with the checks of its values."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from steph_jax.data.columns import Columns
from steph_jax.evaluation import survival_metrics
from steph_jax.survival.time_bins import (
    BIN_KINDS,
    DAYS_PER_YEAR,
    TimeBins,
    quantile_bins,
    sqrt_event_bins,
    uniform_bins,
)

#: More than this is a mistake, and would end in a machine without memory.
MOST_BINS = 10_000


def expect_within(name: str, value: int, least: int, most: int) -> None:
    """Raises ValueError for a number that is not between two others."""
    if not least <= value <= most:
        raise ValueError(f"{name} is a whole number from {least} to {most}; found {value}")


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """The section `data.columns`: names of the columns of a survival table."""

    patient: str = Columns.patient
    slide: str = Columns.slide
    time: str = Columns.time
    event: str = Columns.event
    competing: str = Columns.competing


@dataclasses.dataclass(frozen=True)
class Data:
    """The section `data`: where a run's data are, how they are read and kept.

    Attributes:
        root: folder of the cohorts.
        features: where features are, with {dataset} and {root} in it.
        hdf5_dataset: array in HDF5 and .npz files.
        cache_gb: 10^9 bytes of memory for features; 0 = a quarter of what the job may use.
        device_gb: 10^9 bytes of each GPU for features, which are split over several GPUs if that is
            the only way to fit; -1 = half of it.
        check_values: whether values that do not fit the cache are read once before training.
        time_unit, event_coding, unlabeled: as in `columns.Columns`.
        columns: names in the survival table.
    """

    root: str = "data"
    features: str = "data/features/{dataset}"
    hdf5_dataset: str = "features"
    cache_gb: float = 0.0
    device_gb: float = -1.0
    check_values: bool = True
    time_unit: str = Columns.time_unit
    event_coding: str = Columns.event_coding
    unlabeled: str = Columns.unlabeled
    columns: ColumnNames = dataclasses.field(default_factory=ColumnNames)

    def __post_init__(self) -> None:
        if self.cache_gb < 0:
            raise ValueError(f"data.cache_gb is a number, 0 or more; found {self.cache_gb}")
        if self.device_gb < 0 and self.device_gb != -1:
            raise ValueError(
                "data.device_gb is 0 or more, or -1 for half of the device; found "
                f"{self.device_gb:g}"
            )
        self.features_of("any")
        _ = self.table_columns

    @property
    def table_columns(self) -> Columns:
        """How the survival table is to be read."""
        return Columns(
            **dataclasses.asdict(self.columns),
            time_unit=self.time_unit,
            event_coding=self.event_coding,
            unlabeled=self.unlabeled,
        )

    @property
    def folder(self) -> pathlib.Path:
        """`root` as a path."""
        return pathlib.Path(self.root)

    def features_of(self, dataset: str) -> pathlib.Path:
        """Where the features of a dataset are: `features` with {dataset} and {root} filled in.

        Raises:
            ValueError: for another name in braces.
        """
        try:
            return pathlib.Path(self.features.format(dataset=dataset, root=self.root))
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                "data.features may hold {dataset} and {root}; found "
                f"{self.features!r} ({type(error).__name__}: {error})"
            ) from None


@dataclasses.dataclass(frozen=True)
class Bins:
    """The section `bins`: how times become classes.

    Attributes:
        kind: one of `time_bins.BIN_KINDS`.
        number: of bins; not used by sqrt_events.
        width_days: of uniform bins.
    """

    kind: str = "uniform"
    number: int = 32
    width_days: float = DAYS_PER_YEAR

    def __post_init__(self) -> None:
        if self.kind not in BIN_KINDS:
            raise ValueError(f"bins.kind is one of {', '.join(BIN_KINDS)}; found {self.kind!r}")
        expect_within("bins.number", self.number, 1, MOST_BINS)
        if self.width_days <= 0:
            raise ValueError(f"bins.width_days is a number above 0; found {self.width_days}")

    def cut(self, time: np.ndarray, event: np.ndarray) -> TimeBins:
        """The time bins of a fold.

        Args:
            time: [P] days of the fold's training patients.
            event: [P] True where death was seen.

        Raises:
            ValueError: as `quantile_bins` and `sqrt_event_bins` do.
        """
        if self.kind == "uniform":
            return uniform_bins(self.number, self.width_days)
        if self.kind == "quantile":
            return quantile_bins(time, event, self.number)
        return sqrt_event_bins(time, event)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The section `evaluate`: what is computed of predictions.

    Attributes:
        years: horizons of AUC, Brier scores, calibration and cumulative incidence.
    """

    years: tuple[float, ...] = survival_metrics.YEARS

    def __post_init__(self) -> None:
        survival_metrics.expect_years(self.years)


@dataclasses.dataclass(frozen=True)
class PoolSection:
    """The section `pool`: where the pool of models is, and whether fitted models are added to it.

    Attributes:
        root: folder of the pool.
        save: method "abmil": whether the fitted models become members.
    """

    root: str = "pool"
    save: bool = False


@dataclasses.dataclass(frozen=True)
class Precision:
    """The type of the operands of products over patches, "float32" or "bfloat16"."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype is float32 or bfloat16; found {self.name!r}")

    @property
    def operands(self) -> Any:
        """What models take as `compute_dtype`: None for float32."""
        return None if self.name == "float32" else jnp.bfloat16

    @property
    def features(self) -> np.dtype:
        """dtype that features are kept in."""
        return np.dtype(np.float32 if self.operands is None else self.operands)
