"""ABMIL and STEPH one bag at a time, as docs/method.md writes them: slow, for comparison."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.data.bags import InMemoryBags
from steph_jax.methods.steph import freeze
from steph_jax.models import abmil, hypernetworks, task_vectors
from steph_jax.models.abmil import Architecture
from steph_jax.survival import losses

NUM_SOURCES = 4
SIZES = (9, 1, 40, 23)
DIMS = Architecture(feature_dim=24, embed_dim=16, attention_dim=8, num_bins=4)
EVENT, TIME_BIN = np.array([1, 0, 1, 0], np.int32), np.array([2, 0, 3, 1], np.int32)
OUTPUTS = {"relu": jax.nn.relu, "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid}


def bags(sizes=SIZES, dim=DIMS.feature_dim):
    """Random bags, and a store of them."""
    rng = np.random.default_rng(11)
    bag_list = [rng.normal(size=(n, dim)).astype(np.float32) for n in sizes]
    return bag_list, InMemoryBags.of(bag_list, dim, np.dtype(np.float32))


@functools.cache
def models(architecture=DIMS):
    """Random null, target and source models, as a STEPH model stores them."""
    null, target, *sources = (
        abmil.init(jax.random.key(i), architecture) for i in range(NUM_SOURCES + 2)
    )
    return {
        "null": null,
        "target": target,
        "target_task_vector": task_vectors.task_vector(target, null),
        "task_vectors": task_vectors.stack([task_vectors.task_vector(s, null) for s in sources]),
    }


def steph_trees(options, architecture=DIMS):
    """Random trainable parameters, stored models, and the frozen tree made of them."""
    trainable = hypernetworks.init(
        jax.random.key(100),
        architecture.feature_dim,
        NUM_SOURCES,
        options.weight_output,
        options.mixing,
        options.fixed_mixing,
    )
    # Weights and ratios of a useful size, none of them at relu's kink or tied.
    shift = jnp.linspace(0.5, 0.2, NUM_SOURCES, dtype=jnp.float32)
    bias = trainable["weights"]["output"]["bias"]
    trainable["weights"]["output"]["bias"] = bias + shift[jnp.array([2, 0, 3, 1])]
    if "mixing" in trainable:
        bias = trainable["mixing"]["output"]["bias"]
        trainable["mixing"]["output"]["bias"] = bias + shift
    if options.mixing == "param":
        trainable["mixing_ratio"] = jnp.linspace(-0.3, 0.8, NUM_SOURCES, dtype=jnp.float32)
    if options.retrained == "pred_head":
        trainable["pred_head"] = abmil.init(jax.random.key(101), architecture)["pred_head"]
    stored = models(architecture)
    return trainable, stored, freeze(stored, options)


def linear(layer, x):
    return jnp.matmul(x, layer["kernel"], precision="highest") + jnp.broadcast_to(
        layer["bias"], (*x.shape[:-1], len(layer["bias"]))
    )


def mlp(layers, g):
    return linear(layers["output"], jax.nn.relu(linear(layers["hidden"], g)))


def source_weights(trainable, options, bag):
    """w and lambda of one bag."""
    g = jnp.mean(jax.nn.relu(linear(trainable["embedding"], bag)), axis=0)
    w = OUTPUTS[options.weight_output](mlp(trainable["weights"], g))
    if options.mixing == "fix":
        return w, jnp.asarray(options.fixed_mixing, w.dtype)
    if options.mixing == "param":
        return w, 1 / (1 + trainable["mixing_ratio"])
    if options.mixing == "fnn":
        g = jnp.mean(jax.nn.relu(linear(trainable["mixing_embedding"], bag)), axis=0)
    output = {"relu": jax.nn.relu, "softplus": jax.nn.softplus}[options.mixing_output]
    return w, 1 / (1 + output(mlp(trainable["mixing"], g)))


def selected(options, w):
    """Numbers of the k largest of w, ties to the lowest."""
    order = sorted(range(len(w)), key=lambda s: (-float(w[s]), s))
    return order[: options.top_k or len(w)]


def merged_model(stored, options, w, ratios, selection):
    """theta(X): the merged parts from the sum, the others the target's."""
    if options.clamp:
        w = jnp.clip(w, 0, 1)
    names = {
        "mil_encoder": ("feat_proj", "attention_net"),
        "pred_head": ("pred_head",),
        "all": ("feat_proj", "attention_net", "pred_head"),
    }[options.merged]
    theta = dict(stored["target"])
    for name in names:
        merged = stored["null" if options.base == "null" else "target"][name]
        for s in selection:
            merged = jax.tree.map(
                lambda m, tau_t, tau, s=s: (
                    m + w[s] * (ratios[s] * tau_t + (1 - ratios[s]) * tau[s])
                ),
                merged,
                stored["target_task_vector"][name],
                stored["task_vectors"][name],
            )
        theta[name] = merged
    return theta


def steph(trainable, stored, options, all_bags, weights, architecture=DIMS):
    """(loss, logits) of STEPH; `weights` are those of the merge and the mix regularizer."""
    selections = [selected(options, source_weights(trainable, options, bag)[0]) for bag in all_bags]

    def loss(trainable):
        logits, penalties = [], []
        for bag, selection in zip(all_bags, selections, strict=True):
            w, ratios = source_weights(trainable, options, bag)
            theta = merged_model(stored, options, w, ratios, selection)
            theta |= {name: trainable[name] for name in ("pred_head",) if name in trainable}
            logits.append(_whole(architecture, theta, bag))
            merge = jnp.log(jnp.sum(jnp.exp(w))) ** 2
            if options.top_k:
                merge += sum(w[s] for s in selection) / len(selection)
            mix = sum(ratios[s] ** 2 for s in selection) / len(selection)
            penalties.append(weights[0] * merge + weights[1] * mix)
        return _nll(jnp.stack(logits)) + sum(penalties) / len(penalties), jnp.stack(logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)


def base_model(theta, all_bags, architecture):
    """((loss, logits), gradient) of ABMIL."""

    def loss(theta):
        logits = jnp.stack([_whole(architecture, theta, bag) for bag in all_bags])
        return _nll(logits), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(theta)


def _whole(architecture, theta, bag):
    """Logits of one bag by the equations of ABMIL."""
    h, net = bag, theta.get("attention_net")
    for i in range(architecture.num_layers):
        h = jax.nn.relu(linear(theta["feat_proj"][f"layers_{i}"], h))
    if architecture.pooling == "max":
        z = jnp.max(h, axis=0)
    elif architecture.pooling == "mean":
        z = jnp.mean(h, axis=0)
    else:
        a = jnp.tanh(linear(net["attention_a"], h))
        if architecture.pooling == "gated":
            a = a * jax.nn.sigmoid(linear(net["attention_b"], h))
        weights = jax.nn.softmax(linear(net["attention_c"], a)[:, 0])
        z = jnp.matmul(weights, h, precision="highest")
    return linear(theta["pred_head"], z)


def _nll(logits):
    return jnp.mean(losses.nll(logits, jnp.asarray(TIME_BIN), jnp.asarray(EVENT)))
