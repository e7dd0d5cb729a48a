"""Survival tables, splits and time bins: real cohorts, tables by hand, everything refused."""

import json
import math

import numpy as np
import pytest

from steph_jax.data import tables
from steph_jax.data.cohort import load_cohort
from steph_jax.data.columns import Columns
from steph_jax.data.splits import (
    Split,
    check_split,
    read_split,
    split_path,
    split_problems,
    without_left_out,
)
from steph_jax.data.tables import read_slides, read_table
from steph_jax.survival.time_bins import TimeBins, quantile_bins, sqrt_event_bins, uniform_bins

HEADER = "patient_id,pathology_id,project,t,e\n"
GOOD = HEADER + "P2,P2-b,X,20.5,0\nP1,P1-a,X,10,1\nP2,P2-a,X,20.5,0\n"


@pytest.fixture
def csv_file(tmp_path):
    """Writes text (or bytes) to a CSV file and returns its path."""

    def write(text, name="cohort_survival.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def table(csv_file):
    rows = "".join(f"P{i},P{i}-a,X,{10 * i + 5},{i % 2}\n" for i in range(8))
    return read_table(csv_file(HEADER + rows))


# Tables


def test_a_table_becomes_patients(csv_file):
    table = read_table(csv_file(GOOD))
    assert table.patients == ("P1", "P2")
    assert table.slides == (("P1-a",), ("P2-a", "P2-b"))
    assert table.time.tolist() == [10.0, 20.5]
    assert table.event.tolist() == [True, False]
    assert len(table) == 2
    assert table.rows(["P2", "P1", "P2"]).tolist() == [1, 0, 1]


def test_the_order_of_rows_and_columns_changes_nothing(csv_file):
    table = read_table(csv_file(GOOD))
    other = read_table(
        csv_file("e,t,pathology_id,patient_id\n0,20.5,P2-a,P2\n0,20.5,P2-b,P2\n1,10.0,P1-a,P1\n")
    )
    assert (other.patients, other.slides) == (table.patients, table.slides)
    np.testing.assert_array_equal(other.time, table.time)
    np.testing.assert_array_equal(other.event, table.event)


def test_ids_are_text(csv_file):
    table = read_table(csv_file(HEADER + "007,1e5,X,1,1\n7,NaN-1,X,2,0\n1e3,00,X,3,0\n"))
    assert table.patients == ("007", "1e3", "7")
    assert table.slides == (("1e5",), ("00",), ("NaN-1",))


def test_spaces_blank_lines_and_a_byte_order_mark_are_harmless(csv_file):
    text = "\ufeffpatient_id, pathology_id ,t,e\r\n\r\n P1 , P1-a ,10,1\r\n,,,\r\n"
    assert read_table(csv_file(text)).slides == (("P1-a",),)


def test_an_unknown_patient_is_named(csv_file):
    with pytest.raises(ValueError, match=r"cohort_survival\.csv: no such patients: P3, P4"):
        read_table(csv_file(GOOD)).rows(["P1", "P3", "P4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,t,e\nP1,1,1\n", r"missing pathology_id; found patient_id, t, e"),
        ("patient_id,pathology_id,t,t,e\nP1,a,1,1,1\n", "occur twice: t"),
        (HEADER, "expected a row per slide, found the header alone"),
        ("", "found an empty file"),
        ("\n \n", "found an empty file"),
        (HEADER + "P1,a,X,soon,1\nP1,b,X,,1\n", r"column 't': .* found P1: 'soon', P1: ''"),
        (HEADER + "P1,a,X,1_0,1\n", "found P1: '1_0'"),
        (HEADER + "P1,a,X,nan,1\n", "found none for P1; .*--config.data.unlabeled=drop"),
        (HEADER + "P1,a,X,1,N/A\nP2,b,X,1,1\n", "numbers in the columns 't' and 'e'"),
        (HEADER + "P1,a,X,1e999,1\n", "times must be finite; found P1: inf"),
        (HEADER + "P1,a,X,-3,1\n", r"times must not be negative; found P1: -3\.0"),
        (
            HEADER + "P1,a,X,3,2\n",
            r"column 'e': events must be 0 or 1; found P1: '2'; 1 is death seen and 0 is ",
        ),
        (HEADER + "P1,a,X,3,sick\n", "must be 0 or 1; found P1: 'sick'; write 1 where .*DECEASED"),
        (HEADER + "P1,a,X,3,1\nP1,b,X,4,1\n", r"P1: \(3\.0, 1\.0\) and \(4\.0, 1\.0\)"),
        (HEADER + "P1,a,X,3,1\nP1,b,X,3,0\n", r"one \(t, e\) for all rows of a patient"),
        (HEADER + "P1,a,X,3,1\nP1,a,X,3,1\n", r"one row per slide; slides in several rows \(a\)"),
        (HEADER + "P1,a,X,3,1\nP2,a,X,3,1\n", r"one row per slide; slides in several rows \(a\)"),
        (HEADER + ",a,X,3,1\n", r"column 'patient_id': empty or NA \(line 2\); fill in"),
        (HEADER + "P1,NA,X,3,1\n", r"column 'pathology_id': empty or NA \(line 2\); fill in"),
        (HEADER + "P1,a,X,3,1,9\n", "line 2: expected 5 cells as in the header, found 6"),
        (b"patient_id\xff\n", "expected a CSV file in UTF-8"),
        (HEADER + 'P1,"' + "a" * 200_000, "line 2: .*field larger.* quote that is never closed"),
    ],
)
def test_contradictory_tables_are_refused(csv_file, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_table(csv_file(text))
    assert "cohort_survival.csv" in str(error.value)


def test_at_most_ten_patients_are_listed(csv_file):
    rows = "".join(f"P{i:02},s{i},X,-1,1\n" for i in range(25))
    with pytest.raises(ValueError, match=r"P09: -1\.0, \.\.\. \(25 in all\)$"):
        read_table(csv_file(HEADER + rows))


def test_missing_file_message_names_the_data_folder(tmp_path):
    path = tables.table_path(tmp_path, "any_name")
    with pytest.raises(FileNotFoundError, match=r"any_name_survival\.csv.*UNI2-h-DSS.*make demo"):
        read_table(path)
    with pytest.raises(FileNotFoundError, match=r"splits_3\.csv: no such file"):
        read_split(split_path(tmp_path, "any_name", 3))


def test_other_columns_units_and_codings(csv_file):
    path = csv_file("case,slide,survival_months,censorship\nP1,a,12,0\nP2,b,6,1\n")
    columns = Columns("case", "slide", "survival_months", "censorship", "months", "censorship")
    table = read_table(path, columns)
    np.testing.assert_allclose(table.time, [365.25, 182.625])
    assert table.event.tolist() == [True, False]
    years = Columns("case", "slide", "survival_months", "censorship", "years")
    np.testing.assert_allclose(read_table(path, years).time, [12 * 365.25, 6 * 365.25])
    assert read_table(path, years).event.tolist() == [False, True]


def test_unknown_units_and_codings_are_refused():
    with pytest.raises(ValueError, match="one of days, months, years, not 'weeks'"):
        Columns(time_unit="weeks")
    with pytest.raises(ValueError, match="one of event, censorship, not 'status'"):
        Columns(event_coding="status")
    with pytest.raises(ValueError, match=r"data\.unlabeled is one of refuse, drop, not 'keep'"):
        Columns(unlabeled="keep")
    with pytest.raises(ValueError, match="four different columns"):
        Columns(time="e")


def test_unlabeled_patients_are_dropped_on_request(csv_file):
    rows = "P1,P1-a,X,10,1\nP2,P2-b,X,,0\nP2,P2-a,X,,0\nP3,P3-a,X,5,NaN\nP4,P4-a,X,NA,na\n"
    drop = Columns(unlabeled="drop")
    table = read_table(csv_file(HEADER + rows + "P5,P5-a,X,7,0\n"), drop)
    assert table.patients == ("P1", "P5")
    assert table.slides == (("P1-a",), ("P5-a",))
    assert table.event.tolist() == [True, False]
    assert table.left_out == {"P2": ("P2-a", "P2-b"), "P3": ("P3-a",), "P4": ("P4-a",)}
    split = Split(csv_file(""), ("P1", "P2"), ("P3", "P5"), ("P4",))
    assert without_left_out(split, table) == Split(split.path, ("P1",), ("P5",))
    assert read_table(csv_file(GOOD), drop).left_out == {}
    with pytest.raises(ValueError, match=r"expected numbers; found P6: ''"):
        read_table(csv_file(HEADER + "P6,a,X,,1\nP6,b,X,3,1\n"), drop)
    with pytest.raises(ValueError, match="no patient has both 't' and 'e'"):
        read_table(csv_file(HEADER + "P6,a,X,,1\n"), drop)


def test_a_cohort_without_the_unlabeled(tmp_path, caplog):
    home = tmp_path / "x"
    home.mkdir()
    rows = "".join(f"P{i:02},P{i:02}-a,X,{'' if i > 3 else i + 1},1\n" for i in range(16))
    (home / "x_survival.csv").write_text(HEADER + rows)
    (home / "splits_0.csv").write_text("train,test\nP00,P02\nP01,P03\nP04,P05\n")
    with pytest.raises(ValueError, match=r"P13, \.\.\. \(12 in all\); .*data\.unlabeled=drop"):
        load_cohort(tmp_path, "x", [0], Columns())
    caplog.set_level("INFO", logger="absl")
    cohort = load_cohort(tmp_path, "x", [0], Columns(unlabeled="drop"))
    assert cohort.table.patients == ("P00", "P01", "P02", "P03")
    assert cohort.folds[0].test.tolist() == [2, 3]
    (line,) = caplog.messages
    assert "12 patients without time or event are left out" in line
    assert line.endswith("P13, ... (12 in all)")


def with_other_deaths(csv_file, *cells):
    """A table of four patients, the last with two slides; `cells` are of the last column."""
    rows = zip(("a,1,1", "b,2,0", "c,3,0", "d,4,0", "d2,4,0"), cells, strict=True)
    lines = [
        f"{row[0][0]},{row[0].split(',')[0]}s,{row[0].split(',', 1)[1]},{row[1]}" for row in rows
    ]
    path = csv_file("patient_id,pathology_id,t,e,other\n" + "\n".join(lines) + "\n")
    columns = Columns(competing="other")
    return tables.with_competing(read_table(path, columns), columns)


def test_deaths_of_other_causes(csv_file):
    assert with_other_deaths(csv_file, *"01011").competing.tolist() == [False, True, False, True]
    plain = read_table(csv_file(GOOD))
    assert tables.with_competing(plain, Columns()).competing is None


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("11011", "'other': expected 0 where 'e' says that the event was seen; found 1 for a"),
        ("01010", "'other': expected 1 where a patient died .* alike in all rows .* for d"),
        (["0", "", "0", "0", "0"], "'other': expected 1 where a patient died .* for b"),
    ],
)
def test_contradictory_deaths_of_other_causes_are_refused(csv_file, cells, message):
    with pytest.raises(ValueError, match=message):
        with_other_deaths(csv_file, *cells)


def test_column_of_other_deaths_is_named_by_its_setting(csv_file):
    columns = Columns(competing="other")
    with pytest.raises(
        ValueError, match=r"missing other; .* name yours by data\.columns\.competing"
    ):
        tables.with_competing(read_table(csv_file(GOOD), columns), columns)
    with pytest.raises(ValueError, match=r"data\.columns\.competing is a column of its own"):
        Columns(competing="e")


def test_cohort_keeps_deaths_of_other_causes_and_the_size_of_its_table(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [f"P{i},S{i},{i + 1},{i % 2},{int(i == 2)}" for i in range(6)] + ["Q,Q1,,,", "Q,Q2,,,"]
    text = "\n".join(["patient_id,pathology_id,t,e,other", *rows]) + "\n"
    (folder / "mine_survival.csv").write_text(text)
    (folder / "splits_0.csv").write_text("train,test\nP1,P3\nP2,P4\n")
    cohort = load_cohort(tmp_path, "mine", [0], Columns(unlabeled="drop", competing="other"))
    assert cohort.table.patients == ("P1", "P2", "P3", "P4")
    assert cohort.table.competing.tolist() == [False, True, False, False]
    assert cohort.file == (7, 8, 1, 2)


def test_slides_are_read_without_labels(csv_file):
    path = csv_file("slide_id,case\nP2-b,P2\nP1-a,P1\nP2-a,P2\n")
    columns = Columns(patient="case", slide="slide_id")
    assert read_slides(path, columns) == {"P1": ("P1-a",), "P2": ("P2-a", "P2-b")}
    assert list(read_slides(path, columns)) == ["P1", "P2"]
    assert read_slides(csv_file(GOOD, "other.csv")) == {"P1": ("P1-a",), "P2": ("P2-a", "P2-b")}
    with pytest.raises(ValueError, match="missing patient_id, pathology_id; found slide_id, case"):
        read_slides(path)


# Splits


def test_a_split_is_read_in_the_order_of_the_file(csv_file):
    split = read_split(csv_file("train,test\nP3,P1\nP2,\n,\nP4\n"))
    assert (split.train, split.test, split.validation) == (("P3", "P2", "P4"), ("P1",), ())


@pytest.mark.parametrize("name", ["validation", "val"])
@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
def test_optional_validation_and_index_columns(csv_file, name, index):
    split = read_split(csv_file(f"{index},train,{name},test\n0,P1,P2,P3\n1,P4,,P5\n"))
    assert split.train == ("P1", "P4")
    assert split.validation == ("P2",)
    assert split.test == ("P3", "P5")


@pytest.mark.parametrize(
    "header", ["train,vaildation,test", "train", "train,test,val,validation", "a,train,test"]
)
def test_other_columns_of_a_split_are_refused(csv_file, header):
    with pytest.raises(ValueError, match=f"train, test and perhaps .*; found {header[:1]}"):
        read_split(csv_file(f"{header}\nP1\n"))


def make_split(tmp_path, train, test, validation=()):
    return Split(tmp_path / "splits_0.csv", tuple(train), tuple(test), tuple(validation))


def test_a_sound_split_passes(tmp_path, table):
    check_split(make_split(tmp_path, ["P0", "P1"], ["P2"], ["P3"]), table)


@pytest.mark.parametrize(
    ("train", "test", "validation", "message"),
    [
        (["P0", "P1"], ["P1"], [], "patients in both train and test: P1"),
        (["P0", "P1"], ["P2"], ["P1"], "patients in both train and validation: P1"),
        (["P0", "P1"], ["P2"], ["P2"], "patients in both test and validation: P2"),
        (["P1", "P1"], ["P2"], [], "more than once in train: P1"),
        (["P1", "Q1"], ["P2"], [], r"train that .*cohort_survival\.csv lacks: Q1"),
        (["P0", "P2"], ["P1"], [], "expected events among the training patients, found none"),
        ([], ["P1"], [], "expected patients in train, found none"),
        (["P1"], [], [], "expected patients in test, found none"),
        (["P1"], [f"Q{i}" for i in range(11)], [], r"Q9, \.\.\. \(11 in all\)"),
    ],
)
def test_unfit_splits_are_refused(tmp_path, table, train, test, validation, message):
    with pytest.raises(ValueError, match=r"splits_0\.csv: .*" + message):
        check_split(make_split(tmp_path, train, test, validation), table)


def test_ids_read_as_floats_are_recognized(csv_file, tmp_path):
    table = read_table(csv_file(HEADER + "101,a,X,1,1\n102,b,X,2,0\n"))
    split = make_split(tmp_path, ["101"], ["102.0"])
    with pytest.raises(
        ValueError, match=r"the same persons .*102\.0 here is 102 there\): 102\.0; keep"
    ):
        check_split(split, table)


def test_all_problems_are_named_at_once(tmp_path, table):
    split = make_split(tmp_path, ["P0", "P2", "Q"], ["P2", "P2"])
    problems = split_problems(split, table)
    assert [problem.patients for problem in problems] == [("P2",), ("P2",), ("Q",), ()]
    with pytest.raises(ValueError, match=r"more than once in test: P2; .*both.*; .*lacks: Q; "):
        check_split(split, table)


# Bins


def test_uniform_bins_are_those_of_the_paper():
    bins = uniform_bins()
    assert bins.num_bins == 32
    assert bins.edges[-1] == 11_680
    times = [0, 364.9, 365, 729.99, 730, 11_315, 11_679, 11_680, 40_000]
    assert bins.index(times).tolist() == [0, 0, 1, 1, 2, 31, 31, 31, 31]
    assert bins.index(np.zeros((2, 3))).shape == (2, 3)


def test_every_bin_holds_its_interval():
    bins = TimeBins((0.0, 1.5, 4.0, 10.0), "uniform")
    times = np.linspace(0, 12, 97)
    slow = [max(y for y in range(3) if bins.edges[y] <= t) for t in times]
    assert bins.index(times).tolist() == slow


def test_quantile_bins_hold_equal_shares_of_the_events():
    events = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))
    time = np.concatenate([events, np.full(30, 3.0)])  # the censored ones do not count
    bins = quantile_bins(time, np.arange(70) < 40, 4)
    assert np.bincount(bins.index(events)).tolist() == [10, 10, 10, 10]
    np.testing.assert_allclose(bins.edges, [0, 10.75, 20.5, 30.25, 40])
    assert quantile_bins(events, np.ones(40), 1).edges == (0.0, 40.0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([5.0, 5, 5, 9], "of 4 events coincide at 5 days"),
        ([0.0, 0, 0, 3, 9], "of 5 events coincide at 0 days"),
        ([1.0, 9, 9, 9], "of 4 events coincide at 9 days"),
    ],
)
def test_cut_points_that_coincide_are_an_error(events, message):
    with pytest.raises(ValueError, match=message):
        quantile_bins(events, np.ones(len(events)), 4)


@pytest.mark.parametrize(("events", "num_bins"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_sqrt_event_bins(events, num_bins):
    bins = sqrt_event_bins([*np.arange(1.0, events + 1), 99.0], [1] * events + [0])
    assert bins.num_bins == num_bins
    np.testing.assert_allclose(bins.edges, np.arange(num_bins + 1) * (events / num_bins))
    assert bins.index([float(events)]).tolist() == [num_bins - 1]


@pytest.mark.parametrize(
    "bins", [uniform_bins(3, 0.1), quantile_bins([0.1, 0.3, 1 / 3], [1, 1, 1], 2)]
)
def test_bins_survive_json(bins):
    assert TimeBins.from_json(json.loads(json.dumps(bins.to_json()))) == bins


def test_invalid_bins_are_refused():
    with pytest.raises(ValueError, match=r"the kind of bins is one of uniform, .*, not 'log'"):
        TimeBins((0.0, 1.0), "log")
    for edges in ((), (0.0,), (1.0, 2.0), (0.0, 2.0, 2.0), (0.0, math.inf), (0.0, math.nan)):
        with pytest.raises(ValueError, match="edges of bins start at 0 and increase"):
            TimeBins(edges, "uniform")
    with pytest.raises(ValueError, match="fields kind and edges, found edges"):
        TimeBins.from_json({"edges": [0, 1]})
    with pytest.raises(ValueError, match="number of bins is at least 1, not 0"):
        uniform_bins(0)
    with pytest.raises(ValueError, match="positive number of days, not -1"):
        uniform_bins(3, -1)
    with pytest.raises(ValueError, match="found 0 events, none later"):
        quantile_bins([3.0], [0], 3)
    with pytest.raises(ValueError, match="event after day 0; found 2 events"):
        sqrt_event_bins([0.0, 0.0], [1, 1])
    with pytest.raises(ValueError, match="events must be 0 or 1"):
        sqrt_event_bins([1.0], [2])


@pytest.mark.parametrize("time", [-0.1, math.nan, math.inf])
def test_times_without_a_bin_are_refused(time):
    with pytest.raises(ValueError, match="finite and not negative"):
        uniform_bins().index([1.0, time])


# Real patients


def test_real_tables_and_splits_fit_each_other(shared):
    root = shared / "tcga_rna"
    cohorts = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert cohorts
    for cohort in cohorts:
        table = read_table(tables.table_path(root, cohort))
        for fold in range(5):
            split = read_split(split_path(root, cohort, fold))
            check_split(split, table)
            assert len(split.train) + len(split.test) == len(table)
    gbmlgg = read_table(tables.table_path(root, "tcga_gbmlgg"))
    assert (len(gbmlgg), sum(map(len, gbmlgg.slides))) == (569, 1011)


def test_bins_of_real_patients_are_the_published(shared, parity):
    table = read_table(tables.table_path(shared / "tcga_rna", "tcga_gbmlgg"))
    with np.load(parity / "steph_tcga_gbmlgg.npz") as record:
        rows = table.rows(record["patient_id"].tolist())
        np.testing.assert_array_equal(uniform_bins().index(table.time[rows]), record["bin"])
        np.testing.assert_array_equal(table.event[rows], record["event"].astype(bool))
