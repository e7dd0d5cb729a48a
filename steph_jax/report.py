"""Writes what a run came to as one page: python -m steph_jax.report --workdir W

W/report.html   one file, pictures inside, for a browser, a phone or paper
W/report.json   all its numbers

It works on any run that has a finished fold, those of older versions too, and reads nothing but W.
`steph_jax.train` writes the same at its end.
"""

from absl import flags

from steph_jax import cli
from steph_jax.reports import run_page


def main() -> int:
    """The entry point."""
    page = run_page.write(flags.FLAGS.workdir)
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    cli.define_path("workdir", None, "Of a run of steph_jax.train.")
    cli.app_run(main, required=("workdir",))
