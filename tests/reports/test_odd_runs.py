"""Reports of runs in which something cannot be computed: the page says so in its place."""

import dataclasses
import json

import finished_runs
import html_pages
import numpy as np
import pandas as pd
import pytest

from steph_jax import report
from steph_jax.reports import clinical_file, comparison_page, run_numbers, run_page


def page_of(workdir):
    """The numbers of a run's report, and its page."""
    page = html_pages.Page(run_page.write(workdir).read_text(encoding="utf-8"))
    return json.loads((workdir / "report.json").read_text()), page


def test_fold_without_events(tmp_path):
    who = finished_runs.patients()
    event = who.table.event & (who.fold != 1)
    who.table = dataclasses.replace(who.table, event=event)
    numbers, page = page_of(finished_runs.write(tmp_path / "w", who))
    assert numbers["verdict"].startswith("Not computable: ")
    assert numbers["c_index"]["mean"] is None
    assert numbers["c_index"]["folds"][1] is None
    assert numbers["uno"]["mean"] is None
    assert "fold 1: no two test patients can be compared" in page.words
    assert "fold 1: no pair of patients can be compared before 1825" in page.words
    assert "fold 1: no event was seen" in page.words
    assert numbers["hazard_ratio"]["value"] > 1  # of the other folds


def test_empty_risk_group(tmp_path):
    who = finished_runs.patients()
    numbers, page = page_of(finished_runs.write(tmp_path / "w", who, risk_cut=99.0))
    assert numbers["hazard_ratio"] is None
    assert "fold 0: all test patients are in one risk group" in page.words
    assert "no hazard ratio" in page.words
    assert numbers["hazard_ratio_per_sd"]["value"] > 1


def test_follow_up_shorter_than_a_horizon(tmp_path):
    who = finished_runs.patients()
    late = who.table.time > 1300
    time, event = np.minimum(who.table.time, 1300), who.table.event & ~late
    who.table = dataclasses.replace(who.table, time=time, event=event)
    numbers, page = page_of(finished_runs.write(tmp_path / "w", who))
    assert numbers["auc"]["1"] is not None
    assert numbers["auc"]["5"] is None
    tau = numbers["tau_days"]
    assert tau < 1300
    assert f"beyond {tau:g} days, where follow-up supports no number" in page.words
    assert numbers["calibration"]["5"] == {"missing": "follow-up of all patients ends before"}
    assert "beyond follow-up" in page.words
    assert "follow-up of all of them ends before" in page.words  # of the cumulative incidence


def test_loss_without_curves(tmp_path):
    who = finished_runs.patients()
    numbers, page = page_of(finished_runs.write(tmp_path / "w", who, curves=False))
    assert numbers["ibs"] is None
    assert numbers["d_calibration"] is None
    assert numbers["auc"]["3"] > 0.5
    assert "There are no probabilities to look at: this loss gives no survival curves" in page.words


def test_single_fold(tmp_path):
    who = finished_runs.patients()
    workdir = finished_runs.write(tmp_path / "w", who, target_only={"c_index": 0.6})
    settings = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(settings | {"folds": [0]}))
    numbers, page = page_of(workdir)
    assert numbers["c_index"]["sd"] is None
    assert "the cancer's own model cannot be told from one fold" in page.words
    json.dumps(numbers, allow_nan=False)


def test_cumulative_incidence_of_a_disease_specific_endpoint(tmp_path):
    who = finished_runs.patients()
    numbers, page = page_of(finished_runs.write(tmp_path / "w", who))
    competing = numbers["competing"]
    assert competing["deaths"] == who.table.competing.sum()
    groups = competing["groups"]
    assert groups["low risk"]["patients"] + groups["high risk"]["patients"] == 120
    at_3 = groups["all"]["years"]["3"]
    assert at_3["event"]["value"] < at_3["one_minus_kaplan_meier"]
    low, high = (groups[name]["years"]["3"]["event"]["value"] for name in ("low risk", "high risk"))
    assert low < high
    assert f"{competing['deaths']} test patients died of something else" in page.words
    who.table = dataclasses.replace(who.table, competing=None)
    numbers, page = page_of(finished_runs.write(tmp_path / "without", who))
    assert numbers["competing"] is None
    assert "The table does not say who died of something else" in page.words
    assert "data.columns.competing" in page.words


def clinical_table(path, who, id_column="patient_id", **columns):
    """A table of ages that matter, of stages, and of more columns."""
    rng = np.random.default_rng(1)
    number = len(who.table)
    table = {
        id_column: who.table.patients,
        "age": np.round(60 + 10 * who.log_hazard + rng.normal(0, 10, number), 1),
        "stage": rng.choice(["I", "II", "III"], number),
    }
    pd.DataFrame(table | columns).to_csv(path, index=False)
    return path


def test_clinical_columns_are_kept_until_they_are_taken_out(tmp_path, monkeypatch):
    who = finished_runs.patients()
    workdir = finished_runs.write(tmp_path / "w", who)
    other = ["" if i % 10 == 0 else "G1" if i % 2 else "<b>G2</b>" for i in range(len(who.table))]
    source = clinical_table(tmp_path / "other.csv", who, grade=other)

    def run(clinical=None, clinical_table=None):
        values = {"workdir": workdir, "clinical": clinical, "clinical_table": clinical_table}
        monkeypatch.setattr(report.flags, "FLAGS", type("Flags", (), values))
        report.main()
        text = (workdir / "report.html").read_text(encoding="utf-8")
        return json.loads((workdir / "report.json").read_text())["clinical"], html_pages.Page(text)

    numbers, page = run()
    assert numbers is None
    assert "No clinical columns were named" in page.words
    numbers, page = run(["age", "stage", "grade"], source)
    assert numbers["missing"] == {"age": 0, "stage": 0, "grade": 12}
    assert (numbers["patients"], numbers["left_out"]) == (108, 12)
    names = [(v["name"], v["unit"]) for v in numbers["variables"]]
    assert names[0] == ("risk", "per standard deviation")
    assert names[2:] == [
        ("stage", names[2][1]),
        ("stage", names[3][1]),
        ("grade", "<b>G2</b> against G1"),
    ]
    assert numbers["variables"][0]["value"] > 1
    assert 0 < numbers["likelihood_ratio"]["p"] < 1
    gain = numbers["c_index"]
    assert gain["difference"]["mean"] == pytest.approx(
        gain["both"]["mean"] - gain["clinical"]["mean"]
    )
    assert "12 are left out here for missing values (age: 0, stage: 0, grade: 12)" in page.words
    assert "<b>G2</b> against G1" in page.words
    assert "b" not in page.tags
    source.unlink()
    assert run()[0] == numbers  # a later report has them, whatever became of the table
    assert run([])[0] is None
    assert run()[0] is None


def test_clinical_columns_of_the_survival_table(tmp_path):
    who = finished_runs.patients()
    workdir = finished_runs.write(tmp_path / "w", who)
    (workdir / "simulated").mkdir()
    clinical_table(workdir / "simulated" / "simulated_survival.csv", who)
    clinical_file.choose(workdir, workdir, ["age"])
    assert run_numbers.report_numbers(workdir, clinical_file.read(workdir))["clinical"][
        "columns"
    ] == ["age"]


def test_bad_clinical_columns_are_one_line_and_leave_nothing(tmp_path):
    who = finished_runs.patients()
    workdir = finished_runs.write(tmp_path / "w", who)
    source = clinical_table(
        tmp_path / "t.csv",
        who,
        one="x",
        text=[f"note {i}" for i in range(120)],
        t=who.table.time,
        empty="NA",
    )
    for names, message in (
        (["weight"], "t.csv: expected the columns patient_id, weight; missing weight; found"),
        (["one"], "t.csv, column 'one': expected values that differ"),
        (["text"], "t.csv, column 'text': expected numbers, or at most 12 categories"),
        (["age", "t"], "--clinical: t is the outcome itself"),
        (["empty"], "t.csv, column 'empty': expected values of the run's patients, such as P0"),
    ):
        with pytest.raises(ValueError, match=message):
            clinical_file.choose(workdir, workdir, names, source)
        assert not (workdir / clinical_file.FILE).exists()
    other = clinical_table(tmp_path / "ids.csv", who, id_column="ID")
    with pytest.raises(ValueError, match="missing patient_id; found ID, age, stage"):
        clinical_file.choose(workdir, workdir, ["age"], other)
    run_page.write(workdir)


def comparison_of(tmp_path, who, **numbers):
    """A comparison of two methods, of simulated patients."""
    methods = ("abmil", "steph")
    for method in methods:
        finished_runs.write(tmp_path / f"{method}-seed_1", who, method=method, **numbers)
        who.risk = who.risk + 0.5 * who.log_hazard
    rows = [(method, fold, 1, 0.6) for method in methods for fold in (0, 1, 2)]
    table = pd.DataFrame(rows, columns=["method", "fold", "seed", "c_index"])
    table.to_csv(tmp_path / "compare.csv", index=False)
    return tmp_path


def test_comparison_has_the_same_numbers_for_each_method(tmp_path):
    who = finished_runs.patients()
    workdir = comparison_of(tmp_path, who)
    source = clinical_table(tmp_path / "t.csv", who)
    clinical_file.choose(workdir, comparison_page.first_run(workdir), ["age", "stage"], source)
    page = html_pages.Page(comparison_page.write(workdir).read_text(encoding="utf-8"))
    numbers = json.loads((workdir / "report.json").read_text())
    for method, own in numbers["methods"].items():
        alone = run_numbers.report_numbers(
            workdir / f"{method}-seed_1", clinical_file.read(workdir)
        )
        for name in ("uno", "auc", "ibs", "calibration", "hazard_ratio", "clinical"):
            assert own[name] == alone[name]
        assert f"{own['uno']['mean']:.3f}" in page.words
        assert f"{own['clinical']['c_index']['both']['mean']:.3f}" in page.words
        assert own["c_index"]["sd"] == pytest.approx(np.std(own["c_index"]["folds"], ddof=1))
    assert numbers["participants"]["patients"] == 120
    assert numbers["verdicts"][0] in page.words
    assert (numbers["method"], numbers["c_index"]) == (
        "steph",
        numbers["methods"]["steph"]["c_index"],
    )
    assert "120 patients with 120 slides" in page.words
    assert "120 of the patients, with" in page.words
    assert "Aalen" not in page.words


def test_comparison_of_losses_without_curves(tmp_path):
    workdir = comparison_of(tmp_path, finished_runs.patients(), curves=False)
    page = html_pages.Page(comparison_page.write(workdir).read_text(encoding="utf-8"))
    assert page.words.count("there are no probabilities to look at") == 2
    assert "Brier scores and calibration: this loss gives no survival curves (all" in page.words
