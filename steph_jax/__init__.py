"""Cancer prognosis from whole-slide images by model merging: STEPH in JAX/Flax.

Dimensions, by the letters that shapes are written with everywhere:

    B  slides in a batch (a "slide" is a patient's bag: all slides of one patient, joined)
    N  patches of a slide             D  patch feature size (UNI2-h: 1536)
    E  embedding size (512)           A  attention size (384)
    T  time bins (32)                 S  source models

The rooms of the house:

    abmil, products, task_vectors, preparation, hypernetworks, steph, roupkt, losses
                                       the mathematics
    metrics                            concordance and survival numbers, on numpy arrays
    data/                              tables, splits, bins, feature readers, batches
    phases, program, methods/          how a bag goes through a model; what each method changes
    experiment, training, feed         what a run shares; how a model is trained; bags on devices
    checkpoints, pool, convert         models on disk; PyTorch names
    scoring, evaluation                predictions and numbers
    epoch_rows, fold_files, summaries, plots/   what epochs, folds and runs leave behind
    train, evaluate, predict, simulate, ...   entry points: `python -m steph_jax.NAME`
"""

from steph_jax.version import __version__

__all__ = ["__version__"]
