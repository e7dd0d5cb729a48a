"""Which ids are one person's, however tables, splits and other cohorts write them.

Programs write barcodes in other lengths and with other separators, and spreadsheets turn ids into
numbers: `TCGA-BH-A0B1-01A`, `tcga.bh.a0b1` and `TCGA_BH_A0B1` are one person, `0007` and `7.0` too.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from steph_jax.data.features.slide_ids import slide_name

_SEPARATORS = re.compile(r"[\s._-]+")
_NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")
_POWER = re.compile(r"(\d)(?:\.(\d+))?[eE]\+(\d{1,2})")
#: The patient's part of barcodes whose later parts are samples, portions and slides.
_BARCODES = (
    re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}(?![0-9A-Z])"),
    re.compile(r"TARGET-[0-9]{2}-[0-9A-Z]{6}(?![0-9A-Z])"),
    re.compile(r"C3[LN]-[0-9]{5}(?![0-9A-Z])"),
    re.compile(r"GTEX-[0-9A-Z]{4,5}(?![0-9A-Z])"),
)


def _capital(text: str) -> str:
    """The id in capitals, with one dash for whatever separates its parts."""
    return _SEPARATORS.sub("-", text.strip().upper()).strip("-")


def barcode_patient(text: str) -> str:
    """The patient that a barcode of any length begins with (TCGA, TARGET, CPTAC, GTEx); else ""."""
    capital = _capital(text)
    matches = (barcode.match(capital) for barcode in _BARCODES)
    return next((match[0] for match in matches if match), "")


def _whole_number(text: str) -> str:
    """A whole number without zeros before or behind it, however it was written; else ""."""
    power = _POWER.fullmatch(text)
    if power is not None:
        digits, exponent = (power[2] or "").rstrip("0"), int(power[3])
        return power[1] + digits.ljust(exponent, "0") if len(digits) <= exponent else ""
    number = _NUMBER.fullmatch(text)
    return number[1] if number else ""


def normalized_patient_id(patient: str) -> str:
    """What all ids of one person share.

    The patient of a barcode; a whole number without leading zeros and decimals; any other id in
    capitals, its parts joined by dashes.
    """
    text = patient.strip()
    return barcode_patient(text) or _whole_number(text) or _capital(text)


def person_keys(patient: str, slides: Iterable[str] = ()) -> set[str]:
    """What identifies a person: two patients who share a key are one.

    Args:
        patient: id.
        slides: ids of the patient's slides.

    Returns:
        the normalized patient id, the patients that barcodes of slides name, and the slides
        themselves, without folder, extension, case and separators.
    """
    keys = {normalized_patient_id(patient)}
    for slide in slides:
        name = slide_name(slide)
        keys.add(barcode_patient(name) or f"slide {_capital(name)}")
    return keys


def person_labels(slides_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The person of each patient id: ids that share a key of `person_keys`, on any way, are one.

    Args:
        slides_of: slides of each patient id.

    Returns:
        by patient id, the normalized id of the first one of the same person.
    """
    parent: dict[str, str] = {patient: patient for patient in slides_of}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, slides in slides_of.items():
        for key in person_keys(patient, slides):
            first = root(owner.setdefault(key, patient))
            own = root(patient)
            parent[max(first, own)] = min(first, own)
    return {patient: normalized_patient_id(root(patient)) for patient in slides_of}


def ids_by_person(person_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The ids of every person, in the order of `person_of`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for patient, person in person_of.items():
        groups[person].append(patient)
    return {person: tuple(ids) for person, ids in groups.items()}
