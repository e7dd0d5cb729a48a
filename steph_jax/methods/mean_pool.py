"""`mean_pool`: the base model with the mean in the place of attention.

    z = mean_n h_n

Its learning rate is chosen on inner folds of the training patients: with the mean in the place of
attention a larger one is needed. It starts from theta_0, as the target's own model does.
"""

import dataclasses
import math
from typing import Any

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil
from steph_jax.methods.base import FoldSpec


@dataclasses.dataclass(frozen=True)
class MeanPool:
    """The section `mean_pool` of a config.

    Attributes:
        learning_rates: to choose from on inner folds; () for that of the run.
    """

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)

    def __post_init__(self) -> None:
        rates = self.learning_rates
        if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError(
                f"mean_pool.learning_rates are different numbers above 0; found {list(rates)}"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `mean_pool` (see `Method.options_type`)."""

    mean_pool: MeanPool = dataclasses.field(default_factory=MeanPool)


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """theta_0 without its attention."""
    null = abmil.null_model(pool, spec.architecture, spec.seed)
    architecture = dataclasses.replace(null.architecture, pooling="mean")
    params = {name: tree for name, tree in null.params.items() if name != "attention_net"}
    null = dataclasses.replace(null, architecture=architecture, params=params)
    return abmil.with_outputs(null, spec)


def learning_rates(options: Options) -> dict[str, list[Any]]:
    """What inner folds choose from (`Method.grid`)."""
    rates = list(options.mean_pool.learning_rates)
    return {"learning_rate": rates} if rates else {}


METHOD = dataclasses.replace(
    abmil.METHOD,
    name="mean_pool",
    start=start,
    options_type=Options,
    grid=learning_rates,
)
