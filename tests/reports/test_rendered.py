"""Pages in a browser: they fit a desk, a phone and paper."""

import browser
import finished_runs
import pandas as pd
import pytest

from steph_jax.reports import clinical_file, comparison_page, run_page

LONG = "a_cohort_whose_name_is_longer_than_any_line_of_a_phone_" * 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a run and of a comparison, with every section that they may have."""
    browser.path()
    home = tmp_path_factory.mktemp("home")
    who = finished_runs.patients()
    table = home / "clinical.csv"
    columns = {"patient_id": who.table.patients, "age": who.log_hazard, "stage": ["I", "II"] * 60}
    pd.DataFrame(columns).to_csv(table, index=False)
    methods = ("abmil", "steph", "steph+permuted")
    for method in methods:
        workdir = home / f"{method}-seed_1"
        finished_runs.write(workdir, who, method=method, target_only={"c_index": 0.6})
        settings = workdir / "config.json"
        settings.write_text(settings.read_text().replace("simulated", LONG))
    rows = [(method, "none", fold, 1, 0.6) for method in methods[:2] for fold in (0, 1, 2)]
    rows += [("steph", "permuted", fold, 1, 0.6) for fold in (0, 1, 2)]
    names = ["method", "control", "fold", "seed", "c_index"]
    pd.DataFrame(rows, columns=names).to_csv(home / "compare.csv", index=False)
    for workdir in (home, home / "steph-seed_1"):
        run = home / "steph-seed_1"
        clinical_file.choose(workdir, run, ["age", "stage"], table)
    return {
        "run": run_page.write(home / "steph-seed_1"),
        "comparison": comparison_page.write(home),
    }


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_is_no_wider_than_its_window(pages, tmp_path, kind, width):
    wide, high = browser.size(pages[kind], tmp_path, width)
    assert wide <= width
    assert high > 1000


def test_a_page_that_is_too_wide_would_be_seen(tmp_path):
    page = tmp_path / "wide.html"
    page.write_text("<!DOCTYPE html><p style='width:700px'>x")
    assert browser.size(page, tmp_path, 390)[0] > 700


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_can_be_printed(pages, tmp_path, kind):
    data = browser.pdf(pages[kind], tmp_path).read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") >= 2
