"""The clinical columns that a report uses: chosen once, kept beside it in clinical.csv.

A later report, as `train` and `compare` write at their end, has the same columns, whatever has
become of the table that they came from. `--clinical=` without a name takes them out again.
"""

import pathlib
from collections.abc import Sequence

import pandas as pd

from steph_jax import files, run_directory
from steph_jax.data import clinical
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.columns import Columns
from steph_jax.data.tables import table_path
from steph_jax.evaluation import fold_results

FILE = "clinical.csv"
_ID = "patient_id"


def read(workdir: pathlib.Path) -> ClinicalTable | None:
    """The columns that were chosen for a run or a comparison; None where none were.

    Raises:
        ValueError: the file is damaged; names it.
    """
    path = workdir / FILE
    return clinical.read(path, _ID) if path.is_file() else None


def choose(
    workdir: pathlib.Path,
    run: pathlib.Path,
    names: Sequence[str],
    table: pathlib.Path | None = None,
) -> None:
    """Keeps columns for the reports of a run or a comparison; without names, keeps none.

    Args:
        workdir: of the run or the comparison.
        run: directory of the run, or of one of the comparison.
        names: of columns.
        table: that has them; the run's survival table by default. Its column of ids is the one of
            the survival table.

    Raises:
        FileNotFoundError, ValueError: no table, or a column that cannot be used.
    """
    path = workdir / FILE
    if not names:
        path.unlink(missing_ok=True)
        return
    data = run_directory.load(run)["data"]
    columns = Columns(**data.get("columns", {}))
    clinical.expect_no_outcome(names, columns, "--clinical")
    source = table or table_path(data["root"], run_directory.load(run)["dataset"])
    read_columns = clinical.read(source, columns.patient, names)
    patients = dict.fromkeys(
        patient
        for fold in run_directory.finished_folds(run)
        for patient in fold_results.read_patients(run_directory.fold_directory(run, fold))[
            0
        ].patients
    )
    table_of_run = read_columns.of_patients(patients)
    for name, column in table_of_run.columns.items():
        if not column:
            raise ValueError(
                f"{source}, column {name!r}: expected values of the run's patients, such as "
                f"{next(iter(patients))}; found none; are the ids in its column "
                f"{columns.patient!r} those of the survival table?"
            )
    complete = clinical.complete(table_of_run, patients)
    clinical.variables(table_of_run, complete)  # refuses columns that cannot be used
    rows = {
        name: [column.get(patient, "") for patient in patients]
        for name, column in table_of_run.columns.items()
    }
    files.write_table(path, pd.DataFrame({_ID: list(patients)} | rows))
