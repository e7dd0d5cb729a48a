"""A pool: the null model theta_0, and models of many cancers that were trained from it.

    POOL/null                  theta_0
    POOL/{dataset}-fold_{k}    theta of a dataset, fitted on the training patients of fold k

and trained models of other kinds under names of their own.
"""

import dataclasses
import os
import pathlib
import re

import jax
import numpy as np

from steph_jax import files, locks
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.models.abmil import Architecture

NULL = "null"
#: Seconds to wait for another process that adds a model.
_TURN_SECONDS = 60.0
#: Bytes of parameters that a pool keeps in memory: those of 50 models of the published size.
_MOST_KEPT = 1 << 28
_MEMBER = re.compile(r"(?P<dataset>.+)-fold_(?P<fold>\d+)")


def member_name(dataset: str, fold: int) -> str:
    """Name of a dataset's model in a pool."""
    return f"{dataset}-fold_{fold}"


def member_of(name: str) -> tuple[str, int] | None:
    """Dataset and fold of the model of a name in a pool; None for a name of another kind."""
    match = _MEMBER.fullmatch(name)
    return (match["dataset"], int(match["fold"])) if match else None


class Pool:
    """Models in a directory, which need not exist before the first is added.

    A run reads every model several times: to check it, to take its fingerprint, to start each fold.
    Models are therefore kept in memory, up to `_MOST_KEPT` bytes, for as long as their files stay
    as they are; their arrays are read-only.

    Args:
        root: the directory.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(root)
        self._models: dict[str, tuple[object, SavedModel]] = {}
        self._kept_bytes = 0

    def names(self) -> list[str]:
        """Names of all models, sorted.

        Raises:
            FileNotFoundError: there is no such directory.
            PermissionError: it cannot be read.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"{self.root}: no such pool of models; the released checkpoints are published with "
                "the code of the paper (https://arxiv.org/abs/2603.10526 links it); import them "
                "with convert_torch_ckpt.py; or "
                "`--config.method=abmil --config.pool.save=true` makes a pool of your own, and "
                "`make demo` one of simulated cancers"
            )
        with os.scandir(self.root):  # one that cannot be read looks like an empty one below
            return saved_model.names_in(self.root)

    def members(self) -> dict[str, list[int]]:
        """Folds of every dataset that has models, by dataset."""
        folds: dict[str, list[int]] = {}
        for name in self.names():
            member = member_of(name)
            if member:
                folds.setdefault(member[0], []).append(member[1])
        return {dataset: sorted(numbers) for dataset, numbers in sorted(folds.items())}

    def datasets(self) -> tuple[str, ...]:
        """Datasets that can be sources, sorted: those with a fold-0 model."""
        return tuple(dataset for dataset, folds in self.members().items() if 0 in folds)

    def model(self, name: str) -> SavedModel:
        """The model of a name, of any kind; raises as `saved_model.load_model`."""
        path = self.root / name
        state = saved_model.state_of_files(path)
        if name in self._models and self._models[name][0] == state:
            return self._models[name][1]
        model = saved_model.load_model(path)
        arrays = [leaf for leaf in jax.tree.leaves(model.params) if isinstance(leaf, np.ndarray)]
        size = sum(array.nbytes for array in arrays)
        if name not in self._models and self._kept_bytes + size <= _MOST_KEPT:
            self._kept_bytes += size
            for array in arrays:
                array.flags.writeable = False
            self._models[name] = state, model
        return model

    def has_null(self) -> bool:
        """Whether the pool exists and holds theta_0."""
        return saved_model.exists(self.root / NULL)

    def null(self) -> SavedModel:
        """theta_0.

        Raises:
            FileNotFoundError: no pool, or none in it.
            ValueError: it is damaged, or no ABMIL model.
        """
        self._expect_null()
        return self._abmil(NULL)

    def member(self, dataset: str, fold: int) -> SavedModel:
        """theta of a dataset, fitted on the training patients of a fold.

        Raises:
            FileNotFoundError: no pool, no null model, or no such model; lists those that are there.
            ValueError: it is damaged, no ABMIL model, or of other dimensions than theta_0.
        """
        self._expect_null()
        name = member_name(dataset, fold)
        path = self.root / name
        if not (path.is_dir() or saved_model.exists(path)):
            raise FileNotFoundError(
                f"{self.root}: no model of {dataset!r} for fold {fold}; it holds "
                f"{self._listed()}. Make it with `--config.dataset={dataset} --config.method=abmil "
                f'--config.pool.save=true --config.folds="({fold},)"`, or import it with '
                "convert_torch_ckpt.py"
            )
        model = self._abmil(name)
        _expect_same(path, model.architecture, self.root / NULL)
        return model

    def add(self, name: str, model: SavedModel) -> pathlib.Path:
        """Stores a model under a name, in place of one that has it, and returns its directory.

        Processes that add models at the same time take turns.

        Raises:
            ValueError: as `check_can_add` does.
        """
        path = self.root / name
        busy = f"{self.root}: another process is adding a model; give the same command again"
        with files.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with locks.hold(self.root / ".lock", busy, wait=_TURN_SECONDS):
            self.check_can_add(name, model.architecture)
            saved_model.save_model(path, model)
        return path

    def check_can_add(self, name: str, architecture: Architecture) -> None:
        """Checks that a model of this name can be added, before it is trained.

        Raises:
            ValueError: an impossible name; an ABMIL model (a member or theta_0) of other dimensions
                than the models of the pool.
        """
        if name.startswith(".") or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"a model cannot be named {name!r}: use letters, digits and any of . _ + -"
            )
        path = self.root / name
        if name == NULL:
            for other in self.names() if self.root.is_dir() else []:
                if other != NULL and member_of(other):
                    _expect_same(path, architecture, self.root / other)
        elif member_of(name) and self.has_null():
            _expect_same(path, architecture, self.root / NULL)

    def _abmil(self, name: str) -> SavedModel:
        model = self.model(name)
        if model.kind != "abmil":
            path = self.root / name
            raise ValueError(f"{path}: expected an ABMIL model, found one of kind {model.kind!r}")
        return model

    def _expect_null(self) -> None:
        if not self.has_null() and NULL not in self.names():
            raise FileNotFoundError(
                f"{self.root}: a pool without null model (no {NULL}/), from which its members were "
                "trained; import the released Null_model with convert_torch_ckpt.py, or train a "
                "member with `--config.method=abmil --config.pool.save=true`, which makes one"
            )

    def _listed(self) -> str:
        members = self.members()
        if not members:
            return "no model of any dataset"
        return ", ".join(
            f"{dataset} ({'fold' if len(folds) == 1 else 'folds'} {', '.join(map(str, folds))})"
            for dataset, folds in members.items()
        )


def differing_dims(one: Architecture, other: Architecture) -> list[str]:
    """The dimensions in which two models differ, as "name A and B"; they are merged if in none.

    The rate of dropout is no dimension: models that differ in it can be merged.
    """
    return [
        f"{field.name} {getattr(one, field.name)} and {getattr(other, field.name)}"
        for field in dataclasses.fields(Architecture)
        if field.name != "dropout" and getattr(one, field.name) != getattr(other, field.name)
    ]


def _expect_same(path: pathlib.Path, architecture: Architecture, other: pathlib.Path) -> None:
    """Checks that a model has the dimensions of the one at `other`."""
    differences = differing_dims(architecture, saved_model.load_header(other).architecture)
    if differences:
        raise ValueError(
            f"{path} and {other} have other dimensions: {', '.join(differences)}; models of a pool "
            "must share all of them, use another pool"
        )
