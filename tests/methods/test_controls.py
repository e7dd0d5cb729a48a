"""Controls: a method without its cause, all else as it is."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import compare, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.evaluation import comparison
from steph_jax.methods import controls, sources
from steph_jax.models import task_vectors
from steph_jax.training.config import Config


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = simulated.make(tmp_path_factory.mktemp("home"))
    for dataset in ("sim_a", "sim_b", "sim_c"):
        config = simulated.config(
            home, method="abmil", dataset=dataset, folds=(0,), epochs=1, pool__save=True
        )
        train.train(config, home / dataset)
    return home


def start(home, method, control, **more):
    config = Config.from_dict(
        simulated.config(home, method=method, control=control, folds=(0,), **more)
    )
    spec = config.fold_spec(0, config.model.num_bins)
    return config.controlled_method.start(spec, Pool(home / "pool")), spec


def leaves(tree):
    return jax.tree.leaves(tree)


def test_permuted_task_vectors_keep_the_entries_of_every_tensor(home):
    real, _ = start(home, "steph", "none")
    model, _ = start(home, "steph", "permuted")
    again, _ = start(home, "steph", "permuted")
    vectors = real.params["frozen"]["task_vectors"], model.params["frozen"]["task_vectors"]
    for one, other, same in zip(
        *map(leaves, vectors), leaves(again.params["frozen"]["task_vectors"]), strict=True
    ):
        np.testing.assert_array_equal(other, same)
        assert one.size < 100 or not np.array_equal(one, other)
        for source in range(len(one)):
            # theta_0 + tau - theta_0 is tau up to rounding.
            np.testing.assert_allclose(
                np.sort(one[source], axis=None), np.sort(other[source], axis=None), atol=1e-6
            )
    for name in ("null", "target", "target_task_vector"):
        for one, other in zip(
            leaves(real.params["frozen"][name]), leaves(model.params["frozen"][name]), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_sources_left_out_add_nothing(home):
    model, _ = start(home, "steph", "no_sources")
    assert all(not leaf.any() for leaf in leaves(model.params["frozen"]["task_vectors"]))
    assert any(leaf.any() for leaf in leaves(model.params["frozen"]["target_task_vector"]))


def test_the_target_among_the_sources_stays_as_it_is(home):
    _, spec = start(home, "learned", "permuted")
    pool = Pool(home / "pool")
    target = pool.member("sim_a", 0)
    models = sources.source_models(spec, pool, ("sim_b", "sim_a"), target)
    assert models[1] is target
    assert not np.array_equal(
        models[0].params["feat_proj"]["layers_0"]["kernel"],
        pool.member("sim_b", 0).params["feat_proj"]["layers_0"]["kernel"],
    )


def test_frozen_encoders_of_roupkt_are_untrained_without_sources(home):
    model, _ = start(home, "roupkt", "no_sources")
    null = task_vectors.parts_of(Pool(home / "pool").null().params, "mil_encoder")
    own = model.metadata["sources"].index("sim_a")
    for stacked, expected in zip(
        leaves(model.params["frozen"]["sources"]), leaves(null), strict=True
    ):
        for source in range(len(stacked)):
            assert np.array_equal(stacked[source], expected) == (source != own)


def test_longer_trains_the_own_model_on(home, tmp_path):
    model, _ = start(home, "steph", "longer")
    own = Pool(home / "pool").member("sim_a", 0)
    for one, other in zip(leaves(model.params), leaves(own.params), strict=True):
        np.testing.assert_array_equal(one, other)
    config = simulated.config(home, control="longer", folds=(0,), epochs=1)
    train.train(config, tmp_path / "w")
    trained = saved_model.load_model(tmp_path / "w" / "fold_0" / "model")
    assert trained.kind == "abmil"
    assert any(
        not np.array_equal(one, other)
        for one, other in zip(leaves(trained.params), leaves(own.params), strict=True)
    )


@pytest.mark.parametrize(
    ("method", "control", "message"),
    [
        ("abmil", "permuted", "method abmil merges none; use control=none"),
        ("zero_shot", "longer", "method zero_shot merges none"),
        ("steph", "shuffled", "control is one of none, permuted, no_sources, longer; found"),
    ],
)
def test_a_control_that_a_method_lacks_is_refused(home, method, control, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(simulated.config(home, method=method, control=control))


def test_a_run_of_older_versions_has_no_control(home):
    record = simulated.config(home)
    del record["control"]
    assert Config.from_stored(record, home / "config.json").control == "none"


def test_labels_of_controls():
    assert compare.with_controls(["abmil", "fix"]) == [
        "abmil",
        "fix",
        "fix+permuted",
        "fix+no_sources",
        "fix+longer",
    ]
    assert controls.parts_of("fix+permuted") == ("fix", "permuted")
    assert controls.parts_of("fix") == ("fix", "none")
    table = pd.DataFrame({"method": ["a", "a", "b"], "control": ["none", "permuted", "none"]})
    assert comparison.labels_of(table) == ["a", "a+permuted", "b"]
    assert comparison.labels_of(table.drop(columns="control")) == ["a", "b"]


def test_comparison_with_a_control(home, tmp_path):
    config = simulated.config(home, folds=(0,), epochs=1)
    labels = ["average", "average+permuted"]
    compare.compare(config, labels, [42], tmp_path, "command")
    table = pd.read_csv(tmp_path / "compare.csv")
    assert list(table) == ["method", "fold", "seed", "c_index", "control"]
    assert table["method"].tolist() == ["average", "average"]
    assert table["control"].tolist() == ["none", "permuted"]
    page = (tmp_path / "compare.md").read_text()
    assert "`average` less `average+permuted`" in page
    result = comparison.compare_runs(tmp_path, "sim_a", labels, [42], [0])
    (difference,) = result.control_differences.values()
    expected = table["c_index"][0] - table["c_index"][1]
    assert difference.mean == pytest.approx(expected)
    assert dataclasses.is_dataclass(result)
    assert controls.CONTROLS[0] == "none"
