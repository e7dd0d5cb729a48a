"""Mean and standard deviation of a patient's features, and linear models of them, as `BagModel`s.

Both go through `engine.step.forward` as all models do: patches are embedded as their deviation from
a center and its square, whose means over the bag are all that is needed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.engine.bag_model import BagMeans, HeadOutputs, MergedModels, PooledBags
from steph_jax.methods.abmil import unpenalized
from steph_jax.methods.base import LoadedModel
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.layers import matmul

#: A variance below this share of the mean square is rounding of float32.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class MomentsModel:
    """Mean and standard deviation of the features of a bag; outputs [B, 2D].

    Its trainable tree holds "center" [D], near the mean of the features: variances are means of
    squares, which lose their digits far from 0.

    Attributes:
        architecture: of which D alone is used.
        compute_dtype: not used: there is no product over patches.
    """

    architecture: Architecture
    compute_dtype: Any = None

    @property
    def has_encoder(self) -> bool:
        return False

    @property
    def encoder_per_bag(self) -> bool:
        return False

    @property
    def embed_parts(self) -> tuple[str, ...]:
        return ("center",)

    @property
    def embed_dims(self) -> dict[str, int]:
        return dict.fromkeys(("deviation", "square"), self.architecture.feature_dim)

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        center = jnp.asarray(trainable["center"])
        x = features.astype(center.dtype)
        deviation = x - jnp.broadcast_to(center, x.shape)
        return {"deviation": deviation, "square": deviation**2}

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        deviation = bags.means["deviation"]
        square = bags.means["square"]
        variance = square - deviation**2
        # What is left of equal patches is rounding, which must not become a feature.
        variance = jnp.where(variance > _ROUNDING * square, variance, jnp.zeros_like(variance))
        mean = deviation + jnp.broadcast_to(jnp.asarray(trainable["center"]), deviation.shape)
        moments = jnp.concatenate([mean, jnp.sqrt(variance)], axis=1)
        return MergedModels({}, {"moments": moments}, jnp.zeros(bags.num_bags, mean.dtype), {})

    def encoder(self, frozen: Params, merged: Params) -> Params:
        raise AssertionError("a model of moments has no encoder")

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        return unpenalized(bags.merged["moments"])


@dataclasses.dataclass(frozen=True)
class LinearModel(MomentsModel):
    """A linear model of the moments; outputs [B, 1], the log risk.

    Its trainable tree also holds "coefficients" [2D] of the standardized moments, its frozen tree
    "mean" and "scale" [2D] of the training patients.
    """

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        moments = bags.merged["moments"]
        mean, scale = (jnp.broadcast_to(frozen[name], moments.shape) for name in ("mean", "scale"))
        standardized = (moments - mean) / scale
        return unpenalized(matmul(standardized, trainable["coefficients"][:, None]))


def linear_architecture(architecture: Architecture) -> Architecture:
    """What a stored linear model says of its dimensions: D, and one output."""
    return Architecture(architecture.feature_dim, 1, 0, num_bins=1, pooling="mean")


def empty_params(feature_dim: int) -> Params:
    """Parameters of a `LinearModel` that gives all patients the same risk."""
    trainable = {"center": np.zeros(feature_dim), "coefficients": np.zeros(2 * feature_dim)}
    frozen = {"mean": np.zeros(2 * feature_dim), "scale": np.ones(2 * feature_dim)}
    return {
        branch: {name: leaf.astype(np.float32) for name, leaf in tree.items()}
        for branch, tree in (("trainable", trainable), ("frozen", frozen))
    }


def restore(model: SavedModel, compute_dtype: Any) -> LoadedModel:
    """The linear model that was stored.

    Raises:
        ValueError: other parameters than those of its architecture.
    """
    expected = empty_params(model.architecture.feature_dim)
    for branch, tree in expected.items():
        for name, leaf in tree.items():
            shape = np.shape(model.params.get(branch, {}).get(name, ()))
            if shape != leaf.shape:
                raise ValueError(
                    f"a model of kind {model.kind!r}: expected {branch}.{name} of shape "
                    f"{leaf.shape}, found {shape or 'none'}; make the model again"
                )
    bag_model = LinearModel(model.architecture, compute_dtype)
    return LoadedModel(bag_model, model.params["trainable"], model.params["frozen"])
