"""Writes a model for other programs: under the published names, as StableHLO, or for a model hub.

    python -m steph_jax.export --checkpoint W/fold_0 --out model.safetensors
    python -m steph_jax.export --checkpoint pool/tcga_brca-fold_0 --out model.pth
    python -m steph_jax.export --checkpoint W/fold_0 --static mean --out model.stablehlo
    python -m steph_jax.export --checkpoint W/fold_0 --to hf DIR

The ending of `--out` chooses: .safetensors, or .pth, a PyTorch checkpoint (formats/published.py);
.stablehlo, one function of a slide's patches (formats/stablehlo.py); none, a model as this program
keeps it. `--to hf` writes a folder for the Hugging Face Hub (formats/model_card.py).

`--static` first makes one ABMIL of a model that is merged for each patient: of the mean
coefficients of the training patients, or of those of one patient (`--static patient=ID`). The
C-index of both models on the fold's test patients is printed.
"""

import math
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
from absl import flags

from steph_jax import cli, evaluate, files, run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.evaluation import evaluator, fold_results
from steph_jax.evaluation.evaluator import Evaluator
from steph_jax.formats import model_card, published, stablehlo
from steph_jax.formats.model_card import Origin
from steph_jax.messages import join_names
from steph_jax.methods import static
from steph_jax.methods.base import with_metadata
from steph_jax.methods.registry import load_model
from steph_jax.training.config import stored_config

_PATIENT = "patient="
_FORMATS = (*published.ENDINGS, stablehlo.ENDING)


def main(more: Sequence[str]) -> int:
    """The entry point; `more` is the folder of `--to hf`."""
    arguments = flags.FLAGS
    path = arguments.checkpoint
    out = _output(arguments.out, arguments.to, more)
    if run_directory.is_run(path):
        folds = [f"{path}/fold_{fold}" for fold in run_directory.finished_folds(path)]
        raise ValueError(f"{path}: a run has a model for each fold; name one: {join_names(folds)}")
    directory = run_directory.model_directory(path)
    if arguments.to:
        model_card.check_folder(out)
    else:
        _check_place(out, [directory])
    model = load_model(directory) if arguments.static else saved_model.load_model(directory)
    c_index: float | None = None
    if arguments.static:
        model, c_index = make_static(model, path, arguments.static, arguments.features)
    if arguments.to:
        model_card.write(model, out, origin_of(model, path, c_index))
        print(f"{model.kind} model of {path} written to {out}; its license is yours to choose")
        return 0
    export(model, out)
    print(f"{model.kind} model of {path} written to {out}")
    is_published = out.suffix in published.ENDINGS and published.has_published_class(model)
    if is_published and model.kind != "abmil":
        print(f"the file does not hold: {shlex.join(published.import_flags(model))}")
    return 0


def _output(out: pathlib.Path | None, to: str | None, more: Sequence[str]) -> pathlib.Path:
    """What is written to, by `--out` or by `--to hf DIR`."""
    if to and len(more) == 1 and out is None:
        return files.path_of(more[0])
    if to or (out is None and not more):
        raise ValueError("expected --out FILE, or --to hf DIR")
    if more or out is None:
        raise ValueError(f"unexpected argument {more[0]!r}; see --help")
    return out


def _check_place(out: pathlib.Path, inputs: Sequence[pathlib.Path]) -> None:
    """Checks before any work that `out` can be written and replaces no input."""
    if out.suffix:
        files.check_output(out, inputs)
    elif any(out.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"{out}: this is the model that is exported; choose another name")
    else:
        files.check_output_folder(out)


def export(model: SavedModel, out: pathlib.Path) -> None:
    """Writes a model in the format that the ending of `out` says, whole or not at all.

    Raises:
        ValueError: another ending; a kind of model that has no published class, for .pth.
        OSError: it cannot be written.
    """
    if not out.suffix:
        saved_model.save_model(out, model)
        return
    files.check_output(out)
    if out.suffix == stablehlo.ENDING:
        stablehlo.write(model, out)
    elif out.suffix in published.ENDINGS:
        published.write(model, out)
    else:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(_FORMATS)}, or in none")


def make_static(
    model: SavedModel, path: pathlib.Path, choice: str, features: pathlib.Path | None = None
) -> tuple[SavedModel, float | None]:
    """One ABMIL of a model, and its C-index on the test patients where it had to be computed.

    Args:
        model: of `path`.
        path: a fold's directory; any model whose coefficients are the same for all patients.
        choice: "mean", or "patient=ID" with an id of the fold's patients.
        features: where they are, if not where training found them.

    Raises:
        ValueError, FileNotFoundError: a choice or model for which there is no static model; a file
            or features that are missing.
    """
    if choice != "mean" and not choice.startswith(_PATIENT):
        raise ValueError(f"--static is mean, or {_PATIENT}ID; found {choice!r}")
    static.expect_static(model)
    if model.kind not in static.PER_PATIENT:
        print(f"the model of {path} is the same for all patients already")
        if model.kind == "abmil":
            return model, None
        coefficients = static.fixed_coefficients(model)
        return static.static_model(model, coefficients, "the same for all patients"), None
    fold = open_fold(path, features)
    rows, origin = _patients(fold, choice)
    aux = fold.evaluate(rows).predicted.aux
    coefficients = static.patient_coefficients(model, aux).mean(axis=0, dtype=np.float64)
    one = static.static_model(model, coefficients, origin)
    evaluate_one = Evaluator.load(
        one,
        fold.evaluate.predict.loader,
        fold.evaluate.table,
        fold.evaluate.predict.model.compute_dtype,
    )
    baseline = evaluator.breslow(
        evaluate_one(fold.split.train), fold.evaluate.table, evaluate_one.objective
    )
    values = [run(fold.split.test).scores["c_index"] for run in (fold.evaluate, evaluate_one)]
    full, fixed = (f"{value:.4f}" if math.isfinite(value) else "not defined" for value in values)
    print(
        f"C-index of the {len(fold.split.test)} test patients: full model {full}, static model "
        f"{fixed} (coefficients: {origin})"
    )
    return with_metadata(one, **baseline), values[1]


def open_fold(path: pathlib.Path, features: pathlib.Path | None) -> evaluate.OpenFold:
    """The fold of a run; raises ValueError for a model that is none."""
    if not run_directory.training_record(path).is_file():
        raise ValueError(
            f"{path}: the coefficients of this model differ between patients; expected the "
            "directory of a finished fold of a run, whose patients they are taken from"
        )
    return evaluate.open_fold(path, stored_config(path.absolute().parent), features)


def _patients(fold: evaluate.OpenFold, choice: str) -> tuple[np.ndarray, str]:
    """Numbers of the patients whose coefficients are taken, and who they are in words."""
    if choice == "mean":
        return fold.split.train, f"mean of {len(fold.split.train)} training patients"
    patient, patients = choice.removeprefix(_PATIENT), fold.evaluate.table.patients
    if patient not in patients:
        raise ValueError(
            f"--static {choice}: no such patient; {fold.evaluate.table.path} has "
            f"{join_names(patients)}"
        )
    return np.array([patients.index(patient)]), f"those of patient {patient}"


def origin_of(model: SavedModel, path: pathlib.Path, c_index: float | None = None) -> Origin:
    """Name, method and C-index for the card of a model.

    Args:
        model: that is written.
        path: of the model that it was, or was made of.
        c_index: of a model made here, on the test patients of its fold.
    """
    settings = model.metadata
    dataset, fold = settings.get("dataset", path.name), settings.get("fold")
    if not run_directory.training_record(path).is_file():
        known = settings.get("test_c_index")
        by_fold = {} if known is None or fold is None else {fold: float(known)}
        return Origin(path.name, model.kind, by_fold)
    workdir = path.absolute().parent
    method = str(fold_results.read_training(path)["method"])
    if "static" in settings:
        method = f"{method}-static"
    if c_index is not None and fold is not None:
        by_fold = {fold: c_index}
    else:
        done = run_directory.finished_folds(workdir)
        by_fold = {k: _c_index(run_directory.fold_directory(workdir, k)) for k in done}
    return Origin(f"{method}-{dataset}-fold_{fold}", method, by_fold)


def _c_index(directory: pathlib.Path) -> float:
    value = fold_results.read_metrics(directory)["test"]["c_index"]
    return math.nan if value is None else float(value)


if __name__ == "__main__":
    cli.define_path("checkpoint", None, "A fold's directory or a model of a pool.")
    cli.define_path("out", None, f"A file ({', '.join(_FORMATS)}), or a new model without ending.")
    flags.DEFINE_enum("to", None, ["hf"], "A folder for a model hub: --to hf DIR.")
    flags.DEFINE_string("static", None, "One model for all patients: mean, or patient=ID.")
    cli.define_path("features", None, "For --static: features, if not where training found them.")
    cli.app_run(main, required=("checkpoint",), takes_arguments=True)
