"""The config of a run, typed: built once, from what a config file or a stored config.json holds.

An attribute has the name that its setting has in the config: `config.data.cache_gb`. The settings
of a method are in sections that belong to it (`methods.base.Method.options_type`), and are
`config.options`.
"""

import copy
import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from steph_jax import files, run_directory
from steph_jax.methods import controls, registry
from steph_jax.methods.base import FoldSpec, Method
from steph_jax.models.abmil import Architecture
from steph_jax.survival.objectives import Objective
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training import typed_values
from steph_jax.training.early_stopping import EarlyStopping
from steph_jax.training.protocol import VALUE_CHECKS, check_value
from steph_jax.training.sections import (
    Bins,
    ColumnNames,
    Data,
    Evaluation,
    PoolSection,
    Precision,
)

#: Settings that may differ between the parts of one run: they change no model and no prediction.
MAY_CHANGE_ON_RESUME = (
    "folds",
    "eval_every",
    "evaluate.years",
    "data.cache_gb",
    "data.device_gb",
    "data.check_values",
    "track",
)
#: Settings that are paths.
_PATHS = (("data", "root"), ("data", "features"), ("pool", "root"))


@dataclasses.dataclass(frozen=True, eq=False)
class Config:
    """A run; configs/default.py explains each setting.

    Attributes:
        record: the settings as JSON, as they are stored.
        options: of `method`, an instance of its `options_type`.
        Others: as in the config.

    Raises:
        ValueError: for values that no run can use, before anything is read.
    """

    record: dict[str, Any]
    dataset: str
    method: str
    options: Any
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seed: int = 42
    sources: tuple[str, ...] = ()
    train_patients: int = 0
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup_epochs: int = 1
    weight_decay: float = 1e-5
    eval_every: int = 0
    compute_dtype: str = "float32"
    control: str = controls.NONE
    track: tuple[str, ...] = ()
    data: Data = dataclasses.field(default_factory=Data)
    bins: Bins = dataclasses.field(default_factory=Bins)
    evaluate: Evaluation = dataclasses.field(default_factory=Evaluation)
    pool: PoolSection = dataclasses.field(default_factory=PoolSection)
    model: Architecture = dataclasses.field(default_factory=Architecture)
    validation: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)
    loss: Objective = dataclasses.field(default_factory=Objective)

    def __post_init__(self) -> None:
        for name in VALUE_CHECKS:
            check_value(name, getattr(self, name))
        controls.expect_control(registry.find_method(self.method), self.control)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Config":
        """The config that a file gives (`as_dict`).

        Raises:
            ValueError: a setting that is missing, unknown, or has a type or value that no run can
                use; the message names the first of them.
        """
        return _whole(*read_config(record))

    @classmethod
    def from_stored(cls, record: Mapping[str, Any], path: pathlib.Path) -> "Config":
        """The config of a run that an earlier version may have stored.

        Settings that it did not have take their defaults, those that are no more are not read.

        Args:
            record: what its config.json holds.
            path: of the file, for messages.

        Raises:
            ValueError: as `from_dict` does; the message names the file.
        """
        try:
            return _whole(*read_config(record, stored=True))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def controlled_method(self) -> Method:
        """What `method` names; what `control` runs in its place, if it does."""
        if self.control == controls.LONGER:
            return controls.TRAINED_ON
        return registry.find_method(self.method)

    @property
    def precision(self) -> Precision:
        """What `compute_dtype` names."""
        return Precision(self.compute_dtype)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name with dots; of sections that the record lacks, the defaults."""
        return defaults() | run_directory.flatten(self.record)

    def with_values(self, values: Mapping[str, Any]) -> "Config":
        """The config with other values of some settings, by their names with dots.

        Raises:
            ValueError: as `from_dict` does.
        """
        record = copy.deepcopy(self.record)
        for name, value in values.items():
            *within, last = name.split(".")
            place = record
            for section in within:
                place = place.setdefault(section, _default_section(section))
            place[last] = value
        return Config.from_dict(record)

    def fold_spec(self, fold: int, num_outputs: int, bins: TimeBins | None = None) -> FoldSpec[Any]:
        """What a fold asks of its method."""
        return FoldSpec(
            dataset=self.dataset,
            fold=fold,
            seed=self.seed,
            architecture=dataclasses.replace(self.model, num_bins=num_outputs),
            num_outputs=num_outputs,
            output=self.loss.output.name,
            bins=None if bins is None else bins.to_json(),
            sources=self.sources,
            options=self.options,
            control=self.control,
        )


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """What the `get_config` of a config file made, as JSON would give it back (tuples are lists).

    Raises:
        ValueError: it is no ConfigDict, or holds what JSON cannot.
        OSError: there is no such file.
    """
    try:  # a file that cannot be read is an object that raises an error when it is used
        is_config = hasattr(config, "to_dict")
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise FileNotFoundError(f"--config: {reason}") from None
    if not is_config:
        raise ValueError(
            "get_config of a config file returns an ml_collections.ConfigDict; found "
            f"{type(config).__name__}"
        )
    plain: dict[str, Any] = typed_values.plain(config.to_dict())
    for section, name in _PATHS:
        place = plain.get(section)
        if isinstance(place, dict) and isinstance(place.get(name), str):
            place[name] = files.expanded(place[name])
    return plain


def stored_config(workdir: pathlib.Path) -> Config:
    """The config of a run.

    Raises:
        FileNotFoundError, ValueError: as `run_directory.load` and `Config.from_stored` do.
    """
    return Config.from_stored(run_directory.load(workdir), workdir / run_directory.SETTINGS)


def _whole(config: Config | None, problems: Mapping[str, str]) -> Config:
    """A config without problems; a ValueError for the first of them."""
    for problem in problems.values():
        raise ValueError(problem)
    assert config is not None
    return config


#: Settings without which a stored config does not determine its run.
_NEEDED = ("dataset", "method", "folds", "seed", "data")


def read_config(
    record: Mapping[str, Any], *, stored: bool = False
) -> tuple[Config | None, dict[str, str]]:
    """A config and all that is wrong with it.

    Args:
        record: the settings as JSON.
        stored: whether a run has stored them: what is missing has its default, what is unknown is
            not read.

    Returns:
        the config, with defaults in the place of what is wrong; None where that is the dataset or
        the section `data`. And a message for each setting or section that is wrong, by its name.
    """
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        name = field.name
        if name in ("record", "options") or (stored and name not in {*record, *_NEEDED}):
            continue
        try:
            if name not in record:
                raise typed_values.missing(hints[name], name, field.default)
            without = ("num_bins",) if name == "model" else ()
            values[name] = typed_values.convert(
                hints[name], record[name], name, fill=stored, without=without
            )
            check_value(name, values[name])
        except ValueError as error:
            problems[name] = str(error)
            values.pop(name, None)
    if "method" in values and "control" in values:
        try:
            controls.expect_control(registry.find_method(values["method"]), values["control"])
        except ValueError as error:
            problems["control"] = str(error)
            del values["control"]
    options: dict[str, Any] = {}
    for name, method in registry.METHODS.items():
        options[name] = method.options_type()
        try:
            options[name] = read_options(method, record, fill=stored)
        except ValueError as error:
            if str(error) not in problems.values():
                problems[f"options of {name}"] = str(error)
    try:
        if not stored:
            refuse_unknown(record)
    except ValueError as error:
        problems["unknown"] = str(error)
    if "dataset" not in values or "data" not in values:
        return None, problems
    values = {"method": "steph"} | values
    return Config(record=dict(record), options=options[values["method"]], **values), problems


def read_options(method: Method, record: Mapping[str, Any], *, fill: bool = False) -> Any:
    """The options of a method, from the sections of a config; defaults where it has none of them.

    Raises:
        ValueError: a setting that is missing, or of another type or value than expected.
    """
    values = {
        name: typed_values.read(kind, record[name], name, fill=fill)
        for name, kind in _option_sections(method).items()
        if name in record
    }
    return method.options_type(**values)


def refuse_unknown(record: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that neither `Config` nor any method reads."""
    choices = {
        name: typed_values.names_of(kind)
        for name, kind in typing.get_type_hints(Config).items()
        if name not in ("record", "options")
    }
    choices["model"].discard("num_bins")
    for method in registry.METHODS.values():
        for name, kind in _option_sections(method).items():
            choices.setdefault(name, set()).update(typed_values.names_of(kind))
    typed_values.refuse_unknown(record, choices)
    if isinstance(record.get("data"), Mapping):
        names = typed_values.names_of(ColumnNames)
        typed_values.refuse_unknown(record["data"].get("columns"), names, "data.columns")
    for name, settings in choices.items():
        if settings:
            typed_values.refuse_unknown(record.get(name), settings, name)


def defaults() -> dict[str, Any]:
    """The default of every setting that has one, by its name with dots, as JSON holds it.

    A run that an earlier version stored has these values of settings that the version lacked.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = dataclasses.asdict(field.default_factory())
    values["model"].pop("num_bins")
    for method in registry.METHODS.values():
        for name, section in dataclasses.asdict(method.options_type()).items():
            values[name] = values.get(name, {}) | section
    return run_directory.flatten(typed_values.plain(values))


def _default_section(name: str) -> dict[str, Any]:
    """The defaults of a method's section, which a config may lack."""
    before = f"{name}."
    values = defaults().items()
    return {key.removeprefix(before): value for key, value in values if key.startswith(before)}


def _option_sections(method: Method) -> dict[str, Any]:
    """The sections of a config that a method reads: name -> dataclass."""
    return typing.get_type_hints(method.options_type)
