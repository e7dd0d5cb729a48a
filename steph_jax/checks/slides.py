"""Feature files: which are missing, unreadable, empty, of another size, or not finite."""

import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from steph_jax.checks import findings
from steph_jax.checks.findings import Finding
from steph_jax.checks.reading import Reading
from steph_jax.data.features import lookalikes
from steph_jax.data.features.slide_ids import other_names, renaming_advice, resolve_slide_id

CHECK = "features"
#: One problem of so many files is one finding; fewer files are listed one by one.
_MANY = 3
_NUMBERS = re.compile(r"\d+")


def check_slides(
    location: pathlib.Path,
    patients: Sequence[str],
    slides: Sequence[Sequence[str]],
    read: Reading,
    other_slides: Iterable[str] = (),
    expected_dim: int | None = None,
) -> list[Finding]:
    """What is wrong with the features of some patients.

    Args:
        location: where they are.
        patients: [P] ids.
        slides: [P] ids of their slides.
        read: results of reading them.
        other_slides: ids of slides of the table whose patients the run does not use.
        expected_dim: D of the model, if known.
    """
    slide_ids = [slide for patient_slides in slides for slide in patient_slides]
    good = {s: a for s, a in read.answers.items() if "problem" not in a and "nonfinite" not in a}
    results = [_summary(location, good)]
    missing = [slide for slide in slide_ids if slide not in read.slides]
    renamed = other_names(missing, read.slides)
    if missing:
        text = (
            f"{location}: no features of slides of the table ({len(missing)} of {len(slide_ids)})"
        )
        advice = "extract them, or take these slides out of the table"
        results.append(
            findings.error(
                CHECK,
                text,
                renaming_advice(renamed) if renamed else advice,
                missing,
                missing=len(missing),
                wanted=len(slide_ids),
            )
        )
    twice = _twice(slide_ids, read)
    if twice:
        text = f"{location}: ids of the table that mean one slide ({len(twice)})"
        results.append(findings.error(CHECK, text, "keep one row per slide", twice))
    other_ids = {resolve_slide_id(slide, read.slides) for slide in other_slides}
    spare = sorted(set(read.slides) - set(slide_ids) - other_ids - set(renamed.values()))
    if spare:
        text = f"{location}: files of slides that the table lacks ({len(spare)})"
        results.append(findings.warning(CHECK, text, "they are not used", spare, files=len(spare)))
    unused = len((other_ids - set(slide_ids)) & set(read.slides))
    if unused:
        text = f"{location}: {unused} slides of the table are of patients whom the run does not use"
        results.append(findings.ok(CHECK, text, slides=unused))
    results += _problems(location, read, [s for s in slide_ids if _has(read, s, "problem")])
    bad = [
        read.answers[slide]["nonfinite"] for slide in slide_ids if _has(read, slide, "nonfinite")
    ]
    if bad:
        text = f"{location}: files with NaN or infinity ({len(bad)})"
        results.append(findings.error(CHECK, text, "extract these slides again", bad))
    if read.unread:
        text = (
            f"values of {len(read.unread)} of {len(slide_ids)} slides were not read, headers only"
        )
        advice = "no time was left; --seconds=0 reads all"
        results.append(
            findings.warning(
                CHECK, text, advice, read.unread, unread=len(read.unread), wanted=len(slide_ids)
            )
        )
    results += [*_empty(patients, slides, read), *_sizes(location, good, read, expected_dim)]
    results += _encoders(good, read)
    return [*results, *_slide_level(location, good), *([] if twice else _copies(good))]


def _twice(slide_ids: Sequence[str], read: Reading) -> list[str]:
    """Ids that mean one file, as "X.svs and X.tiff"."""
    first: dict[str, str] = {}
    return [
        f"{first[read.slides[slide]]} and {slide}"
        for slide in slide_ids
        if slide in read.slides and first.setdefault(read.slides[slide], slide) != slide
    ]


def _problems(location: pathlib.Path, read: Reading, bad: Sequence[str]) -> list[Finding]:
    """Files that cannot be read; what is wrong with many for one reason is one finding."""
    by_cause: dict[str, list[str]] = defaultdict(list)
    for slide in bad:
        cause = read.answers[slide]["problem"].replace(f"{read.slides[slide]}: ", "")
        by_cause[_NUMBERS.sub("#", cause)].append(slide)
    results, few = [], []
    for slides in by_cause.values():
        problems = [read.answers[slide]["problem"] for slide in slides]
        paths = [read.slides[slide] for slide in slides]
        if len(slides) < _MANY:
            few += problems
            continue
        text = problems[0].replace(f"{paths[0]}: ", "")
        results.append(
            findings.error(CHECK, f"{location}: {text} ({len(slides)} files)", "", paths)
        )
    if few:
        text = f"{location}: files that cannot be read ({len(few)})"
        results.append(findings.error(CHECK, text, "replace each", few))
    return results


def _has(read: Reading, slide: str, key: str) -> bool:
    return key in read.answers.get(slide, {})


def _summary(location: pathlib.Path, good: Mapping[str, dict[str, Any]]) -> Finding:
    patches = sorted(answer["num_patches"] for answer in good.values())
    dims = sorted({answer["dim"] for answer in good.values() if answer["num_patches"]})
    dtypes = sorted({answer["dtype"] for answer in good.values()})
    text = f"{location}: {len(good)} slides can be read"
    if patches:
        text += (
            f"; {patches[0]} to {patches[-1]} patches, {sum(patches)} in all; D = "
            f"{', '.join(map(str, dims)) or 'unknown'}; {', '.join(dtypes)}"
        )
    encoders = sorted({answer["encoder"] for answer in good.values() if answer.get("encoder")})
    if encoders:
        text += f"; encoder {', '.join(encoders)}"
    return findings.ok(
        CHECK,
        text,
        slides=len(good),
        patches=sum(patches),
        dims=dims,
        dtypes=dtypes,
        encoders=encoders,
    )


def _empty(
    patients: Sequence[str], slides: Sequence[Sequence[str]], read: Reading
) -> list[Finding]:
    """Slides without patches of patients who have others, and patients without any patch."""
    results: list[Finding] = []
    some, all_empty = [], []
    for patient, patient_slides in zip(patients, slides, strict=True):
        answers = [read.answers.get(slide, {}) for slide in patient_slides]
        empty = [
            read.slides[slide]
            for slide, answer in zip(patient_slides, answers, strict=True)
            if answer.get("num_patches") == 0
        ]
        if empty and len(empty) == len(patient_slides):
            all_empty.append(f"{patient}: {', '.join(empty)}")
        else:
            some += empty
    if all_empty:
        text = f"patients without any patch ({len(all_empty)})"
        advice = "extract their features again, or take them out of the table and the splits"
        results.append(findings.error(CHECK, text, advice, all_empty))
    if some:
        text = f"empty files, without patches, beside others of the same patient ({len(some)})"
        results.append(findings.warning(CHECK, text, "the others are used", some))
    return results


def _shapes(good: Mapping[str, dict[str, Any]]) -> list[tuple[int, int]]:
    """N and D of slides that have patches."""
    return [(a["num_patches"], a["dim"]) for a in good.values() if a.get("num_patches")]


def _sizes(
    location: pathlib.Path,
    good: Mapping[str, dict[str, Any]],
    read: Reading,
    expected_dim: int | None,
) -> list[Finding]:
    """Features of several sizes, or transposed."""
    shapes = _shapes(good)
    if lookalikes.seem_transposed(shapes, expected_dim):
        return [findings.error(CHECK, f"{location}: {lookalikes.transposed_text(shapes)}")]
    dims = Counter(dim for _, dim in shapes)
    if len(dims) < 2:
        return []
    common = dims.most_common(1)[0][0]
    other_sizes = [
        f"{read.slides[slide]}: D = {answer['dim']}"
        for slide, answer in good.items()
        if answer["num_patches"] and answer["dim"] != common
    ]
    text = "mixed sizes of features: " + ", ".join(f"D = {d} in {n}" for d, n in dims.most_common())
    slides = {str(d): n for d, n in dims.most_common()}
    return [findings.error(CHECK, text, "extract all with one encoder", other_sizes, slides=slides)]


def _slide_level(location: pathlib.Path, good: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Slides that have one patch each."""
    text = lookalikes.slide_level_text([num_patches for num_patches, _ in _shapes(good)])
    return [findings.warning(CHECK, f"{location}: {text}")] if text else []


def _encoders(good: Mapping[str, dict[str, Any]], read: Reading) -> list[Finding]:
    """Features whose files name several encoders."""
    encoders = {slide: answer["encoder"] for slide, answer in good.items() if answer.get("encoder")}
    text = lookalikes.several_encoders(encoders)
    if not text:
        return []
    counts = Counter(map(lookalikes.same_encoder, encoders.values()))
    common = counts.most_common(1)[0][0]
    other_encoders = [
        f"{read.slides[s]}: {n}"
        for s, n in encoders.items()
        if lookalikes.same_encoder(n) != common
    ]
    return [
        findings.error(
            CHECK, text, "extract all with one encoder", other_encoders, slides=dict(counts)
        )
    ]


def encoder_name(read: Reading) -> str:
    """The encoder that most files name; "" where none does."""
    names = Counter(a["encoder"] for a in read.answers.values() if a.get("encoder"))
    return names.most_common(1)[0][0] if names else ""


def _copies(good: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Slides with the very same features."""
    by_digest = defaultdict(list)
    for slide, answer in good.items():
        if "digest" in answer:
            by_digest[answer["digest"]].append(slide)
    groups = [", ".join(group) for group in by_digest.values() if len(group) > 1]
    if not groups:
        return []
    text = f"slides with identical features ({len(groups)} groups)"
    return [findings.warning(CHECK, text, "is a file there under several names?", groups)]


def feature_dim(read: Reading, expected_dim: int | None = None) -> int | None:
    """D of most slides; None where no slide has patches, or the arrays seem transposed."""
    if lookalikes.seem_transposed(_shapes(read.answers), expected_dim):
        return None
    dims = Counter(a["dim"] for a in read.answers.values() if a.get("num_patches"))
    return dims.most_common(1)[0][0] if dims else None


def compare_encoders(target: Reading, source: Reading, location: pathlib.Path) -> list[Finding]:
    """Whether the features of a source come from another encoder than the target's.

    Files may name it. Besides, an encoder leaves its mark on the mean of every dimension, whatever
    the tissue. Where the slides of either cohort agree in these means (correlation 0.8 and more),
    and the cohorts do not (less than 0.2), or patches differ tenfold in length, another encoder is
    likely. Warnings all: a run reads no features of sources, unless it joins the cohorts, which
    `preflight.check_joined` reads.

    Args:
        target: slides of the target, some with means.
        source: slides of the source, some with means.
        location: where those are.
    """
    target_dim, source_dim = feature_dim(target), feature_dim(source)
    if target_dim is None or source_dim is None:
        return []
    if target_dim != source_dim:
        text = f"{location}: D = {source_dim}, but the features of the target have D = {target_dim}"
        advice = "source and target need features of one encoder"
        return [
            findings.warning("encoder", text, advice, target_dim=target_dim, source_dim=source_dim)
        ]
    names = [encoder_name(read) for read in (target, source)]
    if all(names) and len(set(map(lookalikes.same_encoder, names))) > 1:
        text = f"{location}: features of the encoder {names[1]}, but the target's are of {names[0]}"
        advice = "source and target need features of one encoder"
        return [findings.warning("encoder", text, advice, encoders=names)]
    means = [
        np.array(
            [a["mean"] for a in read.answers.values() if "mean" in a and a["dim"] == target_dim]
        )
        for read in (target, source)
    ]
    lengths = [
        np.median([a["length"] for a in read.answers.values() if "length" in a] or [np.nan])
        for read in (target, source)
    ]
    if min(map(len, means)) < 2 or target_dim < 8:
        return []
    every = np.concatenate(means)
    if (every.std(axis=1) == 0).any():
        return []
    correlation = np.corrcoef(every)
    n = len(means[0])
    within = min(np.median(_off_diagonal(c)) for c in (correlation[:n, :n], correlation[n:, n:]))
    across = float(np.median(correlation[:n, n:]))
    ratio = float(max(lengths) / max(min(lengths), np.finfo(float).tiny))
    if (within >= 0.8 and across < 0.2) or ratio > 10:
        text = (
            f"{location}: features unlike the target's (means of dimensions correlate by "
            f"{across:.2f} across cohorts, {within:.2f} within; patches {ratio:.1f} times as long)"
        )
        advice = "were both made by one encoder, with one normalization?"
        values: dict[str, Any] = {"across": across, "within": float(within), "length_ratio": ratio}
        return [findings.warning("encoder", text, advice, **values)]
    return []


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]
