"""Makes cohorts with a known truth: `python -m steph_jax.simulate OUT`.

OUT has the layout of UNI2-h-DSS, for datasets sim_a, sim_b, ...:
OUT/{dataset}/{dataset}_survival.csv and splits_{0..4}.csv, OUT/features/{dataset}/{slide}.h5; and
the truth: OUT/truth.json and OUT/{dataset}/{dataset}_truth.csv.

The generative model, for cancer c, patient i and patch n (K phenotypes of tissue shared by all
cancers, and two of each cancer's own; all vectors below are drawn once, from the seed):

    proportions     p_i = softmax(mu_c + spread * z_i),          z_i ~ N(0, I)         [K + 2]
    patch           k ~ p_i;  x_n = o_c + sqrt(.5) P_k + sqrt(.25) F_k u + sqrt(.25) v [D]
                    P_k ~ N(0, I) prototype; F_k [D, 8] directions in which the phenotype varies,
                    u, v ~ N(0, I); o_c ~ N(0, 0.01 I) the offset of the cancer
    hazard vector   beta_c = sqrt(shared) g + sqrt(1 - shared) d_c                     [K]
                    g the direction of the cancer's group, d_c its own; all of them orthonormal, so
                    that the cosine of two cancers' vectors is `shared` in a group, 0 across groups
    log hazard      eta_i = strength * beta_c . s(p_i) / sd,     of mean 0 and sd `strength`
                    s standardizes each proportion over the cancer's population
    survival        S(t | i) = exp(-(t / scale_c)^1.2 exp(eta_i)),  an event at T_i
    observed        t = min(T_i, C_i), e = [T_i <= C_i]; C_i is drawn independently of the rest, on
                    a scale that censors the share `censoring` of the population

Features have mean about 0 and variance about 1 in each dimension, as UNI2-h's. The hazard is linear
in the mean of a bag, where it is a few percent of the variance. What can be reached is the oracle
concordance, that of eta itself, which is printed and stored: about 0.78 by default.

A cancer depends on the seed, on its own index and on its settings, not on the number of others, and
a larger cohort begins with the patients of a smaller one.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from steph_jax import cli, files, interrupts
from steph_jax.data.features.hdf5 import write_hdf5
from steph_jax.data.simulation import (
    GENERATOR,
    Cancer,
    Patient,
    Settings,
    draw_cancer,
    draw_patches,
    draw_patient,
    split_folds,
)
from steph_jax.survival import metrics

__all__ = ["Settings", "main", "simulate"]

#: Patients drawn and written at once.
_THREADS = 4
#: Side of the square that a patch covers at level 0, pixels.
_PATCH_SIZE = 512


def simulate(
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes the cohorts of `settings` and their truth under `out`.

    A run that was cut off goes on where it stopped; one that is complete returns at once.

    Args:
        out: folder, made if need be.
        settings: what to simulate; by default `Settings()`.
        report: called with a line of text for each cohort.

    Returns:
        what truth.json holds: "phenotypes"; "cohorts", by dataset: "group", "hazard_vector" [K],
        "drivers" (phenotypes by weight, the strongest first), "patients", "slides", "events",
        "oracle_c_index", "weibull_scale_days"; "relatedness", the cosine of the hazard vectors of
        every two datasets.

    Raises:
        ValueError: `out` holds another simulation, or anything else.
    """
    settings = settings or Settings()
    out = pathlib.Path(out)
    if _claim(out, settings):
        report(f"{out}: this simulation is already there")
        truth: dict[str, Any] = json.loads((out / "truth.json").read_text())
        return truth
    cancers = [draw_cancer(settings, index) for index in range(settings.cohorts)]
    hidden = not sys.stderr.isatty()
    with tqdm(total=sum(settings.cohort_sizes), unit="patient", disable=hidden) as progress:
        cohorts = {}
        for cancer in cancers:
            facts = cohorts[cancer.dataset] = _write_cohort(out, cancer, progress.update)
            with tqdm.external_write_mode():
                report(
                    f"{cancer.dataset}: {facts['patients']} patients, {facts['slides']} slides, "
                    f"{facts['events']} events, oracle C-index {facts['oracle_c_index']:.3f}"
                )
    vectors = np.stack([cancer.hazard_vector for cancer in cancers])
    cosine = (vectors @ vectors.T).round(6)
    truth = {
        "phenotypes": settings.phenotypes,
        "cohorts": cohorts,
        "relatedness": {
            row: dict(zip(settings.datasets, cosine[i].tolist(), strict=True))
            for i, row in enumerate(settings.datasets)
        },
    }
    files.write_text(out / "truth.json", _json(truth))
    files.write_text(out / "simulation.json", _json(_record(settings, complete=True)))
    return truth


def _write_cohort(
    out: pathlib.Path, cancer: Cancer, progress: Callable[[int], object]
) -> dict[str, Any]:
    """Writes features, table, splits and truth of one cohort; returns its entry of truth.json."""
    settings, dataset = cancer.settings, cancer.dataset
    folder, features = out / dataset, out / "features" / dataset
    folder.mkdir(exist_ok=True)
    features.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(features)
    size = settings.cohort_sizes[cancer.index]
    patients = [draw_patient(cancer, number) for number in range(size)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda patient: write_features(features, cancer, patient), patients):
            progress(1)

    rows = [
        (patient.patient_id, slide, dataset.upper().replace("_", "-"), patient.days, patient.event)
        for patient in patients
        for slide in patient.slides
    ]
    table = pd.DataFrame(rows, columns=["patient_id", "pathology_id", "project", "t", "e"])
    text = table.astype({"e": int}).to_csv(index=False)
    files.write_text(folder / f"{dataset}_survival.csv", text)
    ids = np.array([patient.patient_id for patient in patients])
    events = np.array([patient.event for patient in patients])
    for k, test in enumerate(split_folds(cancer, events)):
        columns = {"train": pd.Series(ids[~test]), "test": pd.Series(ids[test])}
        files.write_text(folder / f"splits_{k}.csv", pd.DataFrame(columns).to_csv(index=False))

    truth = pd.DataFrame(
        np.stack([patient.proportions for patient in patients]),
        columns=[f"proportion_{k}" for k in range(len(cancer.prevalence))],
    )
    truth.insert(0, "patient_id", ids)
    truth.insert(1, "log_hazard", [patient.log_hazard for patient in patients])
    files.write_text(folder / f"{dataset}_truth.csv", truth.to_csv(index=False))
    days = np.array([patient.days for patient in patients])
    return {
        "group": cancer.index % settings.groups,
        "hazard_vector": cancer.hazard_vector.tolist(),
        "drivers": np.argsort(-np.abs(cancer.hazard_vector)).tolist(),
        "weibull_scale_days": cancer.scale,
        "patients": size,
        "slides": len(table),
        "events": int(events.sum()),
        "oracle_c_index": metrics.concordance_index(days, events, truth["log_hazard"].to_numpy()),
    }


def write_features(folder: pathlib.Path, cancer: Cancer, patient: Patient) -> None:
    """Writes the files of a patient's slides, unless they are there."""
    paths = [folder / f"{slide}.h5" for slide in patient.slides]
    if all(path.exists() for path in paths):
        return
    for path, features in zip(paths, draw_patches(cancer, patient), strict=True):
        index = np.arange(len(features))
        width = int(np.ceil(np.sqrt(len(features))))
        coords = np.stack([index % width, index // width], axis=1).astype(np.int32) * _PATCH_SIZE
        with files.whole(path) as temporary:
            write_hdf5(temporary, features, coords, made_by="simulated")


def _claim(out: pathlib.Path, settings: Settings) -> bool:
    """Makes `out` ready for these settings; True if all of it is there already."""
    path, record = out / "simulation.json", _record(settings, complete=False)
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            complete = stored.pop("complete")
            old_settings = {**stored.pop("settings"), **stored}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: expected the settings of a simulation: {error}") from error
        expected = {**record["settings"], "generator": GENERATOR}
        names = sorted(
            name for name in expected | old_settings if _differ(expected, old_settings, name)
        )
        if names:
            differences = ", ".join(
                f"{name} {old_settings.get(name)} there, {expected.get(name)} here"
                for name in names
            )
            raise ValueError(
                f"{out}: holds another simulation ({differences}); name another folder or remove it"
            )
        return bool(complete)
    files.check_output_folder(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out}: expected a new or empty folder, found something else in its place"
        )
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, _json(record))
    return False


def _differ(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    return name not in one or name not in other or one[name] != other[name]


def _record(settings: Settings, complete: bool) -> dict[str, Any]:
    """What simulation.json holds, as JSON gives it back."""
    values = dataclasses.asdict(settings) | {"patients": list(settings.cohort_sizes)}
    return {"generator": GENERATOR, "settings": values, "complete": complete}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _number_or_each(text: str) -> int | tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def _parse(argv: Sequence[str]) -> tuple[pathlib.Path, Settings]:
    parser = cli.Parser(
        prog="python -m steph_jax.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=cli.path, help="folder to write, new or empty")
    for field in dataclasses.fields(Settings):
        kind = _number_or_each if field.name == "patients" else type(field.default)
        text = f"{field.metadata['help']} (default: {field.default})"
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=field.default, metavar="X", help=text)
    values = vars(parser.parse_args(argv))
    out = values.pop("out")
    return out, Settings(**values)


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    out, settings = _parse(argv)
    simulate(out, settings)


if __name__ == "__main__":
    interrupts.leave(cli.guarded(lambda: main(sys.argv[1:])))
