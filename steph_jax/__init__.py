"""Cancer prognosis from whole-slide images by model merging: STEPH in JAX/Flax.

Dimensions, by the letters that shapes are written with everywhere:

    B  bags in a batch (a bag holds the patches of all slides of one patient)
    N  patches of a bag               D  patch feature size (UNI2-h: 1536)
    E  embedding size (512)           A  attention size (384)
    T  time bins (32)                 S  source models

Folders, in the order of imports (each may import those before it):

    hosts          one run in several processes: how they meet, write once, end together
    models         the mathematics: ABMIL, task vectors and how they are prepared, hypernetworks
    survival       labels, time bins, losses, metrics, significance tests
    data           tables, splits, feature readers, bags, chunks, batches
    plots          pictures: tables in, PNG out
    checkpoints    models on disk, pools of them, PyTorch's files
    engine         how a batch of bags goes through a model
    methods        what each method changes; `models/X` has the equations, `methods/X` their use
    checks         what `steph_jax.check` examines
    evaluation     predictions, metrics of folds and runs, comparisons
    formats        models for other programs: published names, StableHLO, model hub
    heatmaps       attention and contributions of patches, as tables and maps
    reports        the page of a run or a comparison
    trackers       TensorBoard, Weights & Biases, MLflow
    training       configs, runs, epochs, resuming, sweeps
    jobs           runs side by side, here or on a Slurm cluster

Programs are files of this folder that `steph-jax --help` lists: `python -m steph_jax.NAME`. What
folders share lies beside them: `cli`, `config_files`, `files`, `interrupts`, `locks`, `messages`,
`records`, `run_directory`. CONTRIBUTING.md walks through one training step, through the reading of
a bag, and through what a new method or a new preparation of task vectors takes.
"""

import sys as _sys

__version__ = "0.1.0"

# `python -m steph_jax.NAME` imports this first, with "-m" in place of the program's path. What it
# imports next takes seconds, in which an interrupt is one word too. NAME is no worker's here, which
# lies in a folder.
if _sys.argv[:1] == ["-m"] and any(
    word.startswith("steph_jax.") and word.count(".") == 1 for word in _sys.orig_argv
):
    from steph_jax import interrupts as _interrupts

    _interrupts.install()
