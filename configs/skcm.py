"""STEPH for skin cutaneous melanoma (TCGA), with the settings of the paper.

python -m steph_jax.train --config configs/skcm.py --workdir runs/skcm
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_skcm"
    return config
