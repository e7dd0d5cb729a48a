"""STEPH for bladder urothelial carcinoma (TCGA), with the settings of the paper.

    python -m steph_jax.train --config configs/blca.py --workdir runs/blca

Not run here: the features were not at hand (docs/results.md has what was), and the paper's number
for this cohort is not recorded.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_blca"
    return config
