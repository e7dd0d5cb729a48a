"""Sweeps: what is asked, the inner folds, and that no test patient has a say."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import simulate, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import tables
from steph_jax.data.cohort import Cohort, Fold, TableSize
from steph_jax.data.simulation import Settings
from steph_jax.data.splits import read_split, split_path
from steph_jax.data.tables import SurvivalTable
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.survival.objectives import Objective, objective_record
from steph_jax.training import epoch, experiment, grid, loop
from steph_jax.training.config import Config
from steph_jax.training.inner_folds import cut_inner_folds

pytestmark = pytest.mark.usefixtures("no_pictures")

COHORTS = Settings(cohorts=3, patients=30, patches=8, feature_dim=24, two_slides=0.0, seed=3)
ARCHITECTURE = Architecture(24, 16, 8)
WEIGHTS = "loss.merge_weight=0.005,20.0"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """Three simulated cohorts, and a pool with models of all of them, a random step from null."""
    root = tmp_path_factory.mktemp("home")
    simulate.simulate(root / "data", COHORTS, lambda line: None)
    pool = Pool(root / "pool")
    null = as_numpy(abmil.init(jax.random.key(0), ARCHITECTURE))
    pool.add("null", SavedModel("abmil", ARCHITECTURE, {}, null))
    for seed, name in enumerate(["sim_a-fold_0", "sim_a-fold_1", "sim_b-fold_0", "sim_c-fold_0"]):
        pool.add(name, SavedModel("abmil", ARCHITECTURE, {}, moved(null, seed)))
    return root


def moved(params, seed):
    """Parameters a random step away, as training would move them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), params
    )


def config_of(home, **overrides):
    """One fold, one epoch, of a method that compiles fast and asks for the target's model."""
    small = {"method": "learned", "folds": (0,), "epochs": 1, "learning_rate": 0.05}
    return simulated.config(home, **(small | overrides))


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def swept(home) -> pathlib.Path:
    """A finished sweep."""
    train.train(config_of(home), home / "swept", [WEIGHTS])
    return home / "swept"


# --- what is asked --------------------------------------------------------------------------------


def test_values_have_the_types_of_their_settings(home):
    asked = grid.parse(
        [
            "loss.merge_weight=1,5e-3",
            "steph.top_k=1, 2",
            "steph.clamp=true,False",
            "steph.base=null,'target'",
            "merging.weights=(),(0.1, 0.2)",
        ],
        Config.from_dict(config_of(home)),
    )
    assert asked.values == {
        "loss.merge_weight": [1.0, 0.005],
        "steph.top_k": [1, 2],
        "steph.clamp": [True, False],
        "steph.base": ["null", "target"],
        "merging.weights": [[], [0.1, 0.2]],
    }
    assert isinstance(asked.values["loss.merge_weight"][0], float)
    assert len(asked.points()) == 32
    assert [p["merging.weights"] for p in asked.points()[:3]] == [[], [0.1, 0.2], []]


def test_commas_within_brackets_and_quotes_separate_nothing():
    assert grid.split_values("(1, (2, 3)), [4,5],'a,b',c") == [
        "(1, (2, 3))",
        "[4,5]",
        "'a,b'",
        "c",
    ]


def test_other_values_leave_the_config_alone(home):
    config = Config.from_dict(config_of(home))
    changed = config.with_values({"loss.merge_weight": 3.0, "epochs": 7})
    assert (changed.options.loss.merge_weight, changed.epochs) == (3.0, 7)
    assert (changed.record["loss"]["merge_weight"], changed.record["epochs"]) == (3.0, 7)
    assert config.record == config_of(home)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["loss.merge_weight"], "NAME=VALUE,VALUE"),
        (["loss.merge_wait=1,2"], "no setting is called 'loss.merge_wait'; near are loss.merge_w"),
        (["loss=1,2"], "no setting is called 'loss'"),
        (["dataset=sim_a,sim_b"], "dataset says what a run works on"),
        (["data.root=a,b"], "data.root says what a run works on"),
        (["data.columns.time=a,b"], "data.columns.time says what a run works on"),
        (["folds=(0,),(1,)"], "folds says what a run works on"),
        (["seed=1,2"], "seed says what a run works on"),
        (["epochs=2,3.5"], "epochs is a whole number, 1 in the config; found '3.5'"),
        (["epochs=2,true"], "epochs is a whole number.*found 'true'"),
        (["learning_rate=0.1,fast"], "learning_rate is a finite number.*found 'fast'"),
        (["learning_rate=0.1,1e999"], "learning_rate is a finite number.*found '1e999'"),
        (["steph.clamp=0,1"], "steph.clamp is true or false.*found '0'"),
        (["merging.weights=0.1,0.2"], r"merging.weights is a tuple.*found '0.1'"),
        (["epochs=2"], "epochs takes two or more different values; found '2'"),
        (["learning_rate=1,1.0"], "learning_rate takes two or more different values"),
        (["epochs=2,3", "epochs=4,5"], "epochs is named twice"),
        (["merging.prepare=none,tie"], "merging.prepare is one of none, ties"),
        (["epochs=1,0"], "epochs is a whole number from 1 to 100000; found 0"),
        (["batch_size=4,20"], "an inner fold of fold 0 leaves 16 training patients.*batch of 20"),
        (["validation.select=none,loss"], "expected a column `validation`"),
    ],
)
def test_mistakes_are_refused_before_training(home, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        train.train(config_of(home), tmp_path / "w", asked)
    assert not (tmp_path / "w").exists()


def test_a_value_that_no_fold_can_start_with_is_refused(home, tmp_path):
    with pytest.raises(ValueError, match="top_k = 9 is larger than the number of sources, 2"):
        train.train(config_of(home, method="steph"), tmp_path / "w", ["steph.top_k=1,9"])


def test_cohorts_that_are_joined_are_not_swept(home, tmp_path):
    with pytest.raises(ValueError, match="cohorts of joint are read once for a run"):
        train.train(
            config_of(home, method="joint"), tmp_path, ["sources=('sim_b',),('sim_b','sim_c')"]
        )


def test_the_command_line_takes_sweeps(home, tmp_path):
    command = [sys.executable, "-m", "steph_jax.train", "--workdir", str(tmp_path / "w")]
    command += simulated.flags(home, "--sweep", "epochs=1,2", "--sweep", "loss.alpa=0,1")
    done = subprocess.run(
        command, cwd=simulated.ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 1
    assert "error: --sweep: no setting is called 'loss.alpa'; near are loss.alpha" in done.stderr
    assert "Traceback" not in done.stderr


# --- inner folds ----------------------------------------------------------------------------------


def cohort_of(time, event, train_rows, test_rows=(), validation_rows=()):
    """A cohort of one fold without files."""
    names = tuple(f"P{i}" for i in range(len(time)))
    table = SurvivalTable(
        pathlib.Path("table.csv"), names, np.asarray(time, float), np.asarray(event, bool), ((),)
    )
    parts = (np.asarray(rows, int) for rows in (train_rows, test_rows, validation_rows))
    return Cohort("toy", table, {0: Fold(*parts)}, TableSize.measure(table))


def test_inner_folds_part_the_training_patients_evenly_along_event_and_time():
    rng = np.random.default_rng(5)
    time, event = rng.exponential(900, 80), rng.random(80) < 0.4
    rows = rng.permutation(80)
    cohort = cohort_of(time, event, rows[:60], rows[60:75], rows[75:])
    cuts = cut_inner_folds(cohort, 0, seed=42)
    assert sorted(np.concatenate([cut.held_out for cut in cuts])) == sorted(rows[:60])
    for cut in cuts:
        assert sorted([*cut.split.train, *cut.held_out]) == sorted(rows[:60])
        assert cut.split.validation.tolist() == rows[75:].tolist()
        assert len(cut.split.test) == 0
    events = [int(event[cut.held_out].sum()) for cut in cuts]
    assert max(events) - min(events) <= 1
    late = [int((time[cut.held_out] > np.median(time[rows[:60]])).sum()) for cut in cuts]
    assert max(late) - min(late) <= 3
    again = cut_inner_folds(cohort, 0, seed=42)
    other = cut_inner_folds(cohort, 0, seed=43)
    assert all((a.held_out == b.held_out).all() for a, b in zip(cuts, again, strict=True))
    assert any(a.held_out.tolist() != b.held_out.tolist() for a, b in zip(cuts, other, strict=True))


@pytest.mark.parametrize(
    ("time", "event"),
    [
        (np.arange(12), [1, 1] + [0] * 10),
        (np.arange(12), [0] * 9 + [1, 1, 1]),
        ([5.0, 6.0], [1, 1]),
    ],
)
def test_too_few_events_for_inner_folds_are_refused(time, event):
    cohort = cohort_of(time, event, range(len(time)))
    message = rf"fold 0 of toy has {sum(event)} events among {len(time)} training.*too few for 3"
    with pytest.raises(ValueError, match=message):
        cut_inner_folds(cohort, 0, seed=42)


# --- whole runs -----------------------------------------------------------------------------------


def test_a_sweep_selects_by_the_mean_of_its_inner_folds(home, swept, tmp_path, capsys):
    table = pd.read_csv(swept / "fold_0" / "sweep.csv")
    assert list(table) == ["loss.merge_weight", "inner_fold", "c_index"]
    assert table["loss.merge_weight"].tolist() == [0.005] * 3 + [20.0] * 3
    assert table["inner_fold"].tolist() == [0, 1, 2] * 2
    means = table.groupby("loss.merge_weight", sort=False)["c_index"].mean()
    best = {"loss.merge_weight": float(means.idxmax())}

    written = read_json(swept / "fold_0" / "metrics.json")
    assert written["selected"] == best
    assert written["inner_c_index"] == pytest.approx(means.max())
    assert read_json(swept / "summary.json")["selected"] == [best]
    assert read_json(swept / "config.json")["sweep"] == [WEIGHTS]
    assert (swept / "fold_0" / "sweep.png").stat().st_size > 5000
    assert not list(swept.glob("fold_0/sweep/**/checkpoints"))
    train.train(config_of(home), swept, [WEIGHTS])
    assert f"  loss.merge_weight={best['loss.merge_weight']}\n" in capsys.readouterr().out

    # The fold itself is trained as it is without a sweep, with the pool's model of the target.
    chosen = config_of(home, loss__merge_weight=best["loss.merge_weight"])
    train.train(chosen, tmp_path / "plain")
    for actual, plain in zip(
        jax.tree.leaves(saved_model.load_model(swept / "fold_0" / "model").params),
        jax.tree.leaves(saved_model.load_model(tmp_path / "plain" / "fold_0" / "model").params),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, plain)


def test_an_inner_number_is_that_of_plain_runs_on_the_inner_fold(home, swept, tmp_path):
    config = config_of(home, loss__merge_weight=20.0)
    typed = Config.from_dict(config)
    cohort = experiment.read_cohort(typed)
    cut = cut_inner_folds(cohort, 0, config["seed"])[1]
    rows = {"train": cut.split.train, "test": cut.held_out, "validation": cohort.folds[0].test}
    named = {
        part: pd.Series([cohort.table.patients[i] for i in patients])
        for part, patients in rows.items()
    }
    shutil.copytree(home / "data" / "sim_a", tmp_path / "data" / "sim_a")
    pd.DataFrame(named).to_csv(tmp_path / "data" / "sim_a" / "splits_0.csv", index=False)
    shutil.copytree(home / "pool", tmp_path / "pool")
    config["data"]["root"], config["pool"]["root"] = str(tmp_path / "data"), str(tmp_path / "pool")

    target = config | {"method": "abmil", "pool": config["pool"] | {"save": True}}
    train.train(target, tmp_path / "target")
    summary = train.train(config, tmp_path / "inner")
    table = pd.read_csv(swept / "fold_0" / "sweep.csv")
    row = (table["loss.merge_weight"] == 20.0) & (table["inner_fold"] == 1)
    assert summary["c_index"]["folds"] == pytest.approx(table.loc[row, "c_index"].tolist())


def test_outcomes_of_test_patients_have_no_effect(home, swept, tmp_path):
    shutil.copytree(home / "data" / "sim_a", tmp_path / "data" / "sim_a")
    path = tables.table_path(tmp_path / "data", "sim_a")
    table = pd.read_csv(path, dtype={"patient_id": str})
    split = read_split(split_path(home / "data", "sim_a", 0))
    tested = np.flatnonzero(table["patient_id"].isin(split.test))
    shuffled = np.random.default_rng(0).permutation(tested)
    table.loc[tested, ["t", "e"]] = table.loc[shuffled, ["t", "e"]].to_numpy()
    table.to_csv(path, index=False)
    train.train(config_of(home, data__root=str(tmp_path / "data")), tmp_path / "w", [WEIGHTS])
    actual, reference = tmp_path / "w" / "fold_0", swept / "fold_0"
    assert (actual / "sweep.csv").read_text() == (reference / "sweep.csv").read_text()
    after, before = read_json(actual / "metrics.json"), read_json(reference / "metrics.json")
    assert after["selected"] == before["selected"]
    assert after["test"] != before["test"]


def test_pools_target_model_has_no_effect_on_a_sweep(home, swept, tmp_path):
    shutil.copytree(home / "pool", tmp_path / "pool")
    pool = Pool(tmp_path / "pool")
    other = moved(pool.null().params, seed=99)
    pool.add("sim_a-fold_0", SavedModel("abmil", ARCHITECTURE, {}, other))
    train.train(config_of(home, pool__root=str(pool.root)), tmp_path / "w", [WEIGHTS])
    actual = (tmp_path / "w" / "fold_0" / "sweep.csv").read_text()
    assert actual == (swept / "fold_0" / "sweep.csv").read_text()


def test_another_sweep_in_one_directory_is_refused(home, swept):
    with pytest.raises(ValueError, match=r"(?s)other settings.*sweep: \['loss.merge.*'absent' now"):
        train.train(config_of(home), swept)
    with pytest.raises(ValueError, match=r"(?s)other settings.*sweep: .* now"):
        train.train(config_of(home), swept, ["loss.merge_weight=0.005,0.05"])


class Stopped(Exception):
    """An interruption."""


def counted(patch, stop_after=None):
    """Counts epochs that are trained; interrupts before the one that is too many."""
    real, count = epoch.train_epoch, []

    def train_epoch(*args, **kwargs):
        if len(count) == stop_after:
            raise Stopped("enough")
        count.append(args[0])
        return real(*args, **kwargs)

    patch.setattr(loop, "train_epoch", train_epoch)
    return count


def test_interrupted_sweep_resumes(home, swept, tmp_path, monkeypatch):
    for stop_after in (1, 4):
        with monkeypatch.context() as patch:
            counted(patch, stop_after)
            with pytest.raises(Stopped, match="enough"):
                train.train(config_of(home), tmp_path / "w", [WEIGHTS])
    with monkeypatch.context() as patch:
        left = counted(patch)
        train.train(config_of(home), tmp_path / "w", [WEIGHTS])
    # Three models of the target, two values on three inner folds, and the fold: ten epochs.
    assert len(left) == 10 - 1 - 4
    for name in ("sweep.csv", "predictions_test.csv"):
        actual = (tmp_path / "w" / "fold_0" / name).read_text()
        assert actual == (swept / "fold_0" / name).read_text()


def test_another_pool_under_an_interrupted_sweep_is_refused(home, tmp_path, monkeypatch):
    shutil.copytree(home / "pool", tmp_path / "pool")
    config = config_of(home, pool__root=str(tmp_path / "pool"))
    with monkeypatch.context() as patch:
        counted(patch, 2)
        with pytest.raises(Stopped, match="enough"):
            train.train(config, tmp_path / "w", [WEIGHTS])
    pool = Pool(tmp_path / "pool")
    pool.add("sim_b-fold_0", pool.member("sim_c", 0))
    with pytest.raises(ValueError, match=r"inputs have changed .*: the pool's model sim_b-fold_0"):
        train.train(config, tmp_path / "w", [WEIGHTS])


@pytest.mark.parametrize(
    ("method", "asked", "refits"),
    [
        ("abmil", ["learning_rate=1e-3,1e-2", "batch_size=4,6"], False),
        ("zero_shot", ["transfer.source=sim_b,sim_c"], False),
        ("fix", ["merging.weights=(),(0.1,0.2,0.3)"], True),
        ("roupkt", ["roupkt.top_k=1,2"], True),
        ("steph_target", ["loss.terms=(('nll',1.0),),(('nll',2.0),)"], True),
    ],
)
def test_every_kind_of_method_can_be_swept(home, tmp_path, method, asked, refits):
    config = config_of(home, method=method)
    train.train(config, tmp_path, asked)
    table = pd.read_csv(tmp_path / "fold_0" / "sweep.csv")
    points = grid.parse(asked, Config.from_dict(config)).points()
    assert len(table) == 3 * len(points)
    means = table["c_index"].to_numpy().reshape(-1, 3).mean(axis=1)
    assert read_json(tmp_path / "fold_0" / "metrics.json")["selected"] == points[means.argmax()]
    assert len(list(tmp_path.glob("fold_0/sweep/inner_*/target/model.json"))) == 3 * refits


def test_a_value_that_diverges_is_not_selected(home, tmp_path):
    config = config_of(home)
    train.train(config, tmp_path / "w", ["learning_rate=1e30,1e-3"])
    table = pd.read_csv(tmp_path / "w" / "fold_0" / "sweep.csv").set_index("learning_rate")
    assert table["c_index"][1e30].isna().any()
    assert table["c_index"][1e-3].notna().all()
    assert read_json(tmp_path / "w" / "summary.json")["selected"] == [{"learning_rate": 1e-3}]
    with pytest.raises(ValueError, match=r"no value of the sweep could be trained .*learning_rate"):
        train.train(config, tmp_path / "none", ["learning_rate=1e30,2e30"])


def test_of_equal_values_the_first_is_selected(home, tmp_path):
    # The merge regularizer is no part of ABMIL.
    train.train(config_of(home, method="abmil"), tmp_path, ["loss.merge_weight=0.5,0.05,0.005"])
    written = read_json(tmp_path / "fold_0" / "metrics.json")
    assert written["selected"] == {"loss.merge_weight": 0.5}
    assert pd.read_csv(tmp_path / "fold_0" / "sweep.csv")["c_index"].nunique() <= 3


def test_the_refitted_target_has_the_loss_of_the_one_it_stands_for(home, tmp_path):
    shutil.copytree(home / "pool", tmp_path / "pool")
    pool = Pool(tmp_path / "pool")
    stated = {"objective": objective_record(Objective((("incidence_nll", 1.0),)))}
    stated["bins"] = {"edges": [30.0 * i for i in range(33)], "kind": "uniform"}
    member = pool.member("sim_a", 0)
    pool.add("sim_a-fold_0", SavedModel("abmil", ARCHITECTURE, stated, member.params))
    config = config_of(home, pool__root=str(pool.root), method="average")
    train.train(config, tmp_path / "w", ["merging.include_target=true,false"])
    model = saved_model.load_model(tmp_path / "w/fold_0/sweep/inner_0/target")
    assert model.metadata == stated


def test_target_without_bins_is_refitted_with_those_of_the_run(home, tmp_path):
    config = config_of(home, method="average", bins__width_days=30.0)
    train.train(config, tmp_path, ["merging.include_target=true,false"])
    model = saved_model.load_model(tmp_path / "fold_0/sweep/inner_0/target")
    assert model.metadata["bins"]["edges"] == [30.0 * i for i in range(33)]


def test_the_refitted_target_has_bins_of_the_patients_it_is_fitted_on(home, tmp_path):
    """A head that comes from the target fits the bins of every inner fold, and no held-out time."""
    section = {"kind": "quantile", "number": 2, "width_days": 365.0}
    config = config_of(home, pool__root=str(tmp_path / "pool"), method="steph_target")
    config |= {"bins": section}
    typed = Config.from_dict(config)
    cohort = experiment.read_cohort(typed)
    outer = experiment.time_bins(typed, cohort, cohort.folds[0])
    architecture, pool = dataclasses.replace(ARCHITECTURE, num_bins=2), Pool(tmp_path / "pool")
    null = as_numpy(abmil.init(jax.random.key(0), architecture))
    pool.add("null", SavedModel("abmil", architecture, {}, null))
    for seed, name in enumerate(["sim_a-fold_0", "sim_b-fold_0", "sim_c-fold_0"]):
        stated = {"bins": outer.to_json()}
        pool.add(name, SavedModel("abmil", architecture, stated, moved(null, seed)))
    train.train(config, tmp_path / "w", [WEIGHTS])
    actual = [
        saved_model.load_model(path).metadata["bins"]
        for path in sorted(tmp_path.glob("w/fold_0/sweep/inner_*/target"))
    ]
    inner = cut_inner_folds(cohort, 0, config["seed"])
    assert actual == [experiment.time_bins(typed, cohort, cut.split).to_json() for cut in inner]
    assert any(bins != outer.to_json() for bins in actual)
