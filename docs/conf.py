"""Settings of the documentation site: `make docs` builds it into build/docs."""

import pathlib
import re

from sphinx.application import Sphinx

from steph_jax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[1]

project = "steph_jax"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"steph_jax {release}"
exclude_patterns = ["tables"]
myst_heading_anchors = 4
# Docstrings name code in single backticks.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_use_ivar = True
napoleon_use_rtype = False

#: [text](target) in Markdown, where the target is a file of this repository.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def _leave_out_links_to_code(app: Sphinx, name: str, source: list[str]) -> None:
    """The site has no pages for code, tables and folders: of links to them the text stays."""
    folder = (ROOT / "docs" / name).parent

    def kept(link: re.Match[str]) -> str:
        target = folder / link[2]
        on_the_site = target.suffix == ".md" and (ROOT / "docs") in target.resolve().parents
        return link[0] if on_the_site else link[1]

    source[0] = _LINK.sub(kept, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _leave_out_links_to_code)
