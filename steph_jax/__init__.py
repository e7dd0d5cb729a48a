"""Cancer prognosis from whole-slide images by model merging: STEPH in JAX/Flax.

Dimensions, by the letters that shapes are written with everywhere:

    B  slides in a batch (a "slide" is a patient's bag: all slides of one patient, joined)
    N  patches of a slide             D  patch feature size (UNI2-h: 1536)
    E  embedding size (512)           A  attention size (384)
    T  time bins (32)                 S  source models

Folders, in the order of imports (each may import those before it):

    models         the mathematics: ABMIL, task vectors, hypernetworks, merging rules
    survival       labels, time bins, losses, metrics, significance tests
    data           tables, splits, feature readers, bags, chunks, batches
    plots          pictures: tables in, PNG out
    checkpoints    models on disk, pools of them, PyTorch's files
    engine         how a batch of bags goes through a model
    methods        what each method changes, a file each
    checks         what `steph_jax.check` looks at
    evaluation     predictions, metrics of folds and runs, comparisons
    training       configs, runs, epochs, resuming, sweeps

Programs are the files beside them: `python -m steph_jax.NAME`.
"""

__version__ = "0.1.0"
