"""Locks between processes, and which process made a file: also in other containers and hosts."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from steph_jax import files, locks

BUSY = "W: another run is at work here; wait for it"

HOLDER = """
import pathlib, sys
from steph_jax import locks
path, directory = map(pathlib.Path, sys.argv[1:])
with locks.hold(path, "busy", directory=directory):
    print("held", flush=True)
    sys.stdin.read()
"""


def command_in(*namespace: str) -> list[str]:
    """A command that runs the next words in other namespaces; skips where that is not permitted."""
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        pytest.skip(f"no second namespace can be made here: {problem}")
    return list(namespace)


OTHER_NUMBERS = ("unshare", "--pid", "--fork", "--mount-proc")
OTHER_HOST = ("unshare", "--uts", "sh", "-c", 'hostname othernode && exec "$@"', "sh")


@pytest.fixture(params=[(), OTHER_NUMBERS, OTHER_HOST], ids=["here", "container", "host"])
def held(request: pytest.FixtureRequest, tmp_path: pathlib.Path):
    """A lock that another process holds, and who that is."""
    prefix = command_in(*request.param) if request.param else []
    command = [*prefix, sys.executable, "-c", HOLDER, str(tmp_path / ".lock"), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield tmp_path / ".lock", request.param
        process.stdin.close()


def test_a_lock_names_its_holder(held) -> None:
    path, namespace = held
    host = "othernode" if namespace == OTHER_HOST else os.uname().nodename
    with (
        pytest.raises(ValueError, match=rf"W: .*held by process \d+ on {host}\)"),
        locks.hold(path, BUSY),
    ):
        pass
    assert path.read_text().startswith("process ")  # trying does not erase the name


def test_removed_lock_file_keeps_others_out(held) -> None:
    path, _ = held
    path.unlink()
    with (
        pytest.raises(ValueError, match=r"W: another run .* was removed, and it is still at work"),
        locks.hold(path, BUSY, directory=path.parent),
    ):
        pass


def test_a_lock_ends_with_its_block(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with locks.hold(tmp_path / ".lock", BUSY, directory=tmp_path):
            files.write_text(tmp_path / "a.txt", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt"]


def refusing(real, code: int, directories_only: bool):
    """`flock` of a file system that answers with an error."""

    def flock(descriptor: int, operation: int) -> None:
        if not directories_only or os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor, operation)

    return flock


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_systems_without_locks(tmp_path, monkeypatch, code) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(fcntl.flock, code, False))
    with (
        pytest.raises(OSError, match=r"\.lock: the file system of this folder cannot lock files"),
        locks.hold(tmp_path / ".lock", BUSY),
    ):
        pass
    with (
        open(tmp_path / "journal", "w") as journal,
        pytest.raises(OSError, match=r"journal: the file system of this folder cannot lock files"),
    ):
        locks.lock_open_file(journal.fileno(), tmp_path / "journal", BUSY)


def test_lost_lock_prevents_writing(tmp_path, monkeypatch) -> None:
    """Where directories cannot be locked, as over NFS."""
    monkeypatch.setattr(fcntl, "flock", refusing(fcntl.flock, errno.EBADF, True))
    with locks.hold(tmp_path / ".lock", BUSY, directory=tmp_path):
        files.write_text(tmp_path / "a.txt", "first")
        (tmp_path / ".lock").unlink()
        for second in (False, True):
            if second:
                (tmp_path / ".lock").touch()
            with pytest.raises(OSError, match=r"\.lock: this lock was removed"):
                files.write_text(tmp_path / "a.txt", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"
    files.write_text(tmp_path / "a.txt", "after it")


WRITER = """
import os, pathlib, sys
from steph_jax import files
temporary = files.hidden_name(pathlib.Path(sys.argv[1]))
temporary.touch()
print(os.getpid(), temporary.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("namespace", [OTHER_NUMBERS, OTHER_HOST], ids=["container", "host"])
def test_files_of_writers_elsewhere_stay(tmp_path: pathlib.Path, namespace) -> None:
    """Their numbers say nothing here: in a container the first process has number 1."""
    path = tmp_path / "a.csv"
    command = [*command_in(*namespace), sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        number, name = process.stdout.readline().decode().split()
        assert locks.process_of(name).number == int(number)
        files.write_text(path, "ours")
        assert (tmp_path / name).exists()
        process.stdin.close()
    files.write_text(path, "ours")
    assert (tmp_path / name).exists()  # whether it has ended cannot be seen from here


def test_files_of_dead_writers_here_go(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.csv"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        name = process.stdout.readline().decode().split()[1]
        files.write_text(path, "ours")
        assert (tmp_path / name).exists()
        process.kill()
    files.write_text(path, "ours")
    assert not (tmp_path / name).exists()


def test_hidden_names_are_unique_and_short_enough(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("ä" * 120 + ".csv")
    names = {files.hidden_name(path).name for _ in range(100)}
    assert len(names) == 100
    assert max(len(os.fsencode(name)) for name in names) < 255
    assert {locks.process_of(name) for name in names} == {locks.this_process()}
    files.write_text(path, "text")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", [".a.csv.123", "a.csv", ".a.new-12", ".lock", ".m.replaced"])
def test_other_names_name_no_process(name: str) -> None:
    assert locks.process_of(name) is None
