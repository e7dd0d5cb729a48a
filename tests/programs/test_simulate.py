"""The simulator: its files, its truth, and that the truth can be seen in the features."""

import dataclasses
import json
import pathlib

import h5py
import numpy as np
import pandas as pd
import pytest

from steph_jax import cli, simulate
from steph_jax.data import simulation
from steph_jax.data.features.open import open_features
from steph_jax.data.simulation import Settings

SMALL = Settings(cohorts=3, patients=30, patches=12, feature_dim=32, two_slides=0.4)


def quiet(line: str) -> None:
    """Reports nothing."""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("simulation")
    simulate.simulate(out, SMALL, quiet)
    return out


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def many_patients(settings: Settings, index: int) -> tuple[np.ndarray, ...]:
    """Log hazard, days and events of a cohort, without patches."""
    cancer = simulation.draw_cancer(settings, index)
    patients = [
        simulation.draw_patient(cancer, number) for number in range(settings.cohort_sizes[index])
    ]
    return tuple(
        np.array([getattr(p, name) for p in patients]) for name in ("log_hazard", "days", "event")
    )


def test_tables_splits_and_features_agree(written):
    assert {path.name for path in written.iterdir()} == {
        "features",
        "sim_a",
        "sim_b",
        "sim_c",
        "simulation.json",
        "truth.json",
    }
    for dataset in SMALL.datasets:
        table = pd.read_csv(written / dataset / f"{dataset}_survival.csv")
        assert list(table.columns) == ["patient_id", "pathology_id", "project", "t", "e"]
        assert table["e"].isin([0, 1]).all()
        assert (table["t"] >= 1).all()
        assert table["pathology_id"].is_unique
        patients = table.groupby("patient_id")
        assert patients.ngroups == 30
        assert set(patients.size()) == {1, 2}
        assert (patients[["t", "e"]].nunique() == 1).all(axis=None)

        source = open_features(written / "features" / dataset, feature_dim=32)
        assert set(source.slide_ids) == set(table["pathology_id"])
        for _, slides in patients["pathology_id"]:
            parts = [source.read(slide, check_finite=True) for slide in slides]
            assert {part.dtype for part in parts} == {np.dtype(np.float32)}
            assert sum(map(len, parts)) >= 8


def test_feature_files_have_the_layout_of_clam(written):
    with h5py.File(written / "features/sim_a/SIM-A-0000-DX1.h5") as file:
        assert file["features"].dtype == np.float32
        assert file["features"].shape[1] == 32
        assert file["coords"].shape == (len(file["features"]), 2)
        assert len(np.unique(file["coords"], axis=0)) == len(file["features"])


def test_folds_partition_the_patients_and_share_the_events(written):
    table = pd.read_csv(written / "sim_b/sim_b_survival.csv").drop_duplicates("patient_id")
    event = table.set_index("patient_id")["e"]
    tests, events = [], []
    for fold in range(5):
        split = pd.read_csv(written / f"sim_b/splits_{fold}.csv")
        train, test = set(split["train"].dropna()), set(split["test"].dropna())
        assert not train & test
        assert train | test == set(event.index)
        tests += sorted(test)
        events.append(event[sorted(test)].sum())
    assert sorted(tests) == sorted(event.index)
    assert max(events) - min(events) <= 1


def test_truth_matches_the_files(written):
    truth = json.loads((written / "truth.json").read_text())
    assert truth["phenotypes"] == 12
    for dataset in SMALL.datasets:
        facts = truth["cohorts"][dataset]
        table = pd.read_csv(written / dataset / f"{dataset}_survival.csv")
        patients = table.drop_duplicates("patient_id").reset_index(drop=True)
        patient_truth = pd.read_csv(written / dataset / f"{dataset}_truth.csv")
        assert list(patient_truth["patient_id"]) == list(patients["patient_id"])
        assert facts["slides"] == len(table)
        assert facts["patients"] == len(patients)
        assert facts["events"] == patients["e"].sum()
        proportions = patient_truth.filter(like="proportion_").to_numpy()
        np.testing.assert_allclose(proportions.sum(axis=1), 1)
        assert proportions.shape == (30, 14)
        vector = np.array(facts["hazard_vector"])
        assert abs(vector[facts["drivers"][0]]) == abs(vector).max()
        for other in SMALL.datasets:
            cosine = vector @ np.array(truth["cohorts"][other]["hazard_vector"])
            assert truth["relatedness"][dataset][other] == pytest.approx(cosine, abs=1e-6)

        time, event = patients["t"].to_numpy(), patients["e"].to_numpy()
        risk = patient_truth["log_hazard"].to_numpy()
        pairs = [(i, j) for i in range(30) for j in range(30) if event[i] and time[i] < time[j]]
        concordant = np.mean([risk[i] > risk[j] for i, j in pairs])
        assert facts["oracle_c_index"] == pytest.approx(concordant)


def test_hazard_vectors_have_the_requested_cosine():
    def cosines(**changes: float) -> np.ndarray:
        settings = dataclasses.replace(SMALL, **changes)
        vectors = np.stack([simulation.draw_cancer(settings, c).hazard_vector for c in range(3)])
        return vectors @ vectors.T

    eye, one = np.eye(3), np.ones((3, 3))
    np.testing.assert_allclose(cosines(shared=1), one, atol=1e-12)
    np.testing.assert_allclose(cosines(shared=0), eye, atol=1e-12)
    np.testing.assert_allclose(cosines(shared=0.7), 0.3 * eye + 0.7 * one, atol=1e-12)
    apart = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    grouped = np.where(apart, 0, 0.3 * eye + 0.7 * one)
    np.testing.assert_allclose(cosines(shared=0.7, groups=2), grouped, atol=1e-12)


@pytest.mark.parametrize("censoring", [0.0, 0.2, 0.5, 0.8])
def test_censoring_is_near_its_target(censoring):
    settings = Settings(patients=1500, feature_dim=2, censoring=censoring)
    log_hazard, days, event = many_patients(settings, 2)
    assert 1 - event.mean() == pytest.approx(censoring, abs=0.04)
    assert log_hazard.mean() == pytest.approx(0, abs=0.1)
    assert log_hazard.std() == pytest.approx(settings.strength, rel=0.08)
    if not censoring:
        assert 365 < np.median(days) < 365 * 9


def test_oracle_c_index_is_in_range():
    for index in range(Settings().cohorts):
        log_hazard, days, event = many_patients(Settings(patients=400, feature_dim=2), index)
        oracle = simulate.metrics.concordance_index(days, event, log_hazard)
        assert 0.73 < oracle < 0.82


def test_times_follow_the_hazards_they_are_drawn_from():
    """Cumulative hazards at the time of death are standard exponentials."""
    settings = Settings(patients=2000, feature_dim=2, censoring=0)
    scale = simulation.draw_cancer(settings, 1).scale
    log_hazard, days, _ = many_patients(settings, 1)
    cumulative = (days / scale) ** 1.2 * np.exp(log_hazard)
    for share in (0.1, 0.5, 0.9):
        quantile = -np.log1p(-share)
        assert (cumulative < quantile).mean() == pytest.approx(share, abs=0.035)


def test_hazard_can_be_seen_in_the_mean_of_a_bag():
    """Ridge regression on mean features of other patients finds the log hazard."""
    settings = Settings(patients=150, patches=60, feature_dim=256)
    for index in range(2):
        cancer = simulation.draw_cancer(settings, index)
        patients = [simulation.draw_patient(cancer, number) for number in range(150)]
        bags = [np.concatenate(simulation.draw_patches(cancer, p)) for p in patients]
        assert np.concatenate(bags).mean() == pytest.approx(0, abs=0.1)
        assert np.concatenate(bags).var() == pytest.approx(1, abs=0.15)
        x = np.stack([bag.mean(axis=0) for bag in bags])
        x -= x[:100].mean(axis=0)
        log_hazard = np.array([p.log_hazard for p in patients])
        event = np.array([p.event for p in patients])
        days = np.array([p.days for p in patients])
        for target, least in ((log_hazard, 0.7), (-np.log(days), 0.57)):
            dual = np.linalg.solve(x[:100] @ x[:100].T + 3 * np.eye(100), target[:100])
            risk = x[100:] @ x[:100].T @ dual
            c_index = simulate.metrics.concordance_index(days[100:], event[100:], risk)
            assert c_index > least


def test_same_settings_give_the_same_files(written, tmp_path):
    simulate.simulate(tmp_path, SMALL, quiet)
    first, second = contents(written), contents(tmp_path)
    assert first.keys() == second.keys()
    for name in first:
        if not name.endswith(".h5"):
            assert first[name] == second[name], name
    one, other = (open_features(folder / "features/sim_c") for folder in (written, tmp_path))
    for slide_id in one.slide_ids:
        np.testing.assert_array_equal(one.read(slide_id), other.read(slide_id))


def test_a_cohort_does_not_depend_on_the_others(written, tmp_path):
    settings = dataclasses.replace(SMALL, cohorts=2, patients=(12, 30))
    simulate.simulate(tmp_path, settings, quiet)
    for name in ("sim_b_survival.csv", "sim_b_truth.csv", "splits_3.csv"):
        assert (tmp_path / "sim_b" / name).read_bytes() == (written / "sim_b" / name).read_bytes()
    smaller = (tmp_path / "sim_a/sim_a_survival.csv").read_text()
    assert (written / "sim_a/sim_a_survival.csv").read_text().startswith(smaller)
    slide_id = "SIM-A-0011-DX1"
    one, other = (open_features(folder / "features/sim_a") for folder in (written, tmp_path))
    np.testing.assert_array_equal(one.read(slide_id), other.read(slide_id))


def test_seeds_differ():
    hazards = [many_patients(dataclasses.replace(SMALL, seed=seed), 0)[0] for seed in (1, 2)]
    assert not np.isclose(*hazards).any()


def test_interrupted_simulation_continues(written, tmp_path, monkeypatch):
    write, calls = simulate.write_features, []

    def fail_at_last(folder: pathlib.Path, cancer: object, patient: object) -> None:
        calls.append(patient)
        if len(calls) > 40:
            raise KeyboardInterrupt
        write(folder, cancer, patient)

    monkeypatch.setattr(simulate, "write_features", fail_at_last)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(tmp_path, SMALL, quiet)
    assert not (tmp_path / "truth.json").exists()
    monkeypatch.setattr(simulate, "write_features", write)
    with pytest.raises(ValueError, match="holds another simulation"):
        simulate.simulate(tmp_path, dataclasses.replace(SMALL, seed=1), quiet)
    simulate.simulate(tmp_path, SMALL, quiet)
    assert contents(tmp_path).keys() == contents(written).keys()
    assert (tmp_path / "truth.json").read_bytes() == (written / "truth.json").read_bytes()


def test_a_complete_simulation_is_not_made_again(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    lines = []
    truth = simulate.simulate(written, SMALL, lines.append)
    assert lines == [f"{written}: this simulation is already there"]
    assert truth == json.loads((written / "truth.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    same = dataclasses.replace(SMALL, patients=(30, 30, 30))
    assert simulate.simulate(written, same, quiet) == truth


def test_other_folders_are_not_overwritten(written, tmp_path):
    other = dataclasses.replace(SMALL, seed=7, shared=0.5)
    with pytest.raises(ValueError, match=r"seed 42 there, 7 here, shared 0\.7 there, 0\.5 here"):
        simulate.simulate(written, other, quiet)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected a (new or empty folder|folder or a new name)"):
        simulate.simulate(tmp_path, SMALL, quiet)
    with pytest.raises(ValueError, match=r"expected a (new or empty folder|folder or a new name)"):
        simulate.simulate(tmp_path / "notes.txt", SMALL, quiet)
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(ValueError, match=r"simulation\.json: expected the settings"):
        simulate.simulate(tmp_path, SMALL, quiet)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cohorts", 0),
        ("cohorts", 27),
        ("patients", 9),
        ("patients", (20, 20)),
        ("patches", 3),
        ("seed", -1),
        ("shared", 1.5),
        ("groups", 0),
        ("phenotypes", 3),
        ("spread", 0.0),
        ("strength", -1.0),
        ("censoring", 1.0),
        ("median_years", 0.0),
        ("two_slides", 1.1),
        ("feature_dim", 0),
        ("prefix", "a/b"),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*; found "):
        dataclasses.replace(SMALL, **{name: value})


def test_command_line(tmp_path, capsys):
    flags = "--cohorts 2 --patients 12,10 --patches 8 --feature-dim 4 --prefix my --shared 0.5"
    arguments = [str(tmp_path / "out"), *flags.split()]
    assert cli.guarded(lambda: simulate.main(arguments)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["my_a: 12 patients", "my_b: 10 patients"]
    assert (tmp_path / "out/my_b/splits_4.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: OUT"),
        (["out", "--sed", "3"], "unrecognized arguments: --sed"),
        (["out", "--patients", "many"], "argument --patients"),
        (["out", "--patches", "2"], "patches: expected mean number of patches"),
    ],
)
def test_command_line_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.guarded(lambda: simulate.main(arguments)) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert message in captured
    assert captured.count("\n") == 1
    assert not list(tmp_path.iterdir())
