"""Writes what a run came to as one page: python -m steph_jax.report --workdir W

W/report.html   one file, pictures inside, for a browser, a phone or paper
W/report.json   all its numbers

It works on any run that has a finished fold and on any comparison, those of older versions too. It
reads nothing but W, and the features that W was trained on for the heatmaps of three patients.
`steph_jax.train` and `steph_jax.compare` write the same at their end.
"""

from absl import flags

from steph_jax import cli
from steph_jax.reports import comparison_page, run_page


def main() -> int:
    """The entry point."""
    workdir = flags.FLAGS.workdir
    compared = comparison_page.is_comparison(workdir)
    page = comparison_page.write(workdir) if compared else run_page.write(workdir)
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    cli.define_path("workdir", None, "Of a run or a comparison.")
    cli.app_run(main, required=("workdir",))
