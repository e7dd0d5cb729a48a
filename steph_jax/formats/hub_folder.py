"""A folder that `export --to hf` wrote, read again: the tensors and all settings of the model.

config.json says what the file of tensors does not: the loss, from which the risk follows, the time
bins, and how sources are merged.
"""

import pathlib
from typing import Any

from steph_jax import records
from steph_jax.checkpoints import (
    saved_model,
    torch_checkpoints,
    torch_merged,
    torch_merged_layout,
    torch_names,
)
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.formats.model_card import CONFIG, WEIGHTS
from steph_jax.models.abmil import Params

_WHAT, _ADVICE = "what an exported model is", "export or download it again"
_OBJECT = records.mapping(records.ANYTHING)
_CONFIG = records.record({"kind": records.NAME, "architecture": _OBJECT, "settings": _OBJECT})


def is_hub_folder(path: pathlib.Path) -> bool:
    """Whether a directory holds a file of tensors and its config."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(folder: pathlib.Path) -> SavedModel:
    """The model of a folder; reading it runs no code.

    Raises:
        ValueError: a damaged file, tensors that are not those of the config, or a kind of model
            that has no published names; the message names the file.
    """
    file = folder / CONFIG
    config = records.read(file, _CONFIG, _WHAT, _ADVICE)
    state = torch_checkpoints.read(folder / WEIGHTS).state
    try:
        params = _params(config, state)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}; {_ADVICE}") from None
    fields = {name: config[name] for name in ("kind", "architecture", "settings")}
    return saved_model.from_record(file, fields, params)


def _params(config: dict[str, Any], state: dict[str, Any]) -> Params:
    """The trees of a model; raises ValueError for tensors of another kind."""
    pooling = config["architecture"].get("pooling")
    without_attention = pooling if pooling in ("mean", "max") else "mean"
    is_merged = torch_merged_layout.is_merged(state)
    if is_merged == (config["kind"] == "abmil"):
        found = "a merged" if is_merged else "an ABMIL"
        raise ValueError(f"expected a model of kind {config['kind']!r}, found {found} model")
    if not is_merged:
        return torch_names.abmil_from_torch(state, without_attention)[1]
    options = config["settings"].get("options")
    is_fixed = isinstance(options, dict) and options.get("mixing") == "fix"
    merged = torch_merged.merged_from_torch(
        state, without_attention, "fix" if is_fixed else "param"
    )
    if merged.kind != config["kind"]:
        raise ValueError(f"expected a model of kind {config['kind']!r}, found {merged.kind!r}")
    return {"trainable": merged.trainable, "frozen": merged.frozen}
