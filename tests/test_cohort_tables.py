"""Tables of cohorts from runs that are finished in part."""

import pathlib
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from finished_runs import patients, write

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scripts"))
import cohort_tables
import run_cohorts

from steph_jax import plots

SEEDS = {80: (42, 43), 0: (42,)}
LABELS = ("abmil", "linear_pool", "linear_pool+permuted")


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Calls of the functions that draw, by name; nothing is drawn."""
    calls = {"forest": [], "learning_curve": []}
    for name, of_name in calls.items():
        monkeypatch.setattr(plots, name, lambda *args, of_name=of_name: of_name.append(args))
    return calls


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two cohorts with both numbers of patients; of the second, one fold was not finished."""
    home = tmp_path_factory.mktemp("out")
    (home / "pool").mkdir()
    for place, cohort in enumerate(("tcga_a", "tcga_b")):
        for number, seeds in SEEDS.items():
            for label in LABELS:
                for seed in seeds:
                    who = patients(50, 5, seed=place)
                    rng = np.random.default_rng([seed, len(label), number])
                    who.risk = who.log_hazard + rng.normal(size=50)
                    write(
                        home / cohort / f"patients_{number or 'all'}" / f"{label}-seed_{seed}", who
                    )
    shutil.rmtree(home / "tcga_b/patients_all/linear_pool+permuted-seed_42/fold_3")
    return home


@pytest.fixture(scope="module")
def parts(home):
    return [cohort_tables.finished(home, number, SEEDS[number]) for number in (80, 0)]


def test_what_is_finished_is_shown_and_what_is_not_is_said(home, parts, tmp_path):
    assert cohort_tables.numbers_in(home) == [80, 0]
    cohort_tables.write(tmp_path, parts)
    page = (tmp_path / "cohorts.md").read_text()
    assert "- all training patients, tcga_b: linear_pool+permuted-seed_42: folds 3" in page
    assert page.count("folds 3") == 1
    runs = pd.read_csv(tmp_path / "tables/cohorts.csv")
    columns = ["train_patients", "dataset", "control", "method", "fold"]
    means = runs.groupby(columns)["c_index"].mean().groupby(columns[:4]).mean()
    assert len(means) == 3 * 2 + 3 + 2
    for row in ("linear_pool+permuted", "abmil"):
        method, _, control = row.partition("+")
        a, b = (means[80, name, control or "none", method] for name in ("tcga_a", "tcga_b"))
        assert f"| {row} | {a:.4f} | {b:.4f} | {(a + b) / 2:.4f} |" in page
    gains = pd.read_csv(tmp_path / "tables/cohort_gains.csv")
    real = gains[gains["against"] == "linear_pool+permuted"].set_index(
        ["train_patients", "dataset"]
    )
    # One cohort alone has no difference over cohorts.
    assert real.index.tolist() == [(80, "tcga_a"), (80, "tcga_b")]
    for cohort in ("tcga_a", "tcga_b"):
        of_cohort = means[80, cohort]
        difference = of_cohort["none", "linear_pool"] - of_cohort["permuted", "linear_pool"]
        assert real.loc[(80, cohort), "difference"] == pytest.approx(difference, abs=1e-5)


def test_pictures_are_of_real_sources_less_permuted_ones_and_of_gains(parts, tmp_path, drawn):
    cohort_tables.write(tmp_path, parts)
    ((cohorts, means, path, title),) = drawn["forest"]
    assert set(cohorts["against"]) == set(means["against"]) == {"linear_pool+permuted"}
    assert (path.name, title) == (
        "cohorts_80.png",
        "Real sources less permuted ones, 80 training patients",
    )
    ((curve, path, _),) = drawn["learning_curve"]
    assert path.name == "cohorts_gain.png"
    pairs = curve.groupby("train_patients")["against"].agg(set)
    assert pairs[80] == {"abmil", "linear_pool+permuted"}
    assert pairs[0] == {"abmil"}
    page = (tmp_path / "cohorts.md").read_text()
    assert page.count("](images/") == 2


def test_a_cohort_keeps_both_numbers_of_patients(parts, tmp_path):
    (tmp_path / "tcga_a").mkdir()
    results = {part.number: part.comparisons for part in parts}
    run_cohorts.write_both(
        tmp_path, {n: {"tcga_a": by["tcga_a"]} for n, by in results.items()}, "", ""
    )
    table = pd.read_csv(tmp_path / "tcga_a/compare.csv")
    assert table["train_patients"].value_counts().to_dict() == {80: 3 * 2 * 5, 0: 3 * 5}
    assert (
        "- Seeds 42, 43 with 80; 42 with all (40)."
        in (tmp_path / "tcga_a/learning_curve.md").read_text()
    )


def test_nothing_finished_is_said(tmp_path):
    place = tmp_path / "out/tcga_a/patients_all/abmil-seed_42"
    place.mkdir(parents=True)
    (part,) = [cohort_tables.finished(tmp_path / "out", 0, (42,))]
    cohort_tables.write(tmp_path, [part])
    page = (tmp_path / "cohorts.md").read_text()
    assert "Nothing is finished yet." in page
    assert "- all training patients, tcga_a: abmil-seed_42" in page
