"""Sections that TCGA barcodes tell of, and other names."""

import pathlib

from steph_jax.checks.sections import check_sections

PATH = pathlib.Path("table.csv")


def kinds(*slides):
    return {
        name: number
        for finding in check_sections(PATH, [slides])
        for name, number in finding.values.items()
    }


def test_sections_of_barcodes():
    diagnostic, frozen = "TCGA-BH-A0B1-01Z-00-DX1.2F8E", "TCGA-BH-A0B1-01A-01-TSA.77"
    assert kinds(diagnostic, frozen) == {"frozen": 1, "diagnostic": 1}
    assert kinds(diagnostic, "x/tcga.bh.a0b1.01a.02.bs2.svs") == {"frozen": 1, "diagnostic": 1}
    assert kinds(diagnostic, "TCGA-BH-A0B1-11A-01-BS1", "TCGA-BH-A0B1-11Z-00-DX1") == {"normal": 2}


def test_cohorts_of_one_kind_of_section():
    assert kinds("TCGA-BH-A0B1-01Z-00-DX1", "TCGA-BH-A0B1-06Z-00-DX2") == {}
    assert kinds("TCGA-BH-A0B1-01A-01-TS1", "TCGA-BH-A0B2-01A-01-MS1") == {}
    assert kinds("slide_TS1", "C3L-00016-21", "TCGA-BH-A0B1") == {}
