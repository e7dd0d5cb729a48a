"""How programs end that are interrupted, at every moment; no process outlives its program."""

import os
import pathlib
import signal
import subprocess
import sys

import children
import numpy as np
import pytest
import simulated

PROGRAMS = sorted(
    path.stem
    for path in (simulated.ROOT / "steph_jax").glob("[!_]*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)
NUMBERS = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM}


def run(command: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        children.after(children.DEFAULT_SIGNALS, command),
        capture_output=True,
        text=True,
        cwd=simulated.ROOT,
        **more,
    )


@pytest.mark.parametrize("word", NUMBERS)
@pytest.mark.parametrize("program", [*PROGRAMS, "convert_torch_ckpt.py", "steph_jax train"])
def test_a_signal_among_the_imports(tmp_path: pathlib.Path, program: str, word: str) -> None:
    """The first module that takes long to import is one that sends the signal."""
    for name in ("jax", "numpy", "absl", "tqdm"):
        text = f"import os; os.kill(os.getpid(), {int(NUMBERS[word])}); raise ImportError"
        (tmp_path / f"{name}.py").write_text(text)
    if program == "steph_jax train":
        words = ["-m", *program.split()]
    else:
        words = [program] if program.endswith(".py") else ["-m", f"steph_jax.{program}"]
    paths = os.pathsep.join([str(tmp_path), str(simulated.ROOT)])
    ended = run([sys.executable, *words], env=os.environ | {"PYTHONPATH": paths})
    assert ended.stderr == f"{word}\n"
    assert ended.returncode == 128 + NUMBERS[word]


WORK = """
import os, signal, sys, threading
from steph_jax import cli, interrupts
interrupts.install()
interrupts.PATIENCE = 0.2

def send():
    os.kill(os.getpid(), int(sys.argv[2]))

def at_once():
    send()

def in_a_destructor():
    class Sends:
        def __del__(self):
            send()
    Sends()
    return 0

def swallowed():
    try:
        send()
    except BaseException:
        pass
    return 0

def turned_into_another_error():
    try:
        send()
    except BaseException:
        raise ValueError("x.h5: cannot be read")

def ends_slowly():
    try:
        send()
    finally:
        threading.Event().wait()

def beside_a_thread_without_end():
    threading.Thread(target=threading.Event().wait).start()
    send()

def with_a_failing_thread():
    def fail():
        interrupted.wait()
        raise RuntimeError("cannot schedule new futures")
    interrupted = threading.Event()
    thread = threading.Thread(target=fail)
    thread.start()
    try:
        send()
    finally:
        interrupted.set()
        thread.join()

def after_the_work():
    import atexit
    atexit.register(send)
    return 0

work = globals()[sys.argv[1]]
interrupts.leave(cli.guarded(work, resuming="the same command goes on"))
"""
WORDS = {
    **NUMBERS,
    "told to end (SIGUSR1)": signal.SIGUSR1,
    "told to end (SIGUSR2)": signal.SIGUSR2,
}
MOMENTS = [line[4:-3] for line in WORK.splitlines() if line.startswith("def ")][1:]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_work_is_one_word(moment: str) -> None:
    for word, number in (WORDS if moment == "at_once" else NUMBERS).items():
        ended = run([sys.executable, "-c", WORK, moment, str(int(number))])
        advice = "" if word == "interrupted" else "; the same command goes on"
        assert ended.stderr == f"{word}{advice}\n"
        assert ended.returncode == 128 + number


def test_something_is_done_before_the_end() -> None:
    """Once and whole, though the watch ends the process too, and the signal comes again."""
    own = "interrupts.install((signal.SIGTERM,), before_end=tell)"
    again = "signal.raise_signal(number)\n    threading.Event().wait(1)"
    tell = f"def tell(number):\n    {again}\n    print(number.name)\n"
    program = WORK.replace("interrupts.install()", f"\n{tell}{own}")
    ended = run([sys.executable, "-c", program, "at_once", str(int(signal.SIGTERM))])
    assert (ended.returncode, ended.stdout) == (143, "SIGTERM\n")
    ended = run([sys.executable, "-c", program, "at_once", str(int(signal.SIGUSR1))])
    assert (ended.returncode, ended.stdout) == (-signal.SIGUSR1, "")


def test_an_ignored_signal_stays_ignored() -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WORK
    program = program.replace("    send()\n\ndef in_a", "    send()\n    return 7\n\ndef in_a")
    ended = run([sys.executable, "-c", program, "at_once", str(int(signal.SIGINT))])
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_program_that_ends_by_itself() -> None:
    program = "from steph_jax import interrupts; interrupts.install(); print('x', end='')\n"
    for status in (0, 3):
        ended = run([sys.executable, "-c", f"{program}interrupts.leave({status})"])
        assert (ended.returncode, ended.stdout, ended.stderr) == (status, "x", "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", f"{program}interrupts.leave(0)"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=simulated.ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"error: standard output: cannot be written (No space left")


#: A reader that hangs within a library, where Python runs no other thread of it either. It holds
#: the pipe of its number open as long as it lives.
READER = """
import ctypes, os, pathlib, sys
from steph_jax.data.features import sandbox_worker
def hang(*given, **more):
    global alive
    alive = os.open({alive!r}, os.O_WRONLY)
    ctypes.PyDLL(None).pause()
sandbox_worker.header_of = hang
sandbox_worker.look_at = hang
sandbox_worker.main()
"""
PARENTS = {
    "pack": """
from steph_jax import pack
from steph_jax.data.features import sandbox
with sandbox.IsolatedSource(folder, command=reader) as source:
    pack.pack(source, ["a", "b", "c"], folder / "out.store", workers=2)
""",
    "verify": """
from steph_jax.data.features import sandbox, store_writer
from steph_jax.data.features.open import open_features
store_writer.pack(open_features(folder), ["a", "b", "c"], folder / "out.store")
with sandbox.IsolatedSource(folder, command=reader) as source:
    store_writer.verify(open_features(folder / "out.store"), source, workers=2)
""",
    "check": """
from steph_jax.checks import reading
reading.read(folder, "features", ["a", "b", "c"], workers=2, command=reader)
""",
}


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP],
    ids=lambda number: number.name,
)
@pytest.mark.parametrize("parent", PARENTS)
def test_no_reader_outlives_its_program(tmp_path, parent: str, number: signal.Signals) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    (tmp_path / "slides").mkdir()
    for name in ("a", "b", "c"):
        np.save(tmp_path / "slides" / f"{name}.npy", np.ones((2, 4), np.float32))
    script = tmp_path / "reader.py"
    script.write_text(READER.format(alive=str(alive)))
    work = PARENTS[parent].strip().replace("\n", "\n    ")
    program = (
        "import pathlib, sys\nfrom steph_jax import cli, interrupts\n"
        f"folder = pathlib.Path({str(tmp_path / 'slides')!r})\n"
        f"reader = (sys.executable, {str(script)!r})\n"
        f"def work():\n    {work}\n"
        "interrupts.install()\ninterrupts.PATIENCE = 60.0\ncli.guarded(work)\n"
    )
    with subprocess.Popen(
        children.after(children.DEFAULT_SIGNALS, [sys.executable, "-c", program]),
        cwd=simulated.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        with open(alive, "rb") as readers:  # waits for one that reads
            running.send_signal(number)
            assert readers.read() == b""  # until the last of them has ended
        word = {signal.SIGINT: "interrupted\n", signal.SIGTERM: "terminated\n"}
        assert running.stderr.read() == word.get(number, "")
    ended = {signal.SIGINT: 130, signal.SIGTERM: 143}
    assert running.returncode == ended.get(number, -number)
