"""The cancers that `steph_jax.simulate` simulates: see the equations in its docstring.

Pure draws of random numbers; no files.
"""

import dataclasses
import string
from typing import Any

import numpy as np

#: Raised whenever the same settings give other numbers.
GENERATOR = 1
NUM_FOLDS = 5
_OWN_PHENOTYPES = 2
_RANK = 8
_VARIANCES = {"prototype": 0.5, "within": 0.25, "noise": 0.25}
_OFFSET_SD = 0.1
_PREVALENCE_SD = 0.5
_WEIBULL_SHAPE = 1.2
_MEDIAN_SD = 0.3
_PATCHES_SD = 0.4
_MIN_PATCHES = 8
#: Draws that stand for a cancer's whole population.
_POPULATION = 8192


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is simulated; the same settings give the same files. Units are in the help texts."""

    cohorts: int = _setting(5, "number of cancers, at most 26")
    patients: int | tuple[int, ...] = _setting(
        100, "patients of each cancer: one number, or one for each (60,300,300)"
    )
    patches: int = _setting(200, "mean number of patches of a patient (lognormal, sd of log 0.4)")
    seed: int = _setting(42, "seed of everything")
    shared: float = _setting(0.7, "cosine of the hazards of two cancers of a group, in [0, 1]")
    groups: int = _setting(1, "groups of related cancers: cancer c is in group c mod groups")
    phenotypes: int = _setting(12, "phenotypes that all cancers share; at least cohorts + groups")
    spread: float = _setting(1.0, "sd of the log proportions of phenotypes between patients")
    strength: float = _setting(1.3, "sd of the log hazard between patients")
    censoring: float = _setting(0.5, "expected share of censored patients, in [0, 1)")
    median_years: float = _setting(3.0, "median survival of a typical cancer, in years")
    two_slides: float = _setting(0.15, "share of patients with two slides, in [0, 1]")
    feature_dim: int = _setting(1536, "D, dimensions of a patch feature")
    prefix: str = _setting("sim", "datasets are PREFIX_a, PREFIX_b, ...")

    def __post_init__(self) -> None:
        sizes = self.cohort_sizes
        rules = {
            "cohorts": 1 <= self.cohorts <= len(string.ascii_lowercase),
            "patients": len(sizes) == self.cohorts and min(sizes, default=0) >= 2 * NUM_FOLDS,
            "patches": self.patches >= _MIN_PATCHES,
            "seed": self.seed >= 0,
            "shared": 0 <= self.shared <= 1,
            "groups": 1 <= self.groups <= max(1, self.cohorts),
            "phenotypes": self.phenotypes >= self.cohorts + self.groups,
            "spread": self.spread > 0,
            "strength": self.strength >= 0,
            "censoring": 0 <= self.censoring < 1,
            "median_years": self.median_years > 0,
            "two_slides": 0 <= self.two_slides <= 1,
            "feature_dim": self.feature_dim >= 1,
            "prefix": self.prefix.isidentifier(),
        }
        problems = [name for name, holds in rules.items() if not holds]
        if problems:
            name = problems[0]
            expected = type(self).__dataclass_fields__[name].metadata["help"]
            if name == "patients":
                expected += f", {2 * NUM_FOLDS} or more"
            raise ValueError(f"{name}: expected {expected}; found {getattr(self, name)!r}")

    @property
    def cohort_sizes(self) -> tuple[int, ...]:
        """Patients of each cancer."""
        if isinstance(self.patients, int):
            return (self.patients,) * self.cohorts
        return tuple(self.patients)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the cohorts."""
        return tuple(f"{self.prefix}_{letter}" for letter in string.ascii_lowercase[: self.cohorts])


@dataclasses.dataclass(frozen=True)
class Cancer:
    """The population that one cohort is drawn from.

    Attributes:
        settings: of the simulation.
        index: c.
        prototypes: [K + 2, D], the offset of the cancer included.
        within: [K + 2, 8, D] directions of variation within each phenotype.
        prevalence: [K + 2] mu_c.
        hazard_vector: [K] beta_c, of norm 1, on standardised proportions.
        slope: [K + 2] log hazard per unit of proportion.
        intercept: of the log hazard.
        scale: scale_c of the survival times, days.
        censoring_scale: of the censoring times, days; infinite without censoring.
        rng: the cancer's own stream, for what is still to be drawn of the cohort as a whole.
    """

    settings: Settings
    index: int
    prototypes: np.ndarray
    within: np.ndarray
    prevalence: np.ndarray
    hazard_vector: np.ndarray
    slope: np.ndarray
    intercept: float
    scale: float
    censoring_scale: float
    rng: np.random.Generator

    @property
    def dataset(self) -> str:
        return self.settings.datasets[self.index]


@dataclasses.dataclass(frozen=True)
class Patient:
    """One patient: ids, truth, labels, and the stream that the patches come from."""

    patient_id: str
    slides: tuple[str, ...]
    proportions: np.ndarray
    log_hazard: float
    days: float
    event: bool
    num_patches: int
    rng: np.random.Generator


def _stream(settings: Settings, *key: int) -> np.random.Generator:
    """A stream of random numbers of its own for each key."""
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))


def draw_cancer(settings: Settings, index: int) -> Cancer:
    """Draws the population of cancer `index`; see the equations of `steph_jax.simulate`."""
    shared, own = _stream(settings, 0), _stream(settings, 1 + index)
    k, dim = settings.phenotypes, settings.feature_dim
    directions = np.linalg.qr(shared.standard_normal((k, k)))[0].T
    prototypes, within = _phenotypes(shared, k, dim)
    own_prototypes, own_within = _phenotypes(own, _OWN_PHENOTYPES, dim)
    offset = _OFFSET_SD * own.standard_normal(dim)
    prevalence = _PREVALENCE_SD * own.standard_normal(k + _OWN_PHENOTYPES)

    group_direction = directions[index % settings.groups]
    hazard_vector = (
        np.sqrt(settings.shared) * group_direction
        + np.sqrt(1 - settings.shared) * directions[k - 1 - index]
    )
    noise = own.standard_normal((_POPULATION, k + _OWN_PHENOTYPES))
    population = _softmax(prevalence + settings.spread * noise)
    slope = np.zeros(k + _OWN_PHENOTYPES)
    slope[:k] = hazard_vector / population[:, :k].std(axis=0)
    slope *= settings.strength / (population @ slope).std()
    intercept = -float((population @ slope).mean())

    median = 365.25 * settings.median_years * np.exp(_MEDIAN_SD * own.standard_normal())
    log_hazard = population @ slope + intercept
    days = _weibull(own.standard_exponential(_POPULATION), log_hazard)
    scale = float(median / np.median(days))
    # C < T is, on the scale c of C, c < T / (C / c): a quantile gives the requested share.
    ratio = scale * days / _weibull(own.standard_exponential(_POPULATION))
    censored = settings.censoring
    return Cancer(
        settings=settings,
        index=index,
        prototypes=np.concatenate([prototypes, own_prototypes]) + offset.astype(np.float32),
        within=np.concatenate([within, own_within]),
        prevalence=prevalence,
        hazard_vector=hazard_vector,
        slope=slope,
        intercept=intercept,
        scale=scale,
        censoring_scale=float(np.quantile(ratio, 1 - censored)) if censored else np.inf,
        rng=own,
    )


def draw_patient(cancer: Cancer, number: int) -> Patient:
    """Draws patient `number` of a cohort but for the patches."""
    settings = cancer.settings
    rng = _stream(settings, 1 + cancer.index, number)
    noise = rng.standard_normal(len(cancer.prevalence))
    proportions = _softmax(cancer.prevalence + settings.spread * noise)
    log_hazard = float(proportions @ cancer.slope + cancer.intercept)
    lived, follow_up = rng.standard_exponential(2)
    death = cancer.scale * _weibull(lived, log_hazard)
    censored = cancer.censoring_scale * _weibull(follow_up)
    log_mean = np.log(settings.patches) - _PATCHES_SD**2 / 2
    num_patches = max(_MIN_PATCHES, round(rng.lognormal(log_mean, _PATCHES_SD)))
    num_slides = 2 if rng.random() < settings.two_slides else 1
    patient_id = f"{cancer.dataset.upper().replace('_', '-')}-{number:04d}"
    return Patient(
        patient_id=patient_id,
        slides=tuple(f"{patient_id}-DX{slide + 1}" for slide in range(num_slides)),
        proportions=proportions,
        log_hazard=log_hazard,
        days=max(1.0, round(min(death, censored), 1)),
        event=bool(death <= censored),
        num_patches=num_patches,
        rng=rng,
    )


def draw_patches(cancer: Cancer, patient: Patient) -> list[np.ndarray]:
    """Draws the features of each slide of a patient, [N, D] float32; can be called once."""
    rng, n = patient.rng, patient.num_patches
    phenotype = rng.choice(len(patient.proportions), size=n, p=patient.proportions)
    features = rng.standard_normal((n, cancer.settings.feature_dim), np.float32)
    features *= np.float32(np.sqrt(_VARIANCES["noise"]))
    factors = rng.standard_normal((n, _RANK), np.float32)
    for k in np.unique(phenotype):
        rows = phenotype == k
        features[rows] += cancer.prototypes[k] + factors[rows] @ cancer.within[k]
    cuts = [round(n * rng.uniform(0.3, 0.7)) for _ in patient.slides[1:]]
    return np.split(features, cuts)


def split_folds(cancer: Cancer, event: np.ndarray) -> np.ndarray:
    """Draws the test patients of five folds, stratified by event; can be called once.

    Args:
        event: [P] whether each patient's death was seen.

    Returns:
        [5, P] True for the test patients of each fold.
    """
    fold = np.empty(len(event), np.int64)
    order = [cancer.rng.permutation(np.flatnonzero(event == seen)) for seen in (True, False)]
    fold[np.concatenate(order)] = np.arange(len(event)) % NUM_FOLDS
    return fold == np.arange(NUM_FOLDS)[:, None]


def _phenotypes(rng: np.random.Generator, count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes [count, D] and directions of variation [count, 8, D], scaled to their variance."""
    prototypes = rng.standard_normal((count, dim)) * np.sqrt(_VARIANCES["prototype"])
    within = rng.standard_normal((count, _RANK, dim)) * np.sqrt(_VARIANCES["within"] / _RANK)
    return prototypes.astype(np.float32), within.astype(np.float32)


def _weibull(exponential: Any, log_hazard: Any = 0.0) -> Any:
    """Times of a Weibull law of scale 1 with proportional hazards, from standard exponentials."""
    return (exponential * np.exp(-log_hazard)) ** (1 / _WEIBULL_SHAPE)


def _softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
