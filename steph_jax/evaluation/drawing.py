"""The pictures of folds and runs, imported when one is drawn: matplotlib takes a second."""

from types import ModuleType


def pictures() -> ModuleType:
    """`steph_jax.plots`, which no start of a program should wait for."""
    from steph_jax import plots

    return plots
