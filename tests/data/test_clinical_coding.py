"""Clinical columns as predictors: what training patients decide, and what others then get."""

import json
import pathlib

import numpy as np
import pytest

from steph_jax.data import clinical_coding
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.clinical_coding import Coding

PATH = pathlib.Path("t.csv")


def table(**columns):
    """A table of patients 0, 1, ...; None is a missing cell."""
    return ClinicalTable(
        PATH,
        {
            name: {str(i): cell for i, cell in enumerate(cells) if cell is not None}
            for name, cells in columns.items()
        },
    )


def ids(*numbers):
    return [str(number) for number in numbers]


def test_a_missing_number_is_the_mean_of_the_training_patients():
    ages = table(age=["40", "60", None, "70.5", None, "1000"])
    (coding,) = codings = clinical_coding.code(ages, ids(0, 1, 2))
    assert coding == Coding("age", missing=1, mean=50.0)
    values = clinical_coding.values(codings, ages, ids(5, 4, 3, 2, 0))
    np.testing.assert_array_equal(values, [[1000], [50], [70.5], [50], [40]])


def test_a_missing_category_is_one_of_its_own():
    stages = table(stage=["II"] * 15 + ["I"] * 12 + [None] * 11 + ["III"] * 11 + ["X", None, "IV"])
    codings = clinical_coding.code(stages, ids(*range(49)))
    (coding,) = codings
    assert [group.title for group in coding.groups] == ["II", "I", "III", "missing"]
    assert (coding.missing, coding.mean, coding.width) == (11, None, 3)
    values = clinical_coding.values(codings, stages, ids(0, 15, 38, 27, 50, 49, 51))
    expected = [[0, 0, 0], [1, 0, 0], [0, 1, 0], *[[0, 0, 1]] * 4]  # X and IV are new
    np.testing.assert_array_equal(values, expected)


def test_a_rare_or_new_category_is_the_reference_where_few_are_missing():
    stages = table(stage=["II"] * 15 + ["I"] * 12 + ["III", None, "X"])
    codings = clinical_coding.code(stages, ids(*range(29)))
    assert [group.title for group in codings[0].groups] == ["II (and III, missing)", "I"]
    values = clinical_coding.values(codings, stages, ids(27, 28, 29, 16))
    np.testing.assert_array_equal(values, [[0], [0], [0], [1]])


def test_codes_of_two_numbers_are_categories_and_all_patients_decide():
    codes = table(sex=["1", "2"] * 10, grade=["1", "2"] * 9 + ["3", "4"])
    sex, grade = clinical_coding.code(codes, ids(*range(18)))
    assert (sex.width, sex.mean, grade.width, grade.mean) == (1, None, 1, 1.5)


def test_codings_are_kept_as_json():
    both = table(age=["40", "60", "50"] * 8, stage=["I"] * 12 + ["II"] * 12)
    codings = clinical_coding.code(both, ids(*range(24)))
    stored = json.loads(json.dumps([coding.to_json() for coding in codings]))
    assert clinical_coding.RECORDS.problem("clinical", stored) == ""
    assert [Coding.from_json(record) for record in stored] == codings
    del stored[1]["groups"][0]["members"]
    problem = clinical_coding.RECORDS.problem("clinical", stored)
    assert problem == "clinical[1].groups[0].members is missing"


def test_what_cannot_be_used_is_one_line():
    same = table(age=["40", "40", "40", "50", "60"], sex=["1"] * 5)
    with pytest.raises(ValueError, match=r"t.csv, columns age, sex: .* the same in all 3$"):
        clinical_coding.code(same, ids(0, 1, 2))
    codings = clinical_coding.code(same, ids(2, 3))
    bad = table(age=["40", "old"], sex=["1", "1"])
    with pytest.raises(ValueError, match=r"t.csv, column 'age': .* found 'old' \(1\)"):
        clinical_coding.values(codings, bad, ids(0, 1))
    with pytest.raises(ValueError, match=r"t.csv: .* columns age, sex; missing sex"):
        clinical_coding.values(codings, table(age=["40"]), ids(0))
