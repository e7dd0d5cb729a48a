"""How things are named in messages, and which errors are the user's."""

from collections.abc import Iterable, Mapping

#: At most so many names are spelled out in an error.
MAX_LISTED = 10


def listed(names: Iterable[object]) -> str:
    """The names, comma-separated; beyond `MAX_LISTED` only the first ones and the count."""
    every = [str(name) for name in names]
    if len(every) <= MAX_LISTED:
        return ", ".join(every)
    return f"{', '.join(every[:MAX_LISTED])}, ... ({len(every)} in all)"


def setting_values(values: Mapping[str, object]) -> str:
    """Settings and their values, by name, as a line shows them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


#: What a user's mistake raises anywhere in the package (and what the readers of files raise).
USER_ERRORS = (ValueError, OSError)
