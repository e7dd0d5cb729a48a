"""A run's working directory: one run at a time on each fold, its settings, what is finished."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from steph_jax import files, locks, records

SETTINGS, SUMMARY = "config.json", "summary.json"
_FOLDS = records.list_of(records.WHOLE)
_STORED = records.mapping(records.ANYTHING)
_SUMMARY = records.record(
    {
        "fold_numbers": _FOLDS,
        "c_index": records.record({"folds": records.list_of(records.ANY_NUMBER)}),
    }
)


#: Seconds to wait for another process that writes settings or the summary of the same run.
TURN_SECONDS = 60.0


def make(workdir: pathlib.Path) -> None:
    """Makes a working directory, if need be.

    Raises:
        ValueError: something else is in its place.
        OSError: it cannot be made.
    """
    files.check_output_folder(workdir)
    with files.writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(workdir: pathlib.Path, wait: float = 0.0) -> Iterator[None]:
    """Holds what the folds of a run share; the directory is made if need be.

    Args:
        workdir: of the run.
        wait: seconds to wait for another process that holds it.

    Raises:
        ValueError: another process holds it.
        OSError: the file system cannot lock.
    """
    make(workdir)
    busy = f"{workdir}: another run is at work here; wait for it, or choose another --workdir"
    with locks.hold(workdir / ".lock", busy, wait, directory=workdir):
        yield


@contextlib.contextmanager
def folds_locked(workdir: pathlib.Path, folds: Iterable[int]) -> Iterator[None]:
    """Holds some folds of a run, so that other processes may work on the others.

    Raises:
        ValueError: another process holds one of them; none is held then.
        OSError: the file system cannot lock.
    """
    make(workdir)
    with contextlib.ExitStack() as stack:
        for fold in sorted(folds):
            directory = fold_directory(workdir, fold)
            with files.writing(directory):
                directory.mkdir(exist_ok=True)
            busy = (
                f"{directory}: another run is at work on this fold; wait for it, or choose other "
                "--config.folds or another --workdir"
            )
            lock = workdir / f".{directory.name}.lock"
            stack.enter_context(locks.hold(lock, busy, directory=directory))
            stack.callback(_remove_if_empty, directory)
        yield


def _remove_if_empty(directory: pathlib.Path) -> None:
    """Removes the directory of a fold that nothing was written to."""
    if not any(directory.iterdir()):
        directory.rmdir()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"a.b": value}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def store_config(
    workdir: pathlib.Path,
    settings: dict[str, Any],
    free: tuple[str, ...],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Stores the settings of a run, or checks that a resumed run has those of its start.

    Args:
        workdir: of the run.
        settings: JSON-able.
        free: names of settings that may change between the parts of a run.
        defaults: values of settings that the version that stored the run may have lacked.

    Raises:
        ValueError: a setting differs from the stored one; names all that do.
    """
    files.write_json(workdir / SETTINGS, reconciled_config(workdir, settings, free, defaults))


def reconciled_config(
    workdir: pathlib.Path,
    settings: dict[str, Any],
    free: tuple[str, ...],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What `store_config` stores: folds that were asked for in parts are stored together.

    Raises:
        ValueError: as `store_config` does.
    """
    path = workdir / SETTINGS
    config = flatten(json.loads(json.dumps(settings)))
    if path.exists():
        stored = {**defaults, **flatten(load(workdir))}
        config = {**defaults, **config}
        differences = [
            f"{name}: {stored.get(name, 'absent')!r} then, {config.get(name, 'absent')!r} now"
            for name in sorted(stored.keys() | config.keys())
            if name not in free and stored.get(name) != config.get(name)
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run with other settings; use them, or another --workdir\n  "
                + "\n  ".join(differences)
            )
        if "folds" in free:
            folds = {*stored.get("folds", ()), *settings["folds"]}
            return settings | {"folds": sorted(folds)}
    return settings


def finished_folds(workdir: pathlib.Path) -> list[int]:
    """The folds of a run that are done, those asked for in earlier parts of it among them."""
    folds = load(workdir)["folds"]
    return [fold for fold in folds if is_finished(fold_directory(workdir, fold))]


def load(workdir: pathlib.Path) -> dict[str, Any]:
    """The settings of a run, as they were stored.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file cannot be read.
    """
    path = workdir / SETTINGS
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir}: no run here (no {SETTINGS}); expected the --workdir of steph_jax.train"
        )
    advice = "restore the file, or give the command of the run with another --workdir"
    return records.read(path, _STORED, "the settings of a run", advice)


def load_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """summary.json of a finished run.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the file cannot be read.
    """
    path = workdir / SUMMARY
    if not path.exists():
        raise FileNotFoundError(f"{workdir}: no finished run here (no {SUMMARY})")
    advice = "python -m steph_jax.evaluate writes it again"
    return records.read(path, _SUMMARY, "the summary of a run", advice)


def is_summarized(workdir: pathlib.Path, folds: Iterable[int]) -> bool:
    """Whether the summary of a run is there, pictures included, and is of these folds at least."""
    path = workdir / SUMMARY
    return path.exists() and set(folds) <= set(load_summary(workdir)["fold_numbers"])


def fold_directory(workdir: pathlib.Path, fold: int) -> pathlib.Path:
    """Where a fold keeps its files."""
    return workdir / f"fold_{fold}"


def model_directory(path: pathlib.Path) -> pathlib.Path:
    """Where the model of `path` is: in model/ of a fold's directory, or the directory itself."""
    inner = path / "model"
    return inner if inner.is_dir() else path


def training_record(directory: pathlib.Path) -> pathlib.Path:
    """What a fold notes of its training, once its model and all that `evaluate` needs are there."""
    return directory / "training.json"


def is_run(path: pathlib.Path) -> bool:
    """Whether a directory is that of a run, whose folds have models of their own."""
    return (path / SETTINGS).is_file() and any(path.glob("fold_*/"))


def is_finished(directory: pathlib.Path) -> bool:
    """Whether a fold is done: its metrics are written last."""
    return (directory / "metrics.json").is_file()
