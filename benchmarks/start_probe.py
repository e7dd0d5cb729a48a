"""Runs a program of steph_jax and samples what its main thread is doing; `start.py` starts it.

    python benchmarks/start_probe.py FILE MARK PROGRAM [FLAGS]

FILE gets {"to_mark": {part: seconds}, "after": {...}} as JSON: the time until the log first holds
MARK, and from there to the end. A sample counts for the time since the one before it, and belongs
to the first of `PARTS` that has a frame on the stack.
"""

import json
import logging
import pathlib
import runpy
import sys
import threading
import time
from collections import defaultdict

#: Part -> what the file of a frame ends with, or a folder within its path.
PARTS = {
    "imports": ("<frozen importlib._bootstrap>",),
    "tracing and compilation": (
        "/jax/_src/compiler.py",
        "/jax/_src/compilation_cache.py",
        "/jax/_src/interpreters/mlir.py",
        "/jax/_src/interpreters/pxla.py",
        "/jax/_src/interpreters/partial_eval.py",
        "/jax/_src/pjit.py",
    ),
    "pictures": ("/steph_jax/plots/", "/matplotlib/"),
    "pages": ("/steph_jax/reports/",),
    "metrics": ("/steph_jax/survival/", "/lifelines/"),
    "checks": (
        "/steph_jax/checks/",
        "/steph_jax/training/preflight.py",
        "/steph_jax/training/inputs.py",
    ),
    "models and states on disk": ("/steph_jax/checkpoints/", "/steph_jax/training/resume.py"),
    "features": ("/steph_jax/data/", "/steph_jax/engine/loader.py"),
    "batches": ("/steph_jax/engine/", "/steph_jax/training/epoch.py"),
}
SECONDS_BETWEEN = 0.002


def part_of(frame: object) -> str:
    """The part that the work of a stack belongs to."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    for part, places in PARTS.items():
        if any(place in file for file in files for place in places):
            return part
    return "the rest"


class Sampler:
    """Seconds of the main thread by part, until `mark` is called and after.

    Args:
        began: `time.time()` when the process was started.
    """

    def __init__(self, began: float) -> None:
        self._main = threading.main_thread().ident
        self._last = began
        self._seconds = {"to_mark": defaultdict(float), "after": defaultdict(float)}
        self._phase = "to_mark"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._add("imports")
        self._thread.start()

    def _add(self, part: str) -> None:
        now = time.time()
        self._seconds[self._phase][part] += now - self._last
        self._last = now

    def _sample(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            self._add(part_of(sys._current_frames().get(self._main)))

    def mark(self) -> None:
        """What comes counts as "after"."""
        self._phase = "after"

    def end(self) -> dict[str, dict[str, float]]:
        """Seconds by part."""
        self._ended.set()
        self._thread.join()
        return {phase: dict(parts) for phase, parts in self._seconds.items()}


class Marking(logging.Handler):
    """Calls `Sampler.mark` when a message holds a text.

    Args:
        text: to wait for.
        sampler: that is called.
    """

    def __init__(self, text: str, sampler: Sampler) -> None:
        super().__init__()
        self._text, self._sampler = text, sampler

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._sampler.mark()


def main() -> None:
    """The entry point; argv: began, FILE, MARK, PROGRAM and its flags."""
    began, file, mark, program = sys.argv[1:5]
    sampler = Sampler(float(began))
    logging.getLogger("absl").addHandler(Marking(mark, sampler))
    sys.argv[:5] = [program]
    try:
        runpy.run_module(f"steph_jax.{program}", run_name="__main__", alter_sys=True)
    finally:
        pathlib.Path(file).write_text(json.dumps(sampler.end()))


if __name__ == "__main__":
    main()
