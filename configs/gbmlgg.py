"""STEPH for glioma (TCGA), with the settings of the paper.

    python -m steph_jax.train --config configs/gbmlgg.py --workdir runs/gbmlgg

On RNA-seq bags (docs/results.md): C-index 0.727, 14 minutes of one CPU core. Not run on features of
slides, which were not at hand; the paper's number for this cohort is not recorded.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_gbmlgg"
    return config
