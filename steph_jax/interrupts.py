"""How a program ends that is interrupted: one word and status 130, whatever it is doing.

A program is interrupted from the keyboard (SIGINT) or asked to end: by the system (SIGTERM, status
143), or by a cluster some time before it takes the job away (SIGUSR1 and SIGUSR2, status 138 and
140; `sbatch --signal=B:USR1@60` sends the first a minute before). While it works, that is an
exception of its main thread, so that what is half-written is removed. Where nothing needs removing
(imports, flags, the end), where a library swallows the exception, and where the end takes longer
than a few seconds, the process ends at once: whatever it writes is there whole or not at all.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

#: Seconds that the work may take to end once it is interrupted.
PATIENCE = 5.0
_WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGUSR1: "told to end (SIGUSR1)",
    signal.SIGUSR2: "told to end (SIGUSR2)",
}


class Terminated(BaseException):
    """A signal other than SIGINT, in the main thread of a program at work."""


class _State:
    """What this process was sent, and what it is doing."""

    received: signal.Signals | None = None
    is_working = False
    is_ending = False
    resuming = ""
    status: int | None = None
    before_end: Callable[[signal.Signals], object] | None = None


#: Held by the thread that ends the process.
_ending = threading.RLock()


def install(
    numbers: Iterable[signal.Signals] = tuple(_WORDS),
    before_end: Callable[[signal.Signals], object] | None = None,
) -> None:
    """Ends this process as above from now on; a signal that is ignored stays so.

    Args:
        numbers: signals that do.
        before_end: is called once with the signal, just before the process ends by it.
    """
    _State.before_end = before_end
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    numbers = frozenset(numbers)
    watch = threading.Thread(target=_watch, args=(reader, numbers), name="interrupts", daemon=True)
    watch.start()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread
    # Registered first, so called last, when threads have ended and all else is cleaned up.
    atexit.register(_leave)


def received() -> bool:
    """Whether a signal has asked the process to end."""
    return _State.received is not None


@contextlib.contextmanager
def working(resuming: str = "") -> Iterator[None]:
    """Within, a signal raises KeyboardInterrupt or Terminated; where one came, the process ends.

    Args:
        resuming: what the same command does if it is given again, for the message; not of SIGINT.
    """
    _State.is_working, _State.resuming = True, resuming
    try:
        yield
    finally:
        _State.is_working = False
        if received():
            end()


def leave(status: int) -> NoReturn:
    """Ends the program as `sys.exit` does, with a status of its own."""
    _State.status = status
    _flush()
    sys.exit(status)


def end() -> NoReturn:
    """Ends the process with the word and status of the signal that it received."""
    number = _State.received or signal.SIGINT
    word = _WORDS[number]
    if number != signal.SIGINT and _State.resuming:
        word += f"; {_State.resuming}"
    with _ending:
        _State.is_ending = True
        before_end, _State.before_end = _State.before_end, None
        if before_end is not None:
            before_end(number)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        # A progress bar may stand in this line of a terminal.
        line = f"\n{word}\n" if os.isatty(2) else f"{word}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(128 + number)


def _receive(number: int, frame: FrameType | None) -> None:
    if _State.is_ending:
        return  # another one, as srun sends it too, must not cut off what is done before the end
    again = received()
    _State.received = _State.received or signal.Signals(number)
    logging.disable(logging.CRITICAL)  # what fails from here on fails because of the signal
    if again or not _State.is_working:
        end()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _watch(reader: int, numbers: frozenset[signal.Signals]) -> None:
    """Ends the process where a signal that it received does not."""
    while (number := os.read(reader, 1)[0]) not in numbers:
        pass
    threading.Event().wait(PATIENCE)
    # Where the main thread is within a library all this time, its handler did not run.
    _State.received = _State.received or signal.Signals(number)
    end()


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if received() or issubclass(kind, KeyboardInterrupt):
        end()
    sys.__excepthook__(kind, error, traceback)


def _unraisable(problem: Any) -> None:
    """An exception that Python can raise nowhere, as in a destructor: the signal would be lost."""
    if received():
        end()
    sys.__unraisablehook__(problem)


def _in_thread(problem: Any) -> None:
    """Threads fail in their own ways where the work that they belong to ends."""
    if not received():
        threading.__excepthook__(problem)


def _leave() -> None:
    """Ends the process while its handlers still run: taking Python down can take a second."""
    if _State.status is None:
        return
    _flush()
    os._exit(_State.status)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        os.write(2, f"error: standard output: cannot be written ({error.strerror})\n".encode())
        os._exit(1)
    sys.stderr.flush()
