"""How things are named in messages, and which errors are the user's."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

#: At most so many names are spelled out in an error.
MAX_LISTED = 10


def listed(names: Iterable[object], most: int = MAX_LISTED) -> str:
    """The names, comma-separated; beyond `most` only the first ones and the count."""
    every = [str(name) for name in names]
    if len(every) <= most:
        return ", ".join(every)
    return f"{', '.join(every[:most])}, ... ({len(every)} in all)"


def setting_values(values: Mapping[str, object]) -> str:
    """Settings and their values, by name, as a line shows them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message with a program's own flags in place of the settings of configs.

    Args:
        text: the message.
        flags: by setting, as `data.hdf5_dataset`.
    """
    for setting, flag in flags.items():
        text = text.replace(f"--config.{setting}", flag).replace(setting, flag)
    return text


@contextlib.contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Has errors name a program's own flags in place of settings; see `with_flags`."""
    try:
        yield
    except USER_ERRORS as error:
        text = with_flags(str(error), flags)
        if text == str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(text) from error


#: What a user's mistake raises anywhere in the package (and what the readers of files raise).
USER_ERRORS = (ValueError, OSError)
