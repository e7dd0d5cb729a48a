"""STEPH for glioma (TCGA), with the settings of the paper.

python -m steph_jax.train --config configs/gbmlgg.py --workdir runs/gbmlgg
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_gbmlgg"
    return config
