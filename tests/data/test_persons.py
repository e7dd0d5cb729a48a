"""Ids that are one person's, and ids that are not."""

import itertools

import pytest

from steph_jax.data.folds import tissue_source_site
from steph_jax.data.persons import (
    barcode_patient,
    normalized_patient_id,
    person_keys,
    person_labels,
)


@pytest.mark.parametrize(
    "ids",
    [
        [
            *("TCGA-BH-A0B1", "tcga-bh-a0b1", "TCGA.BH.A0B1", "TCGA_BH_A0B1", " TCGA-BH-A0B1 "),
            *("TCGA-BH-A0B1-01", "TCGA-BH-A0B1-01A", "TCGA.BH.A0B1.01A.11R.A115.07"),
            "TCGA-BH-A0B1-01Z-00-DX1.2F8E7A38-6E8C-4C21-A96B-6A1AFB1A2C3D",
        ],
        ["C3L-00016", "C3L-00016-21", "c3l_00016"],
        ["GTEX-1117F", "GTEX-1117F-0126"],
        ["TARGET-20-PABCDE", "TARGET-20-PABCDE-09A"],
        ["0007", "7", "7.0", "007.", "7.00"],
        ["100000", "1e+05", "1E+05", "100000.0", "0100000"],
        ["1234000", "1.234e+06"],
        ["Case 12", "case_12", "CASE-12", "case.12"],
    ],
)
def test_ids_of_one_person(ids):
    assert len(set(map(normalized_patient_id, ids))) == 1


def test_ids_of_several_persons():
    ids = [
        *("TCGA-BH-A0B1", "TCGA-BH-A0B2", "TCGA-BJ-A0B1", "TCGA-BH-A0B1X", "7", "70", "7.5", "07A"),
        *("P1", "P11", "P-1", "1e5", "C3L-00016", "C3N-00016", "C3L-000161"),
    ]
    for one, other in itertools.combinations(ids, 2):
        assert normalized_patient_id(one) != normalized_patient_id(other), (one, other)


def test_persons_are_compared_by_slides_too():
    assert person_keys("A", ["x/TCGA-BH-A0B1-01Z-00-DX1.svs"]) == {"A", "TCGA-BH-A0B1"}
    assert person_keys("a", ["S 1.svs"]) == person_keys("A", ["batch/s-1.h5"])
    slides_of = {
        "A1": ("TCGA-BH-A0B1-01Z-00-DX1",),
        "B1": ("TCGA-BH-A0B1-06Z-00-DX1", "shared.svs"),
        "C1": ("shared.tiff",),
        "D1": ("other",),
        "d1": ("another",),
        "E1": (),
    }
    labels = person_labels(slides_of)
    assert labels["A1"] == labels["B1"] == labels["C1"] == "A1"
    assert labels["D1"] == labels["d1"] == "D1"
    assert labels["E1"] == "E1"


def test_ids_without_barcode():
    for text in ("TCGA-BH", "XTCGA-BH-A0B1", "C3L-16", ""):
        assert barcode_patient(text) == ""
    assert tissue_source_site("tcga.bh.a0b1") == "BH"
    assert tissue_source_site("C3L-00016") == ""
