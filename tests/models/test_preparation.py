"""TIES, Iso-C and Iso-CTS against the published program, plain NumPy, and what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steph_jax.checkpoints import torch_names
from steph_jax.data.torch_format import reader
from steph_jax.models import preparation, task_vectors

# Matrices [inputs, outputs] of several shapes: ranks 20 and 15 give Iso-CTS 2 and (half to even) 2
# directions per task, ranks 5 and 1 none.
SHAPES = {"wide": (20, 31), "tall": (40, 15), "small": (9, 5), "column": (12, 1), "bias": (7,)}


def vectors(seed, dtype=jnp.float32, lead=()):
    rng = np.random.default_rng(seed)
    return {
        name: {"tensor": jnp.asarray(rng.normal(size=(*lead, *shape)), dtype)}
        for name, shape in SHAPES.items()
    }


def each(tree):
    """Name and NumPy array of every tensor."""
    return {name: np.asarray(part["tensor"]) for name, part in tree.items()}


# Slow twins: equations 16 to 22 of docs/method.md line by line, on [outputs, inputs] in float64


def slow_ties(target, source):
    """On flat lists of numbers."""

    def trimmed(entries):
        by_magnitude = sorted(abs(x) for x in entries)
        d = len(entries)
        least = by_magnitude[d - int(np.floor(d * 0.2)) - 1]
        return [x if abs(x) >= least else 0.0 for x in entries]

    pairs = list(zip(trimmed(target), trimmed(source), strict=True))
    signs = [np.sign(a + b) for a, b in pairs]
    majority = np.sign(sum(signs))
    signs = [sign if sign != 0 else majority for sign in signs]
    return [
        sum(x for x in pair if np.sign(x) == sign) for pair, sign in zip(pairs, signs, strict=True)
    ]


def slow_iso_c(target, source):
    if target.ndim == 1:
        return (target + source) / 2
    u, s, v = np.linalg.svd(target + source, full_matrices=False)
    return u @ np.diag(np.full(len(s), s.mean())) @ v


def slow_iso_cts(target, source):
    if target.ndim == 1:
        return (target + source) / 2
    r = min(target.shape)
    m = round((r - int(0.8 * r)) / 2)
    c = r - 2 * m
    u, s, v = np.linalg.svd(target + source, full_matrices=False)
    u_common, s_common, v_common = u[:, :c], s[:c], v[:c]
    us, ss, vs = [], [], []
    for tau in (target, source):
        u, s, v = np.linalg.svd(tau - u_common @ u_common.T @ tau, full_matrices=False)
        us.append(u[:, :m])
        ss.append(s[:m])
        vs.append(v[:m])
    u, v = np.hstack([*us, u_common]), np.vstack([*vs, v_common])
    s = np.concatenate([*ss, s_common])
    pu, _, qu = np.linalg.svd(u, full_matrices=False)
    pv, _, qv = np.linalg.svd(v, full_matrices=False)
    return pu @ qu @ np.diag(np.full(r, s.mean())) @ pv @ qv


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-11)])
def test_iso_equals_the_slow_twin(name, dtype, tolerance):
    slow = {"iso_c": slow_iso_c, "iso_cts": slow_iso_cts}[name]
    with jax.enable_x64(dtype == "float64"):
        target, source = vectors(0, dtype), vectors(1, dtype)
        actual = each(jax.jit(preparation.PREPARATIONS[name])(target, source))
        for part, value in actual.items():
            tau_t, tau_s = (np.float64(tree[part]["tensor"]).T for tree in (target, source))
            expected = slow(tau_t, tau_s).T
            assert value.dtype == dtype
            np.testing.assert_allclose(value, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "decimals", [1, 8]
)  # few decimals make many equal magnitudes and zero sums
def test_ties_equals_the_slow_twin(seed, decimals):
    both = [jax.tree.map(lambda x: jnp.round(x, decimals), vectors(s)) for s in (seed, seed + 100)]
    flat = [np.concatenate([x.ravel() for x in each(tree).values()]).tolist() for tree in both]
    actual = np.concatenate([x.ravel() for x in each(preparation.ties(*both)).values()])
    np.testing.assert_allclose(actual, slow_ties(*flat), rtol=1e-6)


# The published program


@pytest.fixture(scope="module")
def published(parity):
    """tau_t, tau_s (the tensors of the encoder) and the record of what became of them."""

    def read(folder):
        path = parity / "result" / folder / "train_model-last.pth"
        _, params = torch_names.abmil_from_torch(reader.load(path)["model"])
        return params

    with np.load(parity / "merging.npz") as record:
        arrays = dict(record)
    null = read("Null_model-abmil_gat_attn-MLE_YEAR-fold_0")
    taus = []
    for cohort in (arrays["target"].item(), arrays["source"].item()):
        theta = read(f"abmil_gat_attn-MLE_YEAR-data_{cohort}-fold_0")
        tau = task_vectors.task_vector(theta, null)
        taus.append(task_vectors.parts_of(tau, "mil_encoder"))
    return *taus, arrays


def by_torch_name(tree):
    """Tensors [outputs, inputs] of an encoder, by the names of the published program."""
    actual = {}
    for name, layer in (
        ("feat_proj.0", tree["feat_proj"]["layers_0"]),
        ("attention_net.attention_a.0", tree["attention_net"]["attention_a"]),
        ("attention_net.attention_b.0", tree["attention_net"]["attention_b"]),
        ("attention_net.attention_c", tree["attention_net"]["attention_c"]),
    ):
        for name_here, torch_name in (("kernel", "weight"), ("bias", "bias")):
            if name_here in layer:
                actual[f"{name}.{torch_name}"] = np.asarray(layer[name_here]).T
    return actual


def test_ties_matches_the_published_program(published):
    target, source, record = published
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], source)
    prepared = preparation.prepare("ties", target, stacked)
    actual = by_torch_name(jax.tree.map(lambda x: x[0], prepared))
    whole = [name.removeprefix("ties/") for name in record if name.startswith("ties/")]
    assert len(whole) == 7
    for name in whole:
        expected = record[f"ties/{name}"]
        np.testing.assert_array_equal(actual[name] != 0, expected != 0)
        np.testing.assert_allclose(actual[name], expected, rtol=1e-6)
    projection = actual["feat_proj.0.weight"]
    np.testing.assert_allclose(projection[:8], record["ties_head/feat_proj.0.weight"], rtol=1e-6)
    assert np.count_nonzero(projection) == record["ties_nonzero/feat_proj.0.weight"]
    total = float(record["ties_sum/feat_proj.0.weight"])
    assert projection.sum(dtype=np.float64) == pytest.approx(total, abs=1e-6 * abs(total))


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-4), ("float64", 2e-6)])
def test_iso_matches_the_published_program(name, dtype, tolerance, published):
    target, source, record = published
    with jax.enable_x64(dtype == "float64"):

        def recorded(tree):
            """The tensors on record; the others would only take time."""
            kept = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
            net = kept["attention_net"]
            net["attention_b"] = {"bias": net["attention_b"]["bias"]}
            net["attention_c"] = {"bias": net["attention_c"]["bias"]}
            bias = {"bias": kept["feat_proj"]["layers_0"]["bias"]}
            return {"feat_proj": {"layers_0": bias}, "attention_net": net}

        stacked = jax.tree.map(lambda x: x[None], recorded(source))
        prepared = preparation.prepare(name, recorded(target), stacked)
        actual = by_torch_name(jax.tree.map(lambda x: x[0], prepared))
    assert {f"{name}/{key}" for key in actual} == {k for k in record if k.startswith(f"{name}/")}
    for key, value in actual.items():
        expected = record[f"{name}/{key}"]
        np.testing.assert_allclose(value, expected, atol=tolerance * np.abs(expected).max())


# What they promise


def test_ties_trims_and_elects_signs():
    target = {"x": jnp.array([5.0, -4.0, 0.1, 0.2, -0.1, 0.3, 0.1, 0.1, 0.1, 3.0])}
    source = {"x": jnp.array([2.0, 0.5, 0.5, 0.1, -0.1, -9.0, 0.3, 0.1, 0.1, 0.2])}
    actual = preparation.ties(target, source)["x"]
    # d = 10: the eighth smallest magnitudes, 3 and 0.5, are the least that stay. The third entry of
    # the source stays with the second, being as large; the target's -4 outweighs its 0.5.
    expected = [7.0, -4.0, 0.5, 0.0, 0.0, -9.0, 0.0, 0.0, 0.0, 3.0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_ties_compares_magnitudes_across_tensors():
    loud, quiet = jnp.arange(10.0, 30.0).reshape(4, 5), jnp.full((80,), 0.1)
    actual = preparation.ties({"a": loud, "b": quiet}, {"a": loud, "b": quiet})
    np.testing.assert_array_equal(actual["a"], 2 * loud)
    # The least magnitude that stays is the 80th smallest of 100, and that is 0.1: all of them stay.
    np.testing.assert_allclose(actual["b"], 0.2, rtol=1e-6)
    one_less = {"a": jnp.concatenate([loud.ravel(), jnp.array([9.0])]), "b": quiet[:79]}
    actual = preparation.ties(one_less, one_less)
    np.testing.assert_array_equal(actual["b"], 0.0)


@pytest.mark.parametrize("majority", [1.0, -1.0])
def test_ties_gives_opposite_entries_the_sign_of_the_majority(majority):
    # All magnitudes are equal, so all entries stay.
    target = {"x": jnp.array([1.0, majority, majority])}
    source = {"x": jnp.array([-1.0, majority, majority])}
    actual = preparation.ties(target, source)["x"]
    np.testing.assert_array_equal(actual, [majority, 2 * majority, 2 * majority])


def test_iso_c_of_two_equal_vectors_keeps_the_singular_vectors():
    tau = vectors(3)
    for name, x in each(tau).items():
        actual = np.asarray(preparation.iso_c(tau, tau)[name]["tensor"])
        if x.ndim == 1:
            np.testing.assert_allclose(actual, x, rtol=1e-6)
            continue
        left, values, right = np.linalg.svd(x, full_matrices=False)
        expected = np.diag(np.full(len(values), 2 * values.mean()))
        np.testing.assert_allclose(left.T @ actual @ right.T, expected, atol=2e-5 * values.sum())


def test_iso_cts_of_a_vector_with_itself_keeps_its_leading_directions():
    """The target as a source: directions that come twice count once, and none is made up."""
    tau = vectors(3)
    for name, x in each(tau).items():
        actual = np.asarray(preparation.iso_cts(tau, tau)[name]["tensor"])
        if x.ndim == 1:
            np.testing.assert_allclose(actual, x, rtol=1e-6)
            continue
        left, values, right = np.linalg.svd(x, full_matrices=False)
        r = len(values)
        specific = round((r - int(0.8 * r)) / 2)
        kept = r - specific  # r - 2 * specific common ones, and those that both vectors have left
        strength = 2 * values[:kept].sum() / r
        expected = strength * left[:, :kept] @ right[:kept]
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prepared_by", [preparation.iso_c, preparation.iso_cts])
def test_iso_makes_all_directions_equally_strong(prepared_by):
    for x in each(prepared_by(vectors(0), vectors(1))).values():
        if x.ndim == 2:
            values = np.linalg.svd(x, compute_uv=False)
            np.testing.assert_allclose(values, values.mean(), rtol=1e-5)


@pytest.mark.parametrize("prepared_by", [preparation.ties, preparation.iso_c, preparation.iso_cts])
def test_ties_and_iso_are_symmetric(prepared_by):
    target, source = vectors(4), vectors(5)
    one, other = each(prepared_by(target, source)), each(prepared_by(source, target))
    for name, x in one.items():
        np.testing.assert_allclose(x, other[name], atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize(
    "prepared_by", preparation.PREPARATIONS.values(), ids=preparation.PREPARATIONS
)
def test_zero_and_equal_vectors_give_finite_results(prepared_by):
    tau = vectors(6)
    zero = jax.tree.map(jnp.zeros_like, tau)
    for pair in ((zero, tau), (tau, zero), (tau, tau)):
        assert all(np.isfinite(x).all() and x.any() for x in each(prepared_by(*pair)).values())
    assert not any(x.any() for x in each(prepared_by(zero, zero)).values())


# All sources at once


@pytest.mark.parametrize("kind", ["ties", "iso_c", "iso_cts"])
def test_prepare_is_independent_per_source(kind):
    target = vectors(0)
    sources = [vectors(seed) for seed in (1, 2, 3)]
    actual = each(preparation.prepare(kind, target, task_vectors.stack(sources)))
    for i, source in enumerate(sources):
        for name, expected in each(preparation.PREPARATIONS[kind](target, source)).items():
            scale = np.abs(expected).max()
            np.testing.assert_allclose(actual[name][i], expected, atol=2e-5 * scale)


def test_preparing_with_none_changes_nothing():
    sources = vectors(1, lead=(3,))
    assert preparation.prepare("none", vectors(0), sources) is sources


def test_unknown_preparation_lists_valid_ones():
    known = "none, ties, iso_c, iso_cts; found 'dare'"
    with pytest.raises(ValueError, match=f"task vectors are prepared by one of {known}"):
        preparation.prepare("dare", vectors(0), vectors(1, lead=(3,)))
