"""Checks shapes that stand in types, and nothing else, while the tests run.

jaxtyping calls `arrays_checked` for every function of a package that `install_import_hook` names.
Other types are mypy's business: code that refuses a wrong type with a message of its own has to be
reached by the tests of that message.
"""

import inspect
import typing

import beartype
import jaxtyping


def has_array(hint) -> bool:
    """Whether a type is one of jaxtyping's, or holds one."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(has_array(part) for part in typing.get_args(hint))


def arrays_checked(function):
    """beartype for those parameters and results of a function that are arrays."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if has_array(hint)}
    return beartype.beartype(function)
