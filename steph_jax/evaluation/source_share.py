"""How much of a merged model comes from other cancers."""

import pandas as pd

#: Shares below this count as none.
NEGLIGIBLE = 0.05


def source_share(weights: pd.DataFrame, *, onto_target: bool) -> float | None:
    """Share of the sources in the coefficients of the merged model, over all patients.

        sum |c_s| / (sum |c_t| + sum |c_s|)

    with c_t the coefficient of the target's own task vector and c_s those of the sources (equation
    13 of docs/method.md).

    Args:
        weights: of `predictions.merge_weights_table`.
        onto_target: whether the sum is added to the target's model rather than to the null model,
            so that its task vector has a coefficient of 1 besides.

    Returns:
        the share in [0, 1]; None where all coefficients are 0.
    """
    sources = float(weights["source_coefficient"].abs().sum())
    target_sums = weights.groupby("patient_id")["target"].sum()
    target = float((target_sums + (1.0 if onto_target else 0.0)).abs().sum())
    return sources / (target + sources) if target + sources > 0 else None


def in_words(share: float | None) -> str:
    """The share as a sentence of logs, pages and tables."""
    if share is None:
        return "no other cancer is used: all coefficients are 0"
    if share < NEGLIGIBLE:
        return f"no other cancer is used: their share in the merged model is {100 * share:.1f} %"
    return f"other cancers have a share of {100 * share:.0f} % in the merged model"
