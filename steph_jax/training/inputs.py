"""What the folds of a run have read: one fingerprint of each input, for the run as a whole.

Folds are trained one after the other, often in several calls and over days. Were an input to change
between two of them, the run would mix folds of different data under one mean. W/inputs.json keeps
what the first fold found, and whatever goes on with the run compares it:

    patients    time, event and slides of every patient of the table, joined cohorts included
    clinical    the clinical columns of every patient, where the method reads some
    splits      the ids of each part, by fold
    features    some rows of every patient's bag, and sizes and times of the files they came from
    models      the parameters of each model of the pool that the method reads

Features are compared by rows, not by the times of their files: a copy of the same features is
accepted, and features that were scaled or extracted again are refused. Rows of streamed bags are
read once, and again only where the size or the time of a file has changed. Files that can only be
read as a whole (.pt, LMDB) are read for `_WHOLE_FILES` patients at most.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax import files, records, run_directory
from steph_jax.checkpoints.pool import NULL, Pool, member_name
from steph_jax.data.bags import BagReader, ConcatBags, OnDiskBags
from steph_jax.data.cohort import Cohort
from steph_jax.data.features.store_plan import file_of
from steph_jax.data.tables import SurvivalTable
from steph_jax.messages import join_names
from steph_jax.training import resume
from steph_jax.training.experiment import Experiment

INPUTS = "inputs.json"
_FORMAT = 1
#: In place of the digest of the null model of a pool that has none.
_NO_MODEL = "none"
_ROWS = 4
_WHOLE_FILES = 256
_READ_AS_A_WHOLE = (".pt", ".pth", ".npz", ".mdb", ".lmdb")

_DIGESTS = records.mapping(records.TEXT)
_KIND = records.record(
    {
        "format": records.one_of(_FORMAT),
        "patients": _DIGESTS,
        "splits": records.mapping(_DIGESTS),
        "features": records.mapping(records.record({"rows": records.TEXT, "files": records.TEXT})),
        "models": _DIGESTS,
    },
    {"clinical": _DIGESTS},
)
#: name of an input -> digest, or digests by name.
Inputs = dict[str, Any]


def keep(
    workdir: pathlib.Path,
    run: Experiment,
    members: Iterable[tuple[str, int]],
    compared: Iterable[pathlib.Path] = (),
) -> None:
    """Stores the inputs of a run, or checks that they are those of its first fold.

    Args:
        workdir: of the run.
        run: whose features are open.
        members: dataset and fold of the pool's models that its folds read.
        compared: directories of other runs that must have read the same.

    Raises:
        ValueError: they have changed; with what did, and what to do.
    """
    now = of_run(run.cohort, run.bags, fingerprints(run.pool, members), read(workdir))
    for other in compared:
        of_other = None if other == workdir else read(other)
        if of_other is not None:
            models = {name: of for name, of in of_other["models"].items() if of != _NO_MODEL}
            expect_same({**of_other, "models": models}, now, other)
    # Other processes may begin other folds of the run.
    with run_directory.locked(workdir, run_directory.TURN_SECONDS):
        stored = read(workdir)
        if stored is not None:
            expect_same(stored, now, workdir)
        files.write_json(workdir / INPUTS, now if stored is None else _merged(stored, now))


def read(workdir: pathlib.Path) -> Inputs | None:
    """What the first fold of a run read; None where none was started, or by an older version.

    Raises:
        ValueError: the file is damaged.
    """
    path = workdir / INPUTS
    if not path.exists():
        return None
    return records.read(path, _KIND, "the inputs of a run", "use another --workdir")


def of_run(
    cohort: Cohort, bags: BagReader, models: Mapping[str, str], stored: Inputs | None
) -> Inputs:
    """The inputs as they are now.

    Args:
        cohort: of the run, with joined patients.
        bags: of its patients.
        models: `fingerprints` of the pool's models.
        stored: of an earlier call, which spares reading features whose files have not changed.
    """
    table = cohort.table
    before = {} if stored is None else stored["features"]
    return {
        "format": _FORMAT,
        "patients": {
            patient: _digest(json.dumps([float(time), float(event), list(slides)]))
            for patient, time, event, slides in zip(
                table.patients, table.time, table.event, table.slides, strict=True
            )
        },
        "clinical": clinical_digests(table),
        "splits": {
            str(number): {
                part: _digest(json.dumps([table.patients[i] for i in getattr(fold, part)]))
                for part in ("train", "test", "validation")
            }
            for number, fold in cohort.splits.items()
        },
        "features": feature_digests(table.patients, bags, before),
        "models": dict(models),
    }


def clinical_digests(table: SurvivalTable) -> dict[str, str]:
    """A digest of the clinical columns of every patient; {} where a run reads none."""
    if table.clinical is None:
        return {}
    columns = table.clinical.columns.items()
    return {
        patient: _digest(json.dumps({name: column.get(patient) for name, column in columns}))
        for patient in table.patients
    }


def fingerprints(pool: Pool, members: Iterable[tuple[str, int]]) -> dict[str, str]:
    """A digest of the parameters of some models of a pool, and of its null model, by name.

    Args:
        pool: of models.
        members: dataset and fold of each.
    """
    models = {NULL: resume.fingerprint(pool.null()) if pool.has_null() else _NO_MODEL}
    for dataset, fold in members:
        name = member_name(dataset, fold)
        if name not in models:
            models[name] = resume.fingerprint(pool.member(dataset, fold))
    return models


def expect_same(stored: Inputs, now: Inputs, where: pathlib.Path) -> None:
    """Compares the inputs that two parts of a run, or two runs, have in common.

    Args:
        stored: of the earlier.
        now: of the later.
        where: directory of the earlier.

    Raises:
        ValueError: they differ; with in what, and what to do.
    """
    changes = [
        *_changed("time, event or slides of", stored["patients"], now["patients"]),
        *_changed("the clinical columns of", stored.get("clinical", {}), now["clinical"]),
        *_changed("the splits of fold", stored["splits"], now["splits"]),
        *_changed("the features of", _rows_of(stored["features"]), _rows_of(now["features"])),
        *_changed("the pool's model", stored["models"], now["models"]),
    ]
    if changes:
        raise ValueError(
            f"{where}: inputs have changed since the first fold of this run began, and folds of "
            f"different data cannot be averaged or compared: {'; '.join(changes)}. Put them back, "
            "or use another --workdir"
        )


def _merged(stored: Inputs, now: Inputs) -> Inputs:
    return {
        name: {**stored.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in now.items()
    }


def _changed(what: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names in both whose digests differ, as a part of a message."""
    names = [name for name in now if name in stored and now[name] != stored[name]]
    return [f"{what} {join_names(names)}"] if names else []


def _rows_of(features: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Digests of rows by patient, of those whose rows were read."""
    return {patient: of["rows"] for patient, of in features.items() if of["rows"]}


def feature_digests(
    patients: Sequence[str], bags: BagReader, before: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Digests of the rows and of the files of every patient's bag.

    Args:
        patients: ids.
        bags: of the patients, in the same order.
        before: digests that are known; those of unchanged files are not computed again.
    """
    parts = bags.parts if isinstance(bags, ConcatBags) else [bags]
    features: dict[str, dict[str, str]] = {}
    for part in parts:
        number = len(part.num_patches)
        part_patients = patients[len(features) : len(features) + number]
        is_sampled = _sampled(part)
        for index, patient in enumerate(part_patients):
            files = _files(part, index)
            earlier = before.get(patient, {"rows": "", "files": ""})
            if files and files == earlier["files"] and (earlier["rows"] or not is_sampled(index)):
                features[patient] = {"rows": earlier["rows"], "files": files}
            else:
                rows = _rows(part, index) if is_sampled(index) else ""
                features[patient] = {"rows": rows, "files": files}
    return features


def _sampled(bags: BagReader) -> Callable[[int], bool]:
    """Whether the rows of a bag are read: of all, but of files that are read as a whole of some."""
    number = len(bags.num_patches)
    if not isinstance(bags, OnDiskBags) or number <= _WHOLE_FILES:
        return lambda index: True
    whole = [
        index
        for index, slides in enumerate(bags.slides)
        if any(file_of(bags.source, s).suffix in _READ_AS_A_WHOLE for s in slides)
    ]
    spread = np.linspace(0, len(whole) - 1, min(_WHOLE_FILES, len(whole))).astype(int)
    left_out = set(whole) - {whole[i] for i in spread}
    return lambda index: index not in left_out


def _rows(bags: BagReader, index: int) -> str:
    """A digest of rows from the middle of a bag, in the type that it is trained in."""
    number = int(bags.num_patches[index])
    size = min(_ROWS, number)
    rows = np.zeros((size, bags.feature_dim), bags.dtype)
    start = (number - size) // 2
    if isinstance(bags, OnDiskBags):  # past the cache, which would read the whole bag
        OnDiskBags.read(bags, index, start, rows)
    else:
        bags.read(index, start, rows)
    return _digest(f"{number} {rows.dtype} ", rows.tobytes())


def _files(bags: BagReader, index: int) -> str:
    """A digest of sizes and times of the files of a bag; "" for bags that are in memory."""
    if not isinstance(bags, OnDiskBags):
        return ""
    stats = [file_of(bags.source, slide).stat() for slide in bags.slides[index]]
    return _digest(json.dumps([[stat.st_size, stat.st_mtime_ns] for stat in stats]))


def _digest(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape") + more).hexdigest()[:16]
