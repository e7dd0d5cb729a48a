"""STEPH for uterine corpus endometrial carcinoma (TCGA), with the settings of the paper.

python -m steph_jax.train --config configs/ucec.py --workdir runs/ucec
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_ucec"
    return config
