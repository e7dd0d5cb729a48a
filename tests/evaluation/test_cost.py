"""Operations per slide against formulas written out from the equations of docs/method.md."""

import dataclasses

import jax
import numpy as np
import pytest
from specs import EveryOption, with_options

from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.evaluation import cost
from steph_jax.methods.base import FoldSpec, as_numpy
from steph_jax.methods.registry import find_method
from steph_jax.models import abmil, roupkt, steph
from steph_jax.models.abmil import Architecture
from steph_jax.models.hypernetworks import HIDDEN_DIM

D, E, A, T, S, N, H = 12, 8, 5, 4, 3, 30, HIDDEN_DIM
ARCHITECTURE = Architecture(D, E, A, T)
ENCODER = N * (2 * D * E + 2 * 2 * E * A + 2 * A + 2 * E)
ABMIL = ENCODER + 2 * E * T
PARAMETERS = D * E + E + 2 * (E * A + A) + A + 1
SPEC = FoldSpec(
    dataset="own",
    fold=0,
    seed=0,
    architecture=ARCHITECTURE,
    num_outputs=T,
    output="hazard",
    bins=None,
    sources=(),
    options=EveryOption(steph=steph.Options(top_k=2), roupkt=roupkt.Options(top_k=2)),
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    """A null model, the target "own" and S others."""
    pool = Pool(tmp_path_factory.mktemp("pool"))
    for seed, name in enumerate(["null", "own-fold_0", "a-fold_0", "b-fold_0", "c-fold_0"]):
        params = as_numpy(abmil.init(jax.random.key(seed), ARCHITECTURE))
        pool.add(name, SavedModel("abmil", ARCHITECTURE, {}, params))
    return pool


def mlp(outputs):
    return 2 * H * H + 2 * H * outputs


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("abmil", ABMIL),
        ("zero_shot", ABMIL),
        ("average", ABMIL),
        ("learned", ABMIL),
        ("steph", ABMIL + 2 * N * D * H + 2 * mlp(S) + 2 * (S + 2) * PARAMETERS),
        ("dynamic", ABMIL + 2 * N * D * H + mlp(S + 1) + 2 * (S + 2) * PARAMETERS),
        (
            "roupkt",
            (S + 2) * ENCODER + 2 * E * (S + 1) + 2 * (S + 1) * E * E + 2 * E * T,
        ),
    ],
)
def test_operations_are_those_of_the_equations(pool, method, expected):
    model = find_method(method).start(SPEC, pool)
    assert cost.flops_per_slide(model, N) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mixing": "fnn"}, ABMIL + 4 * N * D * H + 2 * mlp(S) + 2 * (S + 2) * PARAMETERS),
        ({"mixing": "param"}, ABMIL + 2 * N * D * H + mlp(S) + 2 * (S + 2) * PARAMETERS),
        (
            {"merged": "pred_head", "retrained": "none"},
            ABMIL + 2 * N * D * H + 2 * mlp(S) + 2 * (S + 2) * (E * T + T),
        ),
    ],
)
def test_cost_of_steph_options(pool, options, expected):
    spec = with_options(SPEC, steph=steph.Options(top_k=2, **options))
    assert cost.flops_per_slide(find_method("steph").start(spec, pool), N) == expected


@pytest.mark.parametrize(
    ("pooling", "per_patch"),
    [("plain", 2 * D * E + 2 * E * A + 2 * A + 2 * E), ("mean", 2 * D * E + 2 * E)],
)
def test_cost_of_abmil_variants(pooling, per_patch):
    architecture = dataclasses.replace(ARCHITECTURE, pooling=pooling)
    model = SavedModel(
        "abmil", architecture, {}, as_numpy(abmil.init(jax.random.key(0), architecture))
    )
    assert cost.flops_per_slide(model, N) == N * per_patch + 2 * E * T


@pytest.mark.parametrize("method", ["abmil", "steph", "roupkt"])
def test_every_kind_of_model_can_be_timed(pool, method):
    model = find_method(method).start(SPEC, pool)
    seconds = cost.seconds_per_slide(model, N, 3)
    assert np.isfinite(seconds)
    assert seconds > 0
