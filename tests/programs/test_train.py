"""The main job from files to files: training, resuming, evaluating, predicting."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import convert, evaluate, export, predict, run_directory, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data import tables
from steph_jax.data.features.open import open_features
from steph_jax.data.splits import read_split
from steph_jax.evaluation import fold_results
from steph_jax.survival import metrics
from steph_jax.training import epoch, experiment, loop, preflight, resume
from steph_jax.training.config import Config


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """Cohorts, and a pool grown on them: fold 0 of all, fold 1 of the target sim_a too."""
    home = simulated.make(tmp_path_factory.mktemp("home"))
    for dataset, folds in (("sim_a", (0, 1)), ("sim_b", (0,)), ("sim_c", (0,))):
        config = simulated.config(
            home, method="abmil", dataset=dataset, folds=folds, epochs=2, pool__save=True
        )
        train.train(config, home / "runs" / dataset)
    return home


def test_encoder_is_read_before_training(tmp_path, monkeypatch):
    simulated.make(tmp_path)
    config = simulated.config(tmp_path, method="abmil", pool__save=True)

    def unreadable(*given):
        raise OSError("x.h5: cannot be read")

    monkeypatch.setattr(preflight, "encoder_of", unreadable)
    with pytest.raises(OSError, match=r"x\.h5"):
        train.train(config, tmp_path / "w")
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names == {".fold_0.lock", ".fold_1.lock"}
    assert not (tmp_path / "pool").exists()
    typed = Config.from_dict(config)
    cohort, pool = experiment.read_cohort(typed), Pool(tmp_path / "pool")
    run = experiment.open_experiment(typed, cohort, pool)
    run = dataclasses.replace(run, encoder="uni", profile=tmp_path / "trace")
    other = experiment.with_config(run, typed.with_values({"batch_size": 2}))
    assert (other.encoder, other.profile) == ("uni", tmp_path / "trace")
    assert other.config.batch_size == 2


@pytest.fixture(scope="module")
def steph_run(home) -> pathlib.Path:
    """A finished run of STEPH."""
    train.train(simulated.config(home), home / "steph")
    return home / "steph"


def test_a_pool_grows_from_one_null_model(home):
    pool = Pool(home / "pool")
    assert pool.members() == {"sim_a": [0, 1], "sim_b": [0], "sim_c": [0]}
    null = pool.null().params
    for name in ("sim_a", "sim_b"):
        assert pool.member(name, 0).metadata["encoder"] == "simulated"
        change = pool.member(name, 0).params["feat_proj"]["layers_0"]["kernel"]
        start = null["feat_proj"]["layers_0"]["kernel"]
        assert 0 < np.abs(change - start).max() < 0.1


def test_files_of_a_run_follow_the_contract(home, steph_run):
    summary = json.loads((steph_run / "summary.json").read_text())
    folds = summary["c_index"]["folds"]
    assert summary["c_index"]["mean"] == pytest.approx(np.mean(folds))
    assert summary["c_index"]["sd"] == pytest.approx(np.std(folds, ddof=1))
    for fold in (0, 1):
        directory = steph_run / f"fold_{fold}"
        record = json.loads((directory / "metrics.json").read_text())
        table = pd.read_csv(directory / "predictions_test.csv", dtype={"patient_id": str})
        assert list(table)[:4] == ["patient_id", "t", "e", "risk"]
        assert list(table)[4:] == [f"surv_{i}" for i in range(1, 33)]
        curve = table.filter(like="surv_").to_numpy()
        assert (np.diff(curve, axis=1) <= 0).all()
        np.testing.assert_allclose(table["risk"], -curve.sum(axis=1), rtol=1e-5)
        c_index = metrics.concordance_index(table["t"], table["e"], table["risk"])
        assert record["test"]["c_index"] == pytest.approx(c_index, abs=1e-12)
        assert folds[fold] == record["test"]["c_index"]
        assert record["train_slides_per_second"] > 0
        assert {"c_index", "nll"} <= set(record["train"])
        split = read_split(home / "data" / "sim_a" / f"splits_{fold}.csv")
        assert table["patient_id"].tolist() == list(split.test)

        weights = pd.read_csv(directory / "merge_weights_test.csv")
        columns = ["patient_id", "source", "weight", "lambda", "selected", "target"]
        assert list(weights) == [*columns, "source_coefficient"]
        used = weights["weight"] * weights["selected"]
        np.testing.assert_allclose(weights["target"], used * weights["lambda"], rtol=1e-5)
        np.testing.assert_allclose(
            weights["source_coefficient"], used * (1 - weights["lambda"]), rtol=1e-5, atol=1e-9
        )
        share = weights["source_coefficient"].sum() / used.sum()
        assert record["source_share"] == pytest.approx(share, rel=1e-5)
        assert set(weights["source"]) == {"sim_b", "sim_c"}
        assert (weights.groupby("patient_id")["selected"].sum() == 1).all()
        top = weights.loc[weights.groupby("patient_id")["weight"].idxmax()]
        assert (top["selected"] == 1).all()

        history = pd.read_csv(directory / "history.csv")
        assert history["epoch"].tolist() == [1, 2, 3]
        assert {"train_loss", "train_c_index", "test_c_index", "weight_sim_b"} <= set(history)
        for picture in ("training_curves", "source_weights", "risk_groups_test"):
            assert (directory / f"{picture}.png").stat().st_size > 5000
        abmil_record = json.loads(
            (home / "runs" / "sim_a" / f"fold_{fold}" / "metrics.json").read_text()
        )
        assert record["target_only"]["c_index"] == abmil_record["test"]["c_index"]
    for picture in ("c_index", "source_weights", "risk_groups", "training_curves"):
        assert (steph_run / f"{picture}.png").stat().st_size > 5000


def test_evaluate_makes_the_same_files_from_the_directory_alone(home, steph_run, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(steph_run, moved)
    directory = moved / "fold_1"
    metrics = (directory / "metrics.json").read_text()
    (directory / "metrics.json").unlink()
    before = {}
    for name in ("predictions_test.csv", "merge_weights_test.csv"):
        before[name] = pd.read_csv(directory / name)
        (directory / name).unlink()
    config = json.loads((moved / "config.json").read_text())
    config["pool"]["root"] = str(tmp_path / "no pool")
    config["data"]["root"] = str(tmp_path / "no table")
    evaluate.evaluate_fold(directory, Config.from_dict(config))
    assert (directory / "metrics.json").read_text() == metrics
    for name, table in before.items():
        pd.testing.assert_frame_equal(pd.read_csv(directory / name), table)


def test_predict_gives_the_risks_of_training(home, steph_run):
    directory = steph_run / "fold_0"
    model = saved_model.load_model(directory / "model")
    source = open_features(home / "data" / "features" / "sim_a")
    expected = pd.read_csv(directory / "predictions_test.csv", dtype={"patient_id": str})
    slides = tables.read_slides(home / "data" / "sim_a" / "sim_a_survival.csv")
    slides_of = {patient: slides[patient] for patient in expected["patient_id"]}
    predicted = predict.predict(model, source, slides_of, batch_size=3)
    assert predicted.patients == expected["patient_id"].tolist()
    np.testing.assert_allclose(predicted.risk, expected["risk"], rtol=1e-5)
    assert predicted.survival is not None
    np.testing.assert_allclose(predicted.survival, expected.filter(like="surv_"), atol=1e-6)


def test_an_exported_model_is_imported_and_predicts_the_same(home, steph_run, tmp_path):
    model = saved_model.load_model(steph_run / "fold_0" / "model")
    export.export(model, tmp_path / "trained.pth")
    arguments = [str(tmp_path / "trained.pth"), "--out", str(tmp_path / "pool"), "--name", "mine"]
    assert convert.main([*arguments, "--sources", "sim_b,sim_c", "--top-k", "1"]) == 0
    imported = saved_model.load_model(tmp_path / "pool" / "mine")
    source = open_features(home / "data" / "features" / "sim_b")
    slides = {slide: (slide,) for slide in sorted(source.slide_ids)[:5]}
    original, reimported = (predict.predict(m, source, slides) for m in (model, imported))
    np.testing.assert_array_equal(original.risk, reimported.risk)
    np.testing.assert_array_equal(original.aux["weight"], reimported.aux["weight"])


def params_of(directory: pathlib.Path) -> str:
    return resume.fingerprint(saved_model.load_model(directory / "model"))


def test_a_run_interrupted_after_any_epoch_ends_with_the_same_parameters(
    home, steph_run, tmp_path, monkeypatch
):
    class Interrupted(Exception):
        pass

    real = epoch.train_epoch
    passed = 0

    def interrupted(*args, **kwargs):
        nonlocal passed
        passed += 1
        if passed in (2, 4):
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    config = simulated.config(home)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train.train(config, tmp_path / "w")
    train.train(config, tmp_path / "w")
    assert passed == 2 * 3 + 2, "each epoch ran once, but for the two that were interrupted"
    for fold in (0, 1):
        assert params_of(tmp_path / "w" / f"fold_{fold}") == params_of(steph_run / f"fold_{fold}")


def test_a_run_that_is_ended_goes_on_to_the_same_numbers(home, steph_run, tmp_path):
    """By a cluster that tells it to end, then by one that does not."""
    workdir = tmp_path / "ended"
    command = [sys.executable, "-m", "steph_jax.train", "--workdir", str(workdir)]
    command += simulated.flags(home, "--config.folds=(0,)")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.local_device_count())}

    def ended_at(text: str, number: signal.Signals) -> tuple[int, list[str]]:
        with subprocess.Popen(
            command, cwd=simulated.ROOT, env=environment, stderr=subprocess.PIPE, text=True
        ) as running:
            assert running.stderr is not None
            lines = []
            for line in running.stderr:
                lines.append(line.strip())
                if text in line:
                    running.send_signal(number)
        assert not (workdir / "fold_0" / "metrics.json").exists()
        return running.returncode, lines

    status, lines = ended_at("epoch 2/3", signal.SIGUSR1)
    assert status == 128 + signal.SIGUSR1
    advice = "the same command goes on after the last finished epoch"
    assert lines[-1] == f"told to end (SIGUSR1); {advice}"
    status, lines = ended_at("epoch 3/3", signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert any("going on after epoch" in line for line in lines)
    again = subprocess.run(
        command, cwd=simulated.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "going on after epoch" in again.stderr
    assert params_of(workdir / "fold_0") == params_of(steph_run / "fold_0")


def test_a_fold_as_a_job_is_that_of_this_process(home, steph_run, tmp_path):
    """What is left of a run, through the command; what is finished stays as it is."""
    pytest.importorskip("submitit", reason="extra `jobs` is not installed")
    workdir = pathlib.Path(shutil.copytree(steph_run, tmp_path / "w"))
    shutil.rmtree(workdir / "fold_1")
    before = (workdir / "fold_0" / "metrics.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "steph_jax.train", "--workdir", str(workdir)]
    command += simulated.flags(home, "--launcher=local", "--jobs=2")
    devices = str(jax.local_device_count())
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": devices, "PYTHONPATH": str(simulated.ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == f"report: {workdir / 'report.html'}\n", ended.stderr
    assert params_of(workdir / "fold_1") == params_of(steph_run / "fold_1")
    assert (workdir / "fold_0" / "metrics.json").stat().st_mtime_ns == before
    summaries = [json.loads((p / "summary.json").read_text()) for p in (workdir, steph_run)]
    assert summaries[0]["c_index"] == summaries[1]["c_index"]


def test_a_finished_fold_is_not_run_again(home, steph_run, monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", lambda *a, **k: pytest.fail("trained again"))
    before = (steph_run / "fold_0" / "metrics.json").stat().st_mtime_ns
    train.train(simulated.config(home), steph_run)
    assert (steph_run / "fold_0" / "metrics.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_by_name(home, steph_run):
    with pytest.raises(ValueError, match=r"(?s)other settings.*epochs: 3 then, 4 now"):
        train.train(simulated.config(home, epochs=4), steph_run)


def test_divergence_is_an_error(home, tmp_path):
    config = simulated.config(home, learning_rate=1e30, folds=(0,))
    message = (
        r"fold 0 epoch \d/\d: the loss is not a finite .*lower --config.learning_rate \(1e\+30\)"
    )
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "w")


def test_folds_run_in_parts_are_summarized_together(home, tmp_path):
    for fold in (1, 0):
        train.train(simulated.config(home, folds=(fold,), epochs=1), tmp_path / "w")
    assert json.loads((tmp_path / "w" / "config.json").read_text())["folds"] == [0, 1]
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["fold_numbers"] == [0, 1]
    each = [
        json.loads((tmp_path / "w" / f"fold_{fold}" / "metrics.json").read_text())["test"][
            "c_index"
        ]
        for fold in (0, 1)
    ]
    assert summary["c_index"]["folds"] == each


def test_a_second_run_on_a_fold_is_refused(home, tmp_path):
    config = simulated.config(home, folds=(0, 1))
    with (
        run_directory.folds_locked(tmp_path / "w", [1]),
        pytest.raises(ValueError, match=r"fold_1: another run is at work on this fold"),
    ):
        train.train(config, tmp_path / "w")
    assert not (tmp_path / "w" / "fold_0").exists()
    with run_directory.folds_locked(tmp_path / "w", [0, 1]):
        pass


def test_folds_of_one_run_in_two_processes(home, tmp_path):
    """Side by side they give what one process gives."""

    def start(workdir, folds):
        flags = simulated.flags(home, "--config.epochs=2", f"--config.folds={folds}")
        command = [sys.executable, "-m", "steph_jax.train", *flags, "--workdir", tmp_path / workdir]
        return subprocess.Popen(command, cwd=simulated.ROOT)

    running = [start("two", "(0,)"), start("two", "(1,)"), start("one", "(0,1)")]
    assert [process.wait() for process in running] == [0, 0, 0]
    for name in (
        *("summary.json", "fold_0/predictions_test.csv", "fold_1/predictions_test.csv"),
        *("fold_0/merge_weights_test.csv", "fold_1/merge_weights_test.csv"),
    ):
        one, two = ((tmp_path / place / name).read_bytes() for place in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("changed", ["pool", "outcomes"])
def test_other_models_or_patients_under_an_interrupted_run_are_refused(
    home, tmp_path, monkeypatch, changed
):
    for name in ("pool", "data"):
        shutil.copytree(home / name, tmp_path / name)
    config = simulated.config(tmp_path)
    real = epoch.train_epoch
    calls = iter([real])

    def once(*args, **kwargs):
        return next(calls)(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", once)
    with pytest.raises(StopIteration):
        train.train(config, tmp_path / "w")
    if changed == "pool":
        pool = Pool(tmp_path / "pool")
        pool.add("sim_b-fold_0", pool.member("sim_c", 0))
    else:
        path = tmp_path / "data" / "sim_a" / "sim_a_survival.csv"
        table = pd.read_csv(path)
        trained = pd.read_csv(path.parent / "splits_0.csv")["train"]
        table.loc[table["patient_id"] == trained[0], "t"] += 1
        table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="w: inputs have changed since the first fold of this run"):
        train.train(config, tmp_path / "w")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset": "sim_x"}, "sim_x_survival.csv"),
        ({"method": "stephen"}, "method is one of .*steph"),
        ({"folds": (0, 7)}, "splits_7.csv"),
        ({"steph__top_k": 3}, "top_k = 3 is larger than the number of sources, 2"),
        ({"sources": ("sim_b", "sim_q")}, "no model of 'sim_q' for fold 0.*pool.save=true"),
        ({"pool__root": "nowhere"}, "no such pool.*make demo"),
        ({"batch_size": 100}, "fewer than one batch of 100"),
        ({"data__features": "nowhere/{dataset}"}, "no such file or folder"),
        ({"data__features": "nowhere/{cohort}"}, "may hold {dataset} and {root}"),
        ({"compute_dtype": "float16"}, "compute_dtype is float32 or bfloat16"),
        ({"epochs": 0}, "epochs is a whole number"),
        ({"loss__terms": (("mse", 1.0),)}, "losses are nll"),
        ({"loss__terms": ("nll", 1.0)}, "loss.terms: expected names and weights"),
        ({"loss__mix_weight": -0.1}, "loss.mix_weight is a number 0 or more; found -0.1"),
        ({"learning_rate": 0.0}, "learning_rate is a number above 0"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a finite number"),
        ({"seed": -1}, "seed is 0 or more"),
        ({"sources": ("sim_b", "sim_b")}, "a source is named twice"),
        ({"data__features": "nowhere/{dataset.x}"}, "may hold {dataset} and {root}"),
        ({"data__features": "nowhere/{"}, "may hold {dataset} and {root}"),
        ({"bins__number": 8, "steph__retrained": "none"}, "has 32 outputs.*ask for 8"),
        (
            {"method": "abmil", "pool__save": True, "bins__number": 8},
            "sim_a-fold_0 and .*null have other dimensions: num_bins 8 and 32",
        ),
    ],
)
def test_mistakes_fail_before_training(home, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.train(simulated.config(home, **overrides), tmp_path / "w")


def copied(home: pathlib.Path, tmp_path: pathlib.Path) -> dict:
    """The target's cohort, to be broken."""
    shutil.copytree(home / "data" / "sim_a", tmp_path / "data" / "sim_a")
    shutil.copytree(home / "data" / "features" / "sim_a", tmp_path / "data" / "features" / "sim_a")
    return simulated.config(tmp_path, pool__root=str(home / "pool"))


def test_leaked_test_patients_are_logged(home, tmp_path, caplog):
    config = copied(home, tmp_path) | {"folds": [0], "epochs": 1}
    split = read_split(tmp_path / "data" / "sim_a" / "splits_0.csv")
    shutil.copytree(home / "data" / "sim_b", tmp_path / "data" / "sim_b")
    path = tmp_path / "data" / "sim_b" / "splits_0.csv"
    source_split = read_split(path)
    parts = {"train": (*source_split.train, split.test[0]), "test": source_split.test}
    pd.DataFrame({name: pd.Series(ids) for name, ids in parts.items()}).to_csv(path, index=False)
    with caplog.at_level("WARNING"):
        train.train(config, tmp_path / "w")
    assert f"whom the model of sim_b was trained on (1): fold 0: {split.test[0]}" in caplog.text


def test_all_missing_slides_are_listed(home, tmp_path):
    config = copied(home, tmp_path)
    for path in sorted((tmp_path / "data" / "features" / "sim_a").iterdir())[:2]:
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.stem):
            train.train(config, tmp_path / "w")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(home, tmp_path, value):
    import h5py

    config = copied(home, tmp_path)
    path = sorted((tmp_path / "data" / "features" / "sim_a").iterdir())[0]
    with h5py.File(path, "a") as file:
        file["features"][1, 2] = value
    with pytest.raises(ValueError, match=path.name):
        train.train(config, tmp_path / "w")


def test_features_of_another_size_are_refused(home, steph_run, tmp_path):
    import h5py

    config = copied(home, tmp_path)
    for path in (tmp_path / "data" / "features" / "sim_a").iterdir():
        with h5py.File(path, "w") as file:
            file["features"] = np.ones((4, 25), np.float32)
    with pytest.raises(ValueError, match=r"D = 25.*expect D = 24"):
        train.train(config, tmp_path / "w")
    with pytest.raises(ValueError, match=r"24.*25|25.*24"):
        evaluate.evaluate_fold(steph_run / "fold_0", Config.from_dict(config))


def test_a_model_is_in_the_pool_before_its_fold_is_finished(home, tmp_path, monkeypatch):
    """And the null model before anything is trained from it."""
    config = simulated.config(
        home,
        method="abmil",
        dataset="sim_b",
        folds=(0,),
        epochs=1,
        pool__root=str(tmp_path / "pool"),
        pool__save=True,
    )
    pool = Pool(tmp_path / "pool")
    real = fold_results.write_results

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(loop, "train_epoch", killed)
    with pytest.raises(Killed):
        train.train(config, tmp_path / "w")
    assert pool.names() == ["null"]
    monkeypatch.undo()
    monkeypatch.setattr(fold_results, "write_results", killed)
    with pytest.raises(Killed):
        train.train(config, tmp_path / "w")
    assert pool.names() == ["null", "sim_b-fold_0"]
    monkeypatch.setattr(fold_results, "write_results", real)
    train.train(config, tmp_path / "w")
    assert pool.names() == ["null", "sim_b-fold_0"]


def test_incompatible_folds_are_refused_before_training(home, tmp_path, monkeypatch):
    real = experiment.fold_spec

    def growing(config, cohort, fold, *split):
        return dataclasses.replace(real(config, cohort, fold, *split), num_outputs=5 + fold)

    monkeypatch.setattr(experiment, "fold_spec", growing)
    root = tmp_path / "pool"
    config = simulated.config(home, method="abmil", pool__save=True, pool__root=str(root))
    with pytest.raises(ValueError, match=r"other numbers of outputs: fold 0 5, fold 1 6; use"):
        train.train(config, tmp_path / "w")
    assert not root.exists()


def test_an_empty_bag_is_refused_in_training_and_left_out_of_predictions(home, steph_run, tmp_path):
    import h5py

    config = copied(home, tmp_path)
    slides = tables.read_slides(tmp_path / "data" / "sim_a" / "sim_a_survival.csv")
    patient = next(p for p, slide_ids in slides.items() if len(slide_ids) == 1)
    folder = tmp_path / "data" / "features" / "sim_a"
    with h5py.File(folder / f"{slides[patient][0]}.h5", "w") as file:
        file["features"] = np.ones((0, 24), np.float32)
    with pytest.raises(ValueError, match=f"no patch in any of their slides: {patient}"):
        train.train(config, tmp_path / "w")
    model = saved_model.load_model(steph_run / "fold_0" / "model")
    predicted = predict.predict(model, open_features(folder), slides)
    assert set(slides) - set(predicted.patients) == {patient}


def test_the_command_line_ends_a_mistake_with_one_message(home, tmp_path):
    command = [sys.executable, "-m", "steph_jax.train", "--workdir", str(tmp_path / "w")]
    command += simulated.flags(home, "--config.dataset=sim_x")
    done = subprocess.run(command, cwd=simulated.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_mistake_leaves_no_files(home, tmp_path):
    grown = {"method": "abmil", "folds": (0,), "epochs": 1, "pool__save": True}
    config = simulated.config(home, **grown, pool__root=str(tmp_path / "pool"))
    wrong = config | {"model": config["model"] | {"feature_dim": 32}}
    with pytest.raises(ValueError, match=r"D = 24, model.feature_dim is D = 32; set .*dim=24"):
        train.train(wrong, tmp_path / "run")
    moved = config | {"data": config["data"] | {"features": str(tmp_path / "elsewhere")}}
    with pytest.raises(FileNotFoundError, match="elsewhere: no such file or folder"):
        train.train(moved, tmp_path / "run")
    assert not Pool(tmp_path / "pool").has_null()
    train.train(config, tmp_path / "run")
    assert Pool(tmp_path / "pool").members() == {"sim_a": [0]}


def test_a_finished_run_asks_for_no_pool(home, steph_run, tmp_path, capsys):
    shutil.copytree(steph_run, tmp_path / "steph")
    config = simulated.config(home, pool__root=str(tmp_path / "gone"))
    stored = json.loads((tmp_path / "steph" / "config.json").read_text())
    stored["pool"]["root"] = str(tmp_path / "gone")
    (tmp_path / "steph" / "config.json").write_text(json.dumps(stored))
    train.train(config, tmp_path / "steph")
    assert "test C-index" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"sources": (("sim_b", "sim_c"),)}, r"sources: expected names in brackets, .*found \[\["),
        ({"sources": ("sim_b,sim_c",)}, "sources are names of datasets"),
        (
            {"steph__fixed_mixing": ((0.1, 0.2),)},
            r"steph.fixed_mixing: expected numbers in brackets",
        ),
        ({"steph__fixed_mixing": (float("nan"),)}, r"steph.fixed_mixing: expected numbers.*nan"),
        ({"merging__weights": ("a",)}, r"merging.weights: expected numbers in brackets"),
        ({"seed": 2**64}, r"seed is 0 or more, below 2\^63"),
        ({"data__cache_gb": float("nan")}, "data.cache_gb: expected a finite number; found nan"),
        ({"data__device_gb": -3.0}, "data.device_gb is 0 or more, or -1 for half of .*; found -3"),
    ],
)
def test_unusable_settings(home, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        train.train(simulated.config(home, **override), tmp_path)
    assert list(tmp_path.iterdir()) == []
