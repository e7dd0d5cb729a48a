"""Every picture: tables in, PNG files out. The only home of matplotlib.

Each picture is a pair: `NAME_figure(...)` builds a matplotlib figure, `NAME(..., path, ...)` writes
it to a PNG (whole or not at all) and returns the path. No display, no pyplot and none of the user's
matplotlib settings are involved.

Colors are distinct for color-blind readers (Okabe and Ito; cividis; red to blue), times are in
years of 365 days, and a higher risk means a shorter life.
"""

from steph_jax.plots.calibration import calibration, calibration_figure
from steph_jax.plots.comparison import folds, folds_figure, intervals, intervals_figure
from steph_jax.plots.forest import forest, forest_figure
from steph_jax.plots.heatmaps import Heatmap, matrices, matrices_figure, matrix, matrix_figure
from steph_jax.plots.learning import (
    source_weights,
    source_weights_figure,
    training_curves,
    training_curves_figure,
)
from steph_jax.plots.learning_curve import learning_curve, learning_curve_figure
from steph_jax.plots.patch_maps import (
    Background,
    Panel,
    patch_maps,
    patch_maps_figure,
    patch_pictures,
    patch_pictures_figure,
)
from steph_jax.plots.patients import (
    risk_groups,
    risk_groups_figure,
    survival_curves,
    survival_curves_figure,
)
from steph_jax.plots.speed import speed, speed_figure
from steph_jax.plots.truth import simulated_truth, simulated_truth_figure

__all__ = [
    "Background",
    "Heatmap",
    "Panel",
    "calibration",
    "calibration_figure",
    "folds",
    "folds_figure",
    "forest",
    "forest_figure",
    "intervals",
    "intervals_figure",
    "learning_curve",
    "learning_curve_figure",
    "matrices",
    "matrices_figure",
    "matrix",
    "matrix_figure",
    "patch_maps",
    "patch_maps_figure",
    "patch_pictures",
    "patch_pictures_figure",
    "risk_groups",
    "risk_groups_figure",
    "simulated_truth",
    "simulated_truth_figure",
    "source_weights",
    "source_weights_figure",
    "speed",
    "speed_figure",
    "survival_curves",
    "survival_curves_figure",
    "training_curves",
    "training_curves_figure",
]
