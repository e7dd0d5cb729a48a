"""PyTorch checkpoints into a pool of models: what `convert_torch_ckpt.py` does.

Released files go under the names that `torch_folders` reads off their folders; any other ABMIL
model, and every trained merged model, goes under a name of the user's.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from steph_jax import messages
from steph_jax.checkpoints import (
    saved_model,
    torch_checkpoints,
    torch_merged,
    torch_merged_layout,
    torch_names,
)
from steph_jax.checkpoints.pool import NULL, Pool, member_of
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.checkpoints.torch_folders import Rejected
from steph_jax.checkpoints.torch_merged import MergedState
from steph_jax.models import steph


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What files lack about the models in them; None and () stand for the published defaults.

    Attributes:
        sources: names of a merged model's sources, in order; () for source_0, source_1, ...
        top_k: of a STEPH model, as in `steph.Options`, and so are `clamp` and `base`.
        weight_output: of a STEPH or dynamic model, as in `steph.Options`.
        clamp: weights are clamped to [0, 1].
        base: what the sum is added to.
        mixing: of a STEPH model; its file decides, but for "param" and "fix" (then "param").
        merged: of a STEPH model; its file decides, unless it is an older export of ours.
        dataset: the target of a merged model.
        fold: of a merged model.
        pooling: "mean" or "max", of models without attention; None for the null model's, or mean.
    """

    sources: tuple[str, ...] = ()
    top_k: int | None = None
    weight_output: str | None = None
    clamp: bool = False
    base: str | None = None
    mixing: str | None = None
    merged: str | None = None
    dataset: str = "unknown"
    fold: int = 0
    pooling: str | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some attributes that are not left to the defaults."""
        values = {name: getattr(self, name) for name in names}
        return {n: value for n, value in values.items() if value is not None and value is not False}


@dataclasses.dataclass(frozen=True)
class ImportResult:
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


def rejected(files: Iterable[Rejected]) -> list[ImportResult]:
    """The results of files that are not converted."""
    return [
        ImportResult(
            file.file,
            "-",
            "skipped" if file.is_skipped else "failed",
            f"{file.file}: {file.reason}",
        )
        for file in files
    ]


def convert_all(
    files: Iterable[tuple[str, pathlib.Path]],
    pool: Pool,
    options: ImportOptions,
    report: Callable[[ImportResult], None],
) -> list[ImportResult]:
    """Converts files into a pool; one that cannot be converted does not stop the others.

    Args:
        files: (name in the pool, file), theta_0 first.
        pool: where models go.
        options: what files do not hold.
        report: called with each result as it comes.
    """
    results = []
    for name, file in files:
        try:
            result = convert(file, pool, name, options)
        except messages.USER_ERRORS as error:
            text = str(error)
            note = text if str(file) in text else f"{file}: {text}"
            result = ImportResult(file, name, "failed", note)
        results.append(result)
        report(result)
    return results


def convert(file: pathlib.Path, pool: Pool, name: str, options: ImportOptions) -> ImportResult:
    """Converts one file into a model of the pool, unless the same file already was.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or holds no such model, or one of
            other dimensions than the pool's; the message names the file.
    """
    if options.pooling is None and pool.has_null():
        null = saved_model.load_header(pool.root / NULL).architecture
        if not null.has_attention:
            options = dataclasses.replace(options, pooling=null.pooling)
    digest = _digest(file)
    path = pool.root / name
    saved_model.remove_leftovers(path)
    existed = path.exists()
    if existed and _is_unchanged(path, digest, options):
        return ImportResult(file, name, "unchanged", _summary(saved_model.load_header(path)))
    checkpoint = torch_checkpoints.read(file)
    state, warnings = checkpoint.state, list(checkpoint.warnings)
    provenance: dict[str, Any] = {"file": file.name, "sha256": digest}
    if checkpoint.epoch is not None:
        provenance["epoch"] = checkpoint.epoch
    try:
        if torch_merged_layout.is_merged(state):
            model = _merged(state, name, options, provenance)
        else:
            model = _abmil(state, name, options, provenance)
        if not model.architecture.has_attention:
            warnings += _without_attention(file, model, options)
        warnings += _unused(model.kind, options)
        pool.add(name, model)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if name != NULL and model.kind == "abmil" and not pool.has_null():
        warnings.append("the pool has no null model yet; convert the released Null_model too")
    header = saved_model.Header(model.kind, model.architecture, model.metadata)
    status = "replaced" if existed else "written"
    return ImportResult(file, name, status, _summary(header), tuple(warnings))


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _requested(kind: str, options: ImportOptions) -> dict[str, Any]:
    """The options that a stored model of a kind depends on, JSON-able."""
    if kind == "abmil":
        return {"pooling": options.pooling or "mean"}
    requested = dataclasses.asdict(options)
    return requested | {"pooling": options.pooling or "mean", "sources": list(options.sources)}


def _is_unchanged(path: pathlib.Path, digest: str, options: ImportOptions) -> bool:
    """Whether the model at `path` is whole, and came from the same bytes with the same options."""
    try:
        model = saved_model.load_model(path)
    except ValueError:
        return False
    origin = model.metadata.get("provenance", {})
    same_options = origin.get("requested") == _requested(model.kind, options)
    return origin.get("sha256") == digest and same_options


def _without_attention(file: pathlib.Path, model: SavedModel, options: ImportOptions) -> list[str]:
    """Warnings about a model without attention tensors.

    Raises:
        ValueError: the name of its file promises attention.
    """
    if "attn" in f"{file.parent.name}/{file.name}" and model.kind == "abmil":
        raise ValueError("no attention tensors (attention_net.*), contrary to its name")
    if options.pooling is None:
        return ["no attention tensors: taken for mean pooling; --pooling max if it is not"]
    return []


def _abmil(
    state: Mapping[str, Any], name: str, options: ImportOptions, provenance: dict[str, Any]
) -> SavedModel:
    architecture, tree = torch_names.abmil_from_torch(state, options.pooling or "mean")
    settings: dict[str, Any] = {
        "provenance": provenance | {"requested": _requested("abmil", options)}
    }
    member = member_of(name)
    if member:
        settings |= {"dataset": member[0], "fold": member[1]}
    return SavedModel("abmil", architecture, settings, tree)


def _merged(
    state: Mapping[str, Any], name: str, options: ImportOptions, provenance: dict[str, Any]
) -> SavedModel:
    """A trained merged model; what the file holds goes before the user's options."""
    if name == NULL or member_of(name):
        raise ValueError(
            f"a trained merged model (STEPH or another rule), which cannot be the pool's {name}; "
            "give it alone, with --name NAME"
        )
    vector_mixing = "fix" if options.mixing == "fix" else "param"
    merged = torch_merged.merged_from_torch(state, options.pooling or "mean", vector_mixing)
    sources = options.sources or tuple(f"source_{i}" for i in range(merged.num_sources))
    if len(sources) != merged.num_sources or len(set(sources)) != len(sources):
        raise ValueError(
            f"expected --sources with {merged.num_sources} different names, in the order of its "
            f"task vectors, found {len(sources)}: {', '.join(sources)}"
        )
    settings: dict[str, Any] = {
        "dataset": options.dataset,
        "fold": options.fold,
        "sources": list(sources),
        "provenance": provenance | {"requested": _requested(merged.kind, options)},
    }
    if merged.kind == "steph":
        settings["options"] = steph.as_dict(_steph_options(merged, options))
    else:
        settings |= _rule_settings(merged, options)
    params = {"trainable": merged.trainable, "frozen": merged.frozen}
    return SavedModel(merged.kind, merged.architecture, settings, params)


def _steph_options(merged: MergedState, options: ImportOptions) -> steph.Options:
    """The options of STEPH; raises ValueError where the user's are not those of the file."""
    if options.mixing not in (None, merged.mixing):
        raise ValueError(f"--mixing {options.mixing}, but its tensors are those of {merged.mixing}")
    if merged.merged and options.merged not in (None, merged.merged):
        raise ValueError(
            f"--merged {options.merged}, but its target_task_vector holds the tensors of "
            f"{merged.merged}"
        )
    merged_parts = options.merged or merged.merged or steph.Options.merged
    if merged_parts != "mil_encoder" and "pred_head" not in merged.frozen["task_vectors"]:
        raise ValueError(f"--merged {merged_parts}, but its task vectors have no pred_head")
    complete = steph.Options(
        mixing=merged.mixing,
        fixed_mixing=merged.fixed_mixing,
        merged=merged_parts,
        retrained=merged.retrained,
        **options.given("top_k", "weight_output", "clamp", "base"),
    )
    complete.check_sources(merged.num_sources)
    return complete


def _rule_settings(merged: MergedState, options: ImportOptions) -> dict[str, Any]:
    """Settings of a rule without mixup; its loss, which no file holds, ends with its training."""
    if merged.kind == "fix":
        return {"weights": list(merged.weights)}
    settings: dict[str, Any] = {"merge_weight": 0.0}
    if merged.kind == "dynamic":
        settings["weight_output"] = options.weight_output or steph.Options.weight_output
    return settings


def _unused(kind: str, options: ImportOptions) -> list[str]:
    """Warnings about options that a kind of model does not have."""
    steph_options = ("top_k", "weight_output", "clamp", "base", "mixing", "merged")
    used = {"steph": steph_options, "dynamic": ("weight_output",)}.get(kind, ())
    unused = [name for name in options.given(*steph_options) if name not in used]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
    return [f"not used, as a model of kind {kind} has no such option: {flags}"] if unused else []


def _summary(header: saved_model.Header) -> str:
    """A model in a few words."""
    a = header.architecture
    attention = f" A={a.attention_dim}" if a.has_attention else ""
    dims = f"{a.pooling}, D={a.feature_dim} E={a.embed_dim}{attention} T={a.num_bins}"
    if header.kind != "abmil":
        dims += f", {len(header.metadata['sources'])} sources"
    if header.kind == "steph":
        dims += f", top {header.metadata['options']['top_k'] or 'all'}"
    return f"{header.kind} ({dims})"
