"""Writes one thing to a folder whose disk is expected to refuse it.

    python tests/helpers/writers.py FOLDER NAME

A store is packed from FOLDER/../slides.

Prints the message, then the name of everything that is left in the folder, and ends with status 1.
"""

import pathlib
import sys

import numpy as np
import pandas as pd
import released

from steph_jax import export, files, messages, plots, split
from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features import store_writer
from steph_jax.data.features.hdf5 import write_hdf5
from steph_jax.data.features.open import open_features
from steph_jax.data.splits import Split
from steph_jax.training import resume

RANDOM = np.random.default_rng(0)


def model() -> SavedModel:
    architecture, tree = torch_names.abmil_from_torch(released.abmil(feature_dim=2000))
    return SavedModel("abmil", architecture, {}, tree)


def picture(folder: pathlib.Path) -> None:
    plots.folds({"method": [0.5, 0.6]}, folder / "c.png", "Title", patients="test patients")


def slide(folder: pathlib.Path) -> None:
    with files.whole(folder / "a.h5") as temporary:
        write_hdf5(temporary, RANDOM.random((500, 64)), np.zeros((500, 2), int))


def splits(folder: pathlib.Path) -> None:
    patients = tuple(f"P{i:05}" for i in range(10_000))
    made = [Split(folder / f"splits_{k}.csv", patients, ("Q",)) for k in range(3)]
    split.write_splits(made, False, folder / "table.csv")


def state(folder: pathlib.Path) -> None:
    tree = {f"w{i}": RANDOM.random((60, 60)) for i in range(20)}
    resume.EpochStore(folder).save(1, tree, [], "start")


def store(folder: pathlib.Path) -> None:
    source = open_features(folder.parent / "slides")
    store_writer.pack(source, list(source.slide_ids), folder / "p.store")


WRITE = {
    "text": lambda folder: files.write_text(folder / "a.txt", "x" * 300_000),
    "json": lambda folder: files.write_json(folder / "a.json", list(range(60_000))),
    "table": lambda folder: files.write_table(
        folder / "a.csv", pd.DataFrame({"a": RANDOM.random(40_000)})
    ),
    "picture": picture,
    "slide": slide,
    "splits": splits,
    "model": lambda folder: saved_model.save_model(folder / "model", model()),
    "state": state,
    "store": store,
    "pth": lambda folder: export.export(model(), folder / "model.pth"),
    "safetensors": lambda folder: export.export(model(), folder / "model.safetensors"),
}


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    try:
        WRITE[sys.argv[2]](folder)
    except messages.USER_ERRORS as error:
        print(error)
        print("\n".join(sorted(path.name for path in folder.iterdir())), end="")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
