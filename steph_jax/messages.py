"""How things are named in messages, and which errors are the user's."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping

#: At most so many names are spelled out in an error.
MAX_LISTED = 10


#: What a terminal obeys (C0 but for tabs and ends of lines, DEL, C1), what turns the direction of
#: text or ends a line unseen, and halves of characters, which cannot be written.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    """`text` as it may be shown on a terminal: control characters are written as in Python."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def on_one_line(name: object) -> str:
    """A name from a file: `escaped`, and without ends of lines."""
    return escaped(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def join_names(names: Iterable[object], most: int = MAX_LISTED) -> str:
    """The names, comma-separated; beyond `most` only the first ones and the count."""
    every = [on_one_line(name) for name in names]
    if len(every) <= most:
        return ", ".join(every)
    return f"{', '.join(every[:most])}, ... ({len(every)} in all)"


def setting_values(values: Mapping[str, object]) -> str:
    """Settings and their values, by name, as a line shows them."""
    return ", ".join(f"{on_one_line(name)}={on_one_line(value)}" for name, value in values.items())


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
