"""What the benchmarks run on: synthetic cohorts and models of the real sizes, and their work.

Lengths are named by what the command line takes: a number of patches ("4000"), or "tcga", patches
per slide as in TCGA: log-normal, median 6,000, sigma 0.8, clipped to 300 .. 60,000. A cohort has
three batches or more, and batches 64,000 patches or so where slides are long. All numbers are drawn
with numpy, so that ours and the PyTorch program get the same.
"""

import dataclasses
from typing import Any

import numpy as np

from steph_jax.models.hypernetworks import HIDDEN_DIM

TCGA = "tcga"
LENGTHS = ("76", "1000", "4000", "16000", TCGA)
MODES = ("train", "predict")
#: Weights of the merge and of the mix regularizer.
PENALTIES = (0.005, 0.05)
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Dimensions of the models and of a run.

    Attributes:
        feature_dim, embed_dim, attention_dim, num_bins: D, E, A and T.
        num_sources: S.
        top_k: sources kept.
        batch_size: slides a step.
        long_batch: patches a step at most, for slides of one length.
        epoch: patches of a cohort at least, within `least_steps` to 8 batches.
        least_steps: see `epoch`.
        tcga: factor to the lengths of "tcga".
        product: rows of the products that the ceiling is measured with.
    """

    feature_dim: int = 1536
    embed_dim: int = 512
    attention_dim: int = 384
    num_bins: int = 32
    num_sources: int = 12
    top_k: int = 5
    batch_size: int = 16
    long_batch: int = 64_000
    epoch: int = 96_000
    least_steps: int = 3
    tcga: float = 1.0
    product: int = 4096


def flops_per_patch(sizes: Sizes, mode: str) -> int:
    """Floating-point operations of the matrix products per patch; two a multiply-add.

    Projection and hypernetwork projection count once forward and once for the gradients of their
    weights (features have none), the two attention branches once forward and twice back.
    """
    projections = sizes.feature_dim * (sizes.embed_dim + HIDDEN_DIM)
    attention = 2 * sizes.embed_dim * sizes.attention_dim
    if mode == "predict":
        return 2 * (projections + attention)
    return 2 * (2 * projections + 3 * attention)


def batch_size(length: str, sizes: Sizes) -> int:
    """Slides a step."""
    if length == TCGA:
        return sizes.batch_size
    return min(sizes.batch_size, max(1, sizes.long_batch // int(length)))


def cohort(length: str, sizes: Sizes) -> np.ndarray:
    """[n] patches of the slides of a cohort, n a multiple of `batch_size`."""
    size = batch_size(length, sizes)
    if length == TCGA:
        lengths = 6000 * np.exp(
            0.8 * np.random.default_rng(0).standard_normal(sizes.least_steps * size)
        )
        scaled = sizes.tcga * np.clip(lengths, 300, 60_000)
        return np.maximum(1, scaled.astype(np.int64))
    steps = min(8, max(sizes.least_steps, sizes.epoch // (size * int(length))))
    return np.full(size * steps, int(length), np.int64)


def features(num_patches: np.ndarray, sizes: Sizes) -> list[np.ndarray]:
    """A float32 array [N, D] for each slide."""
    rng = np.random.default_rng(1)
    return [rng.random((n, sizes.feature_dim), np.float32) - np.float32(0.5) for n in num_patches]


def labels(num_slides: int, sizes: Sizes) -> dict[str, np.ndarray]:
    """time_bin, time (days) and event of every slide."""
    rng = np.random.default_rng(2)
    time_bin = rng.integers(0, sizes.num_bins, num_slides, np.int32)
    return {
        "time_bin": time_bin,
        "time": (365 * time_bin + 100).astype(np.float32),
        "event": rng.integers(0, 2, num_slides, np.int32),
    }


def _linear(rng: np.random.Generator, fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
    bound = fan_in**-0.5
    return {
        "kernel": rng.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32),
        "bias": rng.uniform(-bound, bound, fan_out).astype(np.float32),
    }


def _abmil(rng: np.random.Generator, sizes: Sizes) -> dict[str, Any]:
    d, e, a = sizes.feature_dim, sizes.embed_dim, sizes.attention_dim
    return {
        "feat_proj": {"layers_0": _linear(rng, d, e)},
        "attention_net": {
            "attention_a": _linear(rng, e, a),
            "attention_b": _linear(rng, e, a),
            "attention_c": _linear(rng, a, 1),
        },
        "pred_head": _linear(rng, e, sizes.num_bins),
    }


def models(sizes: Sizes) -> list[dict[str, Any]]:
    """ABMIL trees: the null model, the target, and the sources."""
    rng = np.random.default_rng(3)
    return [_abmil(rng, sizes) for _ in range(sizes.num_sources + 2)]


def trainable(sizes: Sizes) -> dict[str, Any]:
    """Hypernetworks whose weights are above 0, and a new head, as `methods.steph` names them."""
    rng = np.random.default_rng(4)

    def mlp() -> dict[str, Any]:
        return {
            "hidden": _linear(rng, HIDDEN_DIM, HIDDEN_DIM),
            "output": _linear(rng, HIDDEN_DIM, sizes.num_sources),
        }

    tree = {
        "embedding": _linear(rng, sizes.feature_dim, HIDDEN_DIM),
        "weights": mlp(),
        "mixing": mlp(),
        "pred_head": _linear(rng, sizes.embed_dim, sizes.num_bins),
    }
    tree["weights"]["output"]["bias"] += np.float32(0.3)
    return tree
