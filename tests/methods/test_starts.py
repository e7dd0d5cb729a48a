"""What a fold of each method starts from: which models of the pool, and what it lacks."""

import dataclasses

import jax
import numpy as np
import pytest
from specs import EveryOption, with_options

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import sources
from steph_jax.methods.base import FoldSpec, as_numpy
from steph_jax.methods.registry import METHODS, find_method
from steph_jax.methods.sources import Merging
from steph_jax.methods.transfer import Transfer
from steph_jax.models import abmil, preparation, roupkt, steph, task_vectors
from steph_jax.models.abmil import Architecture
from steph_jax.survival import objectives
from steph_jax.survival.objectives import Objective

ARCHITECTURE = Architecture(feature_dim=6, embed_dim=5, attention_dim=4, num_bins=3)
SPEC = FoldSpec(
    dataset="a",
    fold=1,
    seed=0,
    architecture=ARCHITECTURE,
    num_outputs=3,
    output="hazard",
    bins=None,
    sources=(),
    options=EveryOption(steph=steph.Options(top_k=1), roupkt=roupkt.Options(top_k=2)),
)
#: Methods whose models hold the target's.
MERGING = ("fix", "average", "learned", "dynamic", "ties", "iso_c", "iso_cts")
OF_TARGET = (*MERGING, "roupkt", "steph", "steph_target")
#: Methods that take models of sources from the pool.
OF_SOURCES = (*OF_TARGET, "zero_shot", "fine_tune")
COX = Objective((("cox", 1.0),))
INCIDENCE = Objective((("incidence_nll", 1.0),))


def saved(seed, objective=None, num_bins=3):
    """A random model; one that was trained here has metadata, an imported one has none."""
    architecture = dataclasses.replace(ARCHITECTURE, num_bins=num_bins)
    params = as_numpy(abmil.init(jax.random.key(seed), architecture))
    metadata = {"bins": {"kind": "uniform", "edges": [0.0, *map(float, range(1, 4))]}}
    if objective is not None:
        metadata["objective"] = objectives.objective_record(objective)
    return SavedModel("abmil", architecture, {} if objective is None else metadata, params)


def filled(root, objective=None, num_bins=3):
    """A pool with two folds of the target a and of the source b, and one of c."""
    pool = Pool(root)
    for seed, name in enumerate(
        ["null", "a-fold_0", "a-fold_1", "b-fold_0", "b-fold_1", "c-fold_0"]
    ):
        pool.add(name, saved(seed, objective, num_bins))
    return pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("pool"))


def vector(pool, dataset, fold):
    """The task vector of a member."""
    return task_vectors.task_vector(pool.member(dataset, fold).params, pool.null().params)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def changed(**options):
    return with_options(SPEC, steph=dataclasses.replace(SPEC.options.steph, **options))


def row(stacked, number):
    return jax.tree.map(lambda x: x[number], stacked)


# Which models are taken


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("method", ["steph", "steph_target"])
def test_steph_takes_the_target_of_the_fold_and_sources_of_fold_0(pool, method, fold):
    model = find_method(method).start(dataclasses.replace(SPEC, fold=fold), pool)
    assert model.kind == "steph"
    assert model.metadata["sources"] == ["b", "c"]
    assert model.metadata["fold"] == fold
    frozen = model.params["frozen"]
    assert_same(frozen["null"], pool.null().params)
    assert_same(frozen["target"], pool.member("a", fold).params)
    assert_same(frozen["target_task_vector"], vector(pool, "a", fold))
    for number, source in enumerate("bc"):
        assert_same(row(frozen["task_vectors"], number), vector(pool, source, 0))


@pytest.mark.parametrize("named", [(), ("c", "b"), ("c", "a", "b")])
@pytest.mark.parametrize("include", [False, True])
def test_the_target_is_a_source_only_where_asked_for_and_is_then_of_the_fold(pool, named, include):
    spec = dataclasses.replace(changed(include_target=include), sources=named)
    model = find_method("steph").start(spec, pool)
    others = [name for name in named if name != "a"] or ["b", "c"]
    assert model.metadata["sources"] == others + ["a"] * include
    for number, source in enumerate(model.metadata["sources"]):
        expected = vector(pool, source, 1 if source == "a" else 0)
        assert_same(row(model.params["frozen"]["task_vectors"], number), expected)


@pytest.mark.parametrize("method", ["learned", "dynamic"])
def test_merging_rules_have_the_target_of_the_fold_as_their_last_source(pool, method):
    model = find_method(method).start(SPEC, pool)
    assert model.metadata["sources"] == ["b", "c", "a"]
    expected = [
        pool.null().params,
        *(vector(pool, source, 1 if source == "a" else 0) for source in "bca"),
    ]
    for number, tree in enumerate(expected):
        encoder = task_vectors.parts_of(tree, "mil_encoder")
        assert_same(row(sources.encoder_stack(model.params["frozen"]), number), encoder)
    without = with_options(SPEC, merging=Merging(include_target=False))
    assert find_method(method).start(without, pool).metadata["sources"] == ["b", "c"]


def test_the_average_of_all_is_their_average(pool):
    model = find_method("average").start(SPEC, pool)
    trees = [pool.member(*key).params for key in (("b", 0), ("c", 0), ("a", 1))]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
    for part in ("feat_proj", "attention_net"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            model.params[part],
            expected[part],
        )
    assert_same(model.params["pred_head"], pool.member("a", 1).params["pred_head"])


def test_roupkt_sees_the_target_of_the_fold_last(pool):
    model = find_method("roupkt").start(SPEC, pool)
    assert model.metadata["sources"] == ["b", "c", "a"]
    for number, key in enumerate([("b", 0), ("c", 0), ("a", 1)]):
        encoder = task_vectors.parts_of(pool.member(*key).params, "mil_encoder")
        assert_same(row(model.params["frozen"]["sources"], number), encoder)


@pytest.mark.parametrize("method", ["steph", "ties", "dynamic"])
def test_vectors_are_prepared_in_pairs_with_the_target_of_the_fold(pool, method):
    kind = "ties"
    spec = with_options(SPEC, merging=Merging(prepare=kind))
    model = find_method(method).start(spec, pool)
    frozen = model.params["frozen"]
    first = row(frozen["task_vectors"], 0)
    tau_t, tau_b = (
        task_vectors.parts_of(vector(pool, *key), "mil_encoder") for key in (("a", 1), ("b", 0))
    )
    actual = task_vectors.parts_of(first, "mil_encoder")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        actual,
        preparation.ties(tau_t, tau_b),
    )
    assert model.metadata["prepare"] == kind
    assert_same(first["pred_head"], vector(pool, "b", 0)["pred_head"])


# Where training starts


def test_the_head_is_new_or_the_targets(pool):
    target = pool.member("a", 1).params["pred_head"]
    new = find_method("steph").start(SPEC, pool).params["trainable"]["pred_head"]
    bound = 1 / np.sqrt(ARCHITECTURE.embed_dim)
    for name, tensor in new.items():
        assert tensor.shape == target[name].shape
        assert 0.3 * bound < np.abs(tensor).max() <= bound
        assert not np.allclose(tensor, target[name])
    again = find_method("steph").start(dataclasses.replace(SPEC, seed=1), pool)
    assert not np.allclose(again.params["trainable"]["pred_head"]["kernel"], new["kernel"])
    taken = find_method("steph").start(changed(head_init="target"), pool)
    assert_same(taken.params["trainable"]["pred_head"], target)
    kept = find_method("steph").start(changed(retrained="none"), pool)
    assert "pred_head" not in kept.params["trainable"]


def test_a_head_of_other_time_bins_is_not_taken(tmp_path):
    pool = filled(tmp_path, Objective())
    same = {"kind": "quantile", "edges": [0.0, 1.0, 2.0, 3.0]}
    other = {"kind": "quantile", "edges": [0.0, 1.0, 2.5, 3.0]}
    find_method("steph_target").start(dataclasses.replace(SPEC, bins=same), pool)
    find_method("steph").start(dataclasses.replace(SPEC, bins=other), pool)
    message = r"uniform time bins with edges at 0, 1, 2, 3 days, this run has .* 0, 1, 2.5, 3 days"
    with pytest.raises(ValueError, match=message):
        find_method("steph_target").start(dataclasses.replace(SPEC, bins=other), pool)


def test_steph_target_is_steph_from_the_target(pool):
    actual = find_method("steph_target").start(changed(base="null"), pool)
    expected = find_method("steph").start(changed(base="target", head_init="target"), pool)
    assert actual.metadata == expected.metadata
    assert_same(actual.params, expected.params)


def test_options_that_a_method_would_not_follow_are_refused(pool):
    with pytest.raises(ValueError, match="steph_target trains the target's pred_head on"):
        find_method("steph_target").start(changed(retrained="none"), pool)
    spec = with_options(SPEC, merging=Merging(prepare="iso_c"))
    with pytest.raises(ValueError, match=r"method ties prepares .* merging.prepare asks for iso_c"):
        find_method("ties").start(spec, pool)


def test_initial_weight_is_added_where_the_weights_start(pool):
    plain, raised = (
        find_method("steph").start(changed(initial_weight=w), pool).params["trainable"]
        for w in (0.0, 0.3)
    )
    bias = plain["weights"]["output"]["bias"]
    np.testing.assert_allclose(raised["weights"]["output"]["bias"], bias + 0.3, rtol=1e-6)
    raised["weights"]["output"]["bias"] = bias
    assert_same(raised, plain)


def test_fine_tuning_starts_from_the_source(pool):
    for method in ("fine_tune", "zero_shot"):
        model = find_method(method).start(with_options(SPEC, transfer=Transfer("c")), pool)
        assert model.metadata["source"] == "c"
        assert_same(model.params, pool.member("c", 0).params)


# Models of another loss


@pytest.mark.parametrize("method", ["zero_shot", "fix", "average"])
@pytest.mark.parametrize(("of_pool", "num_bins"), [(COX, 1), (INCIDENCE, 3)])
def test_a_kept_head_keeps_its_meaning(tmp_path, method, of_pool, num_bins):
    model = find_method(method).start(SPEC, filled(tmp_path, of_pool, num_bins))
    assert saved_model.stored_objective(model) == of_pool
    assert model.metadata["bins"] == saved(0, of_pool).metadata["bins"]


@pytest.mark.parametrize("method", ["zero_shot", "fix", "average"])
def test_a_kept_head_of_an_imported_model_is_of_the_default_loss(pool, method):
    spec = dataclasses.replace(SPEC, output="incidence")
    model = find_method(method).start(spec, pool)
    assert saved_model.stored_objective(model) == Objective()
    assert "bins" not in model.metadata
    with pytest.raises(ValueError, match=r"a, fold 1: the head of the .* 3 outputs .* ask for 8"):
        find_method(method).start(dataclasses.replace(SPEC, num_outputs=8), pool)


def test_fine_tuning_for_another_loss_has_a_new_head(tmp_path):
    pool = filled(tmp_path, INCIDENCE)
    source = pool.member("b", 0).params
    same = find_method("fine_tune").start(dataclasses.replace(SPEC, output="incidence"), pool)
    assert_same(same.params, source)
    other = find_method("fine_tune").start(SPEC, pool)
    assert_same(other.params["feat_proj"], source["feat_proj"])
    assert not np.allclose(other.params["pred_head"]["kernel"], source["pred_head"]["kernel"])


@pytest.mark.parametrize("options", [{"head_init": "target"}, {"retrained": "none"}])
def test_a_head_of_another_meaning_is_refused_where_it_is_to_be_used(tmp_path, options):
    pool = filled(tmp_path, INCIDENCE)
    with pytest.raises(ValueError, match=r"3 outputs \(incidence\).* ask for 3 \(hazard\); use"):
        find_method("steph").start(changed(**options), pool)
    find_method("steph").start(dataclasses.replace(changed(**options), output="incidence"), pool)
    assert find_method("steph").start(SPEC, pool).metadata["target_output"] == "incidence"


# What is missing


def test_every_method_is_among_those_tested_here():
    linear = {"ridge_cox", "clinical_cox", "linear_pool"}  # need no model of the pool
    assert set(METHODS) == {*OF_SOURCES, *linear, "abmil", "joint", "mean_pool", "rescaled"}


@pytest.mark.parametrize("method", [*OF_SOURCES, "joint", "rescaled"])
def test_no_pool(tmp_path, method):
    with pytest.raises(
        FileNotFoundError, match=r"none: no such pool.*convert_torch_ckpt.*make demo"
    ):
        find_method(method).start(SPEC, Pool(tmp_path / "none"))


@pytest.mark.parametrize("method", [*OF_SOURCES, "rescaled"])
def test_a_pool_without_null(tmp_path, method):
    pool = Pool(tmp_path)
    for name in ("a-fold_1", "b-fold_0", "c-fold_0"):
        pool.add(name, saved(1))
    with pytest.raises(FileNotFoundError, match=r"without null model \(no null/\).*pool.save=true"):
        find_method(method).start(SPEC, pool)


@pytest.mark.parametrize("method", ["abmil", "joint"])
def test_methods_that_start_from_null_make_one(tmp_path, method):
    spec = dataclasses.replace(SPEC, sources=("b",))
    model = find_method(method).start(spec, Pool(tmp_path / "none"))
    assert model.architecture == ARCHITECTURE
    expected = abmil.init(jax.random.key(SPEC.seed), ARCHITECTURE)
    assert_same(model.params, as_numpy(expected))


@pytest.mark.parametrize("method", OF_TARGET)
def test_no_target_of_the_fold(pool, method):
    with pytest.raises(
        FileNotFoundError,
        match=r"no model of 'a' for fold 7; it holds a \(folds 0, 1\), b .*Make it with "
        r"`--config.dataset=a --config.method=abmil --config.pool.save=true "
        r"--config.folds=\"\(7,\)\"`, or import it",
    ):
        find_method(method).start(dataclasses.replace(SPEC, fold=7), pool)


@pytest.mark.parametrize("method", OF_SOURCES)
def test_unknown_source(pool, method):
    with pytest.raises(
        FileNotFoundError, match=r"no model of 'q' for fold 0; .*--config.dataset=q --config.method"
    ):
        find_method(method).start(dataclasses.replace(SPEC, sources=("q", "b")), pool)


@pytest.mark.parametrize("method", ["zero_shot", "fine_tune"])
def test_unknown_source_of_a_transfer(pool, method):
    with pytest.raises(FileNotFoundError, match=r"no model of 'q' for fold 0; it holds a"):
        find_method(method).start(with_options(SPEC, transfer=Transfer("q")), pool)
    with pytest.raises(ValueError, match=r"transfer.source is the target itself, a"):
        find_method(method).start(with_options(SPEC, transfer=Transfer("a")), pool)


@pytest.mark.parametrize("method", [*OF_SOURCES, "joint"])
def test_no_source_but_the_target(pool, method):
    spec = with_options(
        dataclasses.replace(SPEC, sources=("a",)),
        merging=Merging(include_target=False),
        roupkt=roupkt.Options(include_target=False),
    )
    with pytest.raises(ValueError, match=r"no (source model|cohort) is left .*`sources`"):
        find_method(method).start(spec, pool)


@pytest.mark.parametrize(("method", "section"), [("steph", "steph"), ("roupkt", "roupkt")])
def test_more_kept_sources_than_there_are(pool, method, section):
    options = dataclasses.replace(getattr(SPEC.options, section), top_k=4)
    with pytest.raises(ValueError, match=r"top_k = 4 is larger than the number of .*0 for all"):
        find_method(method).start(with_options(SPEC, **{section: options}), pool)
