"""One command for all programs: `steph-jax train ...` is `python -m steph_jax.train ...`."""

import ast
import importlib.util
import pathlib
import re
import runpy
import sys
from difflib import get_close_matches

from steph_jax import __version__, interrupts

_MARK = 'if __name__ == "__main__":'


def programs() -> dict[str, str]:
    """What each program is for, by name: its module's first words, up to a colon or full stop."""
    sentences = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        source = path.read_text(encoding="utf-8")
        if _MARK in source:
            text = ast.get_docstring(ast.parse(source)) or ""
            sentences[path.stem] = re.split(r"[:.](?:\s|$)", " ".join(text.split()))[0]
    return sentences


def usage() -> str:
    """The text of --help."""
    lines = [
        "usage: steph-jax PROGRAM [FLAGS]",
        "",
        f"steph_jax {__version__}: cancer prognosis from whole-slide images by model merging.",
        "",
        *(f"    {name:<12}{text}" for name, text in programs().items()),
        "",
        "Flags of a program: steph-jax PROGRAM --help",
    ]
    return "\n".join(lines)


def main() -> int:
    """The entry point of the command `steph-jax` and of `python -m steph_jax`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    known = programs()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f" (do you mean {near[0]}?)" if near else ""
        message = f"no program is called {name!r}{hint}" if name else "a program is missing"
        print(f"error: {message}; steph-jax --help lists them", file=sys.stderr)
        return 2
    spec = importlib.util.find_spec(f"steph_jax.{name}")
    assert spec is not None
    assert spec.origin is not None
    sys.argv[:2] = [spec.origin]
    interrupts.install()
    runpy.run_module(f"steph_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
