"""The settings and values of a sweep: `--sweep 'loss.merge_weight=0.005,0.05'`."""

import ast
import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from steph_jax.messages import join_names
from steph_jax.training.config import Config

#: Settings, and sections, of the data and the way a run works, not of what is fitted.
NOT_SWEPT = (
    *("dataset", "method", "folds", "seed", "train_patients"),
    *("compute_dtype", "eval_every"),
)
SECTIONS_NOT_SWEPT = ("data", "pool")
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", list: "a tuple"}

#: A value for each swept setting, by name.
Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings that are swept.

    Attributes:
        values: of each setting, in the order given; no setting, no sweep.
    """

    values: dict[str, list[Any]]

    def points(self) -> list[Point]:
        """Every combination of the values; the last setting changes fastest."""
        combinations = itertools.product(*self.values.values())
        return [dict(zip(self.values, values, strict=True)) for values in combinations]

    def record(self) -> dict[str, list[str]]:
        """The entry of a stored config, so that a run does not go on with another sweep."""
        texts = [
            f"{name}={','.join(json.dumps(value) for value in values)}"
            for name, values in self.values.items()
        ]
        return {"sweep": texts} if texts else {}


def parse(texts: Sequence[str], config: Config) -> Grid:
    """The grid of the flags `--sweep`.

    Args:
        texts: each "NAME=VALUE,VALUE,...", a tuple in brackets.
        config: of the run, whose values give the types.

    Raises:
        ValueError: another form, an undefaults setting (lists near names), one that cannot be swept
            or is named twice, a value of the wrong type, or fewer than two values.
    """
    defaults = config.settings
    swept: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, value_text = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise ValueError(
                f"--sweep is NAME=VALUE,VALUE,... as loss.merge_weight=0.005,0.05; found {text!r}"
            )
        if name in NOT_SWEPT or name.split(".")[0] in SECTIONS_NOT_SWEPT:
            fixed = join_names([*NOT_SWEPT, *(f"{section}.*" for section in SECTIONS_NOT_SWEPT)])
            raise ValueError(
                f"--sweep: {name} says what a run works on, not how a model is fitted, and "
                f"cannot be swept; nor can {fixed}"
            )
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=4, cutoff=0.5) or defaults
            raise ValueError(f"--sweep: no setting is called {name!r}; near are {', '.join(near)}")
        if name in swept:
            raise ValueError(f"--sweep: {name} is named twice; give all of its values at once")
        values = [_typed(name, value, defaults[name]) for value in split_values(value_text)]
        if len(values) < 2 or any(values.count(value) > 1 for value in values):
            raise ValueError(
                f"--sweep: {name} takes two or more different values; found {value_text!r}"
            )
        swept[name] = values
    return Grid(swept)


def split_values(text: str) -> list[str]:
    """Splits at the commas that are not within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _typed(name: str, text: str, like: Any) -> Any:
    """A value of the type that the setting has, as JSON would give it back."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(like, str):
        return value if isinstance(value, str) else text
    if isinstance(like, list) and isinstance(value, tuple | list):
        return json.loads(json.dumps(value))
    if isinstance(like, float):
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is type(like):
        return value
    raise ValueError(
        f"--sweep: {name} is {_KINDS[type(like)]}, {like!r} in the config; found {text!r}"
    )
