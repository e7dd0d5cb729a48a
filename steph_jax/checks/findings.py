"""Findings of the checks: a table for people, JSON for programs."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from steph_jax import messages

#: Items of a finding that the table for people shows.
MAX_SHOWN = 10

T = TypeVar("T")


class Status(enum.IntEnum):
    """How bad a finding is; the worst one is the program's exit status."""

    OK = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """ok, warning or error."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: its subject, a word or two.
        status: how bad it is.
        message: the fact.
        advice: what to do about it.
        items: patients, slides or files it is about, all of them.
        values: numbers by name, JSON-able.
    """

    check: str
    status: Status
    message: str
    advice: str = ""
    items: tuple[str, ...] = ()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The finding for programs."""
        return {
            "check": self.check,
            "status": self.status.word,
            "message": self.message,
            "advice": self.advice,
            "count": len(self.items),
            "items": list(self.items),
            "values": self.values,
        }


def ok(check: str, message: str, **values: Any) -> Finding:
    """A finding that all is well."""
    return Finding(check, Status.OK, message, values=values)


def warning(
    check: str, message: str, advice: str = "", items: Iterable[str] = (), **values: Any
) -> Finding:
    """A finding that needs a look."""
    return Finding(check, Status.WARNING, message, advice, tuple(items), values)


def error(
    check: str, message: str, advice: str = "", items: Iterable[str] = (), **values: Any
) -> Finding:
    """A finding that makes a run impossible or wrong."""
    return Finding(check, Status.ERROR, message, advice, tuple(items), values)


def sentence(finding: Finding) -> str:
    """The message and the advice in one line."""
    return f"{finding.message}; {finding.advice}" if finding.advice else finding.message


def attempt(check: str, results: list[Finding], call: Callable[[], T]) -> T | None:
    """The result of a call, or None and its error message as a finding."""
    try:
        return call()
    except messages.USER_ERRORS as problem:
        results.append(error(check, str(problem)))
        return None


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among the findings."""
    return max((finding.status for finding in findings), default=Status.OK)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings of each status."""
    return {s.word: sum(finding.status == s for finding in findings) for s in Status}


def report(findings: Sequence[Finding], max_shown: int | None = MAX_SHOWN) -> list[str]:
    """The findings as aligned lines, items indented below.

    Args:
        findings: in order.
        max_shown: items of a finding that are shown; None shows all.
    """
    width = max((len(finding.check) for finding in findings), default=0)
    width = max(width, len("check"))
    lines = [f"{'status':7}  {'check':{width}}  finding"]
    for finding in findings:
        first, *other_lines = sentence(finding).split("\n")
        lines.append(f"{finding.status.word:7}  {finding.check:{width}}  {first}")
        indent = " " * (len("warning") + width + 4)
        lines += [f"{indent}{line}" for line in other_lines]
        items = finding.items[:max_shown]
        lines += [f"{indent}- {item}" for item in items]
        if len(items) < len(finding.items):
            lines.append(f"{indent}- ... {len(finding.items)} in all")
    return lines
