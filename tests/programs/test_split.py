"""Folds for a table: stratified, deterministic, each patient tested once."""

import collections
import itertools
import os

import numpy as np
import pytest

from steph_jax import cli, split
from steph_jax.data.folds import (
    choose_validation,
    describe_sites,
    make_folds,
    strata,
    tissue_source_site,
)
from steph_jax.data.splits import check_split, read_split
from steph_jax.data.tables import read_table


def cohort(num=83, rate=0.4, num_sites=6, seed=0):
    """Ids of several sites of unequal size, times and events."""
    rng = np.random.default_rng(seed)
    sites = rng.integers(0, num_sites, num) * rng.integers(0, 2, num)
    patients = [f"TCGA-{site:02}-{i:04}" for i, site in enumerate(sites)]
    return patients, rng.exponential(900, num), rng.random(num) < rate


def counts(folds, keys):
    """[keys][folds] numbers of patients."""
    return {
        key: [sum(f == fold and k == key for f, k in zip(folds, keys, strict=True)) for fold in s]
        for key in set(keys)
        for s in [sorted(set(folds))]
    }


def write(path, patients, time, event, header="patient_id,pathology_id,t,e"):
    rows = [
        f"{p},{p}-DX1,{float(t)},{int(e)}" for p, t, e in zip(patients, time, event, strict=True)
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(("num", "rate", "k"), [(83, 0.4, 5), (400, 0.1, 5), (23, 0.9, 4)])
def test_events_and_times_are_dealt_evenly(num, rate, k):
    patients, time, event = cohort(num, rate)
    folds = make_folds(patients, time.tolist(), event.tolist(), num_folds=k)
    for keys in (event.tolist(), strata(time, event, k).tolist()):
        for held in counts(folds.tolist(), keys).values():
            assert max(held) - min(held) <= 1
    sizes = np.bincount(folds, minlength=k)
    assert sizes.max() - sizes.min() <= 2


def test_strata_are_quantile_groups_of_time():
    time = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 8.0, 7.0])
    event = np.zeros(8, bool)
    assert strata(time, event, 2).tolist() == [2, 0, 1, 0, 1, 2, 3, 3]
    assert strata(time, event, 4).tolist() == [1, 0, 0, 0, 0, 1, 1, 1]
    assert strata(time, ~event, 8).tolist() == [4] * 8


def test_every_fold_has_its_share_of_a_site():
    patients, time, event = cohort(400)
    folds = make_folds(patients, time, event)
    sites = [tissue_source_site(p) for p in patients]
    for site, held in counts(folds.tolist(), sites).items():
        assert max(held) - min(held) <= 4, site
    assert tissue_source_site("tcga-bh-a0b1-01Z") == "BH"
    assert tissue_source_site("P-12") == ""


def test_whole_sites_stay_together():
    patients, time, event = cohort(400, num_sites=40)
    folds = make_folds(patients, time, event, whole_sites=True)
    folds_by_site = collections.defaultdict(set)
    for patient, fold in zip(patients, folds.tolist(), strict=True):
        folds_by_site[tissue_source_site(patient)].add(fold)
    assert all(len(folds_of_site) == 1 for folds_of_site in folds_by_site.values())
    largest = max(collections.Counter(map(tissue_source_site, patients)).values())
    others = [int((folds == fold).sum()) for fold in range(5)]
    others.remove(max(others))
    assert max(others) - min(others) <= 8
    assert (np.bincount(folds) <= largest + 8).all()


def test_as_many_sites_as_folds_fill_all_folds():
    patients = [f"TCGA-A{i % 5}-{i:04}" for i in range(20)]
    patients += [f"TCGA-A0-8{i:03}" for i in range(30)]
    event = [i % 2 for i in range(50)]
    folds = make_folds(patients, list(range(50)), event, whole_sites=True)
    assert set(folds.tolist()) == set(range(5))


def test_the_seed_decides():
    patients, time, event = cohort()
    one, same, other = (make_folds(patients, time, event, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_refusals():
    patients, time, event = cohort(10)
    with pytest.raises(ValueError, match="expected 2 folds or more, found 1"):
        make_folds(patients, time, event, num_folds=1)
    with pytest.raises(ValueError, match="10 patients cannot be dealt to 11 folds"):
        make_folds(patients, time, event, num_folds=11)
    with pytest.raises(ValueError, match=r"expected 2 events or more.*found 1"):
        make_folds(patients, time, np.arange(10) == 3)
    with pytest.raises(ValueError, match=r"TCGA barcodes .* only; found 'P' and 0 more"):
        make_folds([*patients[:-1], "P"], time, event, whole_sites=True)
    same = [f"TCGA-AA-{i:04}" for i in range(10)]
    with pytest.raises(ValueError, match="1 sites cannot be dealt whole to 5 folds"):
        make_folds(same, time, event, whole_sites=True)
    with pytest.raises(ValueError, match=r"a fraction in \[0, 1\), found 1.5"):
        choose_validation(patients, time, event, fraction=1.5, seed=0)


@pytest.mark.parametrize("group", ["none", "site"])
def test_files_fit_their_table(tmp_path, capsys, group):
    patients, time, event = cohort(120, num_sites=30)
    path = write(tmp_path / "table.csv", patients, time, event)
    out = tmp_path / "mine"
    flags = ["--table", str(path), "--out", str(out), "--validation", "0.2", "--group", group]
    split.main(flags)
    printed = capsys.readouterr().out
    table = read_table(path)
    test_patients = []
    for fold in range(5):
        file_split = read_split(out / f"splits_{fold}.csv")
        check_split(file_split, table)
        parts = (file_split.train, file_split.test, file_split.validation)
        assert sorted(itertools.chain(*parts)) == sorted(table.patients)
        rest = len(file_split.train) + len(file_split.validation)
        if group == "none":
            assert len(file_split.validation) == int(0.2 * rest)
            rows = table.rows(file_split.validation)
            assert abs(table.event[rows].mean() - event.mean()) < 0.1
        else:
            assert 0 < len(file_split.validation) <= 0.2 * rest
            sites = [{tissue_source_site(p) for p in part} for part in parts]
            assert sum(map(len, sites)) == len(set.union(*sites))
        rows = table.rows(file_split.test)
        assert f"{table.event[rows].mean():6.1%}  {np.median(table.time[rows]):11.1f}" in printed
        test_patients += file_split.test
    assert sorted(test_patients) == sorted(table.patients)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    split.main([*flags, "--overwrite"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_existing_splits_are_not_overwritten(tmp_path):
    path = write(tmp_path / "table.csv", *cohort(30))
    flags = ["--table", str(path), "--out", str(tmp_path)]
    split.main([*flags, "--folds", "3"])
    with pytest.raises(ValueError, match=r"3 splits are there already \(splits_0.csv, ...\)"):
        split.main(flags)
    with pytest.raises(ValueError, match=r"splits_2.csv would be left of other splits"):
        split.main([*flags, "--folds", "2", "--overwrite"])
    assert len(list(tmp_path.glob("splits_*.csv"))) == 3
    split.main([*flags, "--overwrite"])
    assert len(list(tmp_path.glob("splits_*.csv"))) == 5


def test_a_tiny_cohort_in_other_columns(tmp_path, capsys):
    path = write(
        tmp_path / "table.csv",
        [f"{i:03}" for i in range(7)],
        range(7),
        [1, 1, 1, 0, 1, 0, 1],
        header="case,slide,months,censored",
    )
    split.main(
        f"--table {path} --out {tmp_path} --patient case --slide slide --time months --event "
        "censored --event-coding censorship --time-unit months".split()
    )
    assert "no event in the test part of fold" in capsys.readouterr().err
    assert sum(len(read_split(tmp_path / f"splits_{k}.csv").test) for k in range(5)) == 7


def test_patients_without_labels(tmp_path, capsys):
    path = write(tmp_path / "table.csv", *cohort(30))
    path.write_text(path.read_text() + "P-1,P-1-DX1,,1\n")
    flags = ["--table", str(path), "--out", str(tmp_path), "--folds", "2"]
    with pytest.raises(ValueError, match=r"found none for P-1; .*--unlabeled drop"):
        split.main(flags)
    split.main([*flags, "--unlabeled", "drop"])
    printed = capsys.readouterr().out
    assert "2 splits of 30 patients" in printed
    assert "1 patients without time or event are left out" in printed
    assert all("P-1," not in path.read_text() for path in tmp_path.glob("splits_*.csv"))


def test_splits_say_whether_sites_are_whole(tmp_path, capsys):
    path = write(tmp_path / "table.csv", *cohort(60))
    flags = ["--table", str(path), "--out", str(tmp_path), "--folds", "3", "--overwrite"]
    for more, sentence in (
        ([], "Tissue source sites are spread over folds: 100% of the test patients"),
        (["--group", "site"], "Tissue source sites are whole: no test patient is of a site"),
    ):
        split.main([*flags, *more])
        assert sentence in capsys.readouterr().out
    assert describe_sites([(["TCGA-AA-0001"], ["TCGA-AA-0002", "TCGA-CC-0001"])]).endswith(
        "50% of the test patients are of sites that training has seen."
    )
    assert "no TCGA barcodes" in describe_sites([(["P1"], ["P2"])])


def test_mistakes_end_in_one_message(tmp_path, capsys):
    missing = ["--table", str(tmp_path / "no.csv"), "--out", str(tmp_path)]
    assert cli.guarded(lambda: split.main(missing)) == 1
    assert "no.csv: no such file" in capsys.readouterr().err
    assert cli.guarded(lambda: split.main([*missing, "--fold", "x"])) == 1
    assert "argument --folds: invalid int value" in capsys.readouterr().err


def test_real_cohorts(shared, tmp_path):
    for path in sorted((shared / "tcga_rna").glob("*/*_survival.csv")):
        table = read_table(path)
        splits = split.make_splits(table, tmp_path, split.Request())
        events = [int(table.event[table.rows(fold_split.test)].sum()) for fold_split in splits]
        medians = [np.median(table.time[table.rows(fold_split.test)]) for fold_split in splits]
        assert max(events) - min(events) <= 1
        assert max(medians) < 1.35 * min(medians)


def test_an_interrupted_replacement_leaves_no_two_splits_mixed(tmp_path, monkeypatch):
    path = write(tmp_path / "table.csv", *cohort(30))
    flags = ["--table", str(path), "--out", str(tmp_path), "--folds", "3"]
    split.main(flags)
    before = {p.name: p.read_text() for p in tmp_path.glob("splits_*.csv")}
    replaced = []

    def ended(source, target):
        if len(replaced) == 1:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", ended)
    with pytest.raises(KeyboardInterrupt):
        split.main([*flags, "--overwrite", "--seed", "9"])
    texts = {p.name: p.read_text() for p in tmp_path.glob("splits_*.csv")}
    assert [path.name for path in replaced] == list(texts)
    assert all(texts[name] != before[name] for name in texts)
