"""Reads slides in child processes, so that a file that crashes or hangs its library ends only one.

    with IsolatedSource(location, "features") as source:     a FeatureSource like any other
        source.read(slide_id)                                BadFeatures where the process died

What libhdf5 and LMDB do with a damaged file is not in our hands. `check` and `pack` must report
every bad file, so they read here.
"""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import numpy as np

from steph_jax.data.features.coordinates import Coordinates
from steph_jax.data.features.sandbox_worker import PARENT, dtype_of
from steph_jax.data.features.slide import BadFeatures, SlideHeader, SlideReader
from steph_jax.data.features.source import FeatureSource

READER = (sys.executable, "-m", "steph_jax.data.features.sandbox_worker")
#: Seconds that one slide may take before its file is taken to hang.
SLIDE_SECONDS = 120.0
#: Seconds that a process may take to start and to list the slides, at least.
START_SECONDS = 120.0


class Died(BadFeatures):
    """A child process that ended, or had to be ended, before it answered."""


class Child:
    """A process of `sandbox_worker`, started again when it has died.

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
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._killed = False
        self._pipe: int | None = None
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
        with self._starting:
            if self._killed:
                raise Died("the process that was to read it was ended")
            # However this process ends, its end of the pipe is closed, and the child ends with it.
            parents_end = os.pipe()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=os.environ
                    | {"PYTHONPATH": os.pathsep.join(paths), PARENT: str(parents_end[0])},
                    # An interrupt from the terminal is for the program, which ends this process.
                    start_new_session=True,
                    pass_fds=parents_end[:1],
                )
            except BaseException:
                os.close(parents_end[1])
                raise
            finally:
                os.close(parents_end[0])
            self._pipe = parents_end[1]
        answer = self._answer(b"", None, max(self._seconds, START_SECONDS))
        if "problem" in answer:
            self.stop()
            raise ValueError(answer["problem"])
        self.slides = answer["slides"]

    def ask(self, request: dict[str, Any], out: np.ndarray | None = None) -> dict[str, Any]:
        """The answer to a request; the bytes that come with it fill `out`.

        Raises:
            Died: the process ended, or took too long and was ended; another is started next time.
        """
        self.start()
        return self._answer(json.dumps(request).encode() + b"\n", out, self._seconds)

    def _answer(self, line: bytes, out: np.ndarray | None, seconds: float) -> dict[str, Any]:
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
        answer: dict[str, Any] | None = None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            text = process.stdout.readline()
            if text.endswith(b"\n"):
                answer = json.loads(text)
                if not _filled(out, answer, process.stdout):
                    answer = None
        except BrokenPipeError:
            answer = None
        except BaseException:  # an interrupt, which the process is not to outlast
            process.kill()
            raise
        finally:
            timer.cancel()
        if answer is not None:
            return answer
        status = self.stop()
        if late.is_set():
            raise Died(f"reading it took more than {seconds:.0f} seconds and was given up")
        ended = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise Died(f"reading it crashed the process that read it ({ended})")

    def kill(self) -> None:
        """Ends the process for good, from any thread; who waits for its answer gets `Died`."""
        with self._starting:
            self._killed = True
            process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> int:
        """Ends the process and returns its status; 0 if there was none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        status = process.wait()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)
        return status


def _filled(out: np.ndarray | None, answer: dict[str, Any], stream: IO[bytes]) -> bool:
    """Fills `out` with the bytes that come with an answer, if any; whether all of them came."""
    if "nbytes" not in answer:
        return True
    assert out is not None
    data = out.reshape(-1).view(np.uint8).data
    assert answer["nbytes"] == len(data)
    return stream.readinto(data) == len(data)  # type: ignore[attr-defined]


def first_child(command: Sequence[str], location: pathlib.Path, name: str, seconds: float) -> Child:
    """A process that has opened a location.

    Raises:
        ValueError: the location cannot be used; it crashes its reader.
    """
    child = Child(command, location, name, seconds)
    try:
        child.start()
    except Died as problem:
        raise ValueError(f"{location}: cannot be opened, {problem}; copy it again") from None
    return child


def crashed(path: str, problem: Died) -> str:
    """The message about a file that ended the process that read it."""
    return f"{path}: expected a file of features; {problem}: copy it again, or extract it again"


class IsolatedSource(FeatureSource):
    """Slides that are read in child processes, one for each thread that reads at the same time."""

    def __init__(
        self,
        location: pathlib.Path,
        dataset_name: str = "features",
        *,
        seconds: float = SLIDE_SECONDS,
        command: Sequence[str] = READER,
    ) -> None:
        """Starts a process, which lists the slides.

        Args:
            location: a folder, a file, a .lmdb or a packed store, as `features.open_features`.
            dataset_name: the array to read in files that hold several.
            seconds: that one slide may take before its file is taken to hang.
            command: the program that reads.

        Raises:
            ValueError: the location cannot be used; it crashes its reader.
        """
        super().__init__(str(location), dataset_name, None)
        self._new_child = lambda: Child(command, location, dataset_name, seconds)
        child = first_child(command, location, dataset_name, seconds)
        self._slides = child.slides
        self._children = [child]
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()
        self._idle.put(child)

    def __enter__(self) -> "IsolatedSource":
        return self

    def __exit__(self, *unused: object) -> None:
        while True:
            try:
                self._idle.get_nowait().stop()
            except queue.Empty:
                return

    def give_up(self) -> None:
        """Ends all processes, those that read for other threads too; nothing more can be read."""
        for child in list(self._children):
            child.kill()

    @property
    def slide_ids(self) -> Collection[str]:
        return self._slides.keys()

    def _path_of(self, slide_id: str) -> str:
        return self._slides[slide_id]

    def _encoder(self, slide_id: str) -> str:
        with self._child() as child:
            name: str = self._ask(child, {"slide": slide_id, "encoder": True}, None)["encoder"]
        return name

    def _coordinates(self, slide_id: str) -> Coordinates | None:
        with self._child() as child:
            answer = self._ask(child, {"slide": slide_id, "coordinates": True}, None)
        fields = answer["coordinates"]
        if fields is None:
            return None
        xy = np.array(fields["xy"], np.float64).reshape(-1, 2)
        return Coordinates(xy, fields["patch_size"], fields["unit"])

    @contextlib.contextmanager
    def _open(self, slide_id: str) -> Iterator[SlideReader]:
        with self._child() as child:
            answer = self._ask(child, {"slide": slide_id}, None)
            header = SlideHeader(
                answer["num_patches"],
                answer["dim"],
                dtype_of(answer["dtype"]),
                answer["leading"],
            )

            def copy(start: int, stop: int, out: np.ndarray) -> None:
                rows = {"rows": [[start, stop], out.shape[1]], "dtype": out.dtype.name}
                self._ask(child, {"slide": slide_id} | rows, out)

            yield SlideReader(header, copy)

    @contextlib.contextmanager
    def _child(self) -> Iterator[Child]:
        """An idle process, or a new one."""
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = self._new_child()
            self._children.append(child)
        try:
            yield child
        finally:
            self._idle.put(child)

    def _ask(self, child: Child, request: dict[str, Any], out: np.ndarray | None) -> dict[str, Any]:
        path = self._path_of(request["slide"])
        try:
            answer = child.ask(request, out)
        except Died as problem:
            raise BadFeatures(crashed(path, problem)) from None
        if "problem" in answer:
            raise BadFeatures(answer["problem"])
        return answer
