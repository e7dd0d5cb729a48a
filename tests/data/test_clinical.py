"""Clinical columns: what is read, what becomes of a column, and one line for each bad one."""

import numpy as np
import pytest

from steph_jax.data import clinical


def write(tmp_path, header, rows):
    path = tmp_path / "clinical.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def patients(number):
    return [f"P{i:03d}" for i in range(number)]


def table_of(tmp_path, **columns):
    number = len(next(iter(columns.values())))
    rows = [",".join(cells) for cells in zip(patients(number), *columns.values(), strict=True)]
    return clinical.read(write(tmp_path, f"id,{','.join(columns)}", rows), "id")


def test_cells_of_patients_without_those_that_are_missing(tmp_path):
    rows = ["a,60,II", "a,60,", "b,NA,[Not Available]", "c,70,III", ",1,x"]
    table = clinical.read(write(tmp_path, "id,age,stage", rows), "id", ["stage", "age"])
    assert table.columns == {"stage": {"a": "II", "c": "III"}, "age": {"a": "60", "c": "70"}}
    assert clinical.complete(table, ["c", "b", "a"]) == ["c", "a"]


def test_numbers_are_standardized(tmp_path):
    ages = np.random.default_rng(0).integers(30, 90, 40)
    (age,) = clinical.variables(table_of(tmp_path, age=ages.astype(str)), patients(40))
    assert age.unit == f"per {ages.std(ddof=1):.3g} (one standard deviation)"
    np.testing.assert_allclose(age.values, (ages - ages.mean()) / ages.std(ddof=1))


def test_categories_are_compared_with_the_most_frequent_one(tmp_path):
    stages = ["II"] * 30 + ["I"] * 20 + ["III"] * 15 + ["IV"] * 6 + ["X"] * 5
    sexes = ["0", "1"] * 38
    table = table_of(tmp_path, stage=stages, sex=sexes)
    made = clinical.variables(table, patients(76))
    assert [(v.column, v.unit, v.values.sum()) for v in made] == [
        ("stage", "I against II", 20),
        ("stage", "III against II", 15),
        ("stage", "other (IV, X) against II", 11),
        ("sex", "1 against 0", 38),
    ]


def test_few_patients_of_rare_categories_join_the_reference(tmp_path):
    table = table_of(tmp_path, stage=["II"] * 30 + ["I"] * 20 + ["IV"] * 3)
    (stage,) = clinical.variables(table, patients(53))
    assert stage.unit == "I against II (and IV)"
    assert stage.values.sum() == 20


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["5"] * 30, "expected values that differ, found 5 in all 30 patients"),
        ([f"{i} y" for i in range(30)], "at most 12 categories; found 30 .*such as 0 y"),
        ([f'"{i},5"' for i in range(30)], "write decimals with a point"),
    ],
)
def test_column_that_cannot_be_used_is_one_line(tmp_path, column, message):
    table = table_of(tmp_path, what=column)
    with pytest.raises(ValueError, match=f"clinical.csv, column 'what': .*{message}") as error:
        clinical.variables(table, patients(30))
    assert "\n" not in str(error.value)


def test_tables_that_cannot_be_used_are_one_line(tmp_path):
    path = write(tmp_path, "id,age,age", ["a,1,2"])
    with pytest.raises(ValueError, match="missing stage; found id, age, age"):
        clinical.read(path, "id", ["stage"])
    with pytest.raises(ValueError, match="every column once, found twice: age"):
        clinical.read(path, "id", ["age"])
    path = write(tmp_path, "id,age", ["a,1", "a,2"])
    with pytest.raises(ValueError, match=r"column 'age': expected one value .* differ for a;"):
        clinical.read(path, "id", ["age"])
    with pytest.raises(ValueError, match="found twice: age"):
        clinical.read(path, "id", ["age", "age"])
    with pytest.raises(FileNotFoundError, match="no such file; expected a table"):
        clinical.read(tmp_path / "none.csv", "id", ["age"])
