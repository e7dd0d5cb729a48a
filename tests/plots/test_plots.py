"""Pictures: what stands on the axes, that nothing is cut off, and files written whole."""

import math
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from steph_jax import plots
from steph_jax.plots import style
from steph_jax.survival import metrics

NAMES = (
    "blca",
    "brca",
    "cesc",
    "coad",
    "gbm",
    "hnsc",
    "kipan",
    "lihc",
    "lung",
    "sarc",
    "skcm",
    "st",
)
COHORTS = [f"tcga_{name}" for name in (*NAMES, "ucec")]
LONG = "cohort_of_the_university_hospital_of_somewhere_with_a_long_name"


def history(sources=(), epochs=20, every=1, seed=0):
    """Training that gets better, evaluated on the test patients every few epochs."""
    rng = np.random.default_rng(seed)
    epoch = np.arange(1, epochs + 1)
    nll = 0.6 + 2 * np.exp(-epoch / 8)
    test = np.where(epoch % every == 0, nll + 0.2, math.nan)
    table = {
        "epoch": epoch,
        "train_loss": nll + 0.1,
        "train_nll": nll,
        "train_c_index": 0.9 - 0.4 * np.exp(-epoch / 6),
        "test_nll": test,
        "test_c_index": np.where(np.isnan(test), math.nan, 0.7 - 0.2 * np.exp(-epoch / 4)),
    }
    for i, source in enumerate(sources):
        table[f"target_{source}"] = 0.1
        table[f"source_{source}"] = 0.05 + 0.1 / (i + 1) + rng.normal(0, 0.003, epochs)
    return pd.DataFrame(table)


def merge_weights(sources, patients=30, top_k=5):
    rng = np.random.default_rng(1)
    weight = 0.1 / (1 + np.arange(len(sources))) + rng.uniform(0, 0.05, (patients, len(sources)))
    selected = np.argsort(np.argsort(-weight, axis=1), axis=1) < top_k
    return pd.DataFrame(
        {
            "patient_id": np.repeat([f"p{i}" for i in range(patients)], len(sources)),
            "source": np.tile(sources, patients),
            "weight": weight.ravel(),
            "lambda": 0.5,
            "selected": selected.ravel().astype(int),
            "target": (0.5 * weight * selected).ravel(),
            "source_coefficient": (0.5 * weight * selected).ravel(),
        }
    )


def predictions(patients=60, seed=0, bins=32):
    """Patients whose risk is related to their time."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=patients)
    time, censored = (
        900 * np.exp(-risk) * rng.exponential(size=patients),
        rng.uniform(50, 4000, patients),
    )
    survival = np.cumprod(np.full((patients, bins), 0.95) ** np.exp(risk)[:, None], axis=1)
    table = {
        "patient_id": [f"p{i}" for i in range(patients)],
        "t": np.minimum(time, censored),
        "e": (time <= censored).astype(int),
        "risk": risk,
    }
    return pd.DataFrame(table | {f"surv_{i + 1}": survival[:, i] for i in range(bins)})


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def reaches_the_edge(figure: Figure) -> bool:
    """Whether anything is drawn on the outermost dots of the picture, where it would be cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    dots = np.asarray(canvas.buffer_rgba())[..., :3]
    return any((edge < 255).any() for edge in (dots[:2], dots[-2:], dots[:, :2], dots[:, -2:]))


def overlapping(figure: Figure, texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of the texts named that lie on each other, in a figure that was drawn."""
    artists = [t for t in figure.findobj(Text) if t.get_text() in texts and t.get_visible()]
    boxes = [(t.get_text(), Text.get_window_extent(t).padded(-1)) for t in artists]
    return [
        (a, b)
        for i, (a, box) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if box.overlaps(other)
    ]


def size_of_png(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert head[12:16] == b"IHDR"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


# Every picture


def square(seed, names=COHORTS):
    values = np.random.default_rng(seed).uniform(0.4, 0.7, (len(names), len(names)))
    return pd.DataFrame(values, pd.Index(names, name="source"), pd.Index(names, name="target"))


DIFFERENCES = pd.DataFrame(
    {
        "method": ["steph", "ties", "iso_c", "fix"],
        "difference": [0.02, -0.03, 0.001, math.nan],
        "low": [0.004, -0.05, -0.02, math.nan],
        "high": [0.04, -0.01, 0.02, math.nan],
    }
)
PER_FOLD = pd.DataFrame(
    {"method": ["steph"] * 5 + ["ties"], "difference": [0.01 * i for i in range(6)]}
)

WRITERS = {
    "training_curves": lambda path: plots.training_curves(history(), path, "A title"),
    "source_weights": lambda path: plots.source_weights(
        history(COHORTS[:4]), merge_weights(COHORTS[:4]), path, "A title"
    ),
    "risk_groups": lambda path: plots.risk_groups(predictions(), path, "A title"),
    "survival_curves": lambda path: plots.survival_curves(predictions(), path, "A title", 365),
    "folds": lambda path: plots.folds({"abmil": [0.6, 0.7], "steph": [0.65, 0.7]}, path, "A title"),
    "matrix": lambda path: plots.matrix(square(0, COHORTS[:4]), path, "A title", "C-index", 0.5),
    "matrices": lambda path: plots.matrices(
        plots.Heatmap(square(0, COHORTS[:4]), "C-index", 0.5),
        plots.Heatmap(square(1, COHORTS[:4]), "cosine"),
        path,
        "A title",
    ),
    "intervals": lambda path: plots.intervals(DIFFERENCES, path, "A title", "abmil", PER_FOLD),
}


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_are_whole_pngs(name, tmp_path, monkeypatch):
    figures = []
    render = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), render(self, *a, **k))[1]
    )
    path = tmp_path / "picture.png"
    path.write_text("an older picture")
    settings = dict(matplotlib.rcParams)
    assert WRITERS[name](path) == path
    assert os.listdir(tmp_path) == ["picture.png"]
    assert size_of_png(path) == tuple(int(150 * x) for x in figures[0].get_size_inches())
    assert "A title" in texts(figures[0])
    assert not reaches_the_edge(figures[0])
    assert dict(matplotlib.rcParams) == settings


def test_the_same_tables_give_the_same_file(tmp_path):
    one, other = (WRITERS["risk_groups"](tmp_path / name) for name in ("one.png", "other.png"))
    assert one.read_bytes() == other.read_bytes()


def test_failed_picture_keeps_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_text("an older picture")

    def interrupted(self, file, **settings):
        file.write(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plots.training_curves(history(), path, "A title")
    assert os.listdir(tmp_path) == ["picture.png"]
    assert path.read_text() == "an older picture"


def test_pictures_need_neither_a_display_nor_pyplot():
    code = "import sys, steph_jax.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_long_titles_wrap():
    title = "Learning curves of a model with a very long name " * 3
    figure = plots.training_curves_figure(history(), title)
    assert not reaches_the_edge(figure)
    assert figure.get_suptitle().count("\n") == 1
    assert figure.get_suptitle().replace("\n", " ") == title.strip()


# What they share


def test_labels_move_as_little_as_possible():
    assert style.spread([0.2, 0.9, 0.5], 0.1) == pytest.approx([0.2, 0.9, 0.5])
    assert style.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert style.spread([0.52, 0.5, 0.9], 0.1) == pytest.approx([0.56, 0.46, 0.9])
    assert style.spread([1.0, 0.99, 0.1], 0.2) == pytest.approx([0.9, 0.7, 0.1])
    assert style.spread([0.0, 0.0], 0.2) == pytest.approx([0.1, 0.3])
    assert style.spread([], 0.2) == []
    crowded = style.spread([0.5] * 9, 0.2)
    assert np.diff(crowded) == pytest.approx([0.2] * 8)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tcga_blca", "tcga_brca"], ["blca", "brca"]),
        (["tcga_a_x", "tcga_a_y"], ["x", "y"]),
        (["tcga_lung", "tcga_lung_2"], ["lung", "lung_2"]),
        (["brca", "blca"], ["brca", "blca"]),
        (["tcga_blca"], ["tcga_blca"]),
        ([LONG], ["cohort_of_the…_a_long_name"]),
        ([f"{'x' * 20}{i}{'y' * 20}" for i in range(2)], None),
    ],
)
def test_short_names_stay_distinct(names, expected):
    assert list(style.short_names(names).values()) == (expected or names)


def test_number_formats():
    assert style.number(0.12349) == "0.123"
    assert style.number(math.nan) == style.signed(math.nan) == "n/a"
    assert style.signed(-0.01) == "−0.010"
    assert style.signed(0.01) == "+0.010"
    assert style.p_value(0.00009) == "p < 0.001"
    assert style.p_value(0.0312) == "p = 0.031"
    assert style.p_value(math.nan) == "p n/a"


# Learning


def test_training_curves_show_loss_and_concordance_of_both_groups():
    table = history()
    loss, concordance = plots.training_curves_figure(table, "t").axes
    last = table.iloc[-1]
    assert f"Test {last.test_nll:.3f}" in [t.get_text() for t in loss.texts]
    assert f"Training with\nregularizers {last.train_loss:.3f}" in [
        t.get_text() for t in loss.texts
    ]
    assert {t.get_text() for t in concordance.texts} == {
        f"Training {last.train_c_index:.3f}",
        f"Test {last.test_c_index:.3f}",
    }
    curves = [line.get_ydata() for line in concordance.lines[1:]]
    np.testing.assert_array_equal(curves, table[["train_c_index", "test_c_index"]].T)
    assert loss.get_xlabel() == concordance.get_xlabel() == "Epoch"


def test_a_loss_without_regularizers_is_drawn_once():
    table = history().assign(train_loss=lambda h: h.train_nll)
    loss, _ = plots.training_curves_figure(table, "t").axes
    assert len(loss.lines) == 2


def test_lines_bridge_epochs_without_evaluation():
    _, concordance = plots.training_curves_figure(history(every=5), "t").axes
    np.testing.assert_array_equal(concordance.lines[-1].get_xdata(), [5, 10, 15, 20])


def test_training_curves_without_test_columns():
    table = history().assign(test_nll=math.nan, test_c_index=math.nan)
    for shown in (table, table.drop(columns=["test_nll", "test_c_index"])):
        figure = plots.training_curves_figure(shown, "t")
        assert not any("Test" in text for text in texts(figure))
        assert not reaches_the_edge(figure)


def test_one_epoch_is_a_point():
    figure = plots.training_curves_figure(history(epochs=1), "t")
    assert not reaches_the_edge(figure)
    for axes in figure.axes:
        assert all(line.get_marker() == "o" for line in axes.lines if len(line.get_xdata()) == 1)
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_folds_are_thin_lines_about_their_mean():
    table = pd.concat([history().assign(fold=0), history().assign(fold=1)], ignore_index=True)
    table.loc[table.fold == 1, "test_c_index"] += 0.1
    _, concordance = plots.training_curves_figure(table, "t").axes
    mean = table.groupby("epoch").test_c_index.mean()
    np.testing.assert_allclose(concordance.lines[-1].get_ydata(), mean)
    assert len(concordance.lines) == 1 + 2 * 3


def test_history_without_a_column_is_an_error():
    with pytest.raises(ValueError, match="training history: expected the columns train_nll; found"):
        plots.training_curves_figure(history().drop(columns="train_nll"), "t")
    with pytest.raises(ValueError, match="training history: expected at least one row"):
        plots.training_curves_figure(history().head(0), "t")


@pytest.mark.parametrize(
    ("sources", "epochs"), [(COHORTS, 20), (COHORTS[:1], 1), ([LONG, "b", "$x$ and $y"], 1)]
)
def test_source_weights_name_every_source_legibly(sources, epochs):
    figure = plots.source_weights_figure(history(sources, epochs), merge_weights(sources), "t")
    lines, points, selected = figure.axes
    labels = list(style.short_names(sources).values())
    assert {t.get_text() for t in lines.texts} == {*labels, "own cancer"}
    assert sorted(t.get_text() for t in points.get_yticklabels()) == sorted(labels)
    assert len(selected.patches) == len(sources)
    assert not reaches_the_edge(figure)
    assert overlapping(figure, labels) == []


def test_source_weights_stand_in_the_order_of_their_mean():
    sources, patients = ["a", "b"], ["p", "q"]
    table = pd.DataFrame(
        {
            "patient_id": np.repeat(patients, 2),
            "source": sources * 2,
            "source_coefficient": [0.0, 0.4, 0.3, 0.2],
            "selected": [0, 1, 1, 1],
        }
    )
    _, points, selected = plots.source_weights_figure(history(sources), table, "t").axes
    assert [t.get_text() for t in points.get_yticklabels()] == ["b", "a"]
    assert [bar.get_width() for bar in selected.patches] == [1.0, 0.5]
    clouds = [c for c in points.collections if isinstance(c, PathCollection)]
    weights = [c.get_offsets()[:, 0].tolist() for c in clouds]
    assert weights == [[], [0.4, 0.2], [0.0], [0.3]]  # unselected and selected, b then a
    assert "2 test patients" in [points.get_title(loc="left")]


def test_a_source_of_coefficient_0_is_not_used_though_selected():
    table = pd.DataFrame(
        {
            "patient_id": np.repeat(["p", "q"], 2),
            "source": ["a", "b"] * 2,
            "source_coefficient": [0.4, 0.0, 0.3, 0.1],
            "weight": 0.5,
            "selected": 1,
        }
    )
    _, _, used = plots.source_weights_figure(history(["a", "b"]), table, "t").axes
    assert [bar.get_width() for bar in used.patches] == [1.0, 0.5]


def test_selection_panel_is_optional():
    table = merge_weights(COHORTS[:3]).drop(columns="selected")
    assert len(plots.source_weights_figure(history(COHORTS[:3]), table, "t").axes) == 2


def test_a_history_of_an_older_run_shows_its_weights():
    older = history(["a", "b"]).rename(columns={"source_a": "weight_a", "source_b": "weight_b"})
    lines = plots.source_weights_figure(older, merge_weights(["a", "b"]), "t").axes[0]
    assert lines.get_ylabel() == "Mean weight w"
    assert {t.get_text() for t in lines.texts} == {"a", "b"}


def test_source_weights_of_two_runs_are_an_error():
    with pytest.raises(ValueError, match="weights of a, the merge weights are of b; expected"):
        plots.source_weights_figure(history(["a"]), merge_weights(["b"]), "t")
    with pytest.raises(ValueError, match="merge weights: expected the columns source_coefficient"):
        plots.source_weights_figure(
            history(["a"]), merge_weights(["a"]).drop(columns="source_coefficient"), "t"
        )


# Patients


def test_risk_groups_are_split_at_the_median():
    table = predictions()
    curves, numbers = plots.risk_groups_figure(table, "t").axes
    high = table.risk > table.risk.median()
    for line, group in zip((curves.lines[0], curves.lines[2]), (~high, high), strict=True):
        expected = metrics.kaplan_meier(table.t[group], table.e[group])
        np.testing.assert_allclose(line.get_xdata(), expected.times / 365)
        np.testing.assert_allclose(line.get_ydata(), expected.survival)
    p = metrics.logrank_p(table.t, table.e, high.to_numpy())
    c_index = metrics.concordance_index(table.t, table.e, table.risk)
    heading = curves.get_title(loc="left")
    assert f"C-index {c_index:.3f}" in heading
    assert style.p_value(p) in heading
    labels = [t.get_text() for t in curves.texts]
    assert labels[0] == f"Low risk\n30 patients\n{table.e[~high].sum()} events"
    ticks = [x for x in curves.get_xticks() if x <= curves.get_xlim()[1]]
    expected = [str((table.t[g] >= 365 * x).sum()) for g in (~high, high) for x in ticks]
    assert [t.get_text() for t in numbers.texts] == expected


def test_risk_groups_of_folds_are_split_within_each():
    parts = [predictions(40, seed).assign(fold=seed) for seed in range(3)]
    for part in parts:
        part["risk"] += 100 * part["fold"]  # models need not agree on the scale
    table = pd.concat(parts)  # with repeated index labels, as tables read one by one have them
    curves, _ = plots.risk_groups_figure(table, "t").axes
    assert [t.get_text().splitlines()[1] for t in curves.texts] == ["60 patients"] * 2
    each = [metrics.concordance_index(p.t, p.e, p.risk) for p in parts]
    heading = f"C-index {np.mean(each):.3f} ± {np.std(each, ddof=1):.3f} (mean ± sd of 3 folds)"
    assert heading == curves.get_title(loc="left")  # without a log-rank p
    high = pd.concat([p.risk > p.risk.median() for p in parts]).to_numpy()
    expected = metrics.kaplan_meier(table.t[high], table.e[high])
    np.testing.assert_allclose(curves.lines[2].get_ydata(), expected.survival)


def test_risk_groups_at_a_given_cut():
    table = predictions().assign(cut=lambda p: np.sort(p.risk)[-11])
    curves, _ = plots.risk_groups_figure(table, "t").axes
    assert [t.get_text().splitlines()[1] for t in curves.texts] == ["50 patients", "10 patients"]
    table.loc[0, "cut"] += 1
    with pytest.raises(ValueError, match="one cut between the risk groups per fold, found 2"):
        plots.risk_groups_figure(table, "t")


@pytest.mark.parametrize(
    ("table", "heading"),
    [
        (predictions().assign(e=0), "C-index n/a   ·   log-rank p n/a"),
        (predictions().assign(risk=1.0), "C-index 0.500   ·   all patients in one risk group"),
        (predictions().assign(cut=-99.0), "all patients in one risk group"),
        (predictions(1), "C-index n/a   ·   all patients in one risk group"),
        (predictions(2), "log-rank p"),
        (predictions(20).assign(t=0.0), "log-rank p"),
        (predictions(20).assign(e=1), "log-rank p"),
    ],
    ids=["no events", "equal risks", "low cut", "one patient", "two", "no time", "all events"],
)
def test_risk_groups_of_odd_cohorts(table, heading):
    figure = plots.risk_groups_figure(table, "t")
    assert heading in figure.axes[0].get_title(loc="left")
    assert not reaches_the_edge(figure)
    groups = [t.get_text() for t in figure.axes[0].texts]
    assert overlapping(figure, groups) == []


def test_risk_groups_of_bad_predictions_are_errors():
    with pytest.raises(ValueError, match="predictions: expected the columns t, e; found"):
        plots.risk_groups_figure(predictions().drop(columns=["t", "e"]), "t")
    with pytest.raises(ValueError, match="times must be finite; found patient 0: nan"):
        plots.risk_groups_figure(predictions().assign(t=math.nan), "t")
    with pytest.raises(ValueError, match="risk must be finite"):
        plots.risk_groups_figure(predictions().assign(risk=math.nan), "t")


def test_survival_curves_run_from_the_lowest_to_the_highest_risk():
    table = predictions(bins=4)
    figure = plots.survival_curves_figure(table, "t", [100, 200, 300, 400.5], num_patients=3)
    axes = figure.axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 5 and line.get_zorder() == 3]
    ordered = table.sort_values("risk")
    bins = ["surv_1", "surv_2", "surv_3", "surv_4"]
    for line, row in zip(curves, (0, 30, 59), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.array([0, 100, 300, 600, 1000.5]) / 365)
        np.testing.assert_allclose(line.get_ydata(), [1, *ordered.iloc[row][bins]])
    whole = metrics.kaplan_meier(table.t, table.e)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), whole.survival)
    assert len({to_hex(line.get_color()) for line in curves}) == 3
    assert axes.lines[0].get_zorder() < curves[0].get_zorder()
    assert "Predicted for 3 of 60 patients" in texts(figure)


def test_survival_curves_of_patients_without_follow_up():
    figure = plots.survival_curves_figure(predictions(4).drop(columns=["t", "e"]), "t", 365)
    assert len(figure.axes[0].lines) == 4
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1.02 * 32)
    assert figure.legends == []


@pytest.mark.parametrize("patients", [1, 2, 500])
def test_survival_curves_of_few_and_many(patients):
    table = predictions(patients).assign(risk=0.0)
    figure = plots.survival_curves_figure(table, "t", 365)
    assert not reaches_the_edge(figure)
    assert f"Predicted for {min(7, patients)} of" in figure.axes[0].get_title(loc="left")


def test_survival_curves_need_curves_and_widths():
    table = predictions(bins=4)
    with pytest.raises(ValueError, match="expected the columns surv_1; found"):
        plots.survival_curves_figure(table[["patient_id", "t", "e", "risk"]], "t", 365)
    for wrong in ([1, 2], 0.0, -1.0, math.inf):
        with pytest.raises(
            ValueError, match="one positive, finite width for all 4 time bins or one for"
        ):
            plots.survival_curves_figure(table, "t", wrong)


# Comparisons


def test_folds_are_joined_from_method_to_method():
    c_index = {"abmil": [0.6, 0.7, 0.65], "steph": [0.62, 0.75, 0.63]}
    figure = plots.folds_figure(c_index, "t", fold_numbers=[0, 2, 4])
    (axes,) = figure.axes
    joined = [line for line in axes.lines if line.get_alpha() == 0.45]
    np.testing.assert_array_equal(
        [line.get_xdata() for line in joined], np.transpose([*c_index.values()])
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["abmil", "steph"]
    for values in c_index.values():
        assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in texts(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        *("fold 0", "fold 2", "fold 4"),
        "mean ± sd",
    ]


@pytest.mark.parametrize(
    ("c_index", "label"),
    [
        ({"steph": [0.67]}, ["0.670", "fold 0"]),
        ({"abmil": [0.6, math.nan], "steph": [0.6, 0.7]}, ["n/a", "0.650 ± 0.071"]),
        ({"abmil": [0.6, 0.62], "steph": [0.6]}, ["0.610 ± 0.014", "0.600"]),
        ({"abmil": [math.nan]}, ["n/a"]),
        ({f"method_{i}": [0.6 + i / 200] * 5 for i in range(15)}, ["method_14", "0.670 ± 0.000"]),
        ({LONG: [0.01 * i for i in range(12)]}, ["cohort_of_the…_a_long_name", "one fold"]),
    ],
    ids=["one fold", "undefined", "unequal", "nothing", "many methods", "many folds"],
)
def test_folds_of_odd_tables(c_index, label):
    figure = plots.folds_figure(c_index, "t")
    assert set(label) <= set(texts(figure))
    assert not reaches_the_edge(figure)
    assert overlapping(figure, [t.get_text() for t in figure.axes[0].texts]) == []


def test_folds_with_intervals_show_them_in_place_of_the_deviation():
    c_index = {"abmil": [0.6, 0.7, 0.65], "steph": [0.62, 0.75, 0.63]}
    ends = {"abmil": (0.61, 0.68), "steph": (0.6, 0.72)}
    figure = plots.folds_figure(c_index, "t", mean_intervals=ends)
    (axes,) = figure.axes
    drawn = [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1.4]
    assert drawn == list(ends.values())
    assert {"0.650 [0.610, 0.680]", "mean [95 % interval]"} <= set(texts(figure))
    assert figure.legends[0].get_texts()[-1].get_text() == "mean [95 % interval]"
    one = plots.folds_figure({"abmil": [0.6]}, "t", mean_intervals={"abmil": (0.5, 0.7)})
    assert "0.600 [0.500, 0.700]" in texts(one)
    unknown = plots.folds_figure(
        c_index, "t", mean_intervals=dict.fromkeys(c_index, (math.nan, math.nan))
    )
    assert "0.650 [n/a, n/a]" in texts(unknown)
    for drawn_figure in (figure, one, unknown):
        assert not reaches_the_edge(drawn_figure)


def test_folds_need_a_fold_and_its_number():
    for nothing in ({}, {"abmil": []}):
        with pytest.raises(ValueError, match="C-index of at least one method and fold"):
            plots.folds_figure(nothing, "t")
    with pytest.raises(ValueError, match=r"expected the numbers of 2 folds, found \[1\]"):
        plots.folds_figure({"abmil": [0.6, 0.7]}, "t", [1])


@pytest.mark.parametrize(
    ("names", "center"), [(COHORTS, 0.5), (["a"], None), ([LONG, "b"], None), ([LONG, "b"], 0.5)]
)
def test_a_matrix_has_every_number_in_its_cell(names, center):
    values = square(0, names)
    figure = plots.matrix_figure(plots.Heatmap(values, "C-index", center), "t")
    axes, bar = figure.axes
    cells = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts
    }
    assert cells == {at: f"{value:.2f}" for at, value in np.ndenumerate(values.to_numpy())}
    assert axes.get_xlabel() == "target"
    assert axes.get_ylabel() == "source"
    assert bar.get_ylabel() == "C-index"
    assert not reaches_the_edge(figure)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert overlapping(figure, sorted(cells.values())) == []
    assert labels == list(style.short_names(names).values())


def test_matrix_numbers_contrast_with_their_color():
    for heatmap in (plots.Heatmap(square(0), "x", 0.5), plots.Heatmap(square(0), "x")):
        axes = plots.matrix_figure(heatmap, "t").axes[0]
        image = axes.images[0]
        for text in axes.texts:
            column, row = text.get_position()
            back = image.cmap(image.norm(image.get_array()[round(row), round(column)]))
            assert contrast(back[:3], matplotlib.colors.to_rgb(text.get_color())) > 3


def contrast(a, b) -> float:
    """Contrast ratio of two colors (WCAG 2)."""
    linear = [
        np.where(np.less(c, 0.04), np.divide(c, 12.92), ((np.array(c) + 0.055) / 1.055) ** 2.4)
        for c in (a, b)
    ]
    light = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in linear)
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_matrix_colors_span_off_diagonal_numbers():
    cosine = square(0) - 0.3
    np.fill_diagonal(cosine.values, 1.0)
    image = plots.matrix_figure(plots.Heatmap(cosine, "cosine"), "t").axes[0].images[0]
    others = cosine.to_numpy()[~np.eye(13, dtype=bool)]
    assert (image.norm.vmin, image.norm.vmax) == (others.min(), others.max())
    c_index = plots.Heatmap(square(0), "C-index", 0.5)
    norm = plots.matrix_figure(c_index, "t").axes[0].images[0].norm
    assert norm(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("center", [None, 0.5])
def test_matrix_of_nan_or_equal_numbers(center):
    values = square(0, ["a", "b"])
    values.iloc[0, 1] = math.nan
    for table in (values, values * math.nan, values * 0):
        figure = plots.matrix_figure(plots.Heatmap(table, "x", center), "t")
        assert not reaches_the_edge(figure)
        assert [t.get_text() for t in figure.axes[0].texts][1] == "–"
    with pytest.raises(ValueError, match="expected a matrix of x, found an empty one"):
        plots.matrix_figure(plots.Heatmap(pd.DataFrame(), "x"), "t")


def test_a_matrix_need_not_be_square():
    values = pd.DataFrame(
        np.zeros((13, 5)), pd.Index(COHORTS, name="source"), pd.RangeIndex(5, name="fold")
    )
    axes, _ = plots.matrix_figure(plots.Heatmap(values, "Mean weight w"), "t").axes
    assert [t.get_text() for t in axes.get_xticklabels()] == list("01234")


@pytest.mark.parametrize("names", [COHORTS[:6], [LONG, "b", "c"]])
def test_two_matrices_stand_side_by_side(names):
    left, right = (
        plots.Heatmap(square(0, names), "C-index", 0.5, "left"),
        plots.Heatmap(square(1, COHORTS[:4]), "cos"),
    )
    figure = plots.matrices_figure(left, right, "t")
    assert not reaches_the_edge(figure)
    first, second = figure.axes[:2]
    assert first.get_position().x1 < second.get_position().x0
    assert first.get_title(loc="left") == "left"


def test_interval_colors_show_the_verdict():
    figure = plots.intervals_figure(DIFFERENCES, "t", "abmil", PER_FOLD)
    (axes,) = figure.axes
    bars = [
        line
        for line in axes.lines
        if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    ]
    np.testing.assert_array_equal([b.get_xdata() for b in bars], DIFFERENCES[["low", "high"]])
    better, worse, noise, undefined = (b.get_color() for b in bars)
    assert len({better, worse, noise}) == 3
    assert noise == undefined
    assert "+0.020  [+0.004, +0.040]" in texts(figure)
    assert "n/a  [n/a, n/a]" in texts(figure)
    assert axes.lines[0].get_xdata() == [0, 0]
    low, high = axes.get_xlim()
    assert low == -high
    points = [c.get_offsets()[:, 0].tolist() for c in axes.collections]
    assert points[:2] == [PER_FOLD.difference[:5].tolist(), [0.05]]
    assert "to abmil" in axes.get_xlabel()
    assert not reaches_the_edge(figure)


def test_intervals_without_folds():
    figure = plots.intervals_figure(DIFFERENCES.head(1), "t", LONG)
    assert "one fold" not in texts(figure)
    assert not reaches_the_edge(figure)
    with pytest.raises(ValueError, match="differences: expected the columns low; found"):
        plots.intervals_figure(DIFFERENCES.drop(columns="low"), "t", "abmil")
    with pytest.raises(ValueError, match="differences per fold: expected the columns method"):
        plots.intervals_figure(DIFFERENCES, "t", "abmil", PER_FOLD[["difference"]])
