"""What arrays seem to be that are no features of patches, judged by names, shapes and types."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

#: Names under which programs keep the features of patches, where the name asked for is the first.
FEATURE_NAMES = ("features", "feats")
#: What to do where a file holds no features.
NAME_ANOTHER = "name the folder that an encoder wrote features of patches to"
#: Names under which programs keep where patches lie, in lower case.
COORDINATE_NAMES = ("coords", "coordinates", "coord", "coords_patching", "positions", "xy")
_IMAGES = ("imgs", "images", "img", "tiles", "patches")
#: Sizes of features that encoders have.
_ENCODER_DIMS = frozenset({192, 320, 384, 512, 768, 1024, 1280, 1536, 1920, 2048, 2560, 3072})


def synonym(name: str, existing: Iterable[Any]) -> str | None:
    """The other usual name of features that a file has, where the default one was asked for."""
    names = [other for other in FEATURE_NAMES[1:] if other in existing]
    return names[0] if name == FEATURE_NAMES[0] and names else None


def kind_of_name(name: object) -> str:
    """What an array holds by its name: coordinates, tile images, or "" where that is open."""
    last = str(name).rpartition("/")[2].lower()
    if last in COORDINATE_NAMES:
        return "coordinates"
    return "tile images" if last in _IMAGES else ""


def without_features(names: Sequence[object]) -> str:
    """What a file holds in place of features, by the names of all its arrays; else ""."""
    kinds = list(dict.fromkeys(map(kind_of_name, names)))
    return " and ".join(kinds) if all(kinds) else ""


def kind_of_shape(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """What an array is that cannot be [patches, dimensions] of features; "" if that is open.

    Args:
        shape: of the array.
        dtype: of its values.
    """
    sizes = tuple(shape)
    if len(sizes) == 2 and sizes[1] in (2, 4) and dtype.kind in "iu":
        return "coordinates of patches"
    if len(sizes) == 4 and (3 in (sizes[1], sizes[3]) or dtype == np.uint8):
        return "tile images"
    if len(sizes) == 1 and sizes[0] > 1:
        return "one vector for the whole slide (a slide-level embedding?)"
    return ""


def seem_transposed(shapes: Sequence[tuple[int, int]], expected_dim: int | None = None) -> bool:
    """Whether arrays [N, D] of slides seem to be [D, N].

    Then all have the same first size, that of an encoder's features, and the second is no such
    size.

    Args:
        shapes: of slides that have patches.
        expected_dim: D of the model, if known.
    """
    if len(shapes) < 2:
        return False
    first, second = ({shape[axis] for shape in shapes} for axis in (0, 1))
    if len(first) > 1:
        return False
    (dim,) = first
    if expected_dim is not None and second == {expected_dim}:
        return False
    return (dim == expected_dim or dim in _ENCODER_DIMS) and not second <= _ENCODER_DIMS


def transposed_text(shapes: Sequence[tuple[int, int]]) -> str:
    """The message about arrays that `seem_transposed`."""
    return (
        f"the arrays seem transposed: found [{shapes[0][0]}, {shapes[0][1]}] in the first of "
        f"{len(shapes)} slides, expected [patches, dimensions]; write them as [N, D]"
    )


def dim_advice(dim: int) -> str:
    """What to do about features of a size that the model of the config does not expect."""
    if dim in (2, 4):
        return "are these coordinates of patches? name the array of features by data.hdf5_dataset"
    return f"set --config.model.feature_dim={dim}"


def slide_level_text(num_patches: Sequence[int]) -> str:
    """The message about slides all of which have one patch; "" where they have more, or none is.

    Args:
        num_patches: of every slide.
    """
    if not num_patches or any(number != 1 for number in num_patches):
        return ""
    return (
        f"every slide has one patch ({len(num_patches)}): slide- or patient-level embeddings in "
        "place of patch features? Attention over one patch selects nothing; use the features of "
        "patches"
    )


def same_encoder(name: str) -> str:
    """What spellings of one encoder's name share: letters and digits, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


def several_encoders(names: Mapping[str, str]) -> str:
    """The message about slides whose files name several encoders; "" where they name one or none.

    Args:
        names: of encoders by slide, "" where its file names none.
    """
    counts = Counter(same_encoder(name) for name in names.values() if name)
    if len(counts) < 2:
        return ""
    return "features of several encoders: " + ", ".join(f"{n} in {c}" for n, c in counts.items())
