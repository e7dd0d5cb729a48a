"""Every method by name: adding one takes a file and a line here."""

from steph_jax.methods import (
    abmil,
    dynamic,
    fixed,
    joint,
    learned,
    roupkt,
    steph,
    steph_target,
    transfer,
)
from steph_jax.methods.base import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        abmil.RECIPE,
        transfer.ZERO_SHOT,
        transfer.FINE_TUNE,
        joint.RECIPE,
        fixed.FIX,
        fixed.AVERAGE,
        learned.RECIPE,
        dynamic.RECIPE,
        learned.TIES,
        learned.ISO_C,
        learned.ISO_CTS,
        roupkt.RECIPE,
        steph.RECIPE,
        steph_target.RECIPE,
    )
}


def recipe(name: str) -> Recipe:
    """The method of a name.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if name not in RECIPES:
        raise ValueError(f"method is one of {', '.join(RECIPES)}; found {name!r}")
    return RECIPES[name]
