"""STEPH for breast invasive carcinoma (TCGA), with the settings of the paper.

    python -m steph_jax.train --config configs/brca.py --workdir runs/brca

Expected: 0.7408, the mean test C-index of five folds in the paper (ABMIL: 0.6648). Not run here:
the features were not at hand (docs/results.md has what was).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "tcga_brca"
    return config
