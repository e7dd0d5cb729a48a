"""Four simulated cancers, made and trained by `make demo`.

    python scripts/demo.py

Eight to ten minutes on two CPU cores, installation included. The script prints the C-index of each
fold for the target's own ABMIL and for STEPH, and that of the true hazard, which bounds both.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "sim_d"
    config.data.root = "demo_output/data"
    config.data.features = "demo_output/data/features/{dataset}"
    config.pool.root = "demo_output/pool"
    config.steph.top_k = 2  # of the three other cancers
    return config
