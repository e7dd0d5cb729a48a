"""Which maps are drawn of what a table holds."""

import numpy as np
import pandas as pd

from steph_jax.heatmaps import pictures

RNG = np.random.default_rng(0)


def table(*names):
    return pd.DataFrame({name: RNG.normal(size=9) for name in names})


def titles(rows):
    return [[panel.title for panel in row] for row in rows]


def test_maps_of_a_single_model():
    rows = pictures.panels(table("attention", "percentile", "contribution"))
    assert titles(rows) == [["Attention", "Contribution to the risk"]]
    assert [panel.diverging for panel in rows[0]] == [False, True]
    assert rows[0][0].limits == (0, 100)


def test_maps_of_a_merged_model_and_its_sources():
    both = ["attention", "percentile", "contribution"]
    names = [*both, *(f"own_{name}" for name in both), *(f"{name}_difference" for name in both)]
    seen = table(*names, *(f"percentile[{source}]" for source in "abcd"))
    rows = pictures.panels(seen, list("abcd"))
    assert [len(row) for row in rows] == [3, 3, 3, 1]
    assert titles(rows)[2:] == [[f"Attention, {name}" for name in "abc"], ["Attention, d"]]
    merged, own, change = rows[1]
    assert merged.limits == own.limits  # the two are compared by eye
    np.testing.assert_array_equal(change.values, seen["contribution_difference"])
    np.testing.assert_array_equal(rows[0][1].values, seen["own_percentile"])


def test_own_model_whose_outputs_mean_something_else_has_no_contributions():
    names = ["attention", "percentile", "contribution", "own_attention", "own_percentile"]
    seen = table(*names, "attention_difference", "percentile_difference")
    assert [len(row) for row in pictures.panels(seen)] == [3, 1]


def test_title_of_a_long_or_hostile_name_is_one_line():
    assert pictures.shown_name("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert len(pictures.shown_name("x" * 5000)) == 80
