"""Makes folds for a cohort that has only a survival table.

    python -m steph_jax.split --table data/mine/mine_survival.csv --out data/mine

writes splits_0.csv .. splits_4.csv (columns train, test and, if asked for, validation) with every
patient in exactly one test part. Folds are alike in events, times and, for TCGA barcodes, tissue
source sites; `--group site` keeps the patients of a site together instead. The same table and seed
give the same folds.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from steph_jax import cli, files, interrupts, messages
from steph_jax.checks.cohort import warn_of_patients
from steph_jax.data import tables
from steph_jax.data.cohort import left_out
from steph_jax.data.columns import DAYS_PER_UNIT, EVENT_CODINGS, UNLABELED, Columns
from steph_jax.data.folds import choose_validation, describe_sites, make_folds
from steph_jax.data.splits import Split, check_split
from steph_jax.data.tables import SurvivalTable

#: Flags of this program for settings that messages name.
_FLAGS = {
    **{f"data.columns.{name}": f"--{name}" for name in ("patient", "slide", "time", "event")},
    **{f"data.{name}=": f"--{name.replace('_', '-')} " for name in ("time_unit", "event_coding")},
    "data.unlabeled=": "--unlabeled ",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What folds are asked for.

    Attributes:
        num_folds: how many.
        seed: of what chance decides.
        validation: fraction of the patients outside of the test part, in [0, 1).
        whole_sites: keep the patients of a TCGA tissue source site together.
    """

    num_folds: int = 5
    seed: int = 42
    validation: float = 0.0
    whole_sites: bool = False


def make_splits(table: SurvivalTable, out: pathlib.Path, request: Request) -> list[Split]:
    """The splits of a table, which keep the ids of a person together; nothing is written.

    Raises:
        ValueError: folds that cannot be made, or that training would refuse.
    """
    sites = request.whole_sites
    # Dealt is the first id of every person, and the others go with it.
    names = [table.person_of[patient] for patient in table.patients]
    _, first, person = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    dealt, rank = first[order], np.argsort(order, kind="stable")[person]
    folds = make_folds(
        [table.patients[i] for i in dealt],
        table.time[dealt],
        table.event[dealt],
        num_folds=request.num_folds,
        seed=request.seed,
        whole_sites=sites,
    )
    splits = []
    for fold in range(request.num_folds):
        train_rows = np.flatnonzero(folds != fold)
        in_validation = choose_validation(
            [table.patients[i] for i in dealt[train_rows]],
            table.time[dealt[train_rows]],
            table.event[dealt[train_rows]],
            fraction=request.validation,
            seed=request.seed + fold,
            whole_sites=sites,
        )
        part = np.where(folds == fold, 1, 0)
        part[train_rows[in_validation]] = 2
        rows = [np.flatnonzero(part[rank] == number) for number in range(3)]
        parts = (tuple(table.patients[i] for i in numbers) for numbers in rows)
        split = Split(out / f"splits_{fold}.csv", *parts)
        check_split(split, table)
        splits.append(split)
    return splits


def write_splits(splits: Sequence[Split], overwrite: bool, table: pathlib.Path) -> None:
    """Writes splits, each whole or not at all.

    Args:
        splits: of one table.
        overwrite: whether splits that are there are replaced.
        table: the file that the splits are of, which stays as it is.

    Raises:
        ValueError: files are there already and may not be overwritten, or would be left over; the
            table, or something that is no file, is in the place of one.
    """
    folder = splits[0].path.parent
    files.check_output_folder(folder)
    new_paths = {split.path for split in splits}
    old_paths = sorted(folder.glob("splits_*.csv"))
    if old_paths and not overwrite:
        raise ValueError(
            f"{folder}: {len(old_paths)} splits are there already ({old_paths[0].name}, ...); give "
            "--overwrite to replace them, or another --out"
        )
    extra = [path.name for path in old_paths if path not in new_paths]
    if extra:
        raise ValueError(
            f"{folder}: {', '.join(extra)} would be left of other splits; remove them first"
        )
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        files.check_output(split.path, [table])
    # All are written before the first has its name; those of the last split are gone by then, so
    # that a program that is ended leaves no folds of two splits.
    with contextlib.ExitStack() as stack:
        for split in splits:
            temporary = stack.enter_context(files.whole(split.path))
            temporary.write_text(split_text(split), encoding="utf-8")
        for path in old_paths:
            path.unlink()


def split_text(split: Split) -> str:
    """A split as CSV: a column a part, padded with empty cells."""
    names = ["train", "test", *(["validation"] if split.validation else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(itertools.zip_longest(*(getattr(split, name) for name in names), fillvalue=""))
    return text.getvalue()


def describe(splits: Sequence[Split], table: SurvivalTable) -> list[str]:
    """A line for each part of each fold: patients, events, median time."""
    lines = [f"{'fold':4}  {'part':10}  {'patients':>8}  {'events':>6}  {'rate':>6}  median days"]
    for fold, split in enumerate(splits):
        for part in ("train", "validation", "test"):
            rows = table.rows(getattr(split, part))
            if len(rows):
                event, time = table.event[rows], table.time[rows]
                lines.append(
                    f"{fold:4}  {part:10}  {len(rows):8}  {event.sum():6}  {event.mean():6.1%}  "
                    f"{np.median(time):11.1f}"
                )
    return lines


def parser() -> argparse.ArgumentParser:
    """The flags."""
    columns, request = Columns(), Request()
    flags = cli.Parser(
        prog="python -m steph_jax.split",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--table", required=True, type=cli.path, help="the survival table, CSV")
    flags.add_argument("--out", required=True, type=cli.path, help="folder for splits_{fold}.csv")
    flags.add_argument("--folds", type=int, default=request.num_folds, help="how many")
    flags.add_argument("--seed", type=int, default=request.seed, help="of what chance decides")
    flags.add_argument(
        "--validation",
        type=float,
        default=request.validation,
        help="fraction of the patients outside of the test part",
    )
    flags.add_argument(
        "--group", choices=("none", "site"), default="none", help="site: keep TCGA sites whole"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace splits that are there")
    for name, what in (
        ("patient", "column of patient ids"),
        ("slide", "column of slide ids"),
        ("time", "column of times"),
        ("event", "column of events"),
    ):
        flags.add_argument(f"--{name}", default=getattr(columns, name), help=what)
    flags.add_argument("--time-unit", choices=tuple(DAYS_PER_UNIT), default=columns.time_unit)
    flags.add_argument("--event-coding", choices=EVENT_CODINGS, default=columns.event_coding)
    flags.add_argument(
        "--unlabeled",
        choices=UNLABELED,
        default=columns.unlabeled,
        help="what to do with patients without time or event",
    )
    return flags


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    arguments = parser().parse_args(argv)
    columns = Columns(
        arguments.patient,
        arguments.slide,
        arguments.time,
        arguments.event,
        arguments.time_unit,
        arguments.event_coding,
        arguments.unlabeled,
    )
    with messages.naming_flags(_FLAGS):
        table = tables.read_table(arguments.table, columns)
    request = Request(
        arguments.folds, arguments.seed, arguments.validation, arguments.group == "site"
    )
    try:
        splits = make_splits(table, arguments.out, request)
    except ValueError as error:
        raise ValueError(f"{arguments.table}: {error}") from None
    write_splits(splits, arguments.overwrite, arguments.table)
    print("\n".join(describe(splits, table)))
    print(f"{arguments.out}: {len(splits)} splits of {len(table)} patients")
    print(describe_sites((split.train, split.test) for split in splits))
    if table.left_out:
        print(f"{arguments.table}: {left_out(table)}")
    for line in warn_of_patients(arguments.table, columns):
        print(f"warning: {messages.with_flags(line, _FLAGS)}", file=sys.stderr)
    eventless = [str(i) for i, s in enumerate(splits) if not table.event[table.rows(s.test)].any()]
    if eventless:
        print(
            f"warning: no event in the test part of fold {', '.join(eventless)} (the cohort has "
            f"{int(table.event.sum())}); the C-index is not defined there: ask for fewer --folds",
            file=sys.stderr,
        )


if __name__ == "__main__":
    interrupts.leave(cli.guarded(lambda: main(sys.argv[1:])))
