"""Test patients of a target whom the models of its sources may have been trained on."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steph_jax import messages
from steph_jax.data import tables
from steph_jax.data.cohort import same_person
from steph_jax.data.tables import Columns


@dataclasses.dataclass(frozen=True)
class Leak:
    """Test patients of the target whom the model of one source was, or may have been, trained on.

    Attributes:
        message: which source, and how sure it is.
        patients: who, each with the number of the fold.
        advice: what to do.
    """

    message: str
    patients: tuple[str, ...]
    advice: str


@dataclasses.dataclass(frozen=True)
class LeakSearch:
    """What a search for leaks found.

    Attributes:
        leaks: one for each source that has seen test patients.
        unreadable: messages of sources whose tables or splits cannot be read.
        compared: sources whose patients were compared.
        unknown: sources without a table or split, whose patients cannot be compared.
    """

    leaks: tuple[Leak, ...]
    unreadable: tuple[str, ...]
    compared: tuple[str, ...]
    unknown: tuple[str, ...]


def find_leaks(
    root: Path,
    target: str,
    test: Mapping[int, Sequence[str]],
    sources: Sequence[str],
    columns: Columns,
) -> LeakSearch:
    """Compares the test patients of the target with the patients of every source.

    Args:
        root: folder of datasets.
        target: name of the target.
        test: ids of its test patients, by fold.
        sources: names of the datasets whose fold-0 models are merged.
        columns: how tables are written.
    """
    leaks, unreadable, compared, unknown = [], [], [], []
    for source in (name for name in sources if name != target):
        split, table = tables.split_path(root, source, 0), tables.table_path(root, source)
        if not split.is_file() and not table.is_file():
            unknown.append(source)
            continue
        try:
            if split.is_file():
                patients: Iterable[str] = tables.read_split(split).train
                text = f"test patients of {target} whom the model of {source} was trained on"
            else:
                patients = tables.read_slides(table, columns)
                text = (
                    f"test patients of {target} who are in the table of {source}, whose model may "
                    f"have been trained on them: there is no {split.name} to tell"
                )
        except messages.USER_ERRORS as problem:
            unreadable.append(str(problem))
            continue
        compared.append(source)
        seen = set(map(same_person, patients))
        shared = tuple(
            f"fold {fold}: {patient}"
            for fold, ids in test.items()
            for patient in ids
            if same_person(patient) in seen
        )
        if shared:
            advice = f"leave {source} out of sources, or read the results with this in mind"
            leaks.append(Leak(f"{text} ({len(shared)})", shared, advice))
    return LeakSearch(tuple(leaks), tuple(unreadable), tuple(compared), tuple(unknown))
