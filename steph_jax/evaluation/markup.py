"""Names as text of Markdown and LaTeX, whatever they hold: never as markup."""

import re

from steph_jax.messages import on_one_line

#: What begins markup in Markdown: an underscore within a word does not.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|:(?=//)|(?<=www)\.")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
}


def markdown(text: object) -> str:
    """A name within a line or a cell of Markdown: no markup, no HTML, no link."""
    line = "".join(_HTML.get(character, character) for character in on_one_line(text))
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)


def code(name: str) -> str:
    """A name as code within a line of Markdown; one that is no word stays plain text."""
    return f"`{name}`" if re.fullmatch(r"[\w.+-]+", name) else markdown(name)


def latex(text: object) -> str:
    """Text of LaTeX: no command, no end of a line or of a comment."""
    return "".join(_LATEX.get(character, character) for character in on_one_line(text))
