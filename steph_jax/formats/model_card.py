"""A model as a folder for the Hugging Face Hub: model.safetensors, config.json, README.md.

README.md is a model card: a header in YAML (https://huggingface.co/docs/hub/model-cards) with
`model-index`, the C-index of the run's folds, and `base_model`, the members of the pool that were
merged; below it what the model is, in words. The license is the user's to choose and is left out.
"""

import dataclasses
import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

import steph_jax
from steph_jax import files
from steph_jax.checkpoints.pool import member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.evaluation.markup import code, markdown
from steph_jax.formats import published
from steph_jax.messages import on_one_line
from steph_jax.methods.registry import find_method
from steph_jax.survival import metrics

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_UNKNOWN = "unknown"
_LICENSE = (
    "## License\n\nNone is set. Whoever publishes this model chooses one that the patients' data "
    "and the base models allow, and adds it to the header as `license:`."
)
_LIMITS = (
    "## Limits\n\nFor research. No medical device; not shown to be valid on patients of other "
    "hospitals, scanners or encoders."
)
#: Of a folder that holds something else.
_ELSE = "expected a new or empty folder, or one that this program wrote; choose another"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: of the model.
        method: that made it.
        c_index: on the test patients, by fold of its run; NaN where no two can be compared.
    """

    name: str
    method: str
    c_index: Mapping[int, float] = dataclasses.field(default_factory=dict)


def write(model: SavedModel, folder: pathlib.Path, origin: Origin) -> None:
    """Writes the three files; each is there whole or not at all, the card last.

    Args:
        model: of any kind.
        folder: made if need be; an earlier export in it is replaced.
        origin: of the model.

    Raises:
        ValueError, OSError: as `check_folder`; nothing can be written there.
    """
    check_folder(folder)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    published.write(model, folder / WEIGHTS)
    config = {
        "library": "steph_jax",
        "version": steph_jax.__version__,
        "kind": model.kind,
        "architecture": dataclasses.asdict(model.architecture),
        "settings": model.metadata,
    }
    files.write_json(folder / CONFIG, config)
    files.write_text(folder / CARD, card(model, origin))


def check_folder(folder: pathlib.Path) -> None:
    """Checks before any work that a folder is new, empty, or an earlier export.

    Raises:
        ValueError: it holds, or is, something else.
    """
    files.check_output_folder(folder)
    if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    try:
        library = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["library"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        library = None
    if library != "steph_jax":
        raise ValueError(f"{folder}: {_ELSE}")


def base_models(model: SavedModel) -> list[str]:
    """Names of the members of the pool that were merged, routed or trained on."""
    settings = model.metadata
    dataset, fold = settings.get("dataset"), settings.get("fold")
    sources = [name for name in settings.get("sources", ()) if name != dataset]
    if "source" in settings:  # of `zero_shot` and `fine_tune`
        return [member_name(settings["source"], 0)]
    own = [member_name(dataset, fold)] if sources and dataset and fold is not None else []
    return [*own, *(member_name(name, 0) for name in sources)]


def header(model: SavedModel, origin: Origin) -> dict[str, Any]:
    """The content of the YAML of the card."""
    values: dict[str, Any] = {
        "library_name": "steph_jax",
        "tags": [
            "survival-analysis",
            "pathology",
            "whole-slide-images",
            "multiple-instance-learning",
            *(["model-merging"] if "sources" in model.metadata else []),
        ],
    }
    bases = base_models(model)
    if bases:
        values["base_model"] = bases
    if len(bases) > 1:
        values["base_model_relation"] = "merge"
    results = _results(model, origin)
    if results:
        values["model-index"] = [{"name": origin.name, "results": results}]
    return values


def _results(model: SavedModel, origin: Origin) -> list[dict[str, Any]]:
    """The C-index of each fold, and their mean where there are several."""
    dataset = model.metadata.get("dataset", _UNKNOWN)
    defined = {fold: c for fold, c in origin.c_index.items() if math.isfinite(c)}
    rows = [(f"test patients of fold {fold}", value) for fold, value in defined.items()]
    if len(origin.c_index) > 1 and len(defined) == len(origin.c_index):
        mean, _ = metrics.mean_sd(list(defined.values()))
        rows.append((f"mean over {len(defined)} folds", float(mean)))
    return [
        {
            "task": {"type": "survival-analysis", "name": "Survival analysis"},
            "dataset": {"type": dataset, "name": dataset, "split": "test"},
            "metrics": [{"type": "c_index", "name": f"C-index, {name}", "value": value}],
        }
        for name, value in rows
    ]


def card(model: SavedModel, origin: Origin) -> str:
    """The text of README.md."""
    front = yaml.safe_dump(header(model, origin), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{front}---\n\n# {markdown(origin.name)}",
        _what_it_is(model, origin),
        _c_index(model, origin),
        _use(model),
        _base(model),
        _LICENSE,
        _LIMITS,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what_it_is(model: SavedModel, origin: Origin) -> str:
    a, settings = model.architecture, model.metadata
    encoder = settings.get("encoder") or _UNKNOWN
    columns = [coding.column for coding in find_method(model.kind).codings(model)]
    what = "whole-slide images: patch features of a patient's slides"
    if columns:
        what = f"clinical columns ({', '.join(map(markdown, columns))}): cells of a patient"
    lines = [
        f"A survival model for {what} in, a risk out (**higher = shorter life**), and a discrete "
        "survival curve where the loss gives one.",
        "",
        "| | |",
        "| --- | --- |",
        f"| method | {markdown(origin.method)} |",
        f"| target cohort | {markdown(settings.get('dataset', _UNKNOWN))} |",
        f"| fold | {markdown(settings.get('fold', _UNKNOWN))} |",
        f"| patch features | {a.feature_dim} numbers each, encoder: {markdown(encoder)} |",
        f"| encoder of the bag | {_bag_encoder(model)} |",
        f"| outputs | {_num_outputs(model)} |",
    ]
    static = settings.get("static")
    if static:
        text = f"fixed, of a {static['kind']} model: {static['origin']}"
        lines.append(f"| coefficients of the sources | {markdown(text)} |")
    return "\n".join(lines)


def _bag_encoder(model: SavedModel) -> str:
    if find_method(model.kind).codings(model):
        return "none: no slide is read"
    if not find_method(model.kind).restore(model, None).model.has_encoder:
        return "none: mean and standard deviation of the features"
    return f"ABMIL, {model.architecture.pooling} pooling, E = {model.architecture.embed_dim}"


def _num_outputs(model: SavedModel) -> int:
    trained = model.params.get("trainable", model.params)
    head = trained.get("pred_head")
    return model.architecture.num_bins if head is None else len(head["bias"])


def _c_index(model: SavedModel, origin: Origin) -> str:
    if not origin.c_index:
        return ""
    own = model.metadata.get("fold")
    rows = [
        f"| {fold}{' (this model)' if fold == own else ''} | "
        f"{f'{value:.4f}' if math.isfinite(value) else 'not defined'} |"
        for fold, value in origin.c_index.items()
    ]
    if len(rows) > 1:
        mean, sd = metrics.mean_sd(list(origin.c_index.values()))
        rows.append(f"| mean (sd) | {mean:.4f} ({sd:.4f}) |")
    table = "\n".join(["| fold | C-index |", "| --- | --- |", *rows])
    return f"## Discrimination\n\nHarrell's C-index on the test patients of each fold.\n\n{table}"


def _use(model: SavedModel) -> str:
    is_published = published.has_published_class(model)
    names = "of the published classes" if is_published else "that steph_jax has for them"
    table = " --table TABLE" if find_method(model.kind).codings(model) else ""
    text = (
        f"## Use\n\nWith steph_jax {steph_jax.__version__}, where FOLDER is this one:\n\n"
        f"    python -m steph_jax.predict --checkpoint FOLDER --features SLIDES{table} --out "
        "risk.csv\n\n"
        "`config.json` has the kind of the model, its architecture, the loss, the time bins and "
        f"the settings; `model.safetensors` the tensors under the names {names}."
    )
    if model.kind == "abmil" or not is_published:
        return text
    flags = on_one_line(shlex.join(published.import_flags(model)))
    return f"{text} Importing the tensors alone takes these flags:\n\n    {flags}"


def _base(model: SavedModel) -> str:
    bases = base_models(model)
    if not bases:
        return ""
    names = "\n".join(f"- {code(name)}" for name in bases)
    return (
        "## Base models\n\nMembers of the pool by their names there. In the header (`base_model`), "
        f"put in their places the names that they have on the Hub.\n\n{names}"
    )
