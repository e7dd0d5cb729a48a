"""The embedded default: a simulated cohort of the demo (`make demo`, scripts/demo.py).

python scripts/demo.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "sim_a"
    config.data.root = "demo_output/data"
    config.data.features = "demo_output/data/features/{dataset}"
    config.pool.root = "demo_output/pool"
    return config
