"""Work that is killed at one moment after the other, and what must be true after each.

    python tests/helpers/killing.py WORK FOLDER KILLS

Prints the number of kills. A moment is one at which a file is opened to write, renamed, made or
removed, wherever in Python that happens (orbax's threads too); moments are drawn at random. Every
piece of work runs in a forked process.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import released
import torch_writer

from steph_jax import export, files, split
from steph_jax.checkpoints import saved_model, torch_import, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import tables
from steph_jax.training import resume

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
NAMES = ("null", "a-fold_0", "b-fold_0")


def model(seed: int) -> SavedModel:
    architecture, tree = torch_names.abmil_from_torch(released.abmil(seed))
    return SavedModel("abmil", architecture, {"seed": seed}, tree)


def released_files(folder: pathlib.Path) -> None:
    """Checkpoints of other models than those of the last time."""
    turn = folder / "turn"
    shift = 10 - int(turn.read_text()) if turn.exists() else 0
    turn.write_text(str(shift))
    for seed, name in enumerate(NAMES):
        torch_writer.save(folder / f"{name}.pth", {"model": released.abmil(seed + shift)})


def conversion(folder: pathlib.Path) -> None:
    """Checkpoints into a pool, over the models that are there."""
    files_by_name = [(name, folder / f"{name}.pth") for name in NAMES]
    pool = torch_import.Pool(folder / "pool")
    outcomes = torch_import.convert_all(
        files_by_name, pool, torch_import.ImportOptions(), lambda outcome: None
    )
    assert {outcome.status for outcome in outcomes} <= {"written", "replaced", "unchanged"}


def check_conversion(folder: pathlib.Path) -> None:
    """Every model that is there is the old or the new one, whole."""
    for seed, name in enumerate(NAMES):
        path = folder / "pool" / name
        if path.exists() or path.with_name(f".{name}.replaced").exists():
            fingerprint = resume.fingerprint(saved_model.load_model(path))
            assert fingerprint in [resume.fingerprint(model(s)) for s in (seed, seed + 10)]


def state(epoch: int) -> dict[str, np.ndarray]:
    return {"w": np.full((40, 30), epoch, np.float32), "step": np.array(epoch, np.int32)}


def training(folder: pathlib.Path) -> None:
    """All that a fold writes: the state after each epoch, the model, tables and metrics."""
    store = resume.EpochStore(folder / "epochs")
    done, restored, history = store.restore(state(0), "start")
    assert all((np.asarray(leaf) == done).all() for leaf in restored.values())
    for epoch in range(done + 1, 4):
        history = [*history, {"epoch": epoch}]
        store.save(epoch, state(epoch), history, "start")
    saved_model.save_model(folder / "model", model(0))
    export.export(model(0), folder / "model.safetensors")
    export.export(model(0), folder / "model.pth")
    files.write_table(folder / "history.csv", pd.DataFrame(history))
    files.write_json(folder / "metrics.json", {"test": {"c_index": 0.5}})


def check_training(folder: pathlib.Path) -> None:
    """The last state is whole, and so is each file that has its name."""
    if (folder / "epochs").is_dir():
        store = resume.EpochStore(folder / "epochs")
        done, restored, history = store.restore(state(0), "start")
        assert all((np.asarray(leaf) == done).all() for leaf in restored.values())
        assert [row["epoch"] for row in history] == list(range(1, done + 1))
    if (folder / "model").exists():
        model_digest = saved_model.load_model(folder / "model")
        assert resume.fingerprint(model_digest) == resume.fingerprint(model(0))
    for name in ("model.safetensors", "model.pth"):
        if (folder / name).exists():
            assert (folder / name).stat().st_size > 1000
    if (folder / "history.csv").exists():
        assert pd.read_csv(folder / "history.csv")["epoch"].tolist() == [1, 2, 3]
    if (folder / "metrics.json").exists():
        assert json.loads((folder / "metrics.json").read_text())["test"] == {"c_index": 0.5}


def emptied(folder: pathlib.Path) -> None:
    """Nothing, where the work was done; else what a kill left."""
    if (folder / "metrics.json").exists():
        shutil.rmtree(folder)
        folder.mkdir()


def splits_of(folder: pathlib.Path, seed: int) -> dict[str, str]:
    """The text of each split of a seed, by the name of its file."""
    table = tables.read_table(folder / "table.csv")
    splits = split.make_splits(table, folder, split.Request(seed=seed))
    return {split_.path.name: split.split_text(split_) for split_ in splits}


def other_seed(folder: pathlib.Path) -> None:
    """A table, and another seed than the last time."""
    seed = folder / "seed"
    seed.write_text(str(3 - int(seed.read_text())) if seed.exists() else "1")
    rows = [f"P{i:02},S{i:02},{100 + 7 * i},{i % 2}" for i in range(30)]
    (folder / "table.csv").write_text("\n".join(["patient_id,pathology_id,t,e", *rows]) + "\n")


def splitting(folder: pathlib.Path) -> None:
    """Splits of one seed in place of those of another."""
    flags = ["--table", folder / "table.csv", "--out", folder, "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()):
        split.main([*map(str, flags), "--seed", (folder / "seed").read_text()])


def check_splitting(folder: pathlib.Path) -> None:
    """Every split that is there is whole, and all are of one seed."""
    texts = {path.name: path.read_text() for path in folder.glob("splits_*.csv")}
    assert any(texts.items() <= splits_of(folder, seed).items() for seed in (1, 2)), sorted(texts)


WORK = {
    "conversion": (released_files, conversion, check_conversion),
    "training": (emptied, training, check_training),
    "splitting": (other_seed, splitting, check_splitting),
}


def in_a_process(work: Callable[[], None]) -> int:
    """Runs work in a process of its own; returns its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(1)


def killed_at(work: Callable[[], None], moment: int) -> Callable[[], None]:
    """The work, killed at a moment, counted from 1."""

    def until_killed() -> None:
        steps_left = [moment]

        def note(event: str, arguments: tuple) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            if event in EVENTS or writes:
                steps_left[0] -= 1
                if steps_left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        work()

    return until_killed


def main() -> None:
    """Kills, checks, and at last lets the work be done."""
    name, folder, number = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    prepare, work, check = WORK[name]
    chance, kills, most = random.Random(0), 0, 60
    while kills < number:
        prepare(folder)
        moment = chance.randint(1, most)
        status = in_a_process(killed_at(lambda: work(folder), moment))
        assert status in (0, -signal.SIGKILL), status
        kills += status != 0
        if status == 0:
            most = moment
        assert in_a_process(lambda: check(folder)) == 0
    prepare(folder)
    assert in_a_process(lambda: work(folder)) == 0
    assert in_a_process(lambda: check(folder)) == 0
    print(kills)


if __name__ == "__main__":
    main()
