"""Maps of patches: every patch where it lies, in the color of its value."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from steph_jax.plots.patch_maps import (
    Background,
    Panel,
    painted,
    patch_maps_figure,
    patch_pictures_figure,
    symmetric,
)


def test_each_dot_shows_the_patch_that_lies_there():
    xy = np.array([[0.0, 0.0], [20.0, 0.0], [10.0, 10.0]])
    shown = painted(xy, 10.0, (0.0, 0.0, 30.0, 20.0), dots=30)
    assert shown.shape == (20, 30)
    for number, (x, y) in enumerate(xy.astype(int)):
        assert (shown[y : y + 10, x : x + 10] == number).all()
    assert (shown >= 0).sum() == 300
    smaller = painted(xy, 10.0, (0.0, 0.0, 30.0, 20.0), dots=3)
    np.testing.assert_array_equal(smaller, [[0, -1, 1], [-1, 2, -1]])


def test_patches_far_apart_are_seen():
    """A patch that is smaller than a dot still takes one."""
    xy = np.array([[0.0, 0.0], [1e7, 1e7], [5e6, 0.0]])
    shown = painted(xy, 1.0, (0.0, 0.0, 1e7 + 1, 1e7 + 1), dots=50)
    assert set(np.unique(shown)) == {-1, 0, 1, 2}


def test_limits_are_symmetric_and_leave_out_the_extreme():
    values = np.concatenate([np.linspace(-1, 2, 1000), [900.0]])
    low, high = symmetric(values)
    assert low == -high
    assert 1.9 < high < 2.1
    assert symmetric(np.zeros(3)) == (-1.0, 1.0)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_maps_have_titles_scales_and_colors():
    xy = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 512.0
    values = np.linspace(-1, 1, len(xy))
    rows = [
        [Panel(values, "one", "unit", (-0.5, 0.5), True), Panel(values, "two", "u", (-1, 1))],
        [Panel(-values, "three", "v", (-1, 1), True)],
    ]
    figure = patch_maps_figure(xy, 512.0, rows, "Title")
    maps = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in maps] == ["one", "two", "three"]
    labels = {axes.get_ylabel() for axes in figure.axes}
    assert {"unit", "u", "v"} <= labels
    image = maps[0].images[0]
    np.testing.assert_allclose(image.get_array()[0, 0], values[0])
    np.testing.assert_allclose(image.get_array()[-1, -1], values[-1])
    assert tuple(image.get_extent()) == (0, 2048, 1536, 0)  # y grows downwards
    assert pixels(figure).std() > 10
    with pytest.raises(ValueError, match="expected a patch or more"):
        patch_maps_figure(xy[:0], 512.0, rows, "Title")


def test_slide_lies_beneath_its_maps():
    xy = np.array([[0.0, 0.0]])
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = (255, 0, 0)
    panel = Panel(np.ones(1), "one", "unit", (0, 1))
    background = Background(image, (400, 200))
    figure = patch_maps_figure(xy, 100.0, [[panel]], "Title", background)
    below, above = figure.axes[0].images
    assert tuple(below.get_extent()) == tuple(above.get_extent()) == (0, 400, 200, 0)
    shown = pixels(figure)[..., :3].reshape(-1, 3)
    assert (shown == (255, 0, 0)).all(axis=1).sum() > 1000


def test_patches_as_pictures():
    picture = np.full((8, 8, 3), 90, np.uint8)
    rows = [("highest", [(picture, "patch 1"), (picture, "patch 2")]), ("lowest", [(picture, "p")])]
    figure = patch_pictures_figure(rows, "Title")
    shown = [axes.get_xlabel() for part in figure.subfigs for axes in part.axes if axes.images]
    assert shown == ["patch 1", "patch 2", "p"]
