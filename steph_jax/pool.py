"""Lists the models of a pool: python -m steph_jax.pool --list POOL [--json]

A line for each: what it is, the dataset and fold it was fitted on, how many training patients and
deaths, the encoder of their features, and its C-index on the test patients of its own fold. What a
model does not say of itself (imported ones, and those of earlier versions) is shown as unknown.
Files are compared with their checksums: a damaged model is named below the table.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import flags

from steph_jax import cli
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.pool_entries import PoolEntry, entries
from steph_jax.messages import on_one_line

_UNKNOWN = "unknown"
_COLUMNS = ("model", "kind", "dataset", "fold", "patients", "events", "test C", "encoder")
#: Columns of numbers.
_TO_THE_RIGHT = {"fold", "patients", "events", "test C"}


def main() -> int:
    """The entry point."""
    arguments = flags.FLAGS
    listing = entries(Pool(arguments.list))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in listing], indent=1))
    else:
        print(table(listing))
    return 0


def table(listing: Sequence[PoolEntry]) -> str:
    """The entries, a line each, and below them why some cannot be read."""
    rows = [_COLUMNS, *map(_row, listing)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    if not listing:
        return "no model is in this pool"
    lines = [
        "  ".join(
            cell.rjust(width) if name in _TO_THE_RIGHT else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    problems = [on_one_line(entry.problem) for entry in listing if entry.problem]
    return "\n".join([*lines, *(f"damaged: {problem}" for problem in problems)])


def _row(entry: PoolEntry) -> tuple[str, ...]:
    kind = "damaged" if entry.problem else entry.kind or _UNKNOWN
    if entry.kind == "null":  # theta_0 was fitted on nobody
        return (entry.name, kind, *["-"] * 6)
    c_index = None if entry.test_c_index is None else f"{entry.test_c_index:.4f}"
    values = (entry.dataset, entry.fold, entry.patients, entry.events, c_index, entry.encoder)
    cells = (_UNKNOWN if value is None else on_one_line(value) for value in values)
    return (on_one_line(entry.name), kind, *cells)


if __name__ == "__main__":
    cli.define_path("list", None, "The pool whose models are listed.")
    flags.DEFINE_bool("json", False, "As JSON, with the dimensions of each model.")
    cli.app_run(main, required=("list",))
