"""Folds of a cohort, stratified by event, time and tissue source site.

A stratum holds the patients of one event status in one quantile group of time. Every stratum is
dealt out evenly, the patients one too many to the folds that are behind; within a stratum, patients
of a site go to the folds that have fewest of that site. Whole sites can be kept together instead,
for a test on hospitals that training has not seen.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from steph_jax.data.persons import barcode_patient
from steph_jax.survival.labels import survival_labels

#: Quantile groups of time within the patients of one event status, at most.
TIME_GROUPS = 4


def tissue_source_site(patient: str) -> str:
    """The site of a TCGA barcode (`BH` of TCGA-BH-A0B1); empty for other ids."""
    program, _, rest = barcode_patient(patient).partition("-")
    return rest.partition("-")[0] if program == "TCGA" else ""


def describe_sites(folds: Iterable[tuple[Sequence[str], Sequence[str]]]) -> str:
    """Whether folds keep tissue source sites whole, as a sentence.

    A model may learn to tell sites apart by their stains, and sites differ in outcome: where a site
    is on both sides of a fold, a C-index holds for patients of known sites only.

    Args:
        folds: training and test patients of each.
    """
    known = test_patients = 0
    for train, test in folds:
        trained = set(map(tissue_source_site, train)) - {""}
        sites = [site for site in map(tissue_source_site, test) if site]
        known += sum(site in trained for site in sites)
        test_patients += len(sites)
    if not test_patients:
        return "Ids are no TCGA barcodes, so it is not known whether folds keep hospitals whole."
    if not known:
        return "Tissue source sites are whole: no test patient is of a site that training has seen."
    return (
        f"Tissue source sites are spread over folds: {known / test_patients:.0%} of the test "
        "patients are of sites that training has seen."
    )


def strata(
    time: NDArray[np.float64], event: NDArray[np.bool_], num_folds: int
) -> NDArray[np.int64]:
    """Number of each patient's stratum [P]: event status, then the quantile group of time.

    There are at most `TIME_GROUPS` groups, and so few that each could send a patient to every fold.
    Equal times are ordered by their place.
    """
    numbers = np.zeros(len(time), np.int64)
    for status in (False, True):
        rows = np.flatnonzero(event == status)
        groups = max(1, min(TIME_GROUPS, len(rows) // num_folds))
        ranked = rows[np.argsort(time[rows], kind="stable")]
        numbers[ranked] = TIME_GROUPS * status + np.arange(len(rows)) * groups // max(1, len(rows))
    return numbers


def make_folds(
    patients: Sequence[str],
    time: Sequence[float] | NDArray[np.float64],
    event: Sequence[int] | NDArray[np.bool_],
    *,
    num_folds: int = 5,
    seed: int = 42,
    whole_sites: bool = False,
) -> NDArray[np.int64]:
    """The test fold of each patient.

    Args:
        patients: [P] ids; the site is read from TCGA barcodes.
        time: [P] time to the event or to the end of follow-up, in any unit.
        event: [P] True or 1 where death was seen.
        num_folds: how many folds.
        seed: of what chance decides; equal arguments give equal folds.
        whole_sites: keep the patients of a site in one fold; else every fold has its share.

    Returns:
        [P] in [0, num_folds). Unless sites are kept whole, the numbers of events in two folds
        differ by one at most, and so do those of patients of a stratum.

    Raises:
        ValueError: fewer than 2 folds; fewer patients than folds; fewer than 2 events, with which
            some fold would be trained without any; sites that are unknown or fewer than the folds.
    """
    times, events = survival_labels(time, event, patients)
    if num_folds < 2:
        raise ValueError(f"expected 2 folds or more, found {num_folds}")
    if len(patients) < num_folds:
        raise ValueError(f"{len(patients)} patients cannot be dealt to {num_folds} folds")
    if events.sum() < 2:
        raise ValueError(
            f"expected 2 events or more, so that every fold is trained with one; found "
            f"{int(events.sum())}"
        )
    rng = np.random.default_rng(seed)
    sites = [tissue_source_site(patient) for patient in patients]
    numbers = strata(times, events, num_folds)
    if not whole_sites:
        return _deal_patients(sites, numbers, num_folds, rng)
    unknown = [patient for patient, site in zip(patients, sites, strict=True) if not site]
    if unknown:
        raise ValueError(
            "sites can be kept whole for TCGA barcodes (TCGA-XX-XXXX) only; found "
            f"{unknown[0]!r} and {len(unknown) - 1} more"
        )
    if len(set(sites)) < num_folds:
        raise ValueError(
            f"{len(set(sites))} sites cannot be dealt whole to {num_folds} folds; ask for fewer "
            "folds, or do not keep sites whole"
        )
    return _deal_sites(sites, numbers, num_folds, rng)


def _deal_patients(
    sites: Sequence[str], numbers: NDArray[np.int64], num_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deals every stratum evenly, and within it every site."""
    folds = np.full(len(sites), -1, np.int64)
    size_of_site = Counter(sites)
    at_site = {site: np.zeros(num_folds, np.int64) for site in size_of_site}
    counts = np.zeros((2, num_folds), np.int64)
    for number in np.unique(numbers):
        shuffled = rng.permutation(np.flatnonzero(numbers == number))
        rows = sorted(shuffled, key=lambda row: (-size_of_site[sites[row]], sites[row]))
        status = counts[int(number) // TIME_GROUPS]
        quota = np.full(num_folds, len(rows) // num_folds)
        behind = np.lexsort((rng.random(num_folds), counts.sum(axis=0), status))
        quota[behind[: len(rows) % num_folds]] += 1
        status += quota
        for row in rows:
            site_counts = at_site[sites[row]]
            fold = np.lexsort((rng.random(num_folds), -quota, site_counts, quota == 0))[0]
            folds[row] = fold
            quota[fold] -= 1
            site_counts[fold] += 1
    return folds


def _deal_sites(
    sites: Sequence[str], numbers: NDArray[np.int64], num_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sends whole sites, the largest first, to where they bring the folds closest together.

    What is kept small is the sum of squares, over folds, of the patients in each stratum, of the
    events and of all patients.
    """
    names = np.asarray(sites)
    kinds = np.concatenate(
        [
            numbers == np.unique(numbers)[:, None],
            (numbers >= TIME_GROUPS)[None],
            np.ones((1, len(names)), bool),
        ]
    )
    shares = kinds / np.maximum(1, kinds.sum(axis=1, keepdims=True))
    shuffled = rng.permutation(np.unique(names))
    unique = sorted(shuffled, key=lambda site: -int((names == site).sum()))
    counts = np.zeros((num_folds, len(kinds)))
    folds = np.full(len(names), -1, np.int64)
    for sites_left, site in zip(range(len(unique), 0, -1), unique, strict=True):
        rows = names == site
        brought = shares[:, rows].sum(axis=1)
        cost = ((counts + brought) ** 2 - counts**2).sum(axis=1)
        empty = ~counts.any(axis=1)
        if empty.sum() == sites_left:  # the sites that are left just fill the empty folds
            cost = np.where(empty, cost, np.inf)
        fold = int(np.argmin(cost))
        folds[rows] = fold
        counts[fold] += brought
    return folds


def choose_validation(
    patients: Sequence[str],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    *,
    fraction: float,
    seed: int,
    whole_sites: bool = False,
) -> NDArray[np.bool_]:
    """Which of a fold's patients outside of its test part are for validation.

    Args:
        patients, time, event: [P], of the patients to choose from.
        fraction: of them, in [0, 1).
        seed: of the choice.
        whole_sites: choose whole sites, as many as fit into the fraction.

    Returns:
        [P] True for validation; floor(fraction * P) patients, taken evenly along event status and
        time unless whole sites are.

    Raises:
        ValueError: for another fraction.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation part is a fraction in [0, 1), found {fraction}")
    rng = np.random.default_rng(seed)
    size = math.floor(fraction * len(patients) + 1e-9)
    selection = np.zeros(len(patients), bool)
    if whole_sites:
        sites = np.asarray([tissue_source_site(patient) for patient in patients])
        for site in rng.permutation(np.unique(sites)):
            rows = sites == site
            if selection.sum() + rows.sum() <= size:
                selection |= rows
        return selection
    order = np.lexsort((rng.random(len(patients)), time, event))
    steps = np.floor((np.arange(len(order) + 1) + rng.random()) * size / max(1, len(order)))
    selection[order[np.diff(steps) > 0]] = True
    return selection
