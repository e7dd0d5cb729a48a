"""Documents: equations are numbered in order; citations, links and paths lead somewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

import steph_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    file
    for folder in ("steph_jax", "tests", "scripts", "benchmarks", "configs")
    for file in (ROOT / folder).rglob("*.py")
)
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
#: "equation 12", "equations 1 to 5", "equations 10 and 15"; lines of docstrings may break inside.
CITATION = re.compile(r"\bequations?\s+(\d+)(?:\s+(?:to|and)\s+(\d+))?", re.IGNORECASE)
#: Files of this repository by their paths; patterns with braces or capitals are placeholders.
PATH = re.compile(
    r"(?<![\w/.])(?:tests|steph_jax|benchmarks|scripts|docs|configs)/[\w/]+\.(?:py|md|png)\b"
)
#: Paths that tests name because nothing is there.
ABSENT = {"configs/none.py"}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def equation_numbers():
    """Numbers at the ends of indented lines, in the order of the page."""
    return [int(number) for number in re.findall(r"^ {4}.*\((\d+)\)$", METHOD, re.MULTILINE)]


def anchors(document):
    """Anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_equations_are_numbered_in_order():
    numbers = equation_numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 40


def test_cited_equations_exist():
    existing = set(equation_numbers())
    cited, missing = 0, []
    for file in SOURCES:
        for match in CITATION.finditer(file.read_text(encoding="utf-8")):
            cited += 1
            numbers = {int(number) for number in match.groups() if number}
            if not numbers <= existing:
                missing.append(f"{file.relative_to(ROOT)}: {match.group()}")
    assert cited > 20
    assert not missing


def test_named_files_exist():
    missing = [
        f"{file.relative_to(ROOT)}: {path}"
        for file in (*DOCUMENTS, *SOURCES, ROOT / "Makefile")
        for path in PATH.findall(file.read_text(encoding="utf-8"))
        if path not in ABSENT and not (ROOT / path).exists()
    ]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(document):
    for path, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name}: {path}"
        if anchor:
            assert anchor in anchors(target), f"{document.name}: {path}#{anchor}"


def test_the_site_is_built_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "steph_jax.models.task_vectors.weighted_sum" in page
    assert "tutorials/features_to_report.html" in (tmp_path / "index.html").read_text("utf-8")


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {steph_jax.__version__}\n" in citation
    assert f"## {steph_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
