"""What a run or a comparison came to, in words: better, worse, or not distinguishable."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steph_jax.evaluation import comparison
from steph_jax.evaluation.comparison import Comparison, Difference
from steph_jax.evaluation.source_share import in_words

OWN_METHOD = "abmil"
_BETTER, _WORSE, _UNTOLD = "Better than", "Worse than", "Not distinguishable from"


def of_run(report: Mapping[str, Any]) -> str:
    """What a run came to, in a few sentences, with its uncertainty.

    Args:
        report: numbers of `run_numbers.report_numbers`.
    """
    c_index = report["c_index"]
    if c_index["mean"] is None:
        return "Not computable: some fold has no two test patients that can be compared."
    ends = c_index["ci95"] or (math.nan, math.nan)
    sentences = [
        f"{_side(ends, 0.5)} chance: C-index {c_index['mean']:.3f}{_interval(c_index['ci95'])} "
        "on test patients."
    ]
    sentences.append(_against_own(report))
    if report["sources"]:
        sentences.append(f"{_capitalized(report['sources'])}.")
    if report["control"] != "none":
        sentences.append(
            f"This run is a control (control={report['control']}): what it gains is not knowledge "
            "of other cancers."
        )
    elif report["method"] != OWN_METHOD:
        sentences.append(
            "Whether other cancers are the cause of a gain, only a control can show: "
            "steph_jax.compare --controls runs the same method without its cause."
        )
    return " ".join(sentences)


def _against_own(report: Mapping[str, Any]) -> str:
    """The gain over the target's own model."""
    gain = report["gain"]
    if gain is None:
        if report["method"] == OWN_METHOD:
            return "This is the cancer's own model: there is none to compare it with here."
        return "The cancer's own model was not evaluated."
    size = f"{gain['mean']:+.3f}{_interval(gain['ci95'], '+.3f')} in the C-index"
    if gain["ci95"] is None:
        return f"One fold cannot distinguish it from the cancer's own model: {size}."
    return f"{_side(gain['ci95'], 0.0)} the cancer's own model: {size}."


def of_comparison(result: Comparison, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each method came to beside the reference, a paragraph each, with its uncertainty.

    Args:
        result: the comparison.
        runs: numbers of a run of each method, by its label.
    """
    if not result.differences:
        return [f"Nothing was compared with {result.reference}."]
    paragraphs = []
    for label, difference in result.differences.items():
        words = comparison.verdict(difference)
        side = {"better": _BETTER, "worse": _WORSE}.get(words.partition(",")[0], _UNTOLD)
        sentences = [f"{label}: {side} {result.reference}: {_size(difference)}; {words}."]
        if runs[label]["merges"] and runs[label]["sources"] is not None:
            sentences.append(f"{_capitalized(in_words(runs[label]['source_share']))}.")
        sentences += [
            f"Less the same with control={comparison.parts_of(other)[1]}: "
            f"{_size(against)}, {comparison.control_verdict(against)}."
            for other, against in result.control_differences.items()
            if comparison.parts_of(other)[0] == label
        ]
        paragraphs.append(" ".join(sentences))
    if not result.control_differences:
        paragraphs.append(
            "No control was run (--controls), so a gain is not yet one from other cancers."
        )
    return paragraphs


def _size(difference: Difference) -> str:
    low, high = difference.interval
    ends = None if math.isnan(low) else (low, high)
    return f"{difference.mean:+.3f}{_interval(ends, '+.3f')} in the C-index"


def _side(ends: Sequence[float], value: float) -> str:
    """Where an interval lies beside a value."""
    low, high = ends
    if low > value:
        return _BETTER
    return _WORSE if high < value else _UNTOLD


def _capitalized(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}"


def _interval(ends: Sequence[float] | None, form: str = ".3f") -> str:
    return "" if ends is None else f" [95 %: {ends[0]:{form}} to {ends[1]:{form}}]"
