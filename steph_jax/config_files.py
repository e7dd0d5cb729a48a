"""Config files: those of this project by their names, and any other by its path.

The project's own lie in configs/ of a checkout, and in a folder of the package where it was
installed from a wheel. Config files build on each other by `from configs import default`, which
works in any directory (`make_importable`).
"""

import importlib.machinery
import importlib.util
import pathlib
import sys

from steph_jax import files
from steph_jax.messages import join_names

#: The package that config files are imported from.
_PACKAGE = "configs"
_EXAMPLE = "default.py"


def folder() -> pathlib.Path:
    """Where the project's own config files are."""
    package = pathlib.Path(__file__).resolve().parent
    in_checkout = package.parent / _PACKAGE
    return in_checkout if (in_checkout / _EXAMPLE).is_file() else package / _PACKAGE


def names() -> list[str]:
    """Names of the project's own config files."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def find(name: str) -> pathlib.Path:
    """The config file that a user names: a path, or the name of one of the project's own.

    Raises:
        ValueError: there is none; names those that are there.
    """
    path = files.path_of(name)
    if path.is_file() and path.suffix == ".py":
        return path
    if name in names():
        return folder() / f"{name}.py"
    # `configs/brca.py` as the documentation writes it, from another directory.
    if path.parts[:-1] == (_PACKAGE,) and path.stem in names() and not path.exists():
        return folder() / path.name
    kind = "a folder" if path.is_dir() else "another file"
    raise ValueError(
        f"--config {name}: expected a Python file of settings, as configs/default.py, or a name "
        f"of {join_names(names())}; found {kind if path.exists() else 'no such file'}"
    )


def make_importable(config: pathlib.Path) -> None:
    """Has `from configs import ...` find other config files, in this order of folders:

    that of the config itself where it is called configs, configs/ of the working directory, the
    project's own. What has been imported as `configs` before stays.
    """
    if _PACKAGE in sys.modules:
        return
    spec = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
    config_folder = config.resolve().parent
    places = [config_folder] if config_folder.name == _PACKAGE else []
    places += [pathlib.Path.cwd() / _PACKAGE, folder()]
    spec.submodule_search_locations = [str(p) for p in dict.fromkeys(places) if p.is_dir()]
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
