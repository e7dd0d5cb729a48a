"""Reads slides in child processes: what crashes or hangs one is reported, the rest is read."""

import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from steph_jax.data.patches import BadFeatures

READER = (sys.executable, "-m", "steph_jax.checks.reader")
#: Seconds that one slide may take before its file is taken to hang.
SLIDE_SECONDS = 120.0
#: Seconds that a process may take to start and to list the slides, at least.
START_SECONDS = 120.0
#: Slides whose values are described, for a comparison of encoders.
PROFILES = 4


class Died(BadFeatures):
    """A child process that ended, or had to be ended, before it answered."""


class Child:
    """A process of `reader`, started again when it has died.

    Args:
        command: the program.
        location: where the features are.
        dataset_name: the array to read in files that hold several.
        seconds: that one answer may take.
    """

    def __init__(
        self, command: Sequence[str], location: pathlib.Path, dataset_name: str, seconds: float
    ) -> None:
        self._command = [*command, str(location), dataset_name]
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self.slides: dict[str, str] = {}

    def start(self) -> None:
        """Starts the process, unless it runs, and fills `slides` with their paths.

        Raises:
            Died: it ended before it had opened the location.
            ValueError: the location cannot be used.
        """
        if self._process is not None:
            return
        package = str(pathlib.Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        answer = self._answer(None, max(self._seconds, START_SECONDS))
        if "problem" in answer:
            self.stop()
            raise ValueError(answer["problem"])
        self.slides = answer["slides"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            Died: the process ended, or took too long and was ended; another is started next time.
        """
        self.start()
        return self._answer(json.dumps(request) + "\n", self._seconds)

    def _answer(self, line: str | None, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line)
                process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            return json.loads(answer)
        status = self.stop()
        if late.is_set():
            raise Died(f"reading it took more than {seconds:.0f} seconds and was given up")
        ended = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise Died(f"reading it crashed the process that read it ({ended})")

    def stop(self) -> int:
        """Ends the process and returns its status; 0 if there was none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        return process.wait()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What came of reading slides.

    Attributes:
        slides: paths of all slides that are there, by id.
        answers: of `reader.look_at`, or {"problem": text}, for each slide that was asked for and is
            there.
        unread: slides whose values were not read, for want of time.
    """

    slides: dict[str, str]
    answers: dict[str, dict[str, Any]]
    unread: tuple[str, ...]


def read(
    location: pathlib.Path,
    dataset_name: str,
    wanted: Sequence[str] | None,
    *,
    seconds: float = 0.0,
    slide_seconds: float = SLIDE_SECONDS,
    workers: int | None = None,
    command: Sequence[str] = READER,
    progress: Callable[[], None] = lambda: None,
) -> Reading:
    """Reads slides in child processes, as many as the machine has cores, four at most.

    Args:
        location: where the features are.
        dataset_name: the array to read in files that hold several.
        wanted: ids of slides, in the order to read them; None reads the first `PROFILES` there.
        seconds: after these, only headers are read; 0 reads the values of all.
        slide_seconds: that one slide may take before its file is taken to hang.
        workers: processes, if not as above.
        command: the program that reads.
        progress: called after each slide, from several threads.

    Raises:
        ValueError, FileNotFoundError: the location cannot be used; it crashes its reader.
    """
    first = Child(command, location, dataset_name, slide_seconds)
    try:
        first.start()
    except Died as problem:
        raise ValueError(f"{location}: cannot be opened, {problem}; copy it again") from None
    asked = list(first.slides)[:PROFILES] if wanted is None else wanted
    there = [slide for slide in asked if slide in first.slides]
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for item in enumerate(there):
        waiting.put(item)
    answers: dict[str, dict[str, Any]] = {}
    unread: list[str] = []
    deadline = time.monotonic() + seconds

    def work(child: Child) -> None:
        try:
            while True:
                try:
                    number, slide = waiting.get_nowait()
                except queue.Empty:
                    return
                values = not seconds or time.monotonic() < deadline
                request = {"slide": slide, "values": values, "profile": number < PROFILES}
                try:
                    answers[slide] = child.ask(request)
                except Died as problem:
                    text = f"{first.slides[slide]}: expected a file of features; {problem}"
                    answers[slide] = {"problem": f"{text}: copy it again, or extract it again"}
                except ValueError as problem:  # the location cannot be opened any more
                    answers[slide] = {"problem": f"{first.slides[slide]}: {problem}"}
                if not values:
                    unread.append(slide)
                progress()
        finally:
            child.stop()

    number = workers or max(1, min(4, os.cpu_count() or 1, len(there)))
    others = [Child(command, location, dataset_name, slide_seconds) for _ in range(number - 1)]
    threads = [threading.Thread(target=work, args=(child,)) for child in others]
    for thread in threads:
        thread.start()
    work(first)
    for thread in threads:
        thread.join()
    return Reading(first.slides, answers, tuple(unread))
