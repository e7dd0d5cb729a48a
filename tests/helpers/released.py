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


def steph(num_sources=3, mixing="nn", retrained=True, merged="mil_encoder"):
    """A trained STEPH model, in the order of the published program."""
    null, target = abmil(0), abmil(1)
    state = _models(num_sources)
    if retrained:
        state |= linear(np.random.default_rng(7), "pred_head", T, E)
    for name, value in target.items():
        if merged == "all" or ("pred_head" in name) == (merged == "pred_head"):
            state["target_task_vector." + name.replace(".", "_")] = value - null[name]
    return OrderedDict(state | _hypernetworks(num_sources, mixing))


def rule(kind, num_sources=3):
    """A trained model of a rule without mixup: "fix", "learned" or "dynamic"."""
    state = _models(num_sources)
    if kind != "fix":
        state |= linear(np.random.default_rng(8), "pred_head", T, E)
    if kind == "dynamic":
        return OrderedDict(state | _hypernetworks(num_sources, ""))
    weights = np.linspace(0.1, 0.7, num_sources, dtype=np.float32)
    return OrderedDict(state | {"merge_weight": weights})


def older_export(num_sources=3, mixing="nn", retrained=True, with_heads=True):
    """A STEPH model as our first versions exported it.

    Underscores in all task vectors, all tensors in target_task_vector, lambda itself for "fix".
    """
    null, target = abmil(0), abmil(1)
    state = {f"null_model.{name}": value for name, value in null.items()}
    state |= {f"target_model.{name}": value for name, value in target.items()}
    models = {f"task_vectors.{i}.": abmil(2 + i) for i in range(num_sources)}
    for prefix, model in (models | {"target_task_vector.": target}).items():
        for name, value in model.items():
            if with_heads or "pred_head" not in name:
                state[prefix + name.replace(".", "_")] = value - null[name]
    state |= _hypernetworks(num_sources, mixing)
    if retrained:
        state |= linear(np.random.default_rng(7), "pred_head", T, E)
    return OrderedDict(state)


def _models(num_sources):
    """The models that are merged: whole, and the sources as differences to the null model."""
    null = abmil(0)
    state = {f"null_model.{name}": value for name, value in null.items()}
    state |= {f"target_model.{name}": value for name, value in abmil(1).items()}
    for i in range(num_sources):
        for name, value in abmil(2 + i).items():
            state[f"task_vectors.{i}.{name}"] = value - null[name]
    return state


def _hypernetworks(num_sources, mixing):
    """Layers of the hypernetworks; a vector in place of the second one for "param" and "fix"."""
    rng = np.random.default_rng(9)
    state = linear(rng, "regulate_layer_emb.0", HIDDEN, D)
    state |= linear(rng, "regulate_layer_prj.0", HIDDEN, HIDDEN)
    state |= linear(rng, "regulate_layer_prj.3", num_sources, HIDDEN)
    if mixing in ("nn", "fnn"):
        state |= linear(rng, "vecmix_layer.0", HIDDEN, HIDDEN)
        state |= linear(rng, "vecmix_layer.3", num_sources, HIDDEN)
    if mixing == "fnn":
        state |= linear(rng, "vecmix_layer_emb.0", HIDDEN, D)
    if mixing in ("param", "fix"):
        state["vecmix_layer"] = np.linspace(0.25, 0.75, num_sources, dtype=np.float32)
    return state
