"""Models on disk: a directory with `model.json` and `params/`.

`model.json` describes the model (kind, architecture, settings, the shape and type of every
parameter), with a checksum of every file in `params/` and of itself. `params/` holds the parameters
as orbax writes a tree. Nothing in it is code, and loading gives numpy arrays, wherever the model
was saved.
"""

import dataclasses
import functools
import glob
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from steph_jax import files, locks, records
from steph_jax.checkpoints import arrays, model_record
from steph_jax.checkpoints.model_record import Described
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture, Params
from steph_jax.survival.objectives import Objective, objective

RECORD = "model.json"
PARAMS = "params"
_REPLACED = ".replaced"
_ADVICE = "make the model again"
#: Parameters that a message names at most.
_MOST_ROWS = 8


class Header(NamedTuple):
    """What a stored model is, without its parameters."""

    kind: str
    architecture: Architecture
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model as it is stored.

    Attributes:
        kind: "abmil", "steph", "roupkt", ...: a value of `config.method`.
        architecture: of the ABMIL model, or of the ABMIL models that are merged.
        metadata: JSON-able; where it comes from, and all else that is needed to run it.
        params: numpy arrays; for "abmil" the ABMIL tree, for all others {"trainable", "frozen"}.
    """

    kind: str
    architecture: Architecture
    metadata: dict[str, Any]
    params: Params


def save_model(path: str | os.PathLike[str], model: SavedModel) -> None:
    """Writes a model whole or not at all.

    It is written under a hidden name in the same folder, and renamed. A model that is there
    already is replaced at that moment.

    Args:
        path: directory of the model; its parents are made if need be. No other process may write
            it at the same time.
        model: the model.

    Raises:
        ValueError: parameters that are not those of the architecture; a file or another kind of
            directory in its place.
    """
    path = pathlib.Path(path).absolute()
    _check_architecture(model, str(path))
    if path.exists() and not (path / RECORD).is_file():
        raise ValueError(f"{path}: expected a model or nothing, found something else; remove it")
    remove_leftovers(path)
    new = files.hidden_name(path)
    try:
        with files.writing(path):
            new.mkdir(parents=True)
        record = records.sealed(
            {
                "format": model_record.FORMAT,
                "kind": model.kind,
                "architecture": dataclasses.asdict(model.architecture),
                "settings": model.metadata,
                "params": _described(model.params),
                "files": arrays.write(new / PARAMS, _without_empty(model.params)),
            }
        )
        with files.writing(path / RECORD):
            (new / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        locks.check_held()
        if path.exists():
            os.rename(path, _replaced(path))
        os.rename(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(_replaced(path), ignore_errors=True)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a model, also where its writer was killed while replacing it."""
    path = pathlib.Path(path).absolute()
    return any((place / RECORD).is_file() for place in (path, _replaced(path)))


def names_in(folder: pathlib.Path) -> list[str]:
    """Names of all models in a folder, sorted; see `exists`."""
    names = {file.parent.name for file in folder.glob(f"*/{RECORD}")}
    visible = {name for name in names if not name.startswith(".")}
    hidden = {name[1:] for name in names - visible if name.endswith(_REPLACED)}
    return sorted(visible | {name.removesuffix(_REPLACED) for name in hidden})


def state_of_files(path: str | os.PathLike[str]) -> object:
    """What differs once a file of a model is another: places, sizes and times of all of them.

    Raises:
        FileNotFoundError: no such directory.
    """
    stats = [(str(file), file.stat()) for file in sorted(_existing(path).rglob("*"))]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def load_header(path: str | os.PathLike[str]) -> Header:
    """What a stored model is; raises as `load_model`."""
    record = model_record.read(_record_of(_existing(path)))
    return Header(record["kind"], Architecture(**record["architecture"]), record["settings"])


def verify(path: str | os.PathLike[str]) -> None:
    """Compares the files of a model with their checksums, if it has any, without loading it.

    Raises:
        FileNotFoundError, ValueError: as `load_model`, for files that are missing or damaged.
    """
    path = _existing(path)
    record = model_record.read(_record_of(path))
    _expect_params(path)
    try:
        arrays.verify(path / PARAMS, record.get("files", {}))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; {_ADVICE}") from None


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Reads a model.

    Args:
        path: directory of the model.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: no model in it, or a damaged one, or parameters of other dimensions than it
            says; the message names the file and what to do.
    """
    path = _existing(path)
    file = _record_of(path)
    record = model_record.read(file)
    _expect_params(path)
    described = record["params"]
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf[1]), np.dtype(leaf[0])),
        _without_empty(described),
        is_leaf=lambda node: isinstance(node, list),
    )
    try:
        tree = _filled(described, arrays.read(path / PARAMS, like, record.get("files")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} (described in {file}); {_ADVICE}") from None
    architecture = Architecture(**record["architecture"])
    model = SavedModel(record["kind"], architecture, record["settings"], tree)
    _check_architecture(model, str(file))
    return model


def from_record(file: pathlib.Path, fields: Mapping[str, Any], params: Params) -> SavedModel:
    """A model whose parameters lie elsewhere than beside a `model.json`.

    Args:
        file: of the record, for messages.
        fields: "kind", "architecture" and "settings", as in `model.json`.
        params: as `SavedModel.params`.

    Raises:
        ValueError: as `load_model`.
    """
    described = {"format": model_record.WITHOUT_CHECKSUMS, "params": _described(params)}
    record = {**fields, **described}
    model_record.expect_usable(file, record)
    architecture = Architecture(**record["architecture"])
    model = SavedModel(record["kind"], architecture, record["settings"], params)
    _check_architecture(model, str(file))
    return model


def remove_leftovers(path: pathlib.Path) -> None:
    """Removes what writers of the model `path` left behind when they were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        process = locks.process_of(leftover.name)
        if process is not None and process.is_gone():
            shutil.rmtree(leftover, ignore_errors=True)
    if path.exists():
        shutil.rmtree(_replaced(path), ignore_errors=True)


def _replaced(path: pathlib.Path) -> pathlib.Path:
    """Where a model is for the moment between the two renames that replace it."""
    return path.with_name(f".{path.name}{_REPLACED}")


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """The directory of a model, also where its writer was killed while replacing it."""
    path = pathlib.Path(path).absolute()
    for place in (path, _replaced(path)):
        if place.exists():
            return place
    raise FileNotFoundError(f"{path}: no such model; expected a directory with {RECORD}")


def _expect_params(path: pathlib.Path) -> None:
    if not (path / PARAMS).is_dir():
        raise ValueError(f"{path}: half of a model, {PARAMS}/ is missing; {_ADVICE}")


def _record_of(path: pathlib.Path) -> pathlib.Path:
    file = path / RECORD
    if not file.is_file():
        raise ValueError(
            f"{path}: not a model, or half of one (no {RECORD}); expected the directory of a model "
            "that training or convert_torch_ckpt.py wrote"
        )
    return file


def _described(tree: Mapping[str, Any]) -> Described:
    """[type, shape] of every array of a tree."""
    return {
        name: _described(leaf)
        if isinstance(leaf, Mapping)
        else [str(np.asarray(leaf).dtype), list(np.shape(leaf))]
        for name, leaf in tree.items()
    }


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without branches that hold nothing, which orbax cannot store."""
    pruned: dict[str, Any] = {}
    for name, leaf in tree.items():
        value = _without_empty(leaf) if isinstance(leaf, Mapping) else leaf
        if not isinstance(leaf, Mapping) or value:
            pruned[name] = value
    return pruned


def _filled(described: Mapping[str, Any], arrays: Mapping[str, Any]) -> Params:
    """The tree that was described, empty branches included."""
    return {
        name: _filled(leaf, arrays.get(name, {})) if isinstance(leaf, Mapping) else arrays[name]
        for name, leaf in described.items()
    }


def _check_architecture(model: SavedModel, where: str) -> None:
    """Checks that the ABMIL trees in a model have the shapes of its architecture."""
    frozen = model.params.get("frozen", {})
    trees = {name: frozen[name] for name in ("null", "target") if name in frozen}
    if model.kind == "abmil":
        trees = {"params": model.params}
    if not trees:
        return
    expected = _expected_shapes(model.architecture)
    for part, tree in trees.items():
        shapes = _shapes(tree, "")
        if shapes != expected:
            names = [n for n in expected | shapes if expected.get(n) != shapes.get(n)]
            rows = [f"{n}: {expected.get(n, 'none')} | {shapes.get(n, 'none')}" for n in names]
            raise ValueError(
                f"{where}: parameters ({part}) that are not those of its architecture; parameter: "
                f"expected | found; {'; '.join(rows[:_MOST_ROWS])}"
            )


@functools.cache  # models of a pool are alike
def _expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of an ABMIL, by name."""
    tree = jax.eval_shape(lambda: abmil.init(jax.random.key(0), architecture))
    return _shapes(tree, "")


def _shapes(tree: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            shapes |= _shapes(leaf, f"{prefix}{name}/")
        else:
            shapes[prefix + name] = tuple(np.shape(leaf))
    return shapes


def stored_objective(model: SavedModel) -> Objective:
    """The loss a model was trained with; the default one where its file has none."""
    return objective(model.metadata["objective"]) if "objective" in model.metadata else Objective()
