"""A stored model that looks at patients: a table of patches for each of their slides."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from steph_jax import run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.data.bags import OnDiskBags
from steph_jax.data.features import open as feature_files
from steph_jax.data.features.coordinates import ADVICE, Coordinates
from steph_jax.data.features.source import EmptyBag, FeatureSource
from steph_jax.evaluation import fold_results
from steph_jax.heatmaps import patches
from steph_jax.heatmaps.patch_maps import PatchMap, patch_map
from steph_jax.methods.base import LoadedModel
from steph_jax.survival.objectives import HAZARD, Output

#: Columns of the model itself; those of the target's own model begin with OWN, and what merging
#: changed (the model less the own one) ends in DIFFERENCE.
COLUMNS = ("attention", "percentile", "contribution")
OWN, DIFFERENCE = "own_", "_difference"


@dataclasses.dataclass(frozen=True, eq=False)
class PatientMaps:
    """What a model sees in a patient.

    Attributes:
        patient_id: of the patient.
        risk: of the patient by the model, higher = worse.
        own_risk: by the target's own model; None without one, or where it has another unit.
        reference: the risk that contributions are measured from.
        tables: by slide, a row for each of its patches, in the order of its features.
    """

    patient_id: str
    risk: float
    own_risk: float | None
    reference: float
    tables: dict[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True, eq=False)
class Viewer:
    """A model, the target's own model and models of sources, on the patches of patients.

    Attributes:
        model: as it is stored.
        merged: the model.
        own: the target's own model, where the model holds one.
        own_output: what its outputs mean; None where that is not what the model's do.
        sources: models of sources, by name.
        reference: the risk that contributions are measured from: the cut between the risk groups of
            the fold, which is the median of its training patients; None for that of the patient.
    """

    model: SavedModel
    merged: LoadedModel
    own: LoadedModel | None
    own_output: Output | None
    sources: dict[str, LoadedModel]
    reference: float | None

    @classmethod
    def load(cls, checkpoint: pathlib.Path, sources: Sequence[str] = ()) -> "Viewer":
        """Reads a model.

        Args:
            checkpoint: directory of a fold, or of a model.
            sources: names of sources whose models look at patients too; ("all",) for all.

        Raises:
            FileNotFoundError, ValueError: no model, or one without heatmaps; see `patches`.
        """
        directory = run_directory.model_directory(checkpoint)
        model = saved_model.load_model(directory)
        names = list(sources)
        if names == ["all"]:
            names = list(model.metadata.get("sources", []))
        has_cut = directory != checkpoint and run_directory.is_finished(checkpoint)
        return cls(
            model,
            patches.merged_model(model),
            patches.own_model(model),
            _own_output(model),
            dict(zip(names, patches.source_models(model, names), strict=True)) if sources else {},
            float(fold_results.read_metrics(checkpoint)["risk_cut"]) if has_cut else None,
        )

    def patient(self, source: FeatureSource, patient_id: str, slides: Sequence[str]) -> PatientMaps:
        """Looks at a patient, all of whose slides are one bag, as in prediction.

        Args:
            source: where the features are.
            patient_id: of the patient.
            slides: all slides of the patient, in the order of the table.

        Raises:
            FileNotFoundError: slides without features.
            ValueError: features that cannot be used; no patch in any slide.
        """
        bags = OnDiskBags(source, [slides], np.dtype(np.float32))
        if not bags.num_patches[0]:
            raise EmptyBag(f"{patient_id}: no patch in any slide; there is nothing to look at")
        loaded = [self.merged, *([self.own] if self.own else []), *self.sources.values()]
        outputs = patches.patch_outputs(loaded, patches.chunks_of(bags, 0))
        output = stored_objective(self.model).output
        own = patch_map(outputs[1], self.own_output) if self.own else None
        merged = patch_map(outputs[0], output)
        assert merged.risk is not None
        reference = merged.risk if self.reference is None else self.reference
        table = _table(merged, own, reference)
        of_sources = outputs[len(outputs) - len(self.sources) :]
        for name, values in zip(self.sources, of_sources, strict=True):
            seen = patch_map(values, None)
            table[f"attention[{name}]"] = seen.attention
            table[f"percentile[{name}]"] = seen.percentile
        ends = np.cumsum([source.num_patches(slide) for slide in slides])
        parts = np.split(np.arange(len(table)), ends[:-1])
        tables = {
            slide: table.iloc[rows].reset_index(drop=True)
            for slide, rows in zip(slides, parts, strict=True)
        }
        own_risk = own.risk if own is not None else None
        return PatientMaps(patient_id, merged.risk, own_risk, reference, tables)


def _own_output(model: SavedModel) -> Output | None:
    """What the outputs of the target's own model mean, where that is what the model's mean."""
    target = model.params.get("frozen", {}).get("target")
    output = stored_objective(model).output
    if target is None or model.metadata.get("target_output", HAZARD.name) != output.name:
        return None
    num_outputs = output.num_outputs(model.architecture.num_bins)
    return output if len(target["pred_head"]["bias"]) == num_outputs else None


def _table(merged: PatchMap, own: PatchMap | None, reference: float) -> pd.DataFrame:
    """Columns of the model, of the target's own model, and their differences."""
    columns = _columns(merged, reference)
    if own is None:
        return pd.DataFrame(columns)
    others = _columns(own, reference)
    differences = {f"{name}{DIFFERENCE}": columns[name] - others[name] for name in others}
    return pd.DataFrame(columns | {OWN + name: x for name, x in others.items()} | differences)


def _columns(seen: PatchMap, reference: float) -> dict[str, np.ndarray]:
    values = (seen.attention, seen.percentile, seen.contribution(reference))
    return {name: x for name, x in zip(COLUMNS, values, strict=True) if x is not None}


def coordinates_of(
    source: FeatureSource, slide_id: str, elsewhere: Mapping[str, pathlib.Path] | None = None
) -> Coordinates:
    """Where the patches of a slide lie.

    Args:
        source: of the features.
        slide_id: of the slide.
        elsewhere: files of patches by name, `{slide}` or `{slide}_patches`, in the place of what
            the files of features say.

    Raises:
        ValueError: there are none, or of another number of patches; names the file and says how to
            make them.
    """
    if elsewhere is None:
        coordinates, where = source.coordinates(slide_id), source.path_of(slide_id)
    else:
        names = [name for name in (slide_id, f"{slide_id}_patches") if name in elsewhere]
        if not names:
            raise ValueError(f"{slide_id}: --coords has no file {slide_id} or {slide_id}_patches")
        where = str(elsewhere[names[0]])
        coordinates = feature_files.coordinates(elsewhere[names[0]])
    if coordinates is None:
        raise ValueError(f"{where}: no coordinates of patches (`coords`); {ADVICE}")
    if len(coordinates.xy) != source.num_patches(slide_id):
        raise ValueError(
            f"{where}: expected coordinates of {source.num_patches(slide_id)} patches, as "
            f"{source.path_of(slide_id)} has, found {len(coordinates.xy)}; name the folder of the "
            "patches that the features were made of"
        )
    return coordinates
