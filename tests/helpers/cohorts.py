"""Small cohorts as users bring them: a table, splits, and HDF5 files of features."""

import dataclasses
import pathlib
from collections.abc import Callable

import h5py
import numpy as np

from configs import testing
from steph_jax.training.config import as_dict

DIM = 24


@dataclasses.dataclass
class Cohort:
    """What is written to disk by `write`; a test changes what it is about.

    Attributes:
        header: columns of the table.
        rows: of the table, a list of cells each.
        folds: train and test patients of every fold.
        features: [N, D] by slide.
        separator: between cells of the table.
        attributes: of every file of features, by slide.
        array: name of the array of features.
    """

    header: list[str]
    rows: list[list[str]]
    folds: list[tuple[list[str], list[str]]]
    features: dict[str, np.ndarray]
    separator: str = ","
    attributes: Callable[[str], dict[str, str]] = lambda slide: {}
    array: str = "features"

    def column(self, name: str, change: Callable[[str], str]) -> None:
        """Changes the cells of a column."""
        place = self.header.index(name)
        for row in self.rows:
            row[place] = change(row[place])

    def write(self, root: pathlib.Path) -> pathlib.Path:
        """Writes the cohort `mine` to `root`/data, its features to `root`/data/features/mine."""
        folder = root / "data" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [self.separator.join(row) for row in (self.header, *self.rows)]
        (folder / "mine_survival.csv").write_text("\n".join(lines) + "\n")
        for fold, (train, test) in enumerate(self.folds):
            padded = [*test, *[""] * (len(train) - len(test))]
            pairs = [f"{a},{b}" for a, b in zip(train, padded, strict=True)]
            (folder / f"splits_{fold}.csv").write_text("\n".join(["train,test", *pairs]) + "\n")
        for slide, array in self.features.items():
            path = root / "data" / "features" / "mine" / f"{slide}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file[self.array] = array
                file.attrs.update(self.attributes(slide))
        return root


def cohort(num_patients: int = 36) -> Cohort:
    """Patients with TCGA barcodes, two slides for every fourth; one fold, a quarter is tested."""
    rng = np.random.default_rng(5)
    patients = [f"TCGA-QQ-B{i:03d}" for i in range(num_patients)]
    rows, features = [], {}
    for i, patient in enumerate(patients):
        time, event = f"{rng.integers(100, 3000)}", f"{int(i % 3 == 0)}"
        for number in range(1 + (i % 4 == 0)):
            slide = f"{patient}-01Z-00-DX{number + 1}"
            rows.append([patient, slide, time, event])
            features[slide] = rng.normal(size=(3 + i % 3, DIM)).astype(np.float32)
    test = patients[: num_patients // 4]
    return Cohort(
        ["patient_id", "pathology_id", "t", "e"],
        rows,
        [(patients[num_patients // 4 :], test)],
        features,
    )


def config(root: pathlib.Path, **settings: object) -> dict[str, object]:
    """The config of a run on the cohort `mine`, with other values of some settings."""
    config_dict = testing.get_config()
    config_dict.dataset, config_dict.method, config_dict.folds, config_dict.epochs = (
        "mine",
        "abmil",
        (0,),
        1,
    )
    config_dict.data.root = str(root / "data")
    config_dict.data.features = str(root / "data" / "features" / "{dataset}")
    config_dict.pool.root = str(root / "pool")
    config_dict.update_from_flattened_dict(settings)
    return as_dict(config_dict)
