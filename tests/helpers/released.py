"""State dicts with the names and shapes of the published PyTorch program, for tests."""

from collections import OrderedDict

import numpy as np

D, E, A, T = 12, 8, 5, 4
HIDDEN = 512


def linear(rng, name, num_outputs, num_inputs):
    """weight [out, in] and bias [out] under a name."""
    return {
        f"{name}.weight": rng.standard_normal((num_outputs, num_inputs), np.float32),
        f"{name}.bias": rng.standard_normal(num_outputs, np.float32),
    }


def abmil(seed=0, pooling="gated", num_layers=1, feature_dim=D):
    """An ABMIL model."""
    rng = np.random.default_rng(seed)
    state = linear(rng, "feat_proj.0", E, feature_dim)
    for i in range(1, num_layers):
        state |= linear(rng, f"feat_proj.{3 * i}", E, E)
    if pooling == "gated":
        state |= linear(rng, "attention_net.attention_a.0", A, E)
        state |= linear(rng, "attention_net.attention_b.0", A, E)
        state |= linear(rng, "attention_net.attention_c", 1, A)
    if pooling == "plain":
        state |= linear(rng, "attention_net.module.0", A, E)
        state |= linear(rng, "attention_net.module.3", 1, A)
    return OrderedDict(state | linear(rng, "pred_head", T, E))


def steph(num_sources=3, mixing="nn", retrained=True, with_heads=True):
    """A trained STEPH model."""
    rng = np.random.default_rng(7)
    null, target = abmil(0), abmil(1)
    state = {f"null_model.{name}": value for name, value in null.items()}
    state |= {f"target_model.{name}": value for name, value in target.items()}
    models = {f"task_vectors.{i}.": abmil(2 + i) for i in range(num_sources)}
    for prefix, model in (models | {"target_task_vector.": target}).items():
        for name, value in model.items():
            if with_heads or "pred_head" not in name:
                state[prefix + name.replace(".", "_")] = value - null[name]
    if retrained:
        state |= linear(rng, "pred_head", T, E)
    state |= linear(rng, "regulate_layer_emb.0", HIDDEN, D)
    state |= linear(rng, "regulate_layer_prj.0", HIDDEN, HIDDEN)
    state |= linear(rng, "regulate_layer_prj.3", num_sources, HIDDEN)
    if mixing == "fnn":
        state |= linear(rng, "vecmix_layer_emb.0", HIDDEN, D)
    if mixing in ("nn", "fnn"):
        state |= linear(rng, "vecmix_layer.0", HIDDEN, HIDDEN)
        state |= linear(rng, "vecmix_layer.3", num_sources, HIDDEN)
    else:
        state["vecmix_layer"] = np.linspace(0.25, 0.75, num_sources, dtype=np.float32)
    return OrderedDict(state)
