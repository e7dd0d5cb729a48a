"""Ids of patients that are spelt differently in two tables, but of one person."""

import re

#: The patient's part of a TCGA barcode.
BARCODE = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}")


def same_person(patient: str) -> str:
    """What two ids of one patient share: the TCGA barcode's patient, or the id in capitals."""
    capital = patient.strip().upper()
    match = BARCODE.match(capital)
    return match[0] if match else capital
