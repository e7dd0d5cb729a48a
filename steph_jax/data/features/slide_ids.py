"""Slides are named by tables, by their files and by programs: which ids mean one slide."""

import os
import re
from collections.abc import Container, Iterable, Mapping

#: Extensions of slide images, which ids in tables sometimes carry.
SLIDE_EXTENSIONS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn"),
    *(".czi", ".svslide", ".vms", ".bif", ".qptiff", ".dcm"),
)
#: Extensions of files of features, which they carry as well.
FEATURE_EXTENSIONS = (".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth")
_COPY = re.compile(r"( \(\d+\)| - copy|_copy|_features|_feats)$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s._-]+")


def slide_name(slide_id: str) -> str:
    """The name of a slide without the folders and the extension of its file."""
    name = slide_id.replace("\\", "/").rpartition("/")[2]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in (*SLIDE_EXTENSIONS, *FEATURE_EXTENSIONS) else name


def resolve_slide_id(slide_id: str, existing: Container[str]) -> str | None:
    """The id among `existing` that an id of a table means: itself, or the name of its file.

    None where neither exists.
    """
    if slide_id in existing:
        return slide_id
    name = slide_name(slide_id)
    return name if name in existing else None


def same_slides(slide_ids: Iterable[str], existing: Container[str]) -> list[str]:
    """Different ids that mean one of the slides `existing`, as "X and X.svs"."""
    first_ids: dict[str, str] = {}
    twice = []
    for slide_id in slide_ids:
        own = resolve_slide_id(slide_id, existing)
        if own is not None and first_ids.setdefault(own, slide_id) != slide_id:
            twice.append(f"{first_ids[own]} and {slide_id}")
    return twice


def _plain_name(slide_id: str) -> str:
    """A slide id without what copies, downloads and programs change in names of files."""
    name = _COPY.sub("", slide_name(slide_id)).lower()
    return _SEPARATORS.sub("-", name)


def other_names(missing: Iterable[str], existing: Iterable[str]) -> dict[str, str]:
    """Missing slides that may exist under another name, such as `X (1)`, `x` or `X.UUID`.

    Args:
        missing: ids of slides.
        existing: ids of slides that exist.

    Returns:
        the existing id for each of these missing ids.
    """
    plain = {_plain_name(slide): slide for slide in existing}
    short = {_plain_name(slide.split(".")[0]): slide for slide in existing}
    renamed = {}
    for slide in missing:
        other = plain.get(_plain_name(slide)) or short.get(_plain_name(slide.split(".")[0]))
        if other is not None:
            renamed[slide] = other
    return renamed


def renaming_advice(names: Mapping[str, str]) -> str:
    """How many slides `other_names` gave, and the first."""
    slide, other = next(iter(names.items()))
    return (
        f"the same slide may be there under another id ({len(names)} slides): {slide} and {other}"
    )
