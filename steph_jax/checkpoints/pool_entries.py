"""What the models of a pool say of themselves, and which of them cannot be read."""

import dataclasses
from typing import Any

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import NULL, Pool, member_of
from steph_jax.checkpoints.saved_model import Header
from steph_jax.messages import USER_ERRORS


@dataclasses.dataclass(frozen=True)
class PoolEntry:
    """A model of a pool by its record; None for what the record does not say.

    Attributes:
        name: in the pool.
        kind: "null" for theta_0, else `SavedModel.kind`; None for a record that cannot be read.
        dataset: whose patients it was fitted on.
        fold: on whose training patients.
        patients: number of them.
        events: number of deaths among them.
        encoder: of their features.
        test_c_index: of the model on the test patients of its own fold.
        dimensions: of `Architecture`, by name.
        problem: "", or which file is missing or damaged.
    """

    name: str
    kind: str | None = None
    dataset: str | None = None
    fold: int | None = None
    patients: int | None = None
    events: int | None = None
    encoder: str | None = None
    test_c_index: float | None = None
    dimensions: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: str = ""


def entries(pool: Pool) -> list[PoolEntry]:
    """An entry for every model of a pool, by name, those that cannot be read among them.

    Raises:
        FileNotFoundError, PermissionError: the pool is not there, or cannot be read.
    """
    return [_entry(pool, name) for name in pool.names()]


def _entry(pool: Pool, name: str) -> PoolEntry:
    dataset, fold = member_of(name) or (None, None)
    try:
        header = saved_model.load_header(pool.root / name)
    except USER_ERRORS as error:
        return PoolEntry(name, dataset=dataset, fold=fold, problem=str(error))
    problem = ""
    try:
        saved_model.verify(pool.root / name)
    except USER_ERRORS as error:
        problem = str(error)
    return PoolEntry(
        name,
        kind=NULL if name == NULL else header.kind,
        dataset=header.metadata.get("dataset", dataset),
        fold=header.metadata.get("fold", fold),
        patients=header.metadata.get("patients"),
        events=header.metadata.get("events"),
        encoder=header.metadata.get("encoder") or None,
        test_c_index=header.metadata.get("test_c_index"),
        dimensions=_dimensions(header),
        problem=problem,
    )


def _dimensions(header: Header) -> dict[str, Any]:
    values = dataclasses.asdict(header.architecture)
    return {name: value for name, value in values.items() if name != "dropout"}
