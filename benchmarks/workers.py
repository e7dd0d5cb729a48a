"""Processes of their own that answer calls: one program each, side by side in one measurement."""

import multiprocessing
import pathlib
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from steph_jax import cli

STATUS = pathlib.Path("/proc/self/status")


def serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Makes an object and calls its methods by name until None comes.

    Freed memory is kept, as in all our programs; PyTorch's gains by it too.
    """
    cli.keep_freed_memory()
    cli.keep_threads_for_virtual_devices()
    instance = factory(*arguments)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        connection.send(getattr(instance, request)())


class Worker:
    """An object that lives in a process of its own; used as a context.

    Args:
        factory: what makes the object there.
        *arguments: of the factory.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(
            target=serve, args=(child_end, factory, arguments), daemon=True
        )
        self._name = factory.__name__
        self._process.start()
        child_end.close()

    def __enter__(self) -> "Worker":
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join()

    def call(self, method: str) -> Any:
        """What a method of the object returns.

        Raises:
            RuntimeError: the process has ended; its own message is on stderr.
        """
        self._connection.send(method)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of {self._name} ended with status {self._process.exitcode}; "
                "see what it wrote above (-9: out of memory)"
            ) from None


def memory() -> dict[str, int]:
    """Bytes of this process: "peak" (high water), and now "anonymous" and "file" where known.

    "peak" is the high water of all resident pages, those of mapped files included.
    """
    if not STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak": peak if sys.platform == "darwin" else 1024 * peak}
    lines = (line.split() for line in STATUS.read_text().splitlines())
    fields = {words[0]: 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}
    return {
        "peak": fields["VmHWM:"],
        "anonymous": fields["RssAnon:"],
        "file": fields["RssFile:"] + fields["RssShmem:"],
    }
