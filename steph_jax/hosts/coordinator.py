"""JAX's coordination service in a process of its own, which outlives process 0 for a moment.

    python coordinator.py ADDRESS PROCESSES SECONDS

JAX runs it within process 0. When that dies, JAX ends all others at once, by an abort with a page
of stack traces; they are to end by themselves, with one message (`hosts.processes`). The service
ends with its standard input, which process 0 holds, and ignores signals that end all processes of a
run.
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxlib import _jax

#: Seconds in which the other processes have ended after process 0.
_LINGERS = 5.0
#: What the service says once it listens; else why it does not.
_READY = "listening"


class _Service:
    """The service as JAX holds it: in a child of this process."""

    def __init__(
        self, address: str, processes: int, silence: int, wait_for_others: Callable[[], None]
    ) -> None:
        self._wait_for_others = wait_for_others
        command = [sys.executable, __file__, address, str(processes), str(silence)]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._child.stdout is not None
        answer = self._child.stdout.readline().strip()
        if answer != _READY:
            raise RuntimeError(answer or "the coordination service has not started")

    def shutdown(self) -> None:
        """Ends the service, after the other processes: JAX aborts one that still hears from it."""
        self._wait_for_others()
        self._child.kill()
        self._child.communicate()


@contextlib.contextmanager
def outliving(wait_for_others: Callable[[], None]) -> Iterator[None]:
    """Within, `jax.distributed.initialize` starts its service so.

    Args:
        wait_for_others: returns when the other processes have ended.
    """
    original = _jax.get_distributed_runtime_service

    def start(address: str, processes: int, *, heartbeat_timeout: int, **_: Any) -> _Service:
        return _Service(address, processes, heartbeat_timeout, wait_for_others)

    _jax.get_distributed_runtime_service = start
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = original


def main() -> None:
    """The service, until process 0 has ended."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    address, processes, silence = sys.argv[1:]
    try:
        service = _jax.get_distributed_runtime_service(
            address, int(processes), heartbeat_timeout=int(silence)
        )
    except RuntimeError as error:
        print(f"no service at {address}: {' '.join(str(error).split())}", flush=True)
        sys.exit(1)
    print(_READY, flush=True)
    sys.stdin.read()
    threading.Event().wait(_LINGERS)
    del service


if __name__ == "__main__":
    main()
