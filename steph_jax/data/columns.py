"""The columns of a survival table: names, coding, cells as text, and what is wrong with ids."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from steph_jax.data import cells, csv_files
from steph_jax.messages import join_names

DAYS_PER_UNIT = {"days": 1.0, "months": 365.25 / 12, "years": 365.25}
EVENT_CODINGS = ("event", "censorship")
#: What is done with patients without time or event.
UNLABELED = ("refuse", "drop")
#: Extensions of tables that are not read, and may lie where a CSV is missing.
_OTHER_TABLES = (".xlsx", ".xls", ".ods", ".tsv", ".txt", ".csv.gz", ".parquet")

WHERE_TO_GET_DATA = (
    "tables, splits and features of the 13 cohorts are published on Hugging Face as UNI2-h-DSS, by "
    "the authors of STEPH (https://arxiv.org/abs/2603.10526), and PyTorch checkpoints with its "
    "code, which that page links; `make demo` runs on simulated data"
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names and coding of the columns that UNI2-h-DSS calls patient_id, pathology_id, t and e.

    Attributes:
        patient: column of patient ids.
        slide: column of slide ids.
        time: column of times to the event or to the end of follow-up.
        event: column that distinguishes the two.
        time_unit: a key of `DAYS_PER_UNIT`; a year has 365.25 days and a month a twelfth of that.
        event_coding: "event" where 1 means that death was seen, "censorship" where 1 means that
            it was not.
        unlabeled: "refuse" a table with patients without time or event, or "drop" them.
        competing: column that is 1 where a patient without the event died of something else, or ""
            where there is none.

    Raises:
        ValueError: for an unknown unit, coding or way with the unlabeled, or a column named twice.
    """

    patient: str = "patient_id"
    slide: str = "pathology_id"
    time: str = "t"
    event: str = "e"
    time_unit: str = "days"
    event_coding: str = "event"
    unlabeled: str = "refuse"
    competing: str = ""

    def __post_init__(self) -> None:
        if self.time_unit not in DAYS_PER_UNIT:
            choices = ", ".join(DAYS_PER_UNIT)
            raise ValueError(f"the time unit is one of {choices}, not {self.time_unit!r}")
        if self.event_coding not in EVENT_CODINGS:
            choices = ", ".join(EVENT_CODINGS)
            raise ValueError(f"the event coding is one of {choices}, not {self.event_coding!r}")
        if self.unlabeled not in UNLABELED:
            choices = ", ".join(UNLABELED)
            raise ValueError(f"data.unlabeled is one of {choices}, not {self.unlabeled!r}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"four different columns are needed, found {', '.join(self.names)}")
        if self.competing in self.names:
            raise ValueError(
                "data.columns.competing is a column of its own (1 = died of something else), or "
                f"'' without one; found {self.competing!r}, which is another column's name"
            )

    @property
    def names(self) -> tuple[str, str, str, str]:
        """The four columns, in the order patient, slide, time, event."""
        return self.patient, self.slide, self.time, self.event

    def setting(self, name: str) -> str:
        """The setting that names a column."""
        fields = ("patient", "slide", "time", "event", "competing")
        return f"data.columns.{fields[(*self.names, self.competing).index(name)]}"


def _where(path: Path) -> str:
    """What to do about a table that is missing."""
    stem = path.name.removesuffix(path.suffix)
    names = [stem + extension for extension in _OTHER_TABLES]
    existing = [name for name in names if (path.parent / name).is_file()]
    hint = f"found {existing[0]}: save that as CSV UTF-8; " if existing else ""
    return (
        f"{hint}expected a CSV file with a row for each slide, in the columns patient_id, "
        "pathology_id, t and e or those that data.columns names; from it `python -m "
        f"steph_jax.split` makes splits_0.csv ... in the same folder; {WHERE_TO_GET_DATA}"
    )


@dataclasses.dataclass(frozen=True)
class Cells:
    """Some columns of a table, as text.

    Attributes:
        lines: line number of every row.
        columns: the cells of each column.
    """

    lines: list[int]
    columns: list[list[str]]


def read_cells(path: Path, columns: Columns, names: Sequence[str]) -> Cells:
    """The columns of these names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything but a table; columns that are missing or occur twice; no rows.
    """
    header, rows = csv_files.read(path, _where(path))
    missing = [name for name in names if name not in header]
    if missing:
        settings = ", ".join(map(columns.setting, missing))
        raise ValueError(
            f"{path}: expected the columns {', '.join(names)}; missing {', '.join(missing)}; "
            f"found {join_names(header)}; name yours by {settings}"
        )
    repeated = [name for name in names if header.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: columns that occur twice: {', '.join(repeated)}")
    if not rows:
        raise ValueError(f"{path}: expected a row per slide, found the header alone")
    places = [header.index(name) for name in names]
    return Cells([line for line, _ in rows], [[row[place] for _, row in rows] for place in places])


@dataclasses.dataclass(frozen=True)
class IdProblem:
    """Rows whose ids cannot be used.

    Attributes:
        text: what is wrong with them; ends where the items begin.
        advice: what to do.
        items: lines of the table, or slides.
    """

    text: str
    advice: str
    items: tuple[str, ...]


def id_problems(columns: Columns, read: Cells) -> list[IdProblem]:
    """What is wrong with ids of patients and slides, the first two columns that were read."""
    problems = []
    patients, slides = read.columns[:2]
    for name, ids in ((columns.patient, patients), (columns.slide, slides)):
        rows = list(zip(read.lines, ids, strict=True))
        empty = [f"line {line}" for line, cell in rows if cells.is_missing(cell)]
        lines = [f"line {line}" for line, cell in rows if not cell.isprintable()]
        for text, advice, items in (
            ("empty or NA", "fill in the ids, or take these rows out", empty),
            ("ids with line breaks or other control characters", "correct the ids", lines),
        ):
            if items:
                problems.append(IdProblem(f"column {name!r}: {text}", advice, tuple(items)))
    count = Counter(slide for slide in slides if not cells.is_missing(slide))
    twice = tuple(slide for slide, rows_of_slide in count.items() if rows_of_slide > 1)
    if twice:
        text = "expected one row per slide; slides in several rows"
        problems.append(IdProblem(text, "keep one row per slide", twice))
    return problems


def usable_cells(path: Path, columns: Columns, names: Sequence[str]) -> list[list[str]]:
    """The columns of these names, the first two of which are ids without fault."""
    read = read_cells(path, columns, names)
    for problem in id_problems(columns, read):
        raise ValueError(f"{path}, {problem.text} ({join_names(problem.items)}); {problem.advice}")
    return read.columns
