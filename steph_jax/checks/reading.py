"""Reads slides in child processes: what crashes or hangs one is reported, the rest is read."""

import dataclasses
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steph_jax.data.features.sandbox import READER, SLIDE_SECONDS, Child, Died, crashed, first_child
from steph_jax.data.features.source import own_id

#: Slides whose values are described, for a comparison of encoders.
PROFILES = 4


@dataclasses.dataclass(frozen=True)
class Reading:
    """What came of reading slides.

    Attributes:
        slides: paths of all slides that are there, by id: that of a slide that was asked for as it
            was asked for, see `features.own_id`.
        answers: of `isolated_reader.look_at`, or {"problem": text}, for each slide that was asked
            for and is there.
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
    deadline: float = math.inf,
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
        deadline: of `time.monotonic`; after it, only headers are read.
        slide_seconds: that one slide may take before its file is taken to hang.
        workers: processes, if not as above.
        command: the program that reads.
        progress: called after each slide, from several threads.

    Raises:
        ValueError, FileNotFoundError: the location cannot be used; it crashes its reader.
        KeyboardInterrupt: the processes are ended first.
    """
    first = first_child(command, location, dataset_name, slide_seconds)
    asked = list(first.slides)[:PROFILES] if wanted is None else wanted
    slides = _as_asked(first.slides, asked)
    there = [slide for slide in asked if slide in slides]
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for item in enumerate(there):
        waiting.put(item)
    answers: dict[str, dict[str, Any]] = {}
    unread: list[str] = []
    stopped = threading.Event()

    def work(child: Child) -> None:
        try:
            while not stopped.is_set():
                try:
                    number, slide = waiting.get_nowait()
                except queue.Empty:
                    return
                values = time.monotonic() < deadline
                look = {"values": values, "profile": number < PROFILES}
                try:
                    answers[slide] = child.ask({"slide": slide, "look": look})
                except Died as problem:
                    answers[slide] = {"problem": crashed(slides[slide], problem)}
                except ValueError as problem:  # the location cannot be opened any more
                    answers[slide] = {"problem": f"{slides[slide]}: {problem}"}
                if not values:
                    unread.append(slide)
                progress()
        finally:
            child.stop()

    number = workers or max(1, min(4, os.cpu_count() or 1, len(there)))
    others = [Child(command, location, dataset_name, slide_seconds) for _ in range(number - 1)]
    threads = [threading.Thread(target=work, args=(child,)) for child in others]
    try:
        for thread in threads:
            thread.start()
        work(first)
        for thread in threads:
            thread.join()
    except BaseException:
        stopped.set()
        for child in (first, *others):
            child.kill()
        raise
    return Reading(slides, answers, tuple(unread))


def _as_asked(there: Mapping[str, str], asked: Sequence[str]) -> dict[str, str]:
    """Paths by id, under the ids that were asked for where those name a slide in another way."""
    meant = {slide: own for slide in asked if (own := own_id(slide, there)) is not None}
    rest = there.keys() - set(meant.values())
    return {slide: there[own] for slide, own in meant.items()} | {s: there[s] for s in sorted(rest)}
