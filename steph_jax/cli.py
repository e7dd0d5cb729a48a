"""How every entry point starts and how it fails: one message and exit status 1."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app
from absl import flags as absl_flags
from absl import logging

#: What a user's mistake raises anywhere in the package (and what the readers of files raise).
USER_ERRORS = (ValueError, OSError)


def guarded(main: Callable[[], int | None]) -> int:
    """Runs `main`; a user's mistake ends as one message on standard error and status 1.

    With the environment variable STEPH_DEBUG set, the traceback is kept.
    """
    try:
        return main() or 0
    except USER_ERRORS as error:
        if os.environ.get("STEPH_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def app_run(main: Callable[[], int | None], required: Sequence[str] = ()) -> None:
    """Parses absl flags, then runs `main` guarded and exits with its status.

    Args:
        main: the program; reads its flags from `absl.flags.FLAGS`.
        required: names of the flags without which the program cannot run.
    """
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    for name in required:
        absl_flags.mark_flag_as_required(name)

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            print(f"error: unexpected argument {argv[1]!r}; see --help", file=sys.stderr)
            sys.exit(1)
        sys.exit(guarded(main))

    app.run(run)
