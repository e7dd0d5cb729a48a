"""The report of `steph_jax.check`: all findings as text and as JSON."""

import os
import pathlib

from steph_jax import files
from steph_jax.checks import findings, models
from steph_jax.checks.findings import Finding


def lines(dataset: str, results: list[Finding], max_items: int | None = None) -> list[str]:
    """The table of findings, that of the pool's models, and how many findings there are.

    Args:
        dataset: its name.
        results: the findings.
        max_items: of every list; None for all.
    """
    numbers = findings.counts(results)
    return [
        *findings.report(results, max_items),
        *models.matrix(results),
        f"{dataset}: {numbers['error']} errors, {numbers['warning']} warnings, "
        f"{numbers['ok']} checks without finding",
    ]


def write(
    dataset: str,
    results: list[Finding],
    json_file: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str] | None,
) -> None:
    """Writes the whole report to a JSON file, and to report.txt and report.json of a folder."""
    record = {
        "dataset": dataset,
        "exit_status": int(findings.worst(results)),
        "status": findings.worst(results).word,
        "counts": findings.counts(results),
        "findings": [finding.to_json() for finding in results],
    }
    if json_file:
        files.write_json(pathlib.Path(json_file), record)
    if folder:
        out = pathlib.Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "report.txt", "\n".join(lines(dataset, results)) + "\n")
        files.write_json(out / "report.json", record)
