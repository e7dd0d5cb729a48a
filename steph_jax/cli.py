"""How every entry point starts and how it fails: one message and an exit status, 1 for most."""

import argparse
import contextlib
import ctypes
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import app, logging
from absl import flags as absl_flags

from steph_jax.messages import USER_ERRORS, escaped


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed arrays for the next ones; elsewhere, nothing.

    By default every array of more than 32 MB is mapped anew, and the kernel clears it page by page
    as it is first written, which costs several times the work on it: on two CPU cores a training
    step of short bags took twice as long.
    """
    if sys.platform != "linux":
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (mmap_max, 0),
            (trim_threshold, -1),
            (top_pad, 64 << 20),
            (arena_max, 1),
        ):
            mallopt(option, value)


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles, so that a second start of a command compiles nothing anew.

    In ~/.cache/steph_jax, unless JAX_COMPILATION_CACHE_DIR names another place.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "steph_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def keep_threads_for_virtual_devices() -> None:
    """Gives the devices that a CPU is split into threads to wait in.

    They share a pool of one thread a core. One that waits for the others, where gradients are
    averaged, holds a thread; once all are held, none computes, and JAX ends the process after a
    minute. Counts only before the first computation. A CPU is split by `jax_num_cpu_devices`
    (JAX_NUM_CPU_DEVICES), or by XLA's older flag in XLA_FLAGS.
    """
    devices = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    in_flags = re.findall(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    devices = max(devices, *map(int, in_flags), 1)
    if devices > 1:
        os.environ.setdefault("NPROC", str(devices + (os.cpu_count() or 1)))


class _EscapedStream:
    """A stream of text to which control characters are written as escapes; bytes pass."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _EscapedFormatter(logging.PythonFormatter):
    """Formats records of absl's log; control characters as escapes."""

    def format(self, record: std_logging.LogRecord) -> str:
        return escaped(super().format(record))


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """What is printed within reaches the terminal without control characters.

    Names come from files of others: keys, headers, ids, names of slides.
    """
    with (
        contextlib.redirect_stdout(_EscapedStream(sys.stdout)),
        contextlib.redirect_stderr(_EscapedStream(sys.stderr)),
    ):
        yield


def guarded(main: Callable[[], int | None], mistake: int = 1) -> int:
    """Runs `main`; a user's mistake ends as one message on standard error and status `mistake`.

    What it prints is escaped, see `escaped_output`. With the environment variable STEPH_DEBUG set,
    the traceback is kept.
    """
    with escaped_output():
        try:
            return main() or 0
        except USER_ERRORS as error:
            if os.environ.get("STEPH_DEBUG"):
                raise
            print(f"error: {error}", file=sys.stderr)
            return mistake
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


class Parser(argparse.ArgumentParser):
    """An argument parser that ends on a mistake as every entry point does; use it in `guarded`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _of_ml_collections(error: BaseException) -> bool:
    """Whether ml_collections raised it, and not the code of a config file."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and "ml_collections" in traceback.tb_frame.f_code.co_filename


def flags_parser(mistake: int) -> Callable[[Sequence[str]], list[str]]:
    """Parses flags; a mistake in them ends as one message on standard error and status `mistake`.

    A setting that a config does not have is an AttributeError or KeyError of ml_collections.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return absl_flags.FLAGS(argv)
        except (absl_flags.Error, AttributeError, KeyError) as error:
            is_flag = isinstance(error, absl_flags.Error)
            if os.environ.get("STEPH_DEBUG") or not (is_flag or _of_ml_collections(error)):
                raise
            what = "" if is_flag else "no such setting: "
            reason: object = error
            while isinstance(reason, BaseException) and reason.args:  # one within another
                reason = reason.args[0]
            text = " ".join(str(reason).split()).rstrip(".")
            print(escaped(f"error: {what}{text}; see --help"), file=sys.stderr)
            sys.exit(mistake)

    return parse


def app_run(
    main: Callable[..., int | None],
    required: Sequence[str] = (),
    takes_arguments: bool = False,
    mistake: int = 1,
) -> None:
    """Parses absl flags, then runs `main` guarded and exits with its status.

    Args:
        main: the program; reads its flags from `absl.flags.FLAGS`.
        required: names of the flags without which the program cannot run.
        takes_arguments: whether what is no flag is handed to `main` as a list.
        mistake: the status with which a user's mistake ends the program.
    """
    keep_freed_memory()
    keep_compiled_programs()
    keep_threads_for_virtual_devices()
    # JAX notes that there is no TPU; what devices there are, the programs say themselves.
    std_logging.getLogger("jax._src.xla_bridge").setLevel(std_logging.WARNING)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_EscapedFormatter())
    for name in required:
        absl_flags.mark_flag_as_required(name)

    def run(argv: Sequence[str]) -> None:
        if takes_arguments:
            sys.exit(guarded(lambda: main(list(argv[1:])), mistake))
        if len(argv) > 1:
            print(f"error: unexpected argument {argv[1]!r}; see --help", file=sys.stderr)
            sys.exit(mistake)
        sys.exit(guarded(main, mistake))

    app.run(run, flags_parser=flags_parser(mistake))
