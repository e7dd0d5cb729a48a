"""A model small enough to be trained within a test: 24-d features, a few epochs.

Used by the tests on simulated cancers; no number is expected of it.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.dataset = "sim_a"
    config.folds = (0, 1)
    config.epochs = 3
    config.batch_size = 4
    config.eval_every = 1
    config.learning_rate = 2e-4
    config.model.feature_dim = 24
    config.model.embed_dim = 16
    config.model.attention_dim = 8
    config.steph.top_k = 1
    config.roupkt.top_k = 2
    config.steph.initial_weight = 1.0  # so that weights do not collapse
    return config
