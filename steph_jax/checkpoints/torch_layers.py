"""Linear layers as PyTorch names and lays them out, and as our trees do.

There a layer is a `weight` [out, in] and a `bias` [out] under a dotted name; here a `kernel`
[in, out] and a `bias` [out] under a path. Models are stored in float32: this is where tensors of
other floats are converted.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from steph_jax.data.torch_format.placeholders import printable
from steph_jax.models.abmil import Params

State = Mapping[str, np.ndarray]
#: A size that cannot be known; any size fits.
UNKNOWN = -1
_ROWS_SHOWN = 24


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
        name: its dotted name there.
        path: its place in our tree.
        num_outputs: out, or `UNKNOWN`.
        num_inputs: in, or `UNKNOWN`.
    """

    name: str
    path: tuple[str, ...]
    num_outputs: int = UNKNOWN
    num_inputs: int = UNKNOWN


def shapes(
    layers: Sequence[Linear], prefix: str = "", separator: str = "."
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of some layers, by their names.

    Args:
        layers: the layers.
        prefix: stands before every name.
        separator: stands for the dots within the names of layers.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        weight, bias = _names(layer, prefix, separator)
        expected[weight] = (layer.num_outputs, layer.num_inputs)
        expected[bias] = (layer.num_outputs,)
    return expected


def to_tree(
    state: State, layers: Sequence[Linear], prefix: str = "", separator: str = "."
) -> Params:
    """Our float32 tree of some layers (arguments as for `shapes`), copied out of their tensors.

    Raises:
        ValueError: as `float32` does.
    """
    tree: Params = {}
    for layer in layers:
        weight, bias = _names(layer, prefix, separator)
        place = tree
        for name in layer.path:
            place = place.setdefault(name, {})
        place["kernel"] = np.ascontiguousarray(float32(state, weight).T)
        place["bias"] = float32(state, bias)
    return tree


def float32(state: State, name: str) -> np.ndarray:
    """A float32 copy of one tensor of floats.

    Raises:
        ValueError: NaN, infinity, or values that float32 cannot hold; names the tensor.
    """
    tensor = state[name]
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.array(tensor, np.float32)
    bad = ~np.isfinite(converted)
    if not bad.any():
        return converted
    values = tensor[bad].astype(np.float64)
    finite = values[np.isfinite(values)]
    if len(finite) < len(values):
        raise ValueError(
            f"NaN or infinity in {name} ({int(bad.sum())} of {bad.size} entries); the model's "
            "training has failed"
        )
    raise ValueError(
        f"{name} holds {finite[np.argmax(np.abs(finite))]:.4g} ({tensor.dtype}), beyond the range "
        f"of float32 (3.4e+38), in which models are stored; expected weights of a usual size: the "
        "model's training has failed, or the file is damaged"
    )


def to_state(
    tree: Params, layers: Sequence[Linear], prefix: str = "", separator: str = "."
) -> OrderedDict[str, np.ndarray]:
    """The tensors of some layers of our tree, by their names (arguments as for `shapes`)."""
    state: OrderedDict[str, np.ndarray] = OrderedDict()
    for layer in layers:
        weight, bias = _names(layer, prefix, separator)
        place = tree
        for name in layer.path:
            place = place[name]
        state[weight] = np.array(np.asarray(place["kernel"]).T, order="C")
        state[bias] = np.array(place["bias"])
    return state


def _names(layer: Linear, prefix: str, separator: str) -> tuple[str, str]:
    stem = prefix + layer.name.replace(".", separator) + separator
    return f"{stem}weight", f"{stem}bias"


def size(state: State, name: str, axis: int) -> int:
    """Size of one axis of a matrix; `UNKNOWN` where there is no such matrix."""
    tensor = state.get(name)
    return tensor.shape[axis] if isinstance(tensor, np.ndarray) and tensor.ndim == 2 else UNKNOWN


def check(state: State, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Checks that a state dict holds the expected tensors of floats and no other.

    Args:
        state: tensors by name.
        expected: shapes by name, sizes of `UNKNOWN` fitting any.
        what: kind of model, for the message.

    Raises:
        ValueError: with a table of missing, unexpected and misshapen tensors.
    """
    kinds: dict[str, list[tuple[str, str]]] = {
        "missing": [(name, _shown(shape)) for name, shape in expected.items() if name not in state],
        "unexpected": [],
        "misshapen": [],
    }
    for name, tensor in state.items():
        printed = printable(str(name))
        if not isinstance(tensor, np.ndarray):
            note = f"a {type(tensor).__name__}, not a tensor"
            kinds["misshapen" if name in expected else "unexpected"].append((printed, note))
        elif name not in expected:
            kinds["unexpected"].append((printed, _shown(tensor.shape)))
        elif tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
            kinds["misshapen"].append((printed, f"expected floats, found {tensor.dtype}"))
        elif not _fits(tensor.shape, expected[name]):
            note = f"expected {_shown(expected[name])}, found {_shown(tensor.shape)}"
            kinds["misshapen"].append((printed, note))
    rows = [(kind, *row) for kind, problems in kinds.items() for row in problems]
    if not rows:
        return
    width = max(len(name) for _, name, _ in rows[:_ROWS_SHOWN])
    lines = [f"  {kind:10}  {name:{width}}  {note}" for kind, name, note in rows[:_ROWS_SHOWN]]
    if len(rows) > _ROWS_SHOWN:
        lines.append(f"  ... and {len(rows) - _ROWS_SHOWN} more")
    counts = ", ".join(f"{len(problems)} {kind}" for kind, problems in kinds.items())
    raise ValueError(f"the tensors are not those of {what} ({counts}):\n" + "\n".join(lines))


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size and other in (UNKNOWN, size) for size, other in zip(shape, expected, strict=True)
    )


def _shown(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("?" if n == UNKNOWN else str(n) for n in shape) + "]"
