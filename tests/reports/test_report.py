"""The report of a run: its numbers against the run's own files, and a page that holds them all."""

import json
import shutil
import sys
from html.parser import HTMLParser

import h5py
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import report, run_directory, train
from steph_jax.reports import comparison_page, provenance, run_heatmaps, run_numbers, run_page
from steph_jax.survival import metrics


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


class Page(HTMLParser):
    """Tags, text, and where pictures and links point."""

    def __init__(self, html):
        super().__init__()
        self.text, self.targets, self.tags = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


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
        "c_index": {"mean": 0.7, "ci95": [0.65, 0.75]},
        "sources": "no other cancer is used: their share in the merged model is 1.0 %",
    }

    def verdict(mean, ends):
        return run_numbers.verdict(base | {"gain": {"mean": mean, "ci95": ends}})

    assert "Better than the cancer's own model: +0.020" in verdict(0.02, [0.01, 0.03])
    assert "Worse than the cancer's own model" in verdict(-0.02, [-0.03, -0.01])
    assert "Not distinguishable from the cancer's own model" in verdict(0.02, [-0.01, 0.05])
    assert "One fold cannot distinguish" in verdict(0.02, None)
    assert "No other cancer is used" in verdict(0.02, [0.01, 0.03])
    own = run_numbers.verdict(base | {"method": "abmil", "gain": None, "sources": None})
    assert "the cancer's own model" in own
    nothing = base | {"c_index": {"mean": None, "ci95": None}, "gain": None}
    assert run_numbers.verdict(nothing).startswith("Not computable")


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
    numbers = run_numbers.report_numbers(workdir) | {"provenance": None}
    numbers["dataset"] = "<script>alert(1)</script>"
    page = Page(run_page.html(numbers, {}))
    assert "script" not in page.tags
    assert any("<script>" in text for text in page.text)


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
    assert numbers["hazard_ratio_per_sd"] is None
    assert "not recorded" in numbers["hazard_ratio_missing"]["per_sd"][0]
    text = " ".join(Page(run_page.write(older).read_text(encoding="utf-8")).text)
    assert "written by an older program" in text
    assert "no record of its command" in text


def test_report_of_a_folder_without_run_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        run_page.write(tmp_path)


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
    (sentence,) = numbers["verdict"]
    assert sentence.startswith("steph: ")
    assert sentence in " ".join(page.text)
    assert comparison_page.is_comparison(tmp_path)
    assert not comparison_page.is_comparison(workdir)
    table.drop(columns="seed").to_csv(tmp_path / "compare.csv", index=False)
    with pytest.raises(ValueError, match=r"compare\.csv: expected the table of a comparison"):
        comparison_page.write(tmp_path)


def test_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", "a b"])
    assert provenance.command_line("train") == "python -m steph_jax.train --workdir 'a b'"


def test_program_prints_where_the_page_is(workdir, monkeypatch, capsys):
    class FlagValues:
        workdir = None

    flag_values = FlagValues()
    flag_values.workdir = workdir
    monkeypatch.setattr(report.flags, "FLAGS", flag_values)
    assert report.main() == 0
    assert capsys.readouterr().out == f"written to {workdir / 'report.html'}\n"
