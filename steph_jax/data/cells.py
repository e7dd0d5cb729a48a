"""What cells of tables mean: missing values, numbers, and the usual words for what was seen."""

import math
import re
from collections.abc import Sequence

#: Cells, in lower case, of what is not known, as R, pandas, the GDC and cBioPortal write them.
_MISSING = frozenset(
    [
        *("", "na", "nan", "n/a", "#n/a", "<na>", "null", "none", ".", "?", "-", "--", "'--"),
        *("not available", "not applicable", "not reported", "not evaluated", "unknown", "missing"),
        *("discrepancy", "pending", "redacted"),
    ]
)
#: Words, in lower case, for an event that was seen or not, under any coding of numbers.
_SEEN = frozenset(
    [
        *("dead", "deceased", "died", "death", "event", "dead with tumor", "expired"),
        *("recurred", "progressed", "recurred/progressed", "relapsed", "progression"),
        *("dod", "dead of disease"),
    ]
)
_NOT_SEEN = frozenset(
    [
        *(
            "alive",
            "living",
            "censored",
            "no event",
            "alive or dead tumor free",
            "lost to follow-up",
        ),
        *("diseasefree", "disease free", "disease-free", "not progressed", "no progression"),
        *("ned"),
    ]
)
_CODE = {"true": "1", "t": "1", "yes": "1", "y": "1", "false": "0", "f": "0", "no": "0", "n": "0"}
#: cBioPortal's codes with their meaning behind them, as `1:DECEASED`.
_CODE_AND_WORD = re.compile(r"([01])\s*:\s*(.*)")

_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def is_missing(cell: str) -> bool:
    """Whether a cell is empty or a word for a missing value, with or without brackets."""
    text = cell.strip().lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    return text in _MISSING


def number(cell: str) -> float:
    """A cell as a number; NaN if it is none."""
    try:
        return float(cell.replace("_", "?"))  # float() would take 1_000 for a thousand
    except ValueError:
        return math.nan


def has_comma(cell: str) -> bool:
    """Whether a cell is a number with a decimal comma."""
    return _DECIMAL_COMMA.fullmatch(cell.strip()) is not None


def event_code(cell: str, coding: str) -> float:
    """The number that a cell of the column of events stands for; NaN if it is none.

    Args:
        cell: a number, true or false, yes or no, or a word as DECEASED, Alive, 1:DECEASED. Words
            that say what was seen mean it under either coding.
        coding: "event" where 1 means that the event was seen, "censorship" where it means that it
            was not.
    """
    text = cell.strip().lower()
    match = _CODE_AND_WORD.fullmatch(text)
    word = match[2] if match else text
    death, censored = _codes(coding)
    if word in _SEEN:
        return float(death)
    if word in _NOT_SEEN:
        return float(censored)
    return number(match[1] if match else _CODE.get(text, cell))


def _codes(coding: str) -> tuple[str, str]:
    """The numbers for an event that was seen and for one that was not."""
    return ("1", "0") if coding == "event" else ("0", "1")


def event_advice(values: Sequence[str], coding: str) -> str:
    """What to do about a column of events that holds other cells than `event_code` takes.

    Args:
        values: different cells of the column.
        coding: as of `event_code`.
    """
    death, censored = _codes(coding)
    write = f"write {death} where death was seen and {censored} where it was not"
    codes = {event_code(value, coding) for value in values}
    if codes == {1.0, 2.0}:
        return f"{write}; 1 and 2 are R's codes for censored and dead"
    other_codes = sorted({f"{code:g}" for code in codes - {0.0, 1.0} if math.isfinite(code)})
    if not other_codes or any(math.isnan(code) for code in codes):
        return f"{write} (DECEASED and LIVING, Dead and Alive, true and false are read too)"
    return (
        f"{death} is death seen and {censored} is censored here; {' and '.join(other_codes)} may "
        f"be competing events (deaths of other causes are censored: write {censored}) or missing "
        "(leave the cell empty, and the patient out by --config.data.unlabeled=drop)"
    )
