"""Which checkpoints there are in folders as released, and their names in a pool.

    .../Null_model-abmil_*-fold_0/train_model-last.pth          ->  null
    .../abmil_*-data_{dataset}-fold_{k}/train_model-last.pth    ->  {dataset}-fold_{k}

The name is that of the file's folder, or of the file itself.
"""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from steph_jax.checkpoints.pool import NULL, member_name, member_of

EXTENSIONS = (".pth", ".pt", ".ckpt", ".safetensors")
#: Names of the last checkpoint of a folder, as the published program and Lightning write them.
_LAST = ("train_model-last", "last")
_EXPECTED = (
    "expected a folder or file named Null_model-abmil_* or abmil_*-data_DATASET-fold_K, as released"
)


class Rejected(NamedTuple):
    """A file or folder that is not converted.

    Attributes:
        file: the file or folder.
        reason: why, and what to do.
        is_skipped: whether it was met in a folder that may hold other things, and is no failure.
    """

    file: pathlib.Path
    reason: str
    is_skipped: bool = False


def pool_name(file: pathlib.Path) -> str | None:
    """Name in the pool of a file in the released layout; None where it is not recognized."""
    for name in (file.resolve().parent.name, file.stem):
        if name.startswith("Null_model-abmil"):
            return NULL
        member = member_of(name)
        head, separator, dataset = member[0].partition("-data_") if member else ("", "", "")
        if member and head.startswith("abmil") and separator and dataset:
            return member_name(dataset, member[1])
    return None


def find(
    sources: Iterable[pathlib.Path], name: str | None
) -> tuple[list[tuple[str, pathlib.Path]], list[Rejected]]:
    """Files to convert, with their names in the pool, theta_0 first.

    Args:
        sources: files, and directories that are searched for files.
        name: given by the user, for the only file.

    Returns:
        (name, file) of each, and what cannot be converted: sources that are missing or empty, files
        whose names are not recognized (in a directory they are skipped, as it may hold other
        things), second files for one name.

    Raises:
        ValueError: a name for more or less than one file.
    """
    files: dict[pathlib.Path, bool] = {}  # whether the user gave the file itself
    rejected: list[Rejected] = []
    for source in sources:
        checkpoints = _checkpoints_in(source) if source.is_dir() else [source]
        if not source.exists():
            rejected.append(Rejected(source, "no such file or directory"))
        elif not checkpoints:
            endings = ", ".join(EXTENSIONS)
            reason = f"no checkpoint in this directory ({endings}); {_EXPECTED}"
            rejected.append(Rejected(source, reason))
        else:
            files |= {file: file == source for file in checkpoints}
    if name is not None:
        if len(files) != 1:
            raise ValueError(f"--name names one model, found {len(files)} files; give one file")
        return [(name, file) for file in files], rejected
    by_name: dict[str, pathlib.Path] = {}
    for file, is_given in files.items():
        own_name = pool_name(file)
        if own_name is None:
            reason = (
                f"its name has neither dataset nor fold; {_EXPECTED}, or give it alone, with "
                "--name NAME"
            )
            rejected.append(Rejected(file, reason, is_skipped=not is_given))
        elif by_name.setdefault(own_name, file).resolve() != file.resolve():
            reason = f"would become {own_name}, as would {by_name[own_name]}; give one of them"
            rejected.append(Rejected(file, reason))
    return sorted(by_name.items(), key=lambda item: (item[0] != NULL, item[0])), rejected


def _checkpoints_in(directory: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints below a directory; of those of one folder and name, the last one alone."""
    files = sorted(
        file for file in directory.rglob("*") if file.suffix in EXTENSIONS and file.is_file()
    )
    groups: dict[tuple[pathlib.Path, str | None], list[pathlib.Path]] = {}
    for file in files:
        groups.setdefault((file.parent, pool_name(file)), []).append(file)
    checkpoints: list[pathlib.Path] = []
    for group in groups.values():
        by_stem = [[file for file in group if file.stem == stem] for stem in _LAST]
        checkpoints += next((last for last in by_stem if last), group)
    return sorted(checkpoints)
