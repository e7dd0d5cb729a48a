"""The state of training after each epoch, so that an interrupted run goes on."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from steph_jax.checkpoints.saved_model import SavedModel


def fingerprint(model: SavedModel, data: Mapping[str, np.ndarray] | None = None) -> str:
    """A digest of what training starts from.

    Args:
        model: all of its parameters count.
        data: arrays by name that say who is trained on, and with what outcome, if that counts.
    """
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path((model.params, dict(data or {}))):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class EpochStore:
    """The state of training after each epoch, for a run that is interrupted.

    Only the last is kept. A state is there whole or not at all, whenever the run is killed.

    Args:
        directory: of the states.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False, create=True
            ),
        )

    def restore(self, state: Any, start: str) -> tuple[int, Any, list[dict[str, Any]]]:
        """(finished epochs, state after them, rows of their history); (0, state, []) at first.

        Args:
            state: the initial state, which gives structure, types and devices.
            start: fingerprint of the model that training started from.

        Raises:
            ValueError: the stored state began from another model, or cannot be read.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return 0, state, []
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            stored = self._manager.restore(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"{self._directory}: the state of an interrupted run cannot be read ({error}); "
                "remove this directory to train the fold from its beginning"
            ) from None
        if stored.record["start"] != start:
            raise ValueError(
                f"{self._directory}: the models of the pool, the survival table, the splits, the "
                "number of patches of a slide, or the code that starts a fold have changed since "
                "this fold began; put them back, or remove this directory to train the fold from "
                "its beginning"
            )
        return epoch, stored.state, stored.record["history"]

    def save(self, epoch: int, state: Any, history: list[dict[str, Any]], start: str) -> None:
        """Stores the state after an epoch."""
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                record=ocp.args.JsonSave({"start": start, "history": history}),
            ),
        )
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()
