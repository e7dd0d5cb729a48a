"""The patches of a slide as a table, as GeoJSON, and the most striking ones."""

import hashlib
import json
import re
import uuid
from typing import Any

import numpy as np
import pandas as pd

#: What no name of a file may hold on any system, what would hide it or lead elsewhere, and the
#: beginnings of names that other files have.
_UNSAFE = re.compile(
    r'[\x00-\x1f\x7f-\x9f\ud800-\udfff/\\:*?"<>|%]|^\.|[. ]$'
    r"|\.(?=patches$)|^s(?=lides$)|^t(?=op_patches$)",
    re.IGNORECASE,
)
#: Bytes that a name may take before the extension.
_MOST_BYTES = 200
#: Ids of objects follow from slide and patch under this one, so that the same command gives the
#: same file.
_NAMESPACE = uuid.UUID("b4f6d4a2-5c0e-5d0f-9d8e-6a1f6f0f5a11")
#: Lists of `top_patches`: the column that ranks, and whether its highest are taken.
TOP = {
    "attention, highest": ("attention", True),
    "contribution, highest": ("contribution", True),
    "contribution, lowest": ("contribution", False),
}


def file_name(slide_id: str) -> str:
    """A name for the files of a slide: its id, whatever that holds, with unsafe letters as %XX.

    Two ids never have one name. A long one is cut, and ends in a checksum.
    """
    name = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", slide_id) or "%"
    if len(name.encode()) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(slide_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{name.encode()[: _MOST_BYTES - 20].decode('utf-8', 'ignore')}%{digest}"


def slide_table(xy: np.ndarray, seen: pd.DataFrame) -> pd.DataFrame:
    """The CSV of a slide: x and y of the left upper corner of a patch, then what a model sees."""
    places = pd.DataFrame({"x": _whole(xy[:, 0]), "y": _whole(xy[:, 1])})
    return pd.concat([places, seen], axis=1)


def _whole(values: np.ndarray) -> np.ndarray:
    """Integers where all values are, which they are in pixels."""
    integers = values.astype(np.int64)
    return integers if (integers == values).all() else values


def geojson(slide_id: str, table: pd.DataFrame, size: float) -> str:
    """A FeatureCollection that QuPath imports: a tile for each patch, the columns as measurements.

    Args:
        slide_id: of the slide.
        table: as `slide_table` gives it, in pixels of level 0.
        size: side of a patch, in the same.
    """
    names = [name for name in table.columns if name not in ("x", "y")]
    rows = table[names].to_numpy(np.float64)
    features = []
    for number, (x, y) in enumerate(table[["x", "y"]].to_numpy(np.float64)):
        right, low = x + size, y + size
        corners = [[x, y], [right, y], [right, low], [x, low], [x, y]]
        measurements = {
            name: float(f"{value:.6g}") for name, value in zip(names, rows[number], strict=True)
        }
        features.append(_feature(slide_id, number, corners, measurements))
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def _feature(
    slide_id: str, number: int, corners: list[list[float]], measurements: dict[str, float]
) -> dict[str, Any]:
    text = f"{number} {slide_id}".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, text)),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {
            "objectType": "tile",
            "name": f"patch {number}",
            "isLocked": True,
            "measurements": measurements,
        },
    }


def top_patches(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The patches of most attention, and those that raise and lower the risk most.

    Args:
        table: as `slide_table` gives it.
        count: patches of each list, or all where there are fewer.

    Returns:
        columns list (of `TOP`), rank (from 1), patch (its number in the features, from 0), x, y,
        attention, percentile, contribution.
    """
    parts = []
    for name, (column, highest) in TOP.items():
        values = table[column].to_numpy()
        order = np.argsort(-values if highest else values, kind="stable")[:count]
        part = table.iloc[order][["x", "y", "attention", "percentile", "contribution"]]
        part = part.reset_index(drop=True)
        part.insert(0, "patch", order)
        part.insert(0, "rank", np.arange(1, len(order) + 1))
        part.insert(0, "list", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
