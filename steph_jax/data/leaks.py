"""Test patients of a target whom the models of its sources may have been trained on."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steph_jax import messages
from steph_jax.data import tables
from steph_jax.data.columns import Columns
from steph_jax.data.persons import normalized_patient_id, person_keys
from steph_jax.data.splits import read_split, split_path


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
        compared: what was compared of each source.
        unknown: sources without a table or split, whose patients cannot be compared.
    """

    leaks: tuple[Leak, ...]
    unreadable: tuple[str, ...]
    compared: Mapping[str, str]
    unknown: tuple[str, ...]


def find_leaks(
    root: Path,
    target: str,
    test: Mapping[int, Sequence[str]],
    sources: Sequence[str],
    columns: Columns,
    slides_of: Mapping[str, Sequence[str]],
) -> LeakSearch:
    """Compares the test patients of the target with the patients of every source.

    Persons are compared by ids and slides, see `persons.person_keys`.

    Args:
        root: folder of datasets.
        target: name of the target.
        test: ids of its test patients, by fold.
        sources: names of the datasets whose fold-0 models are merged.
        columns: how tables are written.
        slides_of: slides of the target's patients.
    """
    leaks, unreadable, unknown = [], [], []
    compared: dict[str, str] = {}
    keys = {
        patient: person_keys(patient, slides_of.get(patient, ()))
        for ids in test.values()
        for patient in ids
    }
    for source in (name for name in sources if name != target):
        split, table = split_path(root, source, 0), tables.table_path(root, source)
        if not split.is_file() and not table.is_file():
            unknown.append(source)
            continue
        try:
            slides = _slides_of_persons(table, columns, is_required=not split.is_file())
            if split.is_file():
                patients: Iterable[str] = read_split(split).train
                text = f"test patients of {target} whom the model of {source} was trained on"
            else:
                patients = slides
                text = (
                    f"test patients of {target} who are in the table of {source}, whose model may "
                    f"have been trained on them: there is no {split.name} to compare with"
                )
        except messages.USER_ERRORS as problem:
            unreadable.append(str(problem))
            continue
        trained = [
            person_keys(patient, slides.get(normalized_patient_id(patient), ()))
            for patient in patients
        ]
        compared_by = (
            "patients and their slides" if slides else "patients, whose slides no table lists"
        )
        compared[source] = f"{len(trained)} {compared_by}"
        train_keys: set[str] = set().union(*trained)
        shared = tuple(
            f"fold {fold}: {patient}"
            for fold, ids in test.items()
            for patient in ids
            if keys[patient] & train_keys
        )
        if shared:
            advice = f"leave {source} out of sources, or read the results with this in mind"
            leaks.append(Leak(f"{text} ({len(shared)})", shared, advice))
    return LeakSearch(tuple(leaks), tuple(unreadable), compared, tuple(unknown))


def _slides_of_persons(path: Path, columns: Columns, is_required: bool) -> dict[str, list[str]]:
    """The slides of each normalized patient id of a table.

    Empty where the table cannot be read and not `is_required`, because a split names the patients:
    a source's table may have other columns than the target's.
    """
    slides_by_person: dict[str, list[str]] = defaultdict(list)
    try:
        for patient, slides in tables.read_slides(path, columns).items():
            slides_by_person[normalized_patient_id(patient)] += slides
    except messages.USER_ERRORS:
        if is_required:
            raise
    return slides_by_person
