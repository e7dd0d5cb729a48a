"""Sections of slides by their TCGA barcodes: diagnostic or frozen, tumor or normal."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from steph_jax.checks import findings
from steph_jax.checks.findings import Finding
from steph_jax.data.features.slide_ids import slide_name

#: Patient, sample type, vial, portion and analyte, section: TCGA-BH-A0B1-01Z-00-DX1.
_SLIDE = re.compile(
    r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}-(\d\d)[A-Z]?-\d\d[A-Z]?-(DX|TS|MS|BS)[0-9A-Z]*(?![0-9A-Z])"
)
_SEPARATORS = re.compile(r"[._]")
#: Sample types of normal tissue.
_NORMAL = range(10, 20)


def check_sections(path: Path, slides: Iterable[Sequence[str]]) -> list[Finding]:
    """Frozen sections among diagnostic ones, and sections of normal tissue.

    Args:
        path: of the table.
        slides: ids of slides of each patient.
    """
    frozen, normal, diagnostic = [], [], 0
    for slide in (slide for patient_slides in slides for slide in patient_slides):
        match = _SLIDE.match(_SEPARATORS.sub("-", slide_name(slide).upper()))
        if match is None:
            continue
        if int(match[1]) in _NORMAL:
            normal.append(slide)
        elif match[2] != "DX":
            frozen.append(slide)
        else:
            diagnostic += 1
    results = []
    advice = "they are joined with the patient's other slides; to leave them out, take their rows "
    advice += "out of the table"
    if frozen and diagnostic:
        text = (
            f"{path}: frozen sections (TS, MS, BS in the barcode; {len(frozen)}) beside "
            f"{diagnostic} diagnostic ones (DX)"
        )
        values = {"frozen": len(frozen), "diagnostic": diagnostic}
        results.append(findings.warning("sections", text, advice, frozen, **values))
    if normal:
        text = f"{path}: sections of normal tissue (sample type 10 to 19; {len(normal)})"
        results.append(findings.warning("sections", text, advice, normal, normal=len(normal)))
    return results
