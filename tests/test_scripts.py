"""What the experiments on real patients share, and the table of variants."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scripts"))
import tcga_rna
import variants


def test_an_unknown_cohort_is_refused_before_anything_is_made(tmp_path):
    home = tmp_path / "shared" / "tcga_rna"
    (home / "tcga_kirc").mkdir(parents=True)
    (home / "make_bags.py").touch()
    with pytest.raises(ValueError, match=r"no cohort tcga_typo; there are tcga_kirc"):
        tcga_rna.prepare(tmp_path / "shared", tmp_path / "out", ["tcga_kirc", "tcga_typo"])
    assert not (tmp_path / "out").exists()


def test_variants_are_compared_within_the_inner_folds():
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
