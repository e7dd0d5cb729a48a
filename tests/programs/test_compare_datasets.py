"""A comparison on several datasets in one call."""

import pandas as pd
import pools
import pytest

from steph_jax import compare
from steph_jax.reports import comparison_page

pytestmark = pytest.mark.usefixtures("no_pictures")

COMMAND = "python -m steph_jax.compare"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


def test_each_dataset_has_a_comparison_and_all_have_one_table(world, tmp_path):
    few = pools.config(world) | {"folds": [0], "batch_size": 2}
    methods, datasets = ["ridge_cox", "average"], ["sim_a", "sim_b", "sim_c"]
    results = compare.compare_datasets(
        *(few, methods, [1], tmp_path, COMMAND, datasets), reference="ridge_cox", primary="average"
    )
    assert {number: list(by_dataset) for number, by_dataset in results.items()} == {0: datasets}
    table = pd.read_csv(tmp_path / "compare.csv")
    assert list(table) == ["method", "fold", "seed", "c_index", "dataset"]
    assert table["dataset"].tolist() == [name for name in datasets for _ in methods]
    for name in datasets:
        alone = pd.read_csv(tmp_path / name / "compare.csv")
        rows = table[table["dataset"] == name].drop(columns="dataset")
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone, check_dtype=False)
        assert (tmp_path / name / "report.html").is_file()
    (row,) = pd.read_csv(tmp_path / "over_cohorts.csv").itertuples()
    assert (row.method, row.against, row.cohorts) == ("average", "ridge_cox", 3)
    means = table.groupby("method")["c_index"].mean()
    differences = pd.read_csv(tmp_path / "by_cohort.csv")["difference"]
    assert differences.mean() == pytest.approx(means["average"] - means["ridge_cox"], abs=1e-6)
    with pytest.raises(ValueError, match=r"compare.csv: expected a comparison on one dataset"):
        comparison_page.report_numbers(tmp_path)


def test_nothing_is_trained_where_one_dataset_cannot_be_compared(world, tmp_path):
    few = pools.config(world) | {"folds": [0], "batch_size": 2}
    asked = few, ["ridge_cox", "average"], [1], tmp_path / "W", COMMAND
    with pytest.raises(FileNotFoundError, match=r"sim_x"):
        compare.compare_datasets(*asked, ["sim_a", "sim_x"])
    for datasets in (["sim_a"], ["sim_a", "sim_a"]):
        with pytest.raises(ValueError, match=r"--datasets are two or more different ones"):
            compare.compare_datasets(*asked, datasets)
    with pytest.raises(ValueError, match=r"have no comparison 'abmil'"):
        compare.compare_datasets(*asked, ["sim_a", "sim_b"], primary="abmil")
    with pytest.raises(ValueError, match=r"train_patients = 900, but fold 0 of sim_a has"):
        compare.compare_datasets(*asked, ["sim_a", "sim_b"], [6, 900])
    assert not (tmp_path / "W").exists()
