"""The state dict in a checkpoint, however the program that wrote it wrapped it.

    {"model": state, "epoch": 20, ...}                  the published program
    {"state_dict": state, ...}                          Lightning's .ckpt, many others
    {"model_state_dict": state, ...}                    PyTorch's own tutorials
    state                                               torch.save(model.state_dict())
    .safetensors                                        tensors alone

Names may share a prefix: `module.` (DataParallel), `model.` (Lightning), `_orig_mod.`
(torch.compile), any other, or several of them.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from steph_jax.checkpoints import torch_merged_layout, torch_names
from steph_jax.data.torch_format import reader
from steph_jax.data.torch_format.placeholders import printable

#: Keys under which programs keep a state dict; the first that is there counts.
WRAPPERS = ("model", "state_dict", "model_state_dict")
_COMPILED = "_orig_mod"
_FIRST_WORDS = frozenset((*torch_names.PARTS, *torch_merged_layout.NAMES))
_KEYS_SHOWN = 8
#: Wrappers within wrappers; a pickle can hold itself.
_DEEPEST = 8


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: tensors by name, without common prefix.
        epoch: number of epochs behind it, or None where it has none.
        warnings: what the user should know of the rest of it.
    """

    state: dict[str, Any]
    epoch: int | None
    warnings: tuple[str, ...]


def read(file: pathlib.Path) -> Checkpoint:
    """Reads a checkpoint of any layout above.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or holds no state dict, or more than one; the message names
            the file.
    """
    if is_safetensors(file):
        state, kind = read_safetensors(file)
        if any("/" in name for name in state):
            raise ValueError(
                f"{file}: expected an ABMIL or a merged model, found an export of a model of kind "
                f"{printable(kind) or 'unknown'}, which cannot be imported; use the directory that "
                "it was exported from, or the folder of `export --to hf`"
            )
        return Checkpoint(_without_prefix(state, file), None, ())
    content = reader.load(file)
    state, warnings = _unwrapped(content, file)
    epoch = content.get("epoch") if isinstance(content, dict) else None
    is_number = isinstance(epoch, int) and not isinstance(epoch, bool)
    return Checkpoint(_without_prefix(state, file), epoch if is_number else None, tuple(warnings))


def is_safetensors(file: pathlib.Path) -> bool:
    """Whether a file begins as .safetensors do: the length of a header, and its JSON."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        head = opened.read(9)
        length = os.fstat(opened.fileno()).st_size
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < max(length, 1 << 27)


def read_safetensors(file: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors of a .safetensors file by name, and the kind of model that its metadata names.

    Raises:
        ValueError: it is damaged, or holds tensors of other types than numbers; names the file.
    """
    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    types |= {
        f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)
    }
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        tensors = safetensors.deserialize(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file}: expected a .safetensors file, found a damaged one ({error}); copy or "
            "download the file again"
        ) from None
    state = {}
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if tensor["dtype"] not in types:
            raise ValueError(
                f"{file}: expected tensors of floats, found {printable(name)} of type "
                f"{tensor['dtype']}; save the model in float32"
            )
        array = np.frombuffer(tensor["data"], np.dtype(types[tensor["dtype"]]))
        state[name] = array.reshape(tensor["shape"])
    return state, str(metadata.get("kind", ""))


def _unwrapped(content: object, file: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The state dict in what a file held, and warnings about what else is in it."""
    path: list[str] = []
    warnings: list[str] = []
    while isinstance(content, dict) and len(path) < _DEEPEST:
        key = _wrapper(content, file)
        if key is None:
            break
        path.append(key)
        warnings += _remarks(content, key)
        content = content[key]
    inside = f" in `{'.'.join(path)}`" if path else ""
    reader.refuse_foreign(content, f"{file},{inside}" if path else str(file))
    if not isinstance(content, dict):
        problem = f"found a {type(content).__name__}"
    elif not (_is_state(content) if not path else all(isinstance(key, str) for key in content)):
        problem = f"found the keys {_shown(content)}"
    elif content and not any(isinstance(value, np.ndarray) for value in content.values()):
        problem = f"found none under {_shown(content)}"
    else:
        return content, warnings
    expected = f"tensors by name{inside}"
    if not path:
        expected = "a checkpoint with `model`, `state_dict` or tensors by name"
    raise ValueError(f"{file}: expected {expected}, {problem}; save a state dict with torch.save")


def _shown(content: Mapping[object, object]) -> str:
    """The first keys of a dict."""
    return ", ".join(printable(str(key)) for key in list(content)[:_KEYS_SHOWN])


def _is_state(content: object) -> bool:
    """Whether a value is tensors by name and nothing else."""
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in content.items()
    )


def _wrapper(content: Mapping[object, object], file: pathlib.Path) -> str | None:
    """The key under which a dict keeps a state dict; None where it is one, or holds none."""
    if _is_state(content):
        return None
    usual = [key for key in WRAPPERS if key in content]
    if usual:
        return next((key for key in usual if isinstance(content[key], dict)), usual[0])
    others = [
        key for key, value in content.items() if isinstance(key, str) and _is_state(value) and value
    ]
    if len(others) > 1:
        names = ", ".join(printable(key) for key in others[:_KEYS_SHOWN])
        raise ValueError(
            f"{file}: expected one state dict, found {len(others)}, under {names}; save the one "
            'that is to be imported as torch.save({"model": ...})'
        )
    return others[0] if others else None


def _remarks(content: Mapping[object, object], key: str) -> list[str]:
    """What the user should know of the other entries of a wrapper."""
    remarks = []
    for other, value in content.items():
        if other == key:
            continue
        name = printable(str(other))
        if other in WRAPPERS and isinstance(value, dict):
            remarks.append(f"`{key}` is imported; the state dict under `{name}` is not read")
        names = reader.foreign_names(value)
        if names:
            remarks.append(f"skipped in `{name}`, never called: {', '.join(names[:5])}")
    return remarks


def _without_prefix(state: Mapping[str, Any], file: pathlib.Path) -> dict[str, Any]:
    """Tensors under the names of the published classes, without what stands before all of them.

    Raises:
        ValueError: the names have several prefixes, as those of two models have.
    """
    prefixes = dict.fromkeys(prefix for prefix in map(_prefix, state) if prefix is not None)
    if len(prefixes) > 1 and "" not in prefixes:
        names = ", ".join(printable(prefix) for prefix in list(prefixes)[:_KEYS_SHOWN])
        raise ValueError(
            f"{file}: expected the tensors of one model, found those of {len(prefixes)}, under "
            f"{names}; save the state dict of one of them with torch.save"
        )
    prefix = next(iter(prefixes)) if len(prefixes) == 1 else ""
    renamed = {_plain(name).removeprefix(prefix): value for name, value in state.items()}
    if len(renamed) < len(state):
        raise ValueError(
            f"{file}: expected tensors by name, found some with and without {_COMPILED}. before "
            "the same name; save the state dict of one model with torch.save"
        )
    return renamed


def _prefix(name: str) -> str | None:
    """What stands before the first word of a published name; None where there is no such word."""
    words = _plain(name).split(".")
    for number, word in enumerate(words):
        if word in _FIRST_WORDS:
            return "".join(f"{before}." for before in words[:number])
    return None


def _plain(name: str) -> str:
    """A name without the words that torch.compile puts in, wherever they are."""
    return ".".join(word for word in name.split(".") if word != _COMPILED)
