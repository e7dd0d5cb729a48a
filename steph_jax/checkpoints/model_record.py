"""`model.json`: the record of a stored model, and what it must hold to be used."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from steph_jax import records
from steph_jax.data import clinical_coding
from steph_jax.models import roupkt, steph
from steph_jax.models.abmil import Architecture
from steph_jax.models.hypernetworks import WEIGHT_OUTPUTS
from steph_jax.records import ANY_NUMBER, NAME, NUMBER, TEXT, WHOLE, Kind
from steph_jax.survival.metrics import Baseline
from steph_jax.survival.objectives import objective
from steph_jax.survival.time_bins import BIN_KINDS, TimeBins

#: The first format has no checksums; it is read, and no longer written.
FORMAT, WITHOUT_CHECKSUMS = 2, 1
#: Branches of "frozen" that hold one model a source, stacked.
STACKED = frozenset({"task_vectors", "sources"})
#: {name: [dtype, shape] of an array, or the same of a branch}
Described = dict[str, Any]

_WHAT = "the record of a model"
_ADVICE = "make the model again"
_MOST_SIZE, _MOST_LAYERS = 1 << 24, 1 << 10
_DTYPE_NAME = re.compile("[a-z]+[0-9]*")


def _described(name: str, value: Any) -> str:
    """See `Kind.problem`: of a tree of [dtype, shape]."""
    if isinstance(value, dict):
        problems = (_described(f"{name}.{key}", entry) for key, entry in value.items())
        return next(filter(None, problems), "")
    problem = records.list_of(records.ANYTHING, 2).problem(name, value)
    if problem:
        return problem
    try:
        # A plain name: NumPy parses others, and some as Python.
        is_name = isinstance(value[0], str) and _DTYPE_NAME.fullmatch(value[0])
        dtype = np.dtype(value[0]) if is_name else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.hasobject or len(value) > 2:
        return f"{name}: expected the type and the shape of an array, found {str(value)[:60]}"
    return records.list_of(records.whole_within(0, _MOST_SIZE)).problem(f"{name}[1]", value[1])


_SIZE = records.whole_within(0, _MOST_SIZE)
_ARCHITECTURE = records.built(
    records.record(
        {
            "feature_dim": _SIZE,
            "embed_dim": _SIZE,
            "attention_dim": _SIZE,
            "num_bins": _SIZE,
            "pooling": TEXT,
            "num_layers": records.whole_within(1, _MOST_LAYERS),
            "dropout": NUMBER,
        }
    ),
    lambda value: Architecture(**value),
)
_BINS = records.built(
    records.record({"kind": records.one_of(*BIN_KINDS), "edges": records.list_of(NUMBER, 2)}),
    TimeBins.from_json,
)
_OBJECTIVE = records.built(
    records.record(
        {"terms": records.list_of(records.ANYTHING, 1), "alpha": NUMBER, "scale": NUMBER}
    ),
    objective,
)
_STEPS = records.list_of(NUMBER)
_BASELINE = records.built(records.record({"times": _STEPS, "hazard": _STEPS}), Baseline.from_json)
_SOURCES = records.list_of(NAME, 1)
#: Fields of `settings` (`SavedModel.metadata`) that programs read, of any kind of model.
_METADATA: dict[str, Kind] = {
    "dataset": TEXT,
    "fold": records.or_null(WHOLE),
    "sources": _SOURCES,
    "bins": _BINS,
    "objective": _OBJECTIVE,
    "baseline": _BASELINE,
    "encoder": TEXT,
    "patients": WHOLE,
    "events": WHOLE,
    "test_c_index": records.or_null(records.within(0, 1)),
    "source": TEXT,
    "source_train_c_index": records.mapping(ANY_NUMBER),
    "cohorts": records.list_of(NAME),
    "weights": records.list_of(NUMBER),
    "penalty": NUMBER,
    "pool_weights": records.mapping(NUMBER),
    "source_share": records.within(0, 1),
    "fitted_parameters": WHOLE,
    "restarts": WHOLE,
    "target_output": TEXT,
    "merge_weight": NUMBER,
    "mix_weight": NUMBER,
    "weight_output": records.one_of(*WEIGHT_OUTPUTS),
    "clinical": clinical_coding.RECORDS,
    "provenance": records.record(
        {}, {"sha256": TEXT, "requested": records.mapping(records.ANYTHING)}
    ),
}
#: Kinds of models with options, and what checks them.
_OPTIONS: dict[str, Any] = {"steph": steph.Options, "roupkt": roupkt.Options}
#: Fields without which a kind of model cannot be run.
_NEEDED: dict[str, dict[str, Kind]] = {
    "steph": {"sources": _SOURCES, "options": records.fields_of(_OPTIONS["steph"])},
    "roupkt": {"sources": _SOURCES, "options": records.fields_of(_OPTIONS["roupkt"])},
    "clinical_cox": {"clinical": clinical_coding.RECORDS},
    "learned": {"sources": _SOURCES, "merge_weight": NUMBER},
    "fix": {"sources": _SOURCES, "weights": records.list_of(NUMBER, 1)},
    "dynamic": {
        "sources": _SOURCES,
        "merge_weight": NUMBER,
        "weight_output": records.one_of(*WEIGHT_OUTPUTS),
    },
}
_RECORD = records.record(
    {
        "format": records.one_of(WITHOUT_CHECKSUMS, FORMAT),
        "kind": NAME,
        "architecture": _ARCHITECTURE,
        "settings": records.record({}, _METADATA),
        "params": Kind("the types and shapes of arrays", _described),
    }
)


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a `model.json`.

    Returns:
        "kind", "architecture", "settings", "params" and, but for models of the first format,
        "files": `arrays.Checksums` of the parameters.

    Raises:
        ValueError: a field is missing, or not what it must be; names the file and the field.
    """
    record = records.read(path, records.mapping(records.ANYTHING), _WHAT, _ADVICE)
    expect_usable(path, record)
    if record["format"] == FORMAT:
        records.expect(path, records.SEALED_FILES, record, _WHAT, _ADVICE)
        records.expect_unchanged(path, record, _ADVICE)
    return record


def expect_usable(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Raises ValueError where a record lacks what its kind of model needs; names the field."""
    records.expect(path, _RECORD, record, _WHAT, _ADVICE)
    needed = records.record(_NEEDED.get(record["kind"], {}))
    records.expect(path, records.record({"settings": needed}), record, _WHAT, _ADVICE)
    if record["kind"] in _OPTIONS:
        settings, options = record["settings"], _OPTIONS[record["kind"]]
        try:
            options(**settings["options"]).check_sources(len(settings["sources"]))
        except ValueError as error:
            raise ValueError(f"{path}: settings.options: {error}; {_ADVICE}") from None
    _expect_model_of_each_source(path, record)


def _expect_model_of_each_source(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Raises ValueError where stacked models, leaves [S, ...], are more or less than the names."""
    frozen = record["params"].get("frozen", {})
    names = record["settings"].get("sources")
    if names is None or not isinstance(frozen, dict):
        return
    for branch in STACKED & frozen.keys():
        numbers = {shape[0] if shape else 0 for shape in _shapes(frozen[branch])}
        if numbers - {len(names)}:
            raise ValueError(
                f"{path}: settings.sources: expected a name for each of the {max(numbers)} models "
                f"in params.frozen.{branch}, found {len(names)}; {_ADVICE}"
            )


def _shapes(described: Any) -> Iterator[list[int]]:
    """The shapes of all arrays of a tree."""
    if isinstance(described, dict):
        for branch in described.values():
            yield from _shapes(branch)
    else:
        yield described[1]
