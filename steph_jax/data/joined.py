"""Several cohorts as one: the patients of others are trained on beside those of the target."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from steph_jax.data.cache import Bags
from steph_jax.data.cohort import Cohort, take
from steph_jax.data.persons import same_person
from steph_jax.data.survival import SurvivalTable


class JoinedBags:
    """The bags of several cohorts, one cohort after the other; a `cache.Bags`.

    Attributes:
        num_patches: [n] patches of every bag.
        feature_dim: D.
        dtype: float type of the features.
        parts: bags of each cohort.

    Args:
        parts: bags of each cohort.

    Raises:
        ValueError: their features differ in size.
    """

    def __init__(self, parts: Sequence[Bags]) -> None:
        dims = {part.feature_dim for part in parts}
        if len(dims) > 1:
            raise ValueError(f"features differ in size between cohorts: found D = {sorted(dims)}")
        self.num_patches = np.concatenate([part.num_patches for part in parts])
        self.feature_dim = dims.pop()
        self.dtype = parts[0].dtype
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.num_patches) for part in parts)])

    def expect(self, order: Sequence[int]) -> None:
        """Tells every part which of its bags are going to be read; see `cache.Bags`."""
        owners = [self._owner(index) for index in order]
        for number, part in enumerate(self.parts):
            part.expect([inner for owner, inner in owners if owner == number])

    def read(self, index: int, start: int, out: np.ndarray) -> None:
        """Copies patches [start, start + len(out)) of bag `index` into `out` [n, D]."""
        owner, inner = self._owner(index)
        self.parts[owner].read(inner, start, out)

    def lend(self, index: int, start: int, size: int) -> np.ndarray | None:
        """What the part lends that holds the bag; see `batches.BagStore`."""
        owner, inner = self._owner(index)
        return self.parts[owner].lend(inner, start, size)

    def _owner(self, index: int) -> tuple[int, int]:
        """The part that holds a bag, and the bag's number there."""
        owner = int(np.searchsorted(self._starts, index, side="right")) - 1
        return owner, int(index - self._starts[owner])


def other_patients(tables: Sequence[SurvivalTable], target: SurvivalTable) -> list[SurvivalTable]:
    """The patients of each table who are neither the target's nor in a table before it.

    Ids are compared as `persons.same_person` does, so that no test patient of the target comes back
    under the id of a sample.
    """
    known = set(map(same_person, target.patients))
    left = []
    for table in tables:
        persons = list(map(same_person, table.patients))
        left.append(take(table, [i for i, person in enumerate(persons) if person not in known]))
        known |= set(persons)
    return left


def joined(
    cohort: Cohort, bags: Bags, others: Sequence[tuple[SurvivalTable, Bags]]
) -> tuple[Cohort, JoinedBags]:
    """The target's cohort with the patients of others behind its own.

    Folds are the target's; the others' patients are in none of them, but `Cohort.others` has them.

    Args:
        cohort: of the target.
        bags: of the target.
        others: patients of other cohorts, none of whom is the target's, and their bags.
    """
    tables = [cohort.table, *(table for table, _ in others)]
    table = dataclasses.replace(
        cohort.table,
        patients=tuple(p for t in tables for p in t.patients),
        time=np.concatenate([t.time for t in tables]),
        event=np.concatenate([t.event for t in tables]),
        slides=tuple(s for t in tables for s in t.slides),
    )
    added = np.arange(len(cohort.table.patients), len(table.patients))
    whole = dataclasses.replace(cohort, table=table, others=added)
    return whole, JoinedBags([bags, *(more for _, more in others)])
