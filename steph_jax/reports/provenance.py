"""How a run was made: its command, the versions it ran with, and whom its table left out."""

import pathlib
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import steph_jax
from steph_jax import files, records
from steph_jax.data.cohort import Cohort, TableSize

FILE = "provenance.json"
#: Packages whose versions decide what a run computes.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "lifelines")
_RECORD = records.record(
    {"command": records.TEXT, "versions": records.mapping(records.TEXT)},
    {
        "table": records.record(dict.fromkeys(TableSize._fields, records.WHOLE)),
        "without_outcome": records.WHOLE,
    },
)


def command_line(program: str) -> str:
    """The command of this process, as it would be typed again."""
    return f"python -m steph_jax.{program} {shlex.join(sys.argv[1:])}".strip()


def versions() -> dict[str, str]:
    """Of this program, Python, the packages that compute, and the kind of machine."""
    own = {"steph_jax": steph_jax.__version__, "Python": platform.python_version()}
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return own | packages | {"machine": f"{platform.system()} {platform.machine()}"}


def write(workdir: pathlib.Path, command: str, cohort: Cohort) -> None:
    """Records how a run began; one that goes on keeps the record of its start."""
    path = workdir / FILE
    if not path.is_file():
        record = {"command": command, "versions": versions(), "table": cohort.file._asdict()}
        files.write_json(path, record)


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `write` recorded; None for a run that has no record.

    A record of the first versions has "without_outcome", patients, in the place of "table".

    Raises:
        ValueError: the file is damaged; names it.
    """
    path = workdir / FILE
    return (
        records.read(path, _RECORD, "how a run was made", "remove it") if path.is_file() else None
    )
