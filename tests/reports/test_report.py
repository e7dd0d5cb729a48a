"""The report of a run: its numbers against the run's own files, and a page that holds them all."""

import dataclasses
import json
import math
import shutil
import sys

import cohorts
import h5py
import lifelines
import numpy as np
import pandas as pd
import pytest
import simulated
from html_pages import Page

from steph_jax import evaluate, report, run_directory, train
from steph_jax.evaluation.comparison import Comparison, Difference
from steph_jax.reports import (
    comparison_page,
    provenance,
    run_heatmaps,
    run_numbers,
    run_page,
    verdicts,
)
from steph_jax.survival import metrics
from steph_jax.survival.significance import Interval


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of an ABMIL in two folds, and of STEPH in two folds."""
    home = simulated.make(tmp_path_factory.mktemp("home"))
    for dataset in ("sim_a", "sim_b"):
        config = simulated.config(
            home, method="abmil", dataset=dataset, folds=(0, 1), epochs=1, pool__save=True
        )
        train.train(config, home / dataset)
    train.train(simulated.config(home, epochs=1, steph__top_k=0), home / "steph")
    return home / "steph"


def test_numbers_are_those_of_the_files(workdir):
    numbers = run_numbers.report_numbers(workdir)
    assert (numbers["dataset"], numbers["method"], numbers["folds"]) == ("sim_a", "steph", [0, 1])
    values, shares = [], []
    for fold in (0, 1):
        directory = run_directory.fold_directory(workdir, fold)
        table = pd.read_csv(directory / "predictions_test.csv")
        values.append(metrics.concordance_index(table["t"], table["e"], table["risk"]))
        shares.append(json.loads((directory / "metrics.json").read_text())["source_share"])
        patients = pd.read_csv(directory / "patients.csv")
        counted = numbers["participants"]["folds"][fold]
        assert counted["train"] == (patients["part"] == "train").sum()
        assert counted["test_events"] == table["e"].sum()
    np.testing.assert_allclose(numbers["c_index"]["folds"], values, atol=1e-6)
    assert numbers["c_index"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    low, high = numbers["c_index"]["ci95"]
    assert 0 <= low <= numbers["c_index"]["mean"] <= high <= 1
    assert numbers["source_share"] == pytest.approx(np.mean(shares))
    assert numbers["participants"]["patients"] == len(patients)
    json.dumps(numbers, allow_nan=False)


def test_verdict_follows_the_interval():
    base = {
        "method": "steph",
        "control": "none",
        "c_index": {"mean": 0.7, "ci95": [0.65, 0.75]},
        "sources": "no other cancer is used: their share in the merged model is 1.0 %",
    }

    def verdict(mean, ends, **more):
        return verdicts.of_run(base | {"gain": {"mean": mean, "ci95": ends}} | more)

    assert "Better than the cancer's own model: +0.020" in verdict(0.02, [0.01, 0.03])
    assert "Worse than the cancer's own model" in verdict(-0.02, [-0.03, -0.01])
    untold = "Whether it is better or worse than the cancer's own model cannot be told"
    assert f"{untold}: +0.020 [95 %" in verdict(0.02, [-0.01, 0.05])
    assert f"{untold} from one fold: +0.020 in the C-index." in verdict(0.02, None)
    assert "No other cancer is used" in verdict(0.02, [0.01, 0.03])
    assert verdict(0.02, None).startswith(
        "Better than chance: C-index 0.700 [95 %: 0.650 to 0.750]"
    )
    chance = {"mean": 0.53, "ci95": [0.45, 0.61]}
    assert verdict(0.02, None, c_index=chance).startswith(
        "Whether it is better or worse than chance cannot be told: C-index 0.530 [95 %"
    )
    assert "only a control can show" in verdict(0.02, [0.01, 0.03])
    control = verdict(0.02, [0.01, 0.03], control="permuted")
    assert "This run is a control (control=permuted)" in control
    assert "only a control can show" not in control
    own = verdicts.of_run(base | {"method": "abmil", "gain": None, "sources": None})
    assert "the cancer's own model" in own
    assert "control" not in own
    nothing = base | {"c_index": {"mean": None, "ci95": None}, "gain": None}
    assert verdicts.of_run(nothing).startswith("Not computable")


def test_verdict_of_a_comparison_has_its_controls():
    def difference(mean, low, high):
        return Difference(mean, Interval(low, high), 0.01, np.full(5, mean))

    labels = ("abmil", "steph", "steph+permuted")
    result = Comparison(
        dataset="x",
        methods=labels,
        seeds=(1,),
        folds=(0, 1, 2, 3, 4),
        runs=(),
        c_index={},
        intervals={},
        differences={
            "steph": difference(0.03, 0.01, 0.05),
            "steph+permuted": difference(0.02, -0.01, 0.05),
        },
        undefined=0.0,
        control_differences={"steph+permuted": difference(0.01, -0.01, 0.03)},
    )
    run = {"merges": True, "sources": "x", "source_share": 0.2}
    runs = dict.fromkeys(labels, run)
    (steph,) = verdicts.of_comparison(result, runs)
    assert steph == (
        "steph is better than abmil, beyond the noise of patients and of folds: +0.030 [95 %: "
        "+0.010 to +0.050] in the C-index. Other cancers have a share of 20 % in the merged model. "
        "Gain over controls, the same without its cause: +0.010 [95 %: −0.010 to +0.030] "
        "(permuted). Whether other cancers had a part in this cannot be told."
    )
    beyond = {"steph+permuted": difference(0.01, 0.005, 0.03)}
    (steph,) = verdicts.of_comparison(dataclasses.replace(result, control_differences=beyond), runs)
    assert steph.endswith("(permuted). Other cancers had a part in this.")
    noise = {"steph": difference(0.02, -0.01, 0.05)}
    (steph,) = verdicts.of_comparison(dataclasses.replace(result, differences=noise), runs)
    assert steph.startswith(
        "Whether steph is better or worse than abmil cannot be told (within the noise: the folds "
        "agree, but other patients might not): +0.020 [95 %: −0.010 to +0.050] in the C-index."
    )
    undefined = {"steph": difference(math.nan, math.nan, math.nan)}
    (steph,) = verdicts.of_comparison(
        dataclasses.replace(result, differences=undefined, control_differences=beyond), runs
    )
    assert "cannot be told (not known: the C-index of some fold is undefined): no number" in steph
    *_, last = verdicts.of_comparison(dataclasses.replace(result, control_differences={}), runs)
    assert last.startswith("No control was run")
    alone = dataclasses.replace(result, differences={})
    assert verdicts.of_comparison(alone, runs) == ["Nothing was compared with abmil."]


def test_keys_of_the_contract(workdir):
    run_page.write(workdir)
    report_json = json.loads((workdir / "report.json").read_text())
    assert {"mean", "ci95"} <= report_json["c_index"].keys()
    assert report_json["uno"].keys() >= {"mean", "sd"}
    assert report_json["auc"].keys() == {"1", "3", "5"}
    assert report_json["ibs"].keys() == {"model", "kaplan_meier"}
    assert "p" in report_json["d_calibration"]
    assert report_json["hazard_ratio"].keys() == {"value", "ci95"}
    assert isinstance(report_json["verdict"], str)
    test = json.loads((workdir / "fold_0" / "metrics.json").read_text())["test"]
    assert {"c_index", "uno", "ibs", "auc", "d_calibration"} <= test.keys()


def test_summary_has_the_same_numbers_over_folds(workdir):
    numbers = run_numbers.report_numbers(workdir)
    summary = run_directory.load_summary(workdir)
    per_fold = [
        json.loads((workdir / f"fold_{k}" / "metrics.json").read_text())["test"] for k in (0, 1)
    ]
    for name, values, spread in (
        ("uno", [fold["uno"] for fold in per_fold], summary["uno"]),
        ("ibs", [fold["ibs"]["model"] for fold in per_fold], summary["ibs"]["model"]),
        ("ipa", [fold["ipa"] for fold in per_fold], summary["ipa"]),
    ):
        assert spread["mean"] == pytest.approx(np.mean(values), abs=1e-6), name
        assert spread["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-6), name
    assert numbers["auc"] == {year: value["mean"] for year, value in summary["auc"].items()}
    assert numbers["ibs"] == {name: value["mean"] for name, value in summary["ibs"].items()}
    for name in ("uno", "d_calibration", "calibration", "hazard_ratio", "missing", "tau_days"):
        assert numbers[name] == summary[name]
    for year, value in summary["auc"].items():
        reasons = [fold["missing"].get(f"auc {year}") for fold in per_fold]
        assert (value["mean"] is None) == any(reasons)
        assert [summary["missing"].get(f"fold {k}", {}).get(f"auc {year}") for k in (0, 1)] == (
            reasons
        )


def test_other_horizons_are_used_everywhere(workdir, tmp_path):
    """They may be changed for a finished run: the same command writes its numbers again."""
    other = tmp_path / "w"
    shutil.copytree(workdir, other)
    config = simulated.config(workdir.parent, epochs=1, steph__top_k=0, evaluate__years=(0.5, 2.0))
    train.train(config, other)
    assert run_directory.load_summary(other)["auc"].keys() == {"0.5", "2"}
    numbers = run_numbers.report_numbers(other)
    assert numbers["auc"].keys() == numbers["calibration"].keys() == {"0.5", "2"}
    assert numbers["tau_days"] <= 730
    text = " ".join(Page(run_page.write(other).read_text(encoding="utf-8")).text)
    assert "AUC at 0.5 years" in text
    assert "AUC at 3 years" not in text
    settings = other / run_directory.SETTINGS
    settings.write_text(settings.read_text().replace('"years"', '"days"'))
    with pytest.raises(ValueError, match=r"config\.json: evaluate\.years: .*restore the file"):
        run_page.write(other)


def test_flow_from_the_table_to_the_study(tmp_path):
    """A table with patients without outcome, and with others whom no split names."""
    mine = cohorts.cohort(28)
    mine.rows += [["TCGA-QQ-Z1", "z1", "", ""], ["TCGA-QQ-Z1", "z2", "", ""]]
    mine.rows += [["TCGA-QQ-Y1", "y1", "400", "0"]]
    home = mine.write(tmp_path)
    settings = {"data.unlabeled": "drop", "epochs": 1}
    train.train(cohorts.config(home, **settings), home / "w", command="a <b> command")
    participants = run_numbers.report_numbers(home / "w")["participants"]
    patients = pd.read_csv(home / "w" / "fold_0" / "patients.csv")
    reverse = lifelines.KaplanMeierFitter().fit(patients["t"], 1 - patients["e"])
    assert participants["median_follow_up_years"] == pytest.approx(
        reverse.median_survival_time_ / 365
    )
    assert participants["events"] == patients["e"].sum()
    assert participants["sites"].startswith("Tissue source sites are spread over folds: 100%")
    assert participants["flow"] == {
        "in_table": {"patients": 30, "slides": 38},
        "without_outcome": {"patients": 1, "slides": 2},
        "in_no_split": {"patients": 1, "slides": 1},
        "studied": {"patients": 28, "slides": 35},
    }
    text = " ".join(Page(run_page.write(home / "w").read_text(encoding="utf-8")).text)
    assert "left out: without time or event" in text
    assert "a <b> command" in text


def test_page_needs_no_network_and_holds_the_numbers(workdir):
    page = Page(run_page.write(workdir).read_text(encoding="utf-8"))
    assert page.targets
    assert all(target.startswith("data:image/png;base64,") for target in page.targets)
    assert not {"script", "link", "iframe"} & set(page.tags)
    numbers = json.loads((workdir / "report.json").read_text())
    text = " ".join(page.text)
    assert numbers["verdict"] in text
    assert f"{numbers['c_index']['mean']:.3f}" in text
    assert str(numbers["participants"]["events"]) in text


def test_heatmaps_of_high_median_and_low_risk(workdir):
    page = Page(run_page.write(workdir).read_text(encoding="utf-8"))
    heatmaps = json.loads((workdir / "report.json").read_text())["heatmaps"]
    table = pd.read_csv(workdir / "fold_0" / "predictions_test.csv")
    table = table.sort_values("risk", ascending=False)
    which = {patient["which"]: patient for patient in heatmaps["patients"]}
    assert list(which) == ["highest", "median", "lowest"]
    for name, row in (("highest", 0), ("median", (len(table) - 1) // 2), ("lowest", -1)):
        assert which[name]["patient_id"] == table["patient_id"].iloc[row]
        assert which[name]["risk"] == pytest.approx(table["risk"].iloc[row], rel=1e-5)
        assert any(which[name]["slide_id"] in text for text in page.text)
    cut = json.loads((workdir / "fold_0" / "metrics.json").read_text())["risk_cut"]
    assert heatmaps["reference"] == pytest.approx(cut)
    assert page.tags.count("figure") == len(page.targets)


@pytest.mark.parametrize("removed", ["features", "coordinates", "patient"])
def test_page_says_in_its_place_why_there_are_no_heatmaps(workdir, tmp_path, removed):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    settings = json.loads((other / "config.json").read_text())
    location = tmp_path / "features"
    settings["data"]["features"] = str(location)
    (other / "config.json").write_text(json.dumps(settings))
    if removed != "features":
        shutil.copytree(workdir.parent / "data" / "features" / "sim_a", location)
    for path in location.glob("*.h5"):
        if removed == "patient":
            path.unlink()
        else:
            with h5py.File(path, "r+") as file:
                del file["coords"]
    if removed == "patient":
        np.save(location / "X.npy", np.zeros((1, 24), np.float32))
    reasons = {
        "features": "no such file or folder",
        "coordinates": "no coordinates of patches",
        "patient": "no features of",
    }
    text = " ".join(Page(run_page.write(other).read_text(encoding="utf-8")).text)
    assert "No heatmaps: " in text
    assert reasons[removed] in text
    numbers = json.loads((other / "report.json").read_text())
    assert reasons[removed] in numbers["heatmaps"]["missing"]


def test_few_patients_are_shown_once():
    assert run_heatmaps.extremes(np.array([1.0])) == {"highest": 0}
    assert run_heatmaps.extremes(np.array([1.0, 2.0])) == {"highest": 1, "lowest": 0}
    assert run_heatmaps.extremes(np.array([1.0, 3.0, 2.0])) == {
        "highest": 1,
        "median": 2,
        "lowest": 0,
    }


def test_names_are_text_never_markup(workdir):
    numbers = run_numbers.report_numbers(workdir)
    plain = Page(run_page.html(numbers, {})).tags
    hostile = "<script>alert(1)</script>"
    numbers["dataset"] = numbers["method"] = hostile
    numbers["settings"] = numbers["settings"] | {"dataset": hostile, hostile: hostile}
    numbers["provenance"] = {"command": hostile, "versions": {hostile: hostile}, "table": {}}
    numbers["missing"] = {"fold 0": {"uno": hostile}}
    page = Page(run_page.html(numbers, {}))
    assert set(page.tags) == set(plain)
    assert sum("<script>" in text for text in page.text) > 5


def test_run_of_an_older_program_has_a_report(workdir, tmp_path):
    """Without what metrics.json, the weights and the record of the start have gained."""
    older = tmp_path / "older"
    shutil.copytree(workdir, older)
    (older / provenance.FILE).unlink(missing_ok=True)
    for fold in (0, 1):
        path = run_directory.fold_directory(older, fold) / "metrics.json"
        record = json.loads(path.read_text())
        for name in ("bin_edges", "risk_sd", "source_share"):
            del record[name]
        record["test"] = {name: record["test"][name] for name in ("c_index", "nll")}
        path.write_text(json.dumps(record))
    numbers = run_numbers.report_numbers(older)
    assert numbers["uno"]["folds"] == run_numbers.report_numbers(workdir)["uno"]["folds"]
    assert numbers["participants"]["flow"] is None
    assert numbers["hazard_ratio_per_sd"] is None
    assert "not recorded" in numbers["hazard_ratio_missing"]["per_sd"][0]
    text = " ".join(Page(run_page.write(older).read_text(encoding="utf-8")).text)
    assert "written by an older program" in text
    assert "no record of its command" in text
    assert "no record of who else was in its table" in text


def test_report_of_a_folder_without_run_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        run_page.write(tmp_path)


def test_evaluating_again_writes_the_report_again(workdir, tmp_path, monkeypatch, capsys):
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    flags = type("Flags", (), {"workdir": again, "features": None})
    monkeypatch.setattr(evaluate.flags, "FLAGS", flags)
    assert evaluate.main() == 0
    assert f"report: {again / 'report.html'}" in capsys.readouterr().out
    numbers = json.loads((again / "report.json").read_text())
    summary = run_directory.load_summary(again)
    assert numbers["c_index"]["mean"] == pytest.approx(summary["c_index"]["mean"], abs=1e-9)


def test_damaged_record_of_the_start_is_named(workdir, tmp_path):
    damaged = tmp_path / "broken"
    shutil.copytree(workdir, damaged)
    (damaged / provenance.FILE).write_text("{")
    with pytest.raises(ValueError, match=r"provenance\.json: expected how a run was made"):
        run_page.write(damaged)


def test_report_of_a_comparison(workdir, tmp_path):
    """The two runs of the target as a comparison of older versions leaves them."""
    home = workdir.parent
    shutil.copytree(home / "sim_a", tmp_path / "abmil-seed_42")
    shutil.copytree(workdir, tmp_path / "steph-seed_42")
    rows = [(method, fold, 42, 0.5) for method in ("abmil", "steph") for fold in (0, 1)]
    table = pd.DataFrame(rows, columns=["method", "fold", "seed", "c_index"])
    table.to_csv(tmp_path / "compare.csv", index=False)
    page = Page(comparison_page.write(tmp_path).read_text(encoding="utf-8"))
    numbers = json.loads((tmp_path / "report.json").read_text())
    steph, own = (numbers["methods"][name]["c_index"]["mean"] for name in ("steph", "abmil"))
    assert steph == pytest.approx(run_numbers.report_numbers(workdir)["c_index"]["mean"])
    assert numbers["methods"]["steph"]["difference"]["mean"] == pytest.approx(steph - own)
    assert numbers["methods"]["abmil"]["difference"] is None
    sentence, control = numbers["verdicts"]
    assert numbers["verdict"] == f"{sentence} {control}"
    assert numbers["method"] == "steph"
    for name in ("c_index", "uno", "auc", "ibs", "d_calibration", "hazard_ratio"):
        assert numbers[name] == numbers["methods"]["steph"][name]
    assert sentence.startswith("Whether steph is better or worse than abmil cannot be told")
    assert control.startswith("No control was run")
    assert sentence in " ".join(page.text)
    # Differences to another method, which a report that is written again keeps.
    for reference in ("steph", None):
        page = Page(comparison_page.write(tmp_path, reference).read_text(encoding="utf-8"))
        numbers = json.loads((tmp_path / "report.json").read_text())
        assert numbers["methods"]["abmil"]["difference"]["mean"] == pytest.approx(own - steph)
        assert numbers["methods"]["steph"]["difference"] is None
        assert "Differences are to steph, on the same patients." in " ".join(page.text)
    assert comparison_page.is_comparison(tmp_path)
    assert not comparison_page.is_comparison(workdir)
    table.drop(columns="seed").to_csv(tmp_path / "compare.csv", index=False)
    with pytest.raises(ValueError, match=r"compare\.csv: expected the table of a comparison"):
        comparison_page.write(tmp_path)


def test_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", "a b"])
    assert provenance.command_line("train") == "python -m steph_jax.train --workdir 'a b'"


def test_program_prints_where_the_page_is(workdir, monkeypatch, capsys):
    flags = type("Flags", (), {"workdir": workdir, "clinical": None, "clinical_table": None})
    monkeypatch.setattr(report.flags, "FLAGS", flags)
    assert report.main() == 0
    assert capsys.readouterr().out == f"written to {workdir / 'report.html'}\n"
