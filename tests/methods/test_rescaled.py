"""`rescaled`: its merged models, how its numbers are chosen, and a fold of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.methods import rescaled
from steph_jax.methods.registry import find_method
from steph_jax.methods.rescaled import Linearized, Rescaling
from steph_jax.models import task_vectors
from steph_jax.training.config import Config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


@pytest.fixture
def models(home):
    pool = Pool(home / "pool")
    return pool.null(), pool.member("sim_a", 0), pool.member("sim_b", 0), pool.member("sim_c", 0)


def config_of(home, **more):
    return pools.config(home) | {"method": "rescaled", "folds": [0]} | more


def encoder(model):
    return task_vectors.parts_of(model.params, "mil_encoder")


def test_merged_encoder_is_the_weighted_sum(models):
    null, target, *sources = models
    model = rescaled.merged(null, target, 2.0, sources, [0.1, -0.3])
    trees = [encoder(m) for m in (model, null, target, *sources)]
    for merged, base, own, first, second in zip(*map(jax.tree.leaves, trees), strict=True):
        expected = base + 2.0 * (own - base) + 0.1 * (first - base) - 0.3 * (second - base)
        np.testing.assert_allclose(merged, expected, atol=1e-5)
        assert merged.dtype == base.dtype
    assert model.params["pred_head"] is target.params["pred_head"]


def test_a_factor_of_1_alone_is_the_own_model_itself(models):
    null, target, *sources = models
    assert rescaled.merged(null, target, 1.0) is target
    assert rescaled.merged(null, target, 1.0, sources, [0.0, 0.0]) is target


class Squares:
    """Held-out patients whose loss is a sum of squares, so that c_s have a formula."""

    def __init__(self, goal):
        self.goal = goal

    def loss(self, model, outputs):
        return 0.5 * jnp.sum((outputs - jnp.asarray(self.goal)) ** 2)


def test_penalized_coefficients_equal_ridge_regression(models):
    rng = np.random.default_rng(0)
    parts, rows, goals = [], [], []
    for n in (20, 30):
        base, slopes = rng.normal(size=(n, 4)), rng.normal(size=(n, 4, 3))
        goal = base + slopes @ np.array([0.5, -0.2, 0.0]) + 0.1 * rng.normal(size=(n, 4))
        arrays = (x.astype(np.float32) for x in (base, slopes))
        parts.append(Linearized(Squares(goal.astype(np.float32)), models[1], *arrays))
        rows.append(slopes.reshape(-1, 3))
        goals.append((goal - base).reshape(-1))
    x, y = np.concatenate(rows), np.concatenate(goals)
    for spread in (0.05, 1.0):
        expected = np.linalg.solve(x.T @ x + np.eye(3) / spread**2, x.T @ y)
        found = rescaled.penalized_coefficients(parts, spread)
        np.testing.assert_allclose(found, expected, atol=1e-3)


class Distances:
    """Inner folds where the C-index depends on how far the encoder is from given coefficients."""

    def __init__(self, pool, best):
        self.pool, self.best = pool, best

    def held_out_parts(self):
        null = encoder(self.pool.null())
        taus = [
            jax.tree.map(lambda x, base: x - base, encoder(self.pool.member(name, 0)), null)
            for name in ("sim_a", "sim_b", "sim_c")
        ]
        basis = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in taus])
        return [self.Part(self, basis, null) for _ in range(3)]

    class Part:
        def __init__(self, distances, basis, null):
            self.distances, self.basis, self.pool = distances, basis, distances.pool
            self.null = np.concatenate([np.ravel(x) for x in jax.tree.leaves(null)])

        def coefficients(self, model):
            """(c, c_b, c_c) of a merged model."""
            flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(encoder(model))])
            return np.linalg.lstsq(self.basis.T, flat - self.null, rcond=None)[0]

        def c_index(self, model):
            miss = self.coefficients(model) - self.distances.best
            return round(0.8 - 0.1 * float(miss @ miss), 6)

        def outputs(self, model):
            return np.tile(self.coefficients(model), (10, 1)).astype(np.float32)

        def loss(self, model, outputs):
            goal = jnp.broadcast_to(jnp.asarray(self.distances.best, jnp.float32), outputs.shape)
            return 100 * jnp.sum((outputs - goal) ** 2)


def chosen(home, best, **options):
    config = Config.from_dict(config_of(home, **options))
    spec = config.fold_spec(0, config.model.num_bins)
    pool = Pool(home / "pool")
    spec = dataclasses.replace(spec, num_outputs=pool.null().architecture.num_bins)
    return find_method("rescaled").fit(spec, pool, Distances(pool, np.asarray(best)))


def test_numbers_that_inner_folds_favor_are_chosen(home):
    model = chosen(home, [2.0, 0.3, 0.0])
    assert model.metadata["sources"] == ["sim_b", "sim_c", "sim_a"]
    weights = model.metadata["weights"]
    np.testing.assert_allclose(weights, [0.3, 0.0, 2.0], atol=0.02)
    assert model.metadata["source_share"] == pytest.approx(0.3 / 2.3, abs=0.01)
    assert model.metadata["fitted_parameters"] == 3


def test_the_own_model_is_kept_where_nothing_else_is_better(home):
    model = chosen(home, [1.0, 0.0, 0.0])
    assert model.metadata["weights"] == [0.0, 0.0, 1.0]
    assert model.metadata["source_share"] == 0.0
    own = Pool(home / "pool").member("sim_a", 0)
    assert model.params is own.params or jax.tree.all(
        jax.tree.map(np.array_equal, model.params, own.params)
    )


def test_without_sources_the_factor_alone_is_chosen(home):
    model = chosen(home, [3.0, 0.3, 0.3], control="no_sources")
    assert model.metadata["weights"] == [3.0]
    assert model.metadata["sources"] == ["sim_a"]
    alone = chosen(home, [3.0, 0.3, 0.3], rescaled={"factors": [1.4, 2.0, 3.0, 4.0], "spreads": []})
    assert alone.metadata["weights"] == [3.0]


def test_candidates_begin_with_the_own_model():
    assert Rescaling(factors=(4.0, 0.5, 1.4, 1.0)).candidates == [1.0, 1.4, 0.5, 4.0]
    for name in ("factors", "spreads"):
        with pytest.raises(ValueError, match=rf"rescaled.{name} are numbers above 0; found \[0.0"):
            Rescaling(**{name: (0.0,)})


def test_a_fold_on_patients(home, tmp_path):
    section = {"factors": [2.0], "spreads": [0.1]}
    train.train(config_of(home, rescaled=section), tmp_path)
    fold = tmp_path / "fold_0"
    written = json.loads((fold / "metrics.json").read_text())
    model = saved_model.load_model(fold / "model")
    assert model.kind == "abmil"
    *coefficients, factor = written["weights"]
    assert factor in (1.0, 2.0)
    assert len(coefficients) == 2
    assert written["trainable_parameters"] == 3
    assert written["train_seconds"] > 0
    pool = Pool(home / "pool")
    members = [pool.member(name, 0) for name in ("sim_b", "sim_c")]
    expected = rescaled.merged(pool.null(), pool.member("sim_a", 0), factor, members, coefficients)
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert not (fold / "inner_folds").exists()
