"""`data.features` and `predict --features` take any layout, without further options."""

import dataclasses
import pathlib
import pickle
import subprocess
import sys

import h5py
import jax
import lmdb
import numpy as np
import pandas as pd
import pytest
import simulated
import torch_writer

from steph_jax import predict, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture

DIMS = Architecture(feature_dim=24, embed_dim=16, attention_dim=8, num_bins=32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return simulated.make(tmp_path_factory.mktemp("home"))


def lay_out(folder: pathlib.Path, slides: dict[str, np.ndarray], layout: str) -> pathlib.Path:
    """Writes the slides in one of the layouts; returns what `--features` is to name."""
    folder.mkdir(exist_ok=True)
    out = folder / layout
    if layout == "x.lmdb":
        with (
            lmdb.open(str(out), map_size=2**24) as environment,
            environment.begin(write=True) as transaction,
        ):
            for slide, rows in slides.items():
                transaction.put(slide.encode(), pickle.dumps(rows[None]))
            transaction.put(b"__keys__", pickle.dumps([f"{slide}.pt" for slide in slides]))
        return out
    if layout == "any_name":
        source = lay_out(folder, slides, "mixed")
        store_writer.pack(open_features(source), list(slides), out)
        return out
    out.mkdir(parents=True)
    for number, (slide, rows) in enumerate(slides.items()):
        path = out / f"{slide}{('.h5', '.npy', '.npz', '.pt', '.pth')[number % 5]}"
        if path.suffix == ".h5":
            with h5py.File(path, "w") as file:
                file["features"] = rows[None]
        elif path.suffix == ".npy":
            np.save(path, rows)
        elif path.suffix == ".npz":
            np.savez(path, features=rows)
        else:
            torch_writer.save(path, {"features": rows} if path.suffix == ".pt" else rows)
    return out


@pytest.mark.parametrize("layout", ["mixed", "x.lmdb", "any_name"])
def test_every_layout_gives_the_same_predictions(home, tmp_path, layout):
    source = open_features(home / "data" / "features" / "sim_a")
    slides = {slide: source.read(slide) for slide in sorted(source.slide_ids)[:8]}
    model = SavedModel("abmil", DIMS, {}, as_numpy(abmil.init(jax.random.key(0), DIMS)))
    slides_of = {slide: (slide,) for slide in slides}
    expected = predict.predict(model, source, slides_of)
    predicted = predict.predict(model, open_features(lay_out(tmp_path, slides, layout)), slides_of)
    assert predicted.patients == expected.patients
    np.testing.assert_array_equal(predicted.risk, expected.risk)


def test_a_table_with_columns_of_its_own(home, tmp_path):
    model = SavedModel("abmil", DIMS, {}, as_numpy(abmil.init(jax.random.key(0), DIMS)))
    saved_model.save_model(tmp_path / "model", model)
    location = home / "data" / "features" / "sim_a"
    source = open_features(location)
    slides = sorted(source.slide_ids)[:3]
    (tmp_path / "t.csv").write_text(
        f"slide_id,case_id\n{slides[0]}.svs,A\n{slides[1]},B\n{slides[2]},A\n"
    )

    def run(*more):
        command = [sys.executable, "-m", "steph_jax.predict", "--checkpoint", tmp_path / "model"]
        command += ["--features", location, "--out", tmp_path / "p.csv", *more]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    columns = ("--patient_column=case_id", "--slide_column=slide_id")
    done = run("--table", tmp_path / "t.csv", *columns)
    assert done.returncode == 0, done.stderr
    predictions = pd.read_csv(tmp_path / "p.csv")
    expected = predict.predict(model, source, {"A": (slides[0], slides[2]), "B": (slides[1],)})
    assert predictions["patient_id"].tolist() == ["A", "B"]
    np.testing.assert_allclose(predictions["risk"], expected.risk, rtol=1e-5)
    done = run(*columns)
    assert (done.returncode, "columns of a --table" in done.stderr) == (1, True)
    (tmp_path / "p.csv").unlink()
    merged = dataclasses.replace(model, metadata={"sources": ["a", "b"], "weights": [0.5, 0.5]})
    saved_model.save_model(tmp_path / "model", merged)
    done = run("--merge_weights", tmp_path / "w.csv")
    assert (done.returncode, "differs between patients" in done.stderr) == (1, True)
    assert not list(tmp_path.glob("*p.csv*"))


@pytest.mark.parametrize("layout", ["x.lmdb", "any_name"])
def test_every_layout_gives_the_same_training(home, tmp_path, layout):
    source = open_features(home / "data" / "features" / "sim_a")
    slides = {slide: source.read(slide) for slide in source.slide_ids}
    settings = {"method": "abmil", "folds": (0,), "epochs": 1}
    kernels = []
    for name in ("mixed", layout):
        location = lay_out(tmp_path / name, slides, name)
        config = simulated.config(home, data__features=str(location), **settings)
        train.train(config, tmp_path / f"run_{name}")
        model = saved_model.load_model(tmp_path / f"run_{name}" / "fold_0" / "model")
        kernels.append(model.params["feat_proj"]["layers_0"]["kernel"])
    np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize("content", [b"<html>", b"", b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_training_refuses_to_start_on_a_broken_file(home, tmp_path, content):
    source = open_features(home / "data" / "features" / "sim_a")
    slides = {slide: source.read(slide) for slide in source.slide_ids}
    location = lay_out(tmp_path, slides, "mixed")
    damaged = sorted(location.glob("*.h5"))[-1]
    damaged.write_bytes(content)
    config = simulated.config(home, method="abmil", data__features=str(location))
    with pytest.raises(ValueError, match=rf"{damaged}: expected an HDF5 file, found .*") as error:
        train.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("fold_*/model"))
