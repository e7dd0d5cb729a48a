"""A headless Chromium, where one is installed: how wide a page is, and what it is on paper."""

import html
import pathlib
import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: A frame as wide as a window that the browser itself would not make so narrow.
_FRAME = """<!DOCTYPE html><html><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<script>
document.getElementById("frame").onload = event => {{
  const root = event.target.contentDocument.documentElement;
  document.body.dataset.size = root.scrollWidth + " " + root.scrollHeight;
}};
</script></body></html>"""


def path() -> str:
    """The browser; the test is skipped without one."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium is installed to render pages with")
    return browser


def _run(folder: pathlib.Path, *arguments: str) -> str:
    command = [
        *(path(), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"),
        f"--user-data-dir={folder / 'profile'}",
        *arguments,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return ended.stdout


def framed(
    page: pathlib.Path, folder: pathlib.Path, width: int, height: int = 1000
) -> pathlib.Path:
    """A page within a frame of a width, in `folder`."""
    text = page.read_text(encoding="utf-8")
    frame = folder / f"frame_{width}.html"
    source = html.escape(text, quote=True)
    frame.write_text(_FRAME.format(width=width, height=height, page=source), encoding="utf-8")
    return frame


def size(page: pathlib.Path, folder: pathlib.Path, width: int) -> tuple[int, int]:
    """scrollWidth and scrollHeight of a page in a window of a width, in pixels."""
    dump = _run(folder, "--dump-dom", framed(page, folder, width).as_uri())
    match = re.search(r'data-size="(\d+) (\d+)"', dump)
    assert match is not None, dump[-500:]
    return int(match[1]), int(match[2])


def screenshot(page: pathlib.Path, folder: pathlib.Path, width: int) -> pathlib.Path:
    """The whole page in a window of a width, as PNG in `folder`."""
    _, height = size(page, folder, width)
    out = folder / f"page_{width}.png"
    frame = framed(page, folder, width, height)
    _run(folder, f"--window-size={max(width, 500)},{height}", f"--screenshot={out}", frame.as_uri())
    return out


def pdf(page: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The page as it is printed, in `folder`."""
    out = folder / "page.pdf"
    _run(folder, f"--print-to-pdf={out}", "--no-pdf-header-footer", page.as_uri())
    return out
