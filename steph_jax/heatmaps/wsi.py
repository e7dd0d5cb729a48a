"""Slides as pictures: a thumbnail, and single patches.

The only home of the optional package openslide (`pip install 'steph_jax[wsi]'`).
"""

import pathlib
from typing import Any, Self

import numpy as np

#: Pixels that may be read for a thumbnail.
_MOST_PIXELS = 2**28
_FIRST_MPP, _SECOND_MPP = "openslide.mpp-x", "openslide.mpp-y"


class Slide:
    """An open slide; closed at the end of a `with`.

    Attributes:
        path: its file.
        size: width and height in pixels of level 0.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens a slide.

        Raises:
            FileNotFoundError: no such file.
            ValueError: openslide is not installed, or cannot read it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a slide")
        try:
            import openslide
        except (ImportError, OSError) as error:
            raise ValueError(
                f"{path}: reading a slide needs the packages openslide-python and openslide-bin; "
                "install them by `pip install 'steph_jax[wsi]'`"
            ) from error
        self.path = path
        self._errors = (openslide.OpenSlideError, OSError)
        try:
            self._slide: Any = openslide.OpenSlide(str(path))
        except self._errors as error:
            raise self._unreadable(error) from None
        self.size: tuple[int, int] = self._slide.dimensions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._slide.close()

    @property
    def micrometers_per_pixel(self) -> float | None:
        """Of level 0, the mean of both directions; None where the slide does not say."""
        try:
            both = [float(self._slide.properties[name]) for name in (_FIRST_MPP, _SECOND_MPP)]
        except (KeyError, ValueError):
            return None
        return sum(both) / 2 if min(both) > 0 else None

    def thumbnail(self, longest: int) -> np.ndarray:
        """The whole slide, [H, W, 3] uint8, at most `longest` pixels to a side.

        Raises:
            ValueError: it cannot be read, or has no small level to make it from.
        """
        level = self._slide.get_best_level_for_downsample(max(self.size) / longest)
        width, height = self._slide.level_dimensions[level]
        if width * height > _MOST_PIXELS:
            raise ValueError(
                f"{self.path}: its smallest level of use has {width} x {height} pixels, too many "
                "for a thumbnail; convert it to a pyramid (`vips tiffsave --pyramid --tile`)"
            )
        try:
            return np.asarray(self._slide.get_thumbnail((longest, longest)).convert("RGB"))
        except self._errors as error:
            raise self._unreadable(error) from None

    def patch(self, x: float, y: float, size: float, pixels: int) -> np.ndarray:
        """A square of the slide as [pixels, pixels, 3] uint8, white outside of it.

        Args:
            x, y: its left upper corner, in pixels of level 0.
            size: its side, likewise.
            pixels: side of the result.

        Raises:
            ValueError: it cannot be read.
        """
        level = self._slide.get_best_level_for_downsample(max(1.0, size / pixels))
        side = max(1, round(size / self._slide.level_downsamples[level]))
        try:
            region = self._slide.read_region((round(x), round(y)), level, (side, side))
        except self._errors as error:
            raise self._unreadable(error) from None
        rgba = np.asarray(region.resize((pixels, pixels)), np.float64)
        alpha = rgba[..., 3:] / 255
        return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)

    def expect_patches(self, xy: np.ndarray, size: float) -> None:
        """Checks that patches lie on the slide.

        Args:
            xy: [N, 2] left upper corners in pixels of level 0.
            size: side of a patch.

        Raises:
            ValueError: some lie beside it, as those of another slide do.
        """
        centers = xy + size / 2
        outside = ((centers < 0) | (centers > np.array(self.size))).any(axis=1)
        if outside.any():
            far = xy.max(axis=0)
            raise ValueError(
                f"{self.path}: {int(outside.sum())} of {len(xy)} patches lie outside of this slide "
                f"of {self.size[0]} x {self.size[1]} pixels, up to {far[0]:.0f}, {far[1]:.0f}; is "
                "it another slide?"
            )

    def _unreadable(self, error: BaseException) -> ValueError:
        return ValueError(f"{self.path}: expected a slide that openslide reads; {error}")
