"""What cells of tables mean."""

import math

import pytest

from steph_jax.data import cells


def test_missing_values():
    for cell in (
        "",
        "NA",
        "n/a",
        "[Not Available]",
        "[ not applicable ]",
        "'--",
        "--",
        "<NA>",
        "?",
    ):
        assert cells.is_missing(cell), cell
    for cell in ("0", "dead", "-1", "NA-1", "[x]", "nano"):
        assert not cells.is_missing(cell), cell


@pytest.mark.parametrize(
    ("cell", "under_event", "under_censorship"),
    [
        *(("1", 1, 1), ("0.0", 0, 0), ("TRUE", 1, 1), ("no", 0, 0), ("2", 2, 2)),
        *(("DECEASED", 1, 0), ("Alive", 0, 1), ("1:DECEASED", 1, 0), ("0 : living", 0, 1)),
        *(("1:Something else", 1, 1), ("0:Something else", 0, 0), ("1:Recurred/Progressed", 1, 0)),
    ],
)
def test_codes_of_events(cell, under_event, under_censorship):
    """Words mean the same under both codings, numbers and booleans follow the coding."""
    assert cells.event_code(cell, "event") == under_event
    assert cells.event_code(cell, "censorship") == under_censorship


def test_invalid_event_codes():
    for cell in ("sick", "2:DEAD", "1_0", "", "deadline"):
        assert math.isnan(cells.event_code(cell, "event")), cell


def test_advice_follows_the_coding():
    assert cells.event_advice(["1", "2"], "event") == (
        "write 1 where death was seen and 0 where it was not; 1 and 2 are R's codes for censored "
        "and dead"
    )
    assert "write 0 where death was seen and 1" in cells.event_advice(["1", "2"], "censorship")
    text = cells.event_advice(["-1", "0", "1", "9"], "censorship")
    assert text.startswith("0 is death seen and 1 is censored here; -1 and 9 may be competing")
    assert "(deaths of other causes are censored: write 1)" in text
    assert cells.event_advice(["0", "1", "sick"], "event").startswith("write 1 where death")


def test_decimal_commas():
    assert cells.has_comma("12,5")
    assert not cells.has_comma("12.5")
    assert not cells.has_comma("1,2,3")
