"""From what a model computes of every patch to attention, percentiles and contributions.

Equations 49 to 51 of docs/method.md.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.heatmaps.patches import PatchOutputs
from steph_jax.survival.objectives import Output


@dataclasses.dataclass(frozen=True, eq=False)
class PatchMap:
    """A model on the N patches of a patient.

    Attributes:
        attention: [N] alpha_n, which add up to 1 over all slides of the patient.
        patch_risk: [N] r_n, the risk that each patch stands for; their mean, weighted by attention,
            is `risk`. None where the model's outputs mean something else than the run's.
        risk: of the patient, higher = worse; None likewise.
    """

    attention: np.ndarray
    patch_risk: np.ndarray | None
    risk: float | None

    @property
    def percentile(self) -> np.ndarray:
        """[N] share of the patient's patches with less attention than this one, in percent."""
        return percentiles(self.attention)

    def contribution(self, reference: float) -> np.ndarray | None:
        """[N] c_n = alpha_n (r_n - reference); they add up to the risk less the reference."""
        if self.patch_risk is None:
            return None
        return self.attention * (self.patch_risk - reference)


def patch_map(outputs: PatchOutputs, output: Output | None) -> PatchMap:
    """Attention and risks of patches, in float64.

    Args:
        outputs: of a model.
        output: what its outputs mean; None for attention alone.
    """
    attention = softmax(outputs.scores)
    if output is None:
        return PatchMap(attention, None, None)
    logits = np.asarray(outputs.logits, np.float64)
    pooled = attention @ logits
    risk, slope = risk_and_slope(pooled, output)
    return PatchMap(attention, risk + (logits - pooled) @ slope, risk)


def softmax(scores: np.ndarray) -> np.ndarray:
    """alpha_n = exp(a_n) / sum_m exp(a_m) of scores [N], in float64."""
    scores = np.asarray(scores, np.float64)
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def risk_and_slope(logits: np.ndarray, output: Output) -> tuple[float, np.ndarray]:
    """The risk of the outputs [T] of a patient, and its derivative [T] by them."""
    risk, slope = jax.value_and_grad(lambda x: output.risk(x[None])[0])(
        jnp.asarray(logits, jnp.float32)
    )
    return float(risk), np.asarray(slope, np.float64)


def percentiles(values: np.ndarray) -> np.ndarray:
    """[N] in percent: how many of the values are smaller, with half of those that are equal."""
    from scipy.stats import rankdata  # here: it takes a second, and every report imports this

    return np.asarray((rankdata(values) - 0.5) * (100 / len(values)))
