"""Released PyTorch checkpoints into a pool of models: what `convert_torch_ckpt.py` does.

    .../Null_model-abmil_*-fold_0/train_model-last.pth          ->  POOL/null
    .../abmil_*-data_{dataset}-fold_{k}/train_model-last.pth    ->  POOL/{dataset}-fold_{k}

and, under a name of the user's, any other ABMIL or trained STEPH model. Names are those of the
file's folder, or of the file itself.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from steph_jax import messages
from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.pool import NULL, Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.torch_format import reader
from steph_jax.models import steph

EXTENSIONS = (".pth", ".pt")
_LAST = "train_model-last"
_EXPECTED = (
    "expected a folder or file named Null_model-abmil_* or abmil_*-data_DATASET-fold_K, as released"
)
_NULL_NAME = re.compile(r"Null_model-abmil.*")
_MEMBER_NAME = re.compile(r"abmil.*?-data_(?P<dataset>.+)-fold_(?P<fold>\d+)")


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """What files do not say of the models in them; the defaults are the paper's.

    Attributes:
        sources: names of a STEPH model's sources, in order; () for source_0, source_1, ...
        options: of a STEPH model; mixing and retrained count only where the file leaves them open.
        dataset: the target of a STEPH model.
        fold: of a STEPH model.
        pooling: "mean" or "max", of models without attention; None for the null model's, or mean.
    """

    sources: tuple[str, ...] = ()
    options: steph.Options = dataclasses.field(default_factory=steph.Options)
    dataset: str = "unknown"
    fold: int = 0
    pooling: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        file: the file.
        name: of the model in the pool.
        status: "written", "replaced", "unchanged", "skipped" or "failed".
        note: the model in a few words, or the error.
        warnings: what the user should know of it.
    """

    file: pathlib.Path
    name: str
    status: str
    note: str
    warnings: tuple[str, ...] = ()


def pool_name(file: pathlib.Path) -> str | None:
    """Name in the pool of a file in the released layout; None where it is not recognized."""
    for name in (file.resolve().parent.name, file.stem):
        if _NULL_NAME.fullmatch(name):
            return NULL
        match = _MEMBER_NAME.fullmatch(name)
        if match:
            return member_name(match["dataset"], int(match["fold"]))
    return None


def find(
    sources: Iterable[pathlib.Path], name: str | None
) -> tuple[list[tuple[str, pathlib.Path]], list[Outcome]]:
    """Files to convert, with their names in the pool, theta_0 first.

    Args:
        sources: files, and directories that are searched for files.
        name: given by the user, for the only file.

    Returns:
        (name, file) of each, and outcomes of what cannot be converted: sources that are missing or
        empty, files that nothing tells the name of (in a directory they are skipped, as it may hold
        other things), second files for one name.

    Raises:
        ValueError: a name for more or less than one file.
    """
    files: dict[pathlib.Path, bool] = {}  # whether the user gave the file itself
    rejected: list[Outcome] = []
    for source in sources:
        found = _checkpoints_in(source) if source.is_dir() else [source]
        if not source.exists():
            rejected.append(_failed(source, "no such file or directory"))
        elif not found:
            rejected.append(_failed(source, f"no checkpoint in this directory; {_EXPECTED}"))
        else:
            files |= {file: file == source for file in found}
    if name is not None:
        if len(files) != 1:
            raise ValueError(f"--name names one model, found {len(files)} files; give one file")
        return [(name, file) for file in files], rejected
    by_name: dict[str, pathlib.Path] = {}
    for file, is_given in files.items():
        known = pool_name(file)
        if known is None:
            note = f"its name says neither dataset nor fold; {_EXPECTED}, or give it alone, with "
            outcome = _failed(file, f"{note}--name NAME")
            rejected.append(outcome if is_given else dataclasses.replace(outcome, status="skipped"))
        elif by_name.setdefault(known, file).resolve() != file.resolve():
            rejected.append(_failed(file, f"would become {known}, as would {by_name[known]}"))
    return sorted(by_name.items(), key=lambda item: (item[0] != NULL, item[0])), rejected


def _failed(file: pathlib.Path, note: str) -> Outcome:
    return Outcome(file, "-", "failed", f"{file}: {note}")


def _checkpoints_in(directory: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints below a directory; of those of one released folder, the last one alone."""
    files = sorted(
        file for file in directory.rglob("*") if file.suffix in EXTENSIONS and file.is_file()
    )
    last = {file.parent for file in files if file.stem == _LAST}
    return [file for file in files if file.stem == _LAST or file.parent not in last]


def convert_all(
    files: Iterable[tuple[str, pathlib.Path]],
    pool: Pool,
    unsaid: Unsaid,
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Converts files into a pool; one that cannot be converted does not stop the others.

    Args:
        files: (name in the pool, file), theta_0 first.
        pool: where models go.
        unsaid: what files do not say.
        report: told of each outcome as it comes.
    """
    outcomes = []
    for name, file in files:
        try:
            outcome = convert(file, pool, name, unsaid)
        except messages.USER_ERRORS as error:
            outcome = Outcome(file, name, "failed", str(error))
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def convert(file: pathlib.Path, pool: Pool, name: str, unsaid: Unsaid) -> Outcome:
    """Converts one file into a model of the pool, unless the same file already was.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or holds no such model, or one of
            other dimensions than the pool's; the message names the file.
    """
    if unsaid.pooling is None and pool.has_null():
        null = saved_model.load_header(pool.root / NULL).architecture
        if not null.has_attention:
            unsaid = dataclasses.replace(unsaid, pooling=null.pooling)
    digest = _digest(file)
    path = pool.root / name
    saved_model.remove_leftovers(path)
    existed = path.exists()
    if existed and _is_unchanged(path, digest, unsaid):
        return Outcome(file, name, "unchanged", _summary(saved_model.load_header(path)))
    content = reader.load(file)
    state, warnings = _state_dict(content, file)
    provenance = {"file": file.name, "sha256": digest}
    if isinstance(content, dict) and isinstance(content.get("epoch"), int):
        provenance["epoch"] = content["epoch"]
    if not torch_names.has_attention(state):
        if "attn" in f"{file.parent.name}/{file.name}" and not torch_names.is_steph(state):
            raise ValueError(f"{file}: no attention tensors (attention_net.*), which its name says")
        if unsaid.pooling is None:
            warnings.append(
                "no attention tensors: taken for mean pooling; --pooling max if it is not"
            )
    try:
        if torch_names.is_steph(state):
            model = _steph(state, name, provenance, unsaid)
        else:
            model = _abmil(state, name, provenance, unsaid)
        pool.add(name, model)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if name != NULL and model.kind == "abmil" and not pool.has_null():
        warnings.append("the pool has no null model yet; convert the released Null_model too")
    header = saved_model.Header(model.kind, model.architecture, model.settings)
    status = "replaced" if existed else "written"
    return Outcome(file, name, status, _summary(header), tuple(warnings))


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _requested(kind: str, unsaid: Unsaid) -> dict[str, Any]:
    """What the user said that a stored model of a kind depends on, JSON-able."""
    said: dict[str, Any] = {"pooling": unsaid.pooling or "mean"}
    if kind == "steph":
        said |= {
            "sources": list(unsaid.sources),
            "options": steph.as_dict(unsaid.options),
            "dataset": unsaid.dataset,
            "fold": unsaid.fold,
        }
    return said


def _is_unchanged(path: pathlib.Path, digest: str, unsaid: Unsaid) -> bool:
    """Whether the model at `path` is whole, and came from the same bytes on the same terms."""
    try:
        model = saved_model.load_model(path)
    except ValueError:
        return False
    origin = model.settings.get("provenance", {})
    same_terms = origin.get("requested") == _requested(model.kind, unsaid)
    return origin.get("sha256") == digest and same_terms


def _state_dict(content: object, file: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a checkpoint, and warnings about what else is in it."""
    if not isinstance(content, dict):
        reader.refuse_foreign(content, str(file))
        raise ValueError(
            f"{file}: expected a checkpoint with `model`, found a {type(content).__name__}"
        )
    state = content.get("model", content)
    reader.refuse_foreign(state, f"{file}, in `model`" if "model" in content else str(file))
    if state is content and not all(isinstance(value, np.ndarray) for value in content.values()):
        keys = ", ".join(map(str, list(content)[:8]))
        raise ValueError(f"{file}: expected a checkpoint with `model`, found the keys {keys}")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{file}: expected tensors by name in `model`, found a {type(state).__name__}"
        )
    if state and not any(isinstance(value, np.ndarray) for value in state.values()):
        keys = ", ".join(list(state)[:8])
        raise ValueError(f"{file}: expected tensors by name in `model`, found none under {keys}")
    warnings = []
    if state is not content:
        for key, part in content.items():
            names = reader.foreign_names(part)
            if names:
                warnings.append(f"skipped in `{key}`, never called: {', '.join(names[:5])}")
    return state, warnings


def _abmil(
    state: Mapping[str, np.ndarray], name: str, provenance: dict[str, Any], unsaid: Unsaid
) -> SavedModel:
    architecture, tree = torch_names.abmil_from_torch(state, unsaid.pooling or "mean")
    origin = provenance | {"requested": _requested("abmil", unsaid)}
    settings: dict[str, Any] = {"provenance": origin}
    match = re.fullmatch(r"(.+)-fold_(\d+)", name)
    if match:
        settings |= {"dataset": match[1], "fold": int(match[2])}
    return SavedModel("abmil", architecture, settings, _as_float32(tree))


def _steph(
    state: Mapping[str, np.ndarray], name: str, provenance: dict[str, Any], unsaid: Unsaid
) -> SavedModel:
    """A trained STEPH model; what the file says goes before what the user says."""
    if re.fullmatch(r"(null|.+-fold_\d+)", name):
        raise ValueError(
            f"a trained STEPH model, which cannot be the pool's {name}; give it alone, with "
            "--name NAME"
        )
    options = unsaid.options
    vector_mixing = options.mixing if options.mixing == "fix" else "param"
    found = torch_names.steph_from_torch(state, unsaid.pooling or "mean", vector_mixing)
    if options.mixing != "nn" and options.mixing != found.mixing:
        raise ValueError(f"--mixing {options.mixing}, but its tensors are those of {found.mixing}")
    if options.merged != "mil_encoder" and "pred_head" not in found.frozen["task_vectors"]:
        raise ValueError(f"--merged {options.merged}, but its task vectors have no pred_head")
    options = dataclasses.replace(
        options,
        mixing=found.mixing,
        fixed_mixing=found.fixed_mixing,
        retrained=found.retrained,
    )
    sources = unsaid.sources or tuple(f"source_{i}" for i in range(found.num_sources))
    if len(sources) != found.num_sources or len(set(sources)) != len(sources):
        raise ValueError(
            f"expected --sources with {found.num_sources} different names, in the order of its "
            f"task vectors, found {len(sources)}: {', '.join(sources)}"
        )
    options.check_sources(len(sources))
    settings = {
        "dataset": unsaid.dataset,
        "fold": unsaid.fold,
        "sources": list(sources),
        "options": steph.as_dict(options),
        "provenance": provenance | {"requested": _requested("steph", unsaid)},
    }
    params = {"trainable": _as_float32(found.trainable), "frozen": _as_float32(found.frozen)}
    return SavedModel("steph", found.architecture, settings, params)


def _as_float32(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The tree in float32, in which models are stored; NaN and infinity are refused."""
    converted: dict[str, Any] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            converted[name] = _as_float32(leaf, f"{path}{name}/")
            continue
        if not np.isfinite(leaf.astype(np.float64)).all():
            raise ValueError(f"NaN or infinity in {path}{name}; the model's training has failed")
        converted[name] = leaf.astype(np.float32)
    return converted


def _summary(header: saved_model.Header) -> str:
    """A model in a few words."""
    a = header.architecture
    attention = f" A={a.attention_dim}" if a.has_attention else ""
    dims = f"{a.pooling}, D={a.feature_dim} E={a.embed_dim}{attention} T={a.num_bins}"
    if header.kind == "steph":
        options = header.settings["options"]
        dims += f", {len(header.settings['sources'])} sources, top {options['top_k'] or 'all'}"
    return f"{header.kind} ({dims})"
