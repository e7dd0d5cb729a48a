"""From the plain values of a config to frozen dataclasses, a section each.

A section's dataclass defines its settings, their types and their defaults, and checks their values;
this module checks that the settings are there and have those types.
"""

import dataclasses
import difflib
import reprlib
import sys
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

#: Where a user finds every setting, with what it means.
REFERENCE = "configs/default.py lists all settings"
_EXPECTED: dict[Any, str] = {
    str: "text",
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    tuple[str, ...]: "names in brackets, as ('a', 'b')",
    tuple[int, ...]: "whole numbers in brackets, as (0, 1)",
    tuple[float, ...]: "numbers in brackets, as (0.1, 0.5)",
    tuple[tuple[str, float], ...]: "names and weights, as (('nll', 1.0),)",
}


def plain(value: Any, path: str = "") -> Any:
    """A value of a config as JSON would give it back.

    Raises:
        ValueError: it is none of a config's types.
    """
    if isinstance(value, Mapping):
        return {
            str(name): plain(item, f"{path}.{name}" if path else str(name))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, path) for item in value]
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise ValueError(
        f"{path}: expected text, a number, True or False, or several of them in brackets; found "
        f"{value!r} of type {type(value).__name__}"
    )


def read(kind: type[T], record: Any, name: str, *, fill: bool = False, without: Any = ()) -> T:
    """A section of a config.

    Args:
        kind: dataclass of the section.
        record: the section as JSON gives it; settings of other readers of the section may be there.
        name: of the section, with dots; "" for the whole config.
        fill: whether a setting that is missing has its default.
        without: fields of the dataclass that no config gives.

    Raises:
        ValueError: a setting that is missing, or of another type or value than expected; the
            message names it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{name}: expected a section of settings; found {_shown(record)}")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in without:
            continue
        path = f"{name}.{field.name}" if name else field.name
        if field.name in record:
            values[field.name] = convert(hints[field.name], record[field.name], path, fill=fill)
        elif not fill:
            raise missing(hints[field.name], path, field.default)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(_with_name(str(error), name, names_of(kind))) from None


def _with_name(message: str, section: str, settings: set[str]) -> str:
    """A dataclass's error about a value, with the name of its section."""
    if not section or message.startswith(f"{section}."):
        return message
    separator = "." if message.partition(" ")[0] in settings else ": "
    return f"{section}{separator}{message}"


def missing(kind: Any, path: str, default: Any = dataclasses.MISSING) -> ValueError:
    """What is raised for a setting that is not there."""
    example = "" if default is dataclasses.MISSING or is_section(kind) else f", as {default!r}"
    return ValueError(f"{path} is missing: expected {_expected(kind)}{example}; {REFERENCE}")


def convert(kind: Any, value: Any, path: str, *, fill: bool = False, without: Any = ()) -> Any:
    """A value as the type that its setting has; a section as `read` does.

    Raises:
        ValueError: it is of another type.
    """
    if is_section(kind):
        return read(kind, value, path, fill=fill, without=without)
    try:
        return _converted(kind, value)
    except TypeError:
        raise ValueError(f"{path}: expected {_expected(kind)}; found {_shown(value)}") from None


def is_section(kind: Any) -> bool:
    """Whether a type is that of a section."""
    return dataclasses.is_dataclass(kind)


def names_of(kind: Any) -> set[str]:
    """Names of the settings of a section; none for the type of a single setting."""
    return {field.name for field in dataclasses.fields(kind)} if is_section(kind) else set()


def refuse_unknown(record: Any, known: Collection[str], name: str = "") -> None:
    """Raises ValueError for a setting that nothing reads; lists names that are near.

    Args:
        record: a section as JSON gives it, or the whole config.
        known: names of its settings.
        name: of the section, with dots; "" for the whole config.
    """
    for setting in record if isinstance(record, Mapping) else ():
        if setting not in known:
            near = difflib.get_close_matches(str(setting), known, n=3, cutoff=0.5) or sorted(known)
            within = f"{name}." if name else ""
            raise ValueError(
                f"no setting is called {within}{setting}; near are "
                f"{', '.join(within + other for other in near)}; {REFERENCE}"
            )


def _converted(kind: Any, value: Any) -> Any:
    """The value as a type of `_EXPECTED`, or of the items of one; TypeError if it is of another."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(_converted(kinds[0], item) for item in value)
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_converted(k, item) for k, item in zip(kinds, value, strict=True))
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # NaN too
            raise TypeError
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _expected(kind: Any) -> str:
    if is_section(kind):
        fields = ", ".join(field.name for field in dataclasses.fields(kind))
        return f"a section with {fields}"
    return _EXPECTED[kind]


def _shown(value: Any) -> str:
    """A value as a message shows it: one line, not too long."""
    return reprlib.repr(value)
