"""Tables as text, cell by cell, so that no id turns into a number or a missing value.

Cells are separated by commas, semicolons, tabs or bars, whichever the header has most of. Lines
that begin with # before the header (cBioPortal) are passed over.
"""

import csv
import io
import re
from pathlib import Path

_SEPARATORS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*"')
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
#: First bytes of what is no text, and what it is.
_BINARY = {
    b"\xd0\xcf\x11\xe0": "an Excel file: save it as CSV UTF-8",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file: write it as CSV",
}
#: First characters, in lower case, of texts that are no tables.
_OTHER_TEXT = {
    "version https://git-lfs": "a git-lfs pointer: run `git lfs pull`",
    "<!doctype": "an HTML page: the download failed, download it again",
    "<html": "an HTML page: the download failed, download it again",
}

#: What most often makes a cell of more characters than a table has.
_UNCLOSED = (
    ". A quote that is never closed makes one cell of all that follows: look for it near this line"
)


def read(path: Path, hint: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a table in UTF-8, or in UTF-16 with its mark.

    Args:
        path: the file.
        hint: what to do if it is missing, for the message.

    Returns:
        the header, and (line number, cells) of every row that is not blank. Cells are text without
        surrounding spaces; short rows are padded with empty cells to the header's length.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is empty, no table, or has a row longer than the header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {hint}")
    text, skipped = _without_comments(_text(path))
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text))
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num + skipped, stripped))
    except csv.Error as error:
        line = reader.line_num + skipped
        advice = _UNCLOSED if "field larger" in str(error) else ""
        raise ValueError(
            f"{path}, line {line}: expected a CSV file in UTF-8; {error}{advice}"
        ) from error
    if not rows:
        raise ValueError(f"{path}: expected a CSV file with a header line, found an empty file")
    header = rows[0][1]
    for line, cells in rows[1:]:
        if any(cells[len(header) :]):
            raise ValueError(
                f"{path}, line {line}: expected {len(header)} cells as in the header, "
                f"found {len(cells)}"
            )
        cells += [""] * (len(header) - len(cells))
    return header, rows[1:]


def _text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: for anything else; names what it is.
    """
    data = path.read_bytes()
    file_kind = next((kind for magic, kind in _BINARY.items() if data.startswith(magic)), "")
    if data.startswith(b"PK\x03\x04"):
        file_kind = "a zip file: unpack it"
        if b"xl/" in data or b"opendocument.spreadsheet" in data:
            file_kind = "an Excel file: save it as CSV UTF-8"
    if file_kind:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, found {file_kind}")
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: expected a CSV file in UTF-8, found the byte "
            f"0x{data[error.start]:02x}; save it as CSV UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path}: expected a CSV file in UTF-8, found zero bytes (UTF-16 without its mark?); "
            "save it as CSV UTF-8"
        )
    begin = text[:200].lstrip().lower()
    for start, kind in _OTHER_TEXT.items():
        if begin.startswith(start):
            raise ValueError(f"{path}: expected a CSV file in UTF-8, found {kind}")
    return text


def _without_comments(text: str) -> tuple[str, int]:
    """The text from its header on, and the number of lines before it."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip() and line[0] != "#"), 0)
    return "".join(lines[first:]), first


def _separator(text: str) -> str:
    """What separates the cells of a header, the first line that is not blank."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    bare = _QUOTED.sub("", header)
    return max(_SEPARATORS, key=bare.count)
