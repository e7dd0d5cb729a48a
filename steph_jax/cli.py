"""How every entry point starts and how it fails: one message and an exit status, 1 for most.

Paths on the command line become paths here (`define_path`, `path`), and nowhere else.
"""

import argparse
import contextlib
import ctypes
import logging as std_logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import app, logging
from absl import flags as absl_flags

from steph_jax import config_files, files, hosts, interrupts
from steph_jax.messages import USER_ERRORS, escaped

#: JAX's warnings of an entry of its cache that it cannot read, and of one that it cannot write.
_BAD_CACHE = re.compile(r"Error (?P<what>reading|writing) persistent compilation cache entry")
#: Modules that define flags for programs.
_DEFINING = ("steph_jax.cli", "steph_jax.jobs.command_line")


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed arrays for the next ones; elsewhere, nothing.

    By default every array of more than 32 MB gets a new mapping, and the kernel clears it page by
    page as it is first written, which costs several times the work on it: on two CPU cores a
    training step of short bags took twice as long.
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
    """Has JAX keep compiled programs, so that a second start of a command compiles nothing.

    In ~/.cache/steph_jax, unless JAX_COMPILATION_CACHE_DIR names another place.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "steph_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    _mend_compiled_programs()


def _mend_compiled_programs() -> None:
    """Empties the cache of compiled programs when one of them turns out to be damaged.

    JAX warns of each damaged or unwritable entry, in every run, and never replaces one.
    """
    show_warning, printed = warnings.showwarning, set[str]()

    def show_once(message: Any, *place: Any, **more: Any) -> None:
        bad = _BAD_CACHE.match(str(message))
        if not bad:
            show_warning(message, *place, **more)
        elif bad["what"] not in printed:
            printed.add(bad["what"])
            folder = pathlib.Path(str(jax.config.jax_compilation_cache_dir))  # type: ignore[attr-defined]
            if bad["what"] == "reading":
                logging.warning("%s: a compiled program is damaged; %s", folder, _emptied(folder))
            else:
                reason = " ".join(str(message).split())
                logging.warning("%s: compiled programs cannot be kept (%s)", folder, reason)

    warnings.showwarning = show_once
    warnings.filterwarnings("always", message=_BAD_CACHE.pattern)


def _emptied(folder: pathlib.Path) -> str:
    """Removes all compiled programs of a folder; returns a line about the result."""
    try:
        for path in folder.iterdir():
            if path.name.endswith(("-cache", "-atime")):
                path.unlink(missing_ok=True)
    except OSError as error:
        return f"it cannot be removed ({error.strerror}): remove this folder"
    return "all of them are compiled again"


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


def guarded(main: Callable[[], int | None], mistake: int = 1, resuming: str = "") -> int:
    """Runs `main`; a user's mistake ends as one message on standard error and status `mistake`.

    What it prints is escaped, see `escaped_output`. With the environment variable STEPH_DEBUG set,
    the traceback is kept. In a program, SIGINT and SIGTERM end the process; see `interrupts`.

    Args:
        main: the work.
        mistake: status of a user's mistake.
        resuming: what the same command does when it is given again after SIGTERM.
    """
    with escaped_output():
        try:
            with interrupts.working(resuming):
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


def path(text: str) -> pathlib.Path:
    """A path on the command line, for `argparse`."""
    try:
        return files.path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Paths(absl_flags.ArgumentParser):
    """Turns the text of a flag into a path."""

    syntactic_help = "a path; ~ is the home directory"

    def parse(self, argument: Any) -> pathlib.Path:
        return files.path_of(argument)


def define_path(name: str, default: str | None, help: str, multi: bool = False) -> None:
    """Defines a flag whose value is a path, or with `multi` a list of them."""
    serializer: Any = absl_flags.ArgumentSerializer()
    if multi:
        absl_flags.DEFINE_multi(_Paths(), serializer, name, default, help)
    else:
        absl_flags.DEFINE(_Paths(), name, default, help, serializer=serializer)


def _with_config_path(argv: Sequence[str]) -> list[str]:
    """The arguments, with the path of --config as it is meant.

    Raises:
        ValueError: it names no Python file.
    """
    words = list(argv)
    for i, word in enumerate(words):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-config") or (not equals and i + 1 == len(words)):
            continue
        name, colon, argument = (value if equals else words[i + 1]).partition(":")
        config = config_files.find(name)
        config_files.make_importable(config)
        text = f"{config}{colon}{argument}"
        words[i if equals else i + 1] = f"{flag}={text}" if equals else text
    return words


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
            for word in argv:
                files.check_name(word)
            if "config" in absl_flags.FLAGS:
                argv = _with_config_path(argv)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(mistake)
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


def prepare() -> None:
    """Memory, compiled programs and the log of a process that trains; before it computes."""
    keep_freed_memory()
    keep_compiled_programs()
    keep_threads_for_virtual_devices()
    # JAX notes that there is no TPU; the programs log the devices themselves.
    std_logging.getLogger("jax._src.xla_bridge").setLevel(std_logging.WARNING)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_EscapedFormatter())


def app_run(
    main: Callable[..., int | None],
    required: Sequence[str] = (),
    takes_arguments: bool = False,
    mistake: int = 1,
    resuming: str = "",
    shares_hosts: bool = False,
) -> None:
    """Parses absl flags, then runs `main` guarded and exits with its status.

    Args:
        main: the program; reads its flags from `absl.flags.FLAGS`.
        required: names of the flags without which the program cannot run.
        takes_arguments: whether what is no flag is handed to `main` as a list.
        mistake: the status with which a user's mistake ends the program.
        resuming: what the same command does when it is given again after SIGTERM.
        shares_hosts: whether the program joins others that it was started with (`hosts`).
    """
    prepare()
    for module in _DEFINING:  # absl's --help lists what the program's own file defines, else
        for flag in absl_flags.FLAGS.get_flags_for_module(module):
            absl_flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    for name in required:
        absl_flags.mark_flag_as_required(name)

    def run(argv: Sequence[str]) -> None:
        if takes_arguments:
            interrupts.leave(guarded(lambda: main(list(argv[1:])), mistake, resuming))
        if len(argv) > 1:
            print(f"error: unexpected argument {argv[1]!r}; see --help", file=sys.stderr)
            sys.exit(mistake)
        work = with_other_hosts if shares_hosts else main
        interrupts.leave(guarded(work, mistake, resuming))

    def with_other_hosts() -> int | None:
        with hosts.joined():
            return main()

    app.run(run, flags_parser=flags_parser(mistake))
