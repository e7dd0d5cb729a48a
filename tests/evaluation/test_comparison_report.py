"""Names in pages and tables are text, whatever they hold."""

import numpy as np
import pandas as pd
import pytest

from steph_jax.evaluation import comparison_report, markup
from steph_jax.evaluation.comparison import Comparison, Difference, FoldRun
from steph_jax.survival.significance import Interval

HOSTILE = (
    "x\n\\write18{touch HACKED}\r\n<script>alert(1)</script> | "
    "[a](http://b) `c` *d* _e_ $f$ \x1b[31m"
)
INTERVAL = Interval(0.5, 0.7)


def compared(dataset: str, method: str) -> tuple[Comparison, pd.DataFrame, dict]:
    """A comparison of two methods on one fold, one of them of any name."""
    predictions = pd.DataFrame({"patient_id": ["a"], "t": [1.0], "e": [1], "risk": [0.0]})
    numbers = {"test": {"c_index": 0.6}, "source": HOSTILE, "restarts": 1}
    methods = ("abmil", method)
    comparison = Comparison(
        dataset=dataset,
        methods=methods,
        seeds=(1,),
        folds=(0,),
        runs=tuple(FoldRun(name, 1, 0, numbers, predictions, 10) for name in methods),
        c_index={name: np.array([0.6]) for name in methods},
        intervals=dict.fromkeys(methods, INTERVAL),
        differences={method: Difference(0.0, INTERVAL, 0.5, np.zeros(1))},
        undefined=0.0,
    )
    row = {"fold_0": 0.6, "mean": 0.6, "sd": 0.0, "difference": 0.0, "p": 0.0001}
    row |= {"difference_low": -0.1, "difference_high": 0.1, "trainable_parameters": 5}
    row |= {"train_seconds_per_fold": 1.0, "flops_per_slide": 1e9, "seconds_per_slide": 0.1}
    table = pd.DataFrame([{"method": name} | row for name in methods])
    cost = {"num_patches": 3, "batch_size": 1, "device": HOSTILE}
    return comparison, table, dict.fromkeys(methods, cost)


def test_names_do_not_leave_the_comment_of_a_latex_table():
    comparison, table, _ = compared(HOSTILE, HOSTILE)
    lines = comparison_report.latex(comparison, table).splitlines()
    plain = comparison_report.latex(*compared("x", "y")[:2]).splitlines()
    assert len(lines) == len(plain)
    assert lines[0].startswith(r"% x\n\write18{touch HACKED}\r\n<script>")
    for line, expected in zip(lines[1:], plain[1:], strict=True):
        for command in (r"\write", r"\n", " {", "8{"):
            assert command not in line
        assert line.count(" & ") == expected.count(" & ")
        assert line.isprintable()
    assert any(r"\textbackslash{}write18\{touch HACKED\}" in line for line in lines)


def test_names_are_no_markup_of_a_markdown_page():
    comparison, table, costs = compared(HOSTILE, HOSTILE)
    command = "python -m steph_jax.compare --methods 'a\n\n<b>'"
    page = comparison_report.markdown(comparison, table, costs, command, [])
    plain = comparison_report.markdown(*compared("x", "y"), "c", [])
    assert len(page.splitlines()) == len(plain.splitlines())
    text = "\n".join(line for line in page.splitlines() if not line.startswith("    "))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\|" in text
    assert r"\[a\](http\://b) \`c\` \*d\* \_e\_ \$f\$" in text
    assert "\x1b" not in page


@pytest.mark.parametrize("name", ["tcga_brca", "steph_target", "zero_shot-2.1", "Überleben (a, b)"])
def test_usual_names_are_left_alone_in_markdown(name):
    assert markup.markdown(name) == name
