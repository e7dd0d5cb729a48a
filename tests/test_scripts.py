"""What the experiments on real patients share, and the table of variants."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scripts"))
import inner_repeats
import tcga_rna
import variants

from steph_jax.data.features.open import open_features


def test_unknown_cohort_is_refused_before_writing(tmp_path):
    home = tmp_path / "shared" / "tcga_rna"
    (home / "tcga_kirc").mkdir(parents=True)
    (home / "pathways.npz").touch()
    with pytest.raises(ValueError, match=r"no cohort tcga_typo; there are tcga_kirc"):
        tcga_rna.prepare(tmp_path / "shared", tmp_path / "out", ["tcga_kirc", "tcga_typo"])
    assert not (tmp_path / "out").exists()


def test_other_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected tcga_rna/ and parity/ there .*--shared"):
        tcga_rna.prepare(tmp_path, tmp_path / "out", ["tcga_kirc"])


def test_instances_of_a_bag_are_scaled_pathways():
    profile = np.array([2.0, -1.0, 0.5, 4.0], np.float16)
    member = np.array([[True, True, False, False], [False, False, False, True]])
    bag = tcga_rna.bag_of_profile(profile, member)
    assert bag.dtype == np.float32
    expected = np.zeros((2, 1536))
    expected[0, :2] = np.sqrt(4 / 2) * np.array([2.0, -1.0])
    expected[1, 3] = np.sqrt(4 / 1) * 4.0
    np.testing.assert_allclose(bag, expected, rtol=1e-6)


def test_instances_are_dealt_to_the_slides_of_a_patient(tmp_path):
    cohort = tmp_path / "tcga_x"
    cohort.mkdir()
    rng = np.random.default_rng(0)
    member = rng.random((5, 6)) < 0.5
    member[:, 0] = True
    profiles = rng.normal(size=(2, 6)).astype(np.float32)
    np.savez(tmp_path / "pathways.npz", member=member)
    np.savez(cohort / "expression.npz", patient_id=np.array(["p", "q"]), rna=profiles)
    table = "patient_id,pathology_id\np,p2\nq,q1\np,p1\n"
    (cohort / "tcga_x_survival.csv").write_text(table)
    tcga_rna.write_bags(tmp_path, "tcga_x", tmp_path / "out")
    source = open_features(tmp_path / "out", feature_dim=1536)
    bags = [tcga_rna.bag_of_profile(profile, member) for profile in profiles]
    np.testing.assert_array_equal(source.read("p1"), bags[0][0::2])
    np.testing.assert_array_equal(source.read("p2"), bags[0][1::2])
    np.testing.assert_array_equal(source.read("q1"), bags[1])


def test_draws_of_inner_folds_see_the_moments_of_bags(tmp_path):
    """As `ridge_cox` reads them, of the training patients of fold 0."""
    cohort = tmp_path / "tcga_x"
    cohort.mkdir()
    rng = np.random.default_rng(0)
    member = rng.random((5, 6)) < 0.5
    member[:, 0] = True
    profiles = rng.normal(size=(3, 6)).astype(np.float32)
    np.savez(tmp_path / "pathways.npz", member=member)
    np.savez(cohort / "expression.npz", patient_id=np.array(["p", "q", "r"]), rna=profiles)
    rows = "p,p1,5,1\nq,q1,6,0\nr,r1,7,1\n"
    (cohort / "tcga_x_survival.csv").write_text(f"patient_id,pathology_id,t,e\n{rows}")
    (cohort / "splits_0.csv").write_text("train,test\nr,q\np,\n")
    actual = inner_repeats.read_patients(tmp_path, "tcga_x")
    bags = [tcga_rna.bag_of_profile(profile, member)[:, :6] for profile in profiles[[2, 0]]]
    expected = [[*bag.mean(axis=0), *bag.std(axis=0)] for bag in bags]
    np.testing.assert_allclose(actual.moments, expected, rtol=1e-5, atol=1e-6)
    assert (actual.time.tolist(), actual.event.tolist()) == ([7, 5], [True, True])


def test_draws_of_inner_folds_are_compared_over_cohorts():
    rows = [
        ("a", 40, 1, 0.60, 0.62, 0.61, 0.60),
        ("a", 40, 2, 0.60, 0.64, 0.61, 0.60),
        ("b", 40, 1, 0.70, 0.69, 0.71, 0.75),
    ]
    names = ["cohort", "patients", "seed"]
    names += [f"{method}_{k}" for k in (1, 10) for method in ("ridge_cox", "linear_pool")]
    one, ten = inner_repeats.summary(pd.DataFrame(rows, columns=names)).to_dict("records")
    assert (one["draws"], ten["draws"]) == (1, 10)
    assert one["gain"] == pytest.approx((0.03 - 0.01) / 2)
    assert one["error"] == pytest.approx(0.02)  # of +0.03 and -0.01
    assert (one["worst_cohort"], one["worst_run"]) == (-0.01, -0.01)
    assert ten["worst_run"] == -0.01


def test_variants_are_compared_within_inner_folds():
    c_index = {
        "steph_target": (0.60, 0.70, 0.80),
        "abmil": (0.61, 0.68, 0.77),
        "lost": (np.nan,) * 3,
    }
    rows = [
        (name, 0, number, value)
        for name, values in c_index.items()
        for number, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["variant", "fold", "inner_fold", "c_index"])
    *_, reference, abmil, lost = variants.markdown("tcga_x", table).splitlines()
    assert reference == "| steph_target | 0.7000 | | | |"
    assert abmil == "| abmil | 0.6867 | -0.0133 | 0.0208 | 1 of 3 |"
    assert lost == "| lost | diverged | | | |"
