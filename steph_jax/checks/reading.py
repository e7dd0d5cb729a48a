"""Reads slides in child processes; a file that crashes or hangs a process is reported."""

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
from steph_jax.data.features.slide_ids import resolve_slide_id

#: Slides whose values are described, for a comparison of encoders.
PROFILES = 4


@dataclasses.dataclass(frozen=True)
class Reading:
    """Results of reading slides.

    Attributes:
        slides: paths of all slides of the location by id; a requested slide under the id of the
            request, see `source.resolve_slide_id`.
        answers: of `sandbox_worker`, or {"problem": text}, for each requested slide that exists.
        unread: slides whose values were not read, because the time was over.
    """

    slides: dict[str, str]
    answers: dict[str, dict[str, Any]]
    unread: tuple[str, ...]


def read(
    location: pathlib.Path,
    dataset_name: str,
    slide_ids: Sequence[str] | None,
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
        slide_ids: in the order to read them; None reads the first `PROFILES` there.
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
    requested = list(first.slides)[:PROFILES] if slide_ids is None else slide_ids
    slides = _as_asked(first.slides, requested)
    present = [slide for slide in requested if slide in slides]
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for item in enumerate(present):
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

    number = workers or max(1, min(4, os.cpu_count() or 1, len(present)))
    more_children = [
        Child(command, location, dataset_name, slide_seconds) for _ in range(number - 1)
    ]
    threads = [threading.Thread(target=work, args=(child,)) for child in more_children]
    try:
        for thread in threads:
            thread.start()
        work(first)
        for thread in threads:
            thread.join()
    except BaseException:
        stopped.set()
        for child in (first, *more_children):
            child.kill()
        raise
    return Reading(slides, answers, tuple(unread))


def _as_asked(paths: Mapping[str, str], requested: Sequence[str]) -> dict[str, str]:
    """Paths by id: requested slides under the ids of the request, others under their own."""
    own_ids = {
        slide: own for slide in requested if (own := resolve_slide_id(slide, paths)) is not None
    }
    other_ids = paths.keys() - set(own_ids.values())
    return {slide: paths[own] for slide, own in own_ids.items()} | {
        s: paths[s] for s in sorted(other_ids)
    }
