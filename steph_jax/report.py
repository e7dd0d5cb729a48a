"""Writes what a run came to as one page: python -m steph_jax.report --workdir W

W/report.html   one file, pictures inside, for a browser, a phone or paper
W/report.json   all its numbers

It works on any run that has a finished fold and on any comparison, those of older versions too. It
reads nothing but W, and the features that W was trained on for the heatmaps of three patients.
`steph_jax.train` and `steph_jax.compare` write the same at their end.

`--clinical age,stage,grade` adds what the risk is worth beside clinical columns: of the survival
table, or of the CSV that `--clinical_table` names. W/clinical.csv keeps them for later reports, and
`--clinical=` takes them out.
"""

from absl import flags

from steph_jax import cli
from steph_jax.reports import clinical_file, comparison_page, run_page


def main() -> int:
    """The entry point."""
    workdir, names = flags.FLAGS.workdir, flags.FLAGS.clinical
    table = flags.FLAGS.clinical_table
    compared = comparison_page.is_comparison(workdir)
    if table is not None and not names:
        raise ValueError("--clinical_table needs --clinical, the columns to be read of it")
    if names is not None:
        run = comparison_page.first_run(workdir) if compared else workdir
        clinical_file.choose(workdir, run, names, table)
    page = comparison_page.write(workdir) if compared else run_page.write(workdir)
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    cli.define_path("workdir", None, "Of a run or a comparison.")
    flags.DEFINE_list("clinical", None, "Columns of clinical variables; none: without them.")
    cli.define_path("clinical_table", None, "CSV that has them, if not the survival table.")
    cli.app_run(main, required=("workdir",))
