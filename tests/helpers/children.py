"""Commands of child processes that begin with a few statements of their own.

`preexec_fn` would fork this process, whose threads JAX has made, and JAX warns of that.
"""

import sys
from collections.abc import Sequence

_THEN = "; os.execvp(sys.argv[1], sys.argv[1:])"

#: What tests are started with may ignore signals (nohup does), and children inherit that.
DEFAULT_SIGNALS = "; ".join(
    f"signal.signal(signal.{name}, signal.SIG_DFL)" for name in ("SIGINT", "SIGHUP")
)


def file_size_limit(size: int) -> str:
    """The statement that limits the files that a child may write."""
    return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


def after(statement: str, command: Sequence[str]) -> list[str]:
    """The command, run in the process that has run the statement."""
    return [sys.executable, "-c", f"import os, resource, signal, sys; {statement}{_THEN}", *command]
