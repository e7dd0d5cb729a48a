"""What a run asks of a method, with options for every method, for tests of how folds start."""

import dataclasses
from typing import Any

from steph_jax.methods.base import FoldSpec
from steph_jax.methods.sources import Merging, Regularizers
from steph_jax.methods.transfer import Transfer
from steph_jax.models.roupkt import Options as RoupktOptions
from steph_jax.models.steph import Options as StephOptions


@dataclasses.dataclass(frozen=True)
class EveryOption:
    """The sections of all methods."""

    steph: StephOptions = dataclasses.field(default_factory=StephOptions)
    merging: Merging = dataclasses.field(default_factory=Merging)
    loss: Regularizers = dataclasses.field(default_factory=Regularizers)
    roupkt: RoupktOptions = dataclasses.field(default_factory=RoupktOptions)
    transfer: Transfer = dataclasses.field(default_factory=Transfer)


def with_options(spec: FoldSpec[Any], **sections: Any) -> FoldSpec[Any]:
    """The same with other sections."""
    return dataclasses.replace(spec, options=dataclasses.replace(spec.options, **sections))
