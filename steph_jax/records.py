"""Records that programs left as JSON: what they must hold, and one line where they do not.

A `Kind` defines what a value must be. It is called with the name of a field and its value, and
returns "" or what is wrong: `fold: expected a whole number, 0 or more; found 'x'`.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: The largest whole number that a record may hold, and the largest of all numbers (float32's).
_MOST_WHOLE, MOST = 2**63 - 1, 3.4e38
_SHOWN, _MOST_SAID = 60, 200


class Kind(NamedTuple):
    """What a value must be.

    Attributes:
        expected: in words.
        problem: (name of the field, value) -> "" or what is wrong with it.
    """

    expected: str
    problem: Callable[[str, Any], str]


def read(path: pathlib.Path, kind: Kind, what: str, advice: str) -> dict[str, Any]:
    """Reads a record.

    Args:
        path: of a JSON file.
        kind: an object of `record`, or any other of `mapping`.
        what: the file holds, in words.
        advice: what is to be done about a damaged file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not such a record; names the file and the field.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected {what}, the file is missing; {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected {what}; {error}; {advice}") from None
    expect(path, kind, value, what, advice)
    return value


def expect(path: pathlib.Path, kind: Kind, value: Any, what: str, advice: str) -> None:
    """Raises ValueError where a value read from a file is not of a kind; names file and field."""
    problem = kind.problem("", value)
    if problem:
        raise ValueError(f"{path}: expected {what}; {problem}; {advice}")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a checksum of its fields, which `expect_unchanged` compares."""
    stored = json.loads(json.dumps(value))
    return {**stored, "sha256": _checksum(stored)}


def expect_unchanged(path: pathlib.Path, value: Mapping[str, Any], advice: str) -> None:
    """Raises ValueError where a record is not the one that was sealed; names the file."""
    fields = {name: field for name, field in value.items() if name != "sha256"}
    if value["sha256"] != _checksum(fields):
        raise ValueError(
            f"{path}: damaged or edited, its checksum (sha256) is that of other values; {advice}"
        )


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _simple(expected: str, holds: Callable[[Any], bool]) -> Kind:
    def problem(name: str, value: Any) -> str:
        return "" if holds(value) else f"{_named(name)}expected {expected}, found {_shown(value)}"

    return Kind(expected, problem)


def _named(name: str) -> str:
    return f"{name}: " if name else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > _MOST_WHOLE:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MOST_WHOLE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MOST


TEXT = _simple("text", lambda value: isinstance(value, str))
NAME = _simple("a name", lambda value: isinstance(value, str) and bool(value))
FLAG = _simple("true or false", lambda value: isinstance(value, bool))
NUMBER = _simple("a finite number", _is_number)
WHOLE = _simple("a whole number, 0 or more", lambda value: _is_whole(value) and value >= 0)
#: What a measurement may be, NaN and infinity included.
ANY_NUMBER = _simple(
    "a number or null",
    lambda value: value is None or isinstance(value, float) or _is_number(value),
)
NOTHING = _simple("an empty object", lambda value: value == {})
ANYTHING = Kind("anything", lambda name, value: "")
CHECKSUM = _simple(
    "a SHA-256", lambda value: isinstance(value, str) and len(value) == 64 and value.isalnum()
)


def within(low: float, high: float) -> Kind:
    """A number from `low` to `high`."""
    return _simple(
        f"a number from {low:g} to {high:g}",
        lambda value: _is_number(value) and low <= value <= high,
    )


def whole_within(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""
    return _simple(
        f"a whole number from {low} to {high}",
        lambda value: _is_whole(value) and low <= value <= high,
    )


def one_of(*values: Any) -> Kind:
    """One of some texts or numbers."""
    return _simple(
        f"one of {', '.join(map(str, values))}",
        lambda value: any(type(value) is type(v) and value == v for v in values),
    )


def or_null(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return Kind(
        f"{kind.expected}, or null",
        lambda name, value: "" if value is None else kind.problem(name, value),
    )


def either(*kinds: Kind) -> Kind:
    """A value of one of some kinds."""
    expected = " or ".join(kind.expected for kind in kinds)
    return _simple(expected, lambda value: any(not kind.problem("", value) for kind in kinds))


def list_of(kind: Kind, least: int = 0) -> Kind:
    """A list, all of whose entries are of one kind."""
    expected = f"a list, each entry {kind.expected}"

    def problem(name: str, value: Any) -> str:
        if not isinstance(value, list) or len(value) < least:
            description = expected if not least else f"{expected}, {least} or more"
            return f"{_named(name)}expected {description}; found {_shown(value)}"
        problems = (kind.problem(f"{name}[{i}]", entry) for i, entry in enumerate(value))
        return next(filter(None, problems), "")

    return Kind(expected, problem)


def mapping(kind: Kind) -> Kind:
    """An object with any fields, all of them of one kind."""

    def problem(name: str, value: Any) -> str:
        if not isinstance(value, dict):
            return f"{_named(name)}expected an object, found {_shown(value)}"
        problems = (kind.problem(_within(name, key), entry) for key, entry in value.items())
        return next(filter(None, problems), "")

    return Kind("an object", problem)


def record(required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """An object with the fields that are required; others may be anything but those of `optional`.

    Args:
        required: kinds by name.
        optional: kinds of fields that may be missing, by name.
    """
    kinds = {**required, **(optional or {})}

    def problem(name: str, value: Any) -> str:
        if not isinstance(value, dict):
            return f"{_named(name)}expected an object, found {_shown(value)}"
        missing = [_within(name, field) for field in required if field not in value]
        if missing:
            return f"{missing[0]} is missing"
        problems = (
            kind.problem(_within(name, field), value[field])
            for field, kind in kinds.items()
            if field in value
        )
        return next(filter(None, problems), "")

    return Kind("an object", problem)


def built(kind: Kind, make: Callable[[Any], object]) -> Kind:
    """A value of a kind from which something can be made.

    Args:
        kind: of the value.
        make: raises ValueError or TypeError for a value that does not do.
    """

    def problem(name: str, value: Any) -> str:
        wrong = kind.problem(name, value)
        if wrong:
            return wrong
        try:
            make(value)
        except (ValueError, TypeError, OverflowError) as error:
            return f"{_named(name)}{str(error).splitlines()[0][:_MOST_SAID]}"
        return ""

    return Kind(kind.expected, problem)


#: Kinds of the fields of dataclasses, by their annotation.
_OF_TYPE: dict[Any, Kind] = {str: TEXT, bool: FLAG, int: WHOLE, float: NUMBER}


def fields_of(cls: type) -> Kind:
    """An object with exactly the fields of a dataclass, those with defaults optional.

    Fields are str, bool, int, float, or tuples of floats, and the class refuses values that it
    cannot take.
    """
    kinds = {f.name: _OF_TYPE.get(f.type, list_of(NUMBER)) for f in dataclasses.fields(cls)}
    required = {
        f.name: kinds[f.name] for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING
    }
    return built(record(required, kinds), lambda value: cls(**value))


def _within(name: str, field: str) -> str:
    text = field if len(field) <= _SHOWN and field.isprintable() else _shown(field)
    return f"{name}.{text}" if name else text


#: What a record holds that is sealed and has checksums of its files (`arrays.Checksums`).
SEALED_FILES = record({"files": mapping(CHECKSUM), "sha256": CHECKSUM})
