"""The history of a training: a row of history.csv and a line of the log per epoch."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steph_jax.engine.placement import fetch
from steph_jax.evaluation import predictions
from steph_jax.evaluation.evaluator import Evaluator, score_outputs
from steph_jax.training.epoch import Epoch

if TYPE_CHECKING:  # as in `evaluation.predictions`
    import pandas as pd

#: Sum of the weights of all sources below which the sources hardly change the model; trainings
#: that did not collapse had 0.04 and more in their first epoch on real patients.
STARVED_WEIGHT = 0.01


def epoch_row(passed: Epoch, evaluate: Evaluator, sources: Sequence[str]) -> dict[str, float]:
    """Loss, C-index, speed and mean weights of the training passes of an epoch.

    Args:
        passed: the epoch.
        evaluate: of the model, for its patients.
        sources: names of the sources, for a model that reports weights.
    """
    table, labels = evaluate.table, evaluate.labels
    rows, outputs, aux = predictions.collect(passed.batches, passed.outputs, len(table.patients))
    part = score_outputs(rows, outputs, aux, labels, table, evaluate.objective)
    row = {f"train_{name}": value for name, value in part.scores.items()}
    row["train_loss"] = float(np.mean(fetch([o.loss for o in passed.outputs])))
    patches = int(evaluate.predict.loader.bags.num_patches[rows].sum())
    row |= {
        "seconds": passed.seconds,
        "slides_per_second": len(rows) / passed.seconds,
        "patches_per_second": patches / passed.seconds,
        "waiting_share": passed.seconds_waiting / passed.seconds,
    }
    for name in ("weight", "selected", "target", "source"):
        if name in aux:
            means = np.asarray(aux[name], np.float64).mean(axis=0)
            row |= {f"{name}_{s}": float(m) for s, m in zip(sources, means, strict=True)}
    return row


def has_collapsed(history: list[dict[str, float]]) -> bool:
    """Whether all weights were 0 in the last epoch, or next to 0 in the last three."""
    totals = [total_weight(row) for row in history]
    starved = len(totals) >= 3 and max(totals[-3:]) < STARVED_WEIGHT
    return starved or totals[-1] == 0


def total_weight(row: dict[str, float]) -> float:
    """Weights of all sources together in an epoch, mean over slides; infinite for other methods."""
    weights = [value for name, value in row.items() if name.startswith("weight_")]
    return sum(weights) if weights else math.inf


def epoch_line(row: dict[str, float]) -> str:
    """An epoch in one line of a log."""
    text = f"loss {row['train_loss']:.4f}, train C {row['train_c_index']:.4f}"
    if "test_c_index" in row:
        text += f", test C {row['test_c_index']:.4f}"
    if total_weight(row) < STARVED_WEIGHT:
        text += f" (weights of all sources together: {total_weight(row):.1g})"
    return (
        f"{text}, {row['slides_per_second']:.1f} slides/s, {row['patches_per_second']:.0f} "
        f"patches/s, {100 * row['waiting_share']:.0f}% waiting for data"
    )


def training_numbers(history: list[dict[str, float]], other_seconds: float) -> dict[str, Any]:
    """Entries of metrics.json: epochs, seconds and speed of a fold's training.

    Args:
        history: of the last start.
        other_seconds: duration of the epochs of starts before it, whose weights collapsed, or of
            a fit without epochs.
    """
    import pandas as pd

    return {
        "epochs": len(history),
        "train_seconds": other_seconds + sum(row["seconds"] for row in history),
        "train_slides_per_second": median_speed(pd.DataFrame(history)) if history else None,
    }


def history_table(history: list[dict[str, float]]) -> "pd.DataFrame":
    """A row per epoch; the columns alone where nothing was trained."""
    import pandas as pd

    return pd.DataFrame(history, columns=None if history else ["epoch", "learning_rate"])


def median_speed(history: "pd.DataFrame") -> float:
    """Slides per second of the median epoch, without the first, which compiles, if it can be."""
    speeds = history["slides_per_second"].iloc[1 if len(history) > 1 else 0 :]
    return float(speeds.median())
