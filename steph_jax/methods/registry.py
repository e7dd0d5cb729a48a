"""Every method by name: adding one takes a file and a line here."""

from steph_jax.methods import abmil, steph
from steph_jax.methods.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (abmil.RECIPE, steph.RECIPE)}


def recipe(name: str) -> Recipe:
    """The method of a name.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if name not in RECIPES:
        raise ValueError(f"method is one of {', '.join(RECIPES)}; found {name!r}")
    return RECIPES[name]
