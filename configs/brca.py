"""STEPH for breast invasive carcinoma (TCGA), with the settings of the paper.

python -m steph_jax.train --config configs/brca.py --workdir runs/brca
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_brca"
    return config
