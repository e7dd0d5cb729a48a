"""From a model to predictions, numbers and tables of some patients."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from steph_jax.data.batches import Batch
from steph_jax.engine.bag_model import BagModel
from steph_jax.engine.loader import MAX_BATCH_BYTES, DeviceLoader
from steph_jax.engine.placement import fetch
from steph_jax.engine.step import Outputs, evaluate
from steph_jax.models.abmil import Params
from steph_jax.survival import cox, metrics
from steph_jax.survival.objectives import LOG_RISK, Labels, Objective, Output
from steph_jax.survival.time_bins import TimeBins

if TYPE_CHECKING:  # imported by what makes tables, so that training starts without it
    import pandas as pd


class Predictions(NamedTuple):
    """The outputs of a model for n patients.

    Attributes:
        patients: ids.
        outputs: [n, T] of the model (logits).
        risk: [n], higher = worse.
        survival: [n, T] survival curve, or None where the loss gives none.
        aux: arrays [n, ...] that the method reports ("weight", "lambda", "selected", ...).
    """

    patients: list[str]
    outputs: np.ndarray
    risk: np.ndarray
    survival: np.ndarray | None
    aux: dict[str, np.ndarray]


def collect(batches: Sequence[Batch], outputs: Sequence[Outputs], num_bags: int) -> Any:
    """(numbers [m], outputs [m, T], aux) of the bags of some batches, by increasing number."""
    fetched = [fetch((o.logits, o.aux)) for o in outputs]
    index = np.concatenate([np.asarray(b.bags.index) for b in batches])
    trees = jax.tree.map(lambda *rows: np.concatenate(rows), *fetched)
    filled = index >= 0
    place = np.full(num_bags, -1)
    place[index[filled]] = np.flatnonzero(filled)
    bags = np.flatnonzero(place >= 0)
    logits, aux = jax.tree.map(lambda rows: rows[place[bags]], trees)
    return bags, logits, aux


#: (batches, their number) -> the same batches.
Progress = Callable[[Iterator[Batch], int], Iterator[Batch]]


def no_progress(batches: Iterator[Batch], total: int) -> Iterator[Batch]:
    """The batches as they are."""
    return batches


def run(
    model: BagModel,
    trainable: Params,
    frozen: Params,
    loader: DeviceLoader,
    indices: Sequence[int],
    labels: dict[str, np.ndarray],
    progress: Progress = no_progress,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs [n, T] and aux of some bags, in the order given; dropout off.

    Args:
        model: what is computed.
        trainable, frozen: its parameters.
        loader: of the cohort.
        indices: numbers of the bags.
        labels: arrays [all bags, ...] that the method's head reads.
        progress: wraps the iteration over (batches, their number).
    """
    order = loader.partition(indices)
    batches, outputs = [], []
    for batch in progress(iter(loader.batches(order, labels, MAX_BATCH_BYTES)), len(order)):
        outputs.append(evaluate(model, loader.mesh, trainable, frozen, batch))
        batches.append(batch._replace(groups=()))
    bags, logits, aux = collect(batches, outputs, loader.num_bags)
    place = np.searchsorted(bags, indices)
    return logits[place], {name: rows[place] for name, rows in aux.items()}


def predictions_of(
    patients: Sequence[str],
    outputs: np.ndarray,
    aux: dict[str, np.ndarray],
    objective: Objective,
) -> Predictions:
    """Risk and survival curves from a model's outputs [n, T]."""
    risk, survival = jax.device_get(_risk_and_survival(objective.output, outputs))
    return Predictions(list(patients), outputs, risk, survival, aux)


# Both are compiled as one program each: operation by operation they would take dozens.
@partial(jax.jit, static_argnums=0)
def _risk_and_survival(output: Output, outputs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    return output.risk(outputs), None if output.survival is None else output.survival(outputs)


@partial(jax.jit, static_argnums=0)
def _loss(objective: Objective, outputs: jax.Array, labels: Labels) -> jax.Array:
    return objective(outputs, labels)


def with_curves(predicted: Predictions, settings: dict[str, Any]) -> Predictions:
    """The predictions of a stored model with the survival curves of its baseline, if it has one.

    A curve is given at the end of every time bin, as those of other losses are.
    """
    if "baseline" not in settings:
        return predicted
    ends = TimeBins.from_json(settings["bins"]).edges[1:]
    baseline = metrics.Baseline.from_json(settings["baseline"])
    return predicted._replace(survival=baseline.survival(predicted.risk, ends))


def c_index_and_nll(
    predicted: Predictions,
    time: np.ndarray,
    event: np.ndarray,
    labels: Labels,
    objective: Objective,
) -> dict[str, float]:
    """{"c_index", "nll"}: Harrell's C on days, and the loss without regularizers.

    The C-index is NaN where no two patients can be compared. The key "nll" names the loss whatever
    its terms, so that tables of several losses line up. The partial likelihood of a Cox model grows
    with the logarithm of the risk sets, so its loss is given per event and less that of equal
    risks: 0 for a model that knows nothing, negative for a better one, on any number of patients.
    """
    if objective.output is LOG_RISK:
        nll = -cox.gain_per_event(time, event, predicted.risk)
    else:
        nll = float(_loss(objective, predicted.outputs, labels))
    return {"c_index": metrics.concordance_index(time, event, predicted.risk), "nll": nll}


def predictions_table(
    predicted: Predictions, time: np.ndarray | None = None, event: np.ndarray | None = None
) -> "pd.DataFrame":
    """Columns patient_id, t and e (where known), risk (higher = worse), surv_1 .. surv_T."""
    import pandas as pd

    columns: dict[str, Any] = {"patient_id": predicted.patients}
    if time is not None and event is not None:
        columns |= {"t": time, "e": np.asarray(event, int)}
    columns["risk"] = predicted.risk
    if predicted.survival is not None:
        curve = predicted.survival
        columns |= {f"surv_{t + 1}": curve[:, t] for t in range(curve.shape[1])}
    return pd.DataFrame(columns)


def merge_weights_table(
    predicted: Predictions, sources: Sequence[str], dataset: str
) -> "pd.DataFrame":
    """What every source adds to the merged model of every patient.

    Args:
        predicted: by a method that reports weights.
        sources: names, in the order of the weights.
        dataset: the target, whose own model may be among the sources.

    Returns:
        a row per patient and source: weight (w as it is), lambda and selected (0/1) where the
        method has them; target, what the source adds to the coefficient of the target's own task
        vector, and source_coefficient, that of the source's own (0 and 1 times the weight for
        methods that do not mix; equation 13 of docs/method.md).
    """
    import pandas as pd

    aux = predicted.aux
    n, s = aux["weight"].shape
    table = {
        "patient_id": np.repeat(predicted.patients, s),
        "source": np.tile(np.asarray(sources), n),
        "weight": aux["weight"].ravel(),
    }
    if "lambda" in aux:
        table["lambda"] = aux["lambda"].ravel()
    if "selected" in aux:
        table["selected"] = aux["selected"].ravel().astype(int)
    own = np.tile(np.asarray(sources) == dataset, n)
    added = aux["source"].ravel()
    target = aux["target"].ravel() if "target" in aux else np.zeros_like(added)
    table["target"] = np.where(own, target + added, target)
    table["source_coefficient"] = np.where(own, 0.0, added)
    return pd.DataFrame(table)
