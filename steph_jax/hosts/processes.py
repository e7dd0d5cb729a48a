"""The processes of a run on several hosts, and the lines between them.

Beside JAX's connections each process has a plain one to process 0, its line. A line that closes
means that a process has ended, one that is silent that its host is off, or the network is; which
collectives of GPUs would notice after minutes, if at all, and JAX by an abort. Messages over a line
have no time limit, as collectives do, while the writer draws its pictures.
"""

import contextlib
import json
import logging
import os
import platform
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from steph_jax import interrupts
from steph_jax.hosts.coordinator import outliving
from steph_jax.hosts.discovery import Place, place_of_this_process
from steph_jax.messages import USER_ERRORS, on_one_line

#: Seconds until all processes must have met.
_MEETING = 300
#: Seconds between signs of life over a line, and how many may be missing: a minute in all. What
#: stops all processes for a while, as Slurm's suspension does, lets one or two be missed.
_BEAT, _MOST_MISSED = 5.0, 12
#: Seconds after which JAX notices the same.
_JAX_SILENCE = 600
#: Seconds that a process may take to end by itself, by its own error or signal.
_GRACE = 1.0
_KEY_BYTES = 32

T = TypeVar("T")


class _Line:
    """The connection to one other process, and what came over it.

    Attributes:
        number: of the process at its other end.
        host: name of that process's machine.
    """

    def __init__(self, connection: "Connection[Any, Any]", number: int, host: str) -> None:
        self.number, self.host = number, host
        self._connection = connection
        self._values: queue.Queue[Any] = queue.Queue()
        self._sending = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name=f"line {number}", daemon=True)

    def start(self) -> None:
        """Listens from now on, and gives signs of life."""
        self._listener.start()
        threading.Thread(target=self._beat, name=f"beat {self.number}", daemon=True).start()

    def wait_for_end(self) -> None:
        """Returns when the process at the other end has ended, or has not for a while."""
        self._listener.join(_BEAT * _MOST_MISSED)

    def send(self, kind: str, value: Any) -> None:
        """Sends a message; one that cannot be sent is noticed by the thread that listens."""
        message = json.dumps([kind, value], default=lambda number: number.item())
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(message.encode())

    def value(self) -> Any:
        """The next value that was sent, which is waited for."""
        return self._values.get()

    def _beat(self) -> None:
        while self._listener.is_alive():
            self.send("alive", None)
            self._listener.join(_BEAT)

    def _listen(self) -> None:
        advice = "the same command, given to all, goes on after the last finished epoch"
        missed = 0
        while True:
            try:
                if not self._connection.poll(_BEAT):
                    missed += 1
                    if missed > _MOST_MISSED:
                        silence = f"has been silent for {_BEAT * _MOST_MISSED:.0f} seconds"
                        _lost(f"process {self.number} on {self.host} {silence}; {advice}")
                        return
                    continue
                kind, value = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                _lost(f"process {self.number} on {self.host} has ended; {advice}")
                return
            missed = 0
            if kind == "value":
                self._values.put(value)
            elif kind == "failed":
                _lost(value)
            elif kind == "end":  # the writer has told why
                _leave()


class _State:
    """Where this process is among the others, and its lines to them, by their numbers."""

    index = 0
    count = 1
    lines: ClassVar[dict[int, _Line]] = {}
    has_ended = False


def index() -> int:
    """The number of this process; 0 is the writer."""
    return _State.index


def count() -> int:
    """How many processes share the run."""
    return _State.count


def is_writer() -> bool:
    """Whether this process writes the files of the run."""
    return _State.index == 0


def agreed(value: T) -> T:
    """The writer's value, in every process; JSON-able. All processes call it."""
    if is_writer():
        for line in _State.lines.values():
            line.send("value", value)
        return value
    answer: T = _State.lines[0].value()
    return answer


def of_all(value: T) -> list[T]:
    """The values of all processes, by number, in every process; JSON-able. All call it."""
    if _State.count == 1:
        return [value]
    if is_writer():
        return agreed([value, *(_State.lines[i].value() for i in range(1, _State.count))])
    _State.lines[0].send("value", value)
    return agreed([value])


def barrier() -> None:
    """Returns when all processes have come here, so that what the writer wrote can be read."""
    of_all(None)


def written(write: Callable[[], object]) -> None:
    """Has the writer write something, and the others wait for it."""
    if is_writer():
        write()
    barrier()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within, this process works with the others that were started with it, if there are any.

    They end together: where one fails or dies, the others end with status 1 and one message.

    Raises:
        ValueError: they do not meet.
    """
    place = place_of_this_process()
    if place is None:
        yield
        return
    _meet(place)
    try:
        yield
        barrier()
    except USER_ERRORS as error:
        _fail(str(error) or type(error).__name__)
    except Exception:
        # A computation that another process has left fails in a way of its own.
        threading.Event().wait(2 * _GRACE)
        traceback.print_exc()
        _leave()
    _State.has_ended = True


def _meet(place: Place) -> None:
    """Joins the processes in JAX, and opens the lines."""
    # Its preemption service would take SIGTERM from `interrupts`, and let no process end by it.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    try:
        with outliving(_wait_for_others):
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.process,
                place.local_devices,
                cluster_detection_method="deactivate",
                initialization_timeout=_MEETING,
                heartbeat_timeout_seconds=_JAX_SILENCE,
                shutdown_timeout_seconds=_JAX_SILENCE,
            )
    except RuntimeError as error:
        raise ValueError(
            f"the {place.processes} processes of this run have not met at {place.coordinator}: "
            f"{on_one_line(str(error))[:200]}; is that a name or an address of the host of process "
            "0 that all hosts can reach? JAX_COORDINATOR_ADDRESS=HOST:PORT names another"
        ) from None
    _State.index, _State.count = place.process, place.processes
    host = place.coordinator.rpartition(":")[0].strip("[]")
    if is_writer():
        key = os.urandom(_KEY_BYTES)
        with Listener(("", 0), family="AF_INET", backlog=place.processes, authkey=key) as listener:
            _told(listener.address[1].to_bytes(4, "big") + key)
            for _ in range(1, place.processes):
                connection = listener.accept()
                number, name = json.loads(connection.recv_bytes())
                _State.lines[number] = _Line(connection, number, on_one_line(name))
    else:
        told = _told(bytes(4 + _KEY_BYTES))
        connection = Client(
            (host, int.from_bytes(told[:4], "big")), family="AF_INET", authkey=told[4:]
        )
        connection.send_bytes(json.dumps([place.process, platform.node()]).encode())
        _State.lines[0] = _Line(connection, 0, host)
        # The writer logs and warns for all.
        logging.getLogger("absl").setLevel(logging.ERROR)
    for line in _State.lines.values():
        line.start()


def _wait_for_others() -> None:
    """Returns when the processes at the other ends of all lines have ended."""
    for line in _State.lines.values():
        line.wait_for_end()


def _told(message: bytes) -> bytes:
    """The writer's message of as many bytes, in every process."""
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(message, np.uint8))
    return np.asarray(sent).astype(np.uint8).tobytes()


def _lost(reason: str) -> None:
    """Ends this process after another one, unless it ends by itself; in a thread."""
    if _State.has_ended:
        return
    threading.Event().wait(_GRACE)
    if not (_State.has_ended or interrupts.received()):
        _end(reason)


def _fail(reason: str) -> None:
    """Ends the processes after a user's mistake, which the writer prints."""
    if os.environ.get("STEPH_DEBUG"):
        traceback.print_exc()
    if not is_writer():
        _State.lines[0].send("failed", f"process {_State.index} on {platform.node()}: {reason}")
        threading.Event().wait(10 * _GRACE)
    _end(reason)


def _end(reason: str) -> None:
    """Ends this process with status 1 and a message, and the others if it is the writer."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    if is_writer():
        for line in _State.lines.values():
            line.send("end", None)
    _leave()


def _leave() -> None:
    """Ends this process; not through JAX, which would wait for the others to end as it does."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1)
