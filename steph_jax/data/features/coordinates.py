"""Where the patches of a slide lie: corners and size, whatever the format of their file.

Files hold them beside the features, as an array [N, 2] or [1, N, 2] of x and y under one of
`lookalikes.COORDINATE_NAMES`. The size of a patch is what the programs that cut slides note
beside it:

    TRIDENT   patch_size_level0                            pixels of level 0
    CLAM      patch_size, downsample                       pixels of a level, and its scale
    STAMP     tile_size_um or tile_size, with unit = um    micrometers, as its coordinates are

or else the spacing of the patches. `from_values` is the only place that decides this.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steph_jax.data.features import lookalikes
from steph_jax.data.features.slide import BadFeatures

PIXELS, MICROMETERS = "px", "um"
#: Numbers beside coordinates that are read, and the one text.
SIZE_NAMES = ("patch_size_level0", "patch_size", "downsample", "tile_size_um", "tile_size")
UNIT_NAME = "unit"
#: How to make coordinates, for messages.
ADVICE = (
    "TRIDENT and CLAM write `coords` beside `features` in HDF5, and into files of patches, whose "
    "folder --coords names; a store that was packed without them is to be packed again"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """The patches of one slide, in the order of their features.

    Attributes:
        xy: [N, 2] float64, the left and upper edge of every patch.
        patch_size: side of a patch in the same unit; None where the file does not say.
        unit: `PIXELS` of level 0, or `MICROMETERS`.
    """

    xy: np.ndarray
    patch_size: float | None
    unit: str = PIXELS

    @property
    def size(self) -> float:
        """Side of a patch: as the file says, or the usual distance of a patch to the next one.

        Raises:
            ValueError: neither is known, for all patches lie at one place.
        """
        return spacing(self.xy) if self.patch_size is None else self.patch_size

    def in_pixels(self, micrometers_per_pixel: float) -> "Coordinates":
        """The same in pixels of level 0."""
        if self.unit == PIXELS:
            return self
        size = None if self.patch_size is None else self.patch_size / micrometers_per_pixel
        return Coordinates(self.xy / micrometers_per_pixel, size)


def spacing(xy: np.ndarray) -> float:
    """The median over patches of the distance (in x or y, the larger) to the nearest other one.

    Args:
        xy: [N, 2]; patches at one place count once.

    Raises:
        ValueError: all patches lie at one place.
    """
    places = np.unique(xy, axis=0)
    if len(places) < 2:
        raise ValueError("a single patch has no neighbor to find the size of patches by")
    from scipy.spatial import KDTree  # here: it takes half a second that no start should

    distances, _ = KDTree(places).query(places, k=2, p=np.inf)
    return float(np.median(distances[:, 1]))


def from_values(array: np.ndarray, notes: Mapping[str, Any], where: str) -> Coordinates:
    """Coordinates from what a file holds.

    Args:
        array: [N, 2] or [1, N, 2], numbers.
        notes: what stands beside it under `SIZE_NAMES` (numbers, or arrays of them) and
            `UNIT_NAME` (text); others are passed over.
        where: the file, for messages.

    Raises:
        BadFeatures: another shape or type; see also `expect_finite`.
    """
    check_shape(array.shape, array.dtype, where)
    xy = array.reshape(-1, 2).astype(np.float64)
    expect_finite(xy, where)
    sizes = {name: _number(notes[name]) for name in SIZE_NAMES if name in notes}
    unit = notes.get(UNIT_NAME)
    if isinstance(unit, str) and unit.strip().lower() in ("um", "µm", "μm", "micrometer"):
        size = sizes.get("tile_size_um") or sizes.get("tile_size")
        return Coordinates(xy, size, MICROMETERS)
    size = sizes.get("patch_size_level0")
    at_level, downsample = sizes.get("patch_size"), sizes.get("downsample")
    if size is None and at_level is not None and downsample is not None:
        size = at_level * downsample
    return Coordinates(xy, size)


def from_object(value: object, where: str) -> Coordinates | None:
    """Coordinates of what a pickle held: a dict with them and the features; None without.

    Raises:
        BadFeatures: as `from_values`.
    """
    if not isinstance(value, Mapping):
        return None
    arrays = (value.get(name) for name in lookalikes.COORDINATE_NAMES)
    array = next((array for array in arrays if isinstance(array, np.ndarray)), None)
    return None if array is None else from_values(array, notes_of(value), where)


def notes_of(values: Mapping[Any, Any]) -> dict[str, Any]:
    """What of a dict `from_values` reads."""
    names = (*SIZE_NAMES, UNIT_NAME)
    return {name: values[name] for name in names if name in values}


def check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuses what is no array [N, 2] or [1, N, 2] of numbers.

    Raises:
        BadFeatures: says what was expected.
    """
    flat = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    is_pair = len(flat) == 2 and flat[1] == 2
    if dtype.kind not in "iuf" or not (is_pair or math.prod(shape) == 0):
        raise BadFeatures(
            f"{where}: expected coordinates [patches, 2] in numbers, found {list(shape)} {dtype}; "
            "write x and y of the left upper corner of every patch"
        )


def expect_finite(xy: np.ndarray, where: str) -> None:
    """Refuses coordinates that no slide has.

    Raises:
        BadFeatures: NaN, infinity, or 2^53 and more, from where not every integer is a float64.
    """
    if not (np.abs(xy) < 2.0**53).all():
        raise BadFeatures(
            f"{where}: NaN, infinity or numbers beyond 2^53 in the coordinates; extract the slide "
            "again"
        )


def _number(value: Any) -> float | None:
    """A positive number, the first of an array; None for anything else."""
    if not isinstance(value, int | float | np.number | np.ndarray):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not array.size:
        return None
    number = float(array.reshape(-1)[0])
    return number if math.isfinite(number) and number > 0 else None
