"""What is shown on a terminal: names from files of others hold anything."""

import subprocess
import sys

import numpy as np
import pytest
import torch_writer

from steph_jax import cli
from steph_jax.messages import escaped, join_names, on_one_line, setting_values

NAME = "a\x1b]0;title\x07\x1b[2J\r\x9b31m\u202e\x7f\udc80"
SHOWN = r"a\x1b]0;title\x07\x1b[2J\r\x9b31m\u202e\x7f\udc80"


def test_control_characters_are_written_as_escapes():
    assert escaped(NAME) == SHOWN
    assert escaped(SHOWN) == SHOWN
    text = "Überleben\t日本\n\\x1b – 🙂"
    assert escaped(text) == text
    assert on_one_line("a\nb\tc") == r"a\nb\tc"


def test_names_in_lists_stay_on_one_line():
    assert join_names([NAME, "b\nerror: c"]) == rf"{SHOWN}, b\nerror: c"
    assert setting_values({NAME: "x\ny"}) == rf"{SHOWN}=x\ny"


@pytest.mark.parametrize("stream", ["out", "err"])
def test_printed_names_are_escaped(stream, capsys):
    def main() -> None:
        file = getattr(sys, f"std{stream}")
        print(NAME, file=file)
        file.writelines([NAME, "\n"])

    assert cli.guarded(main) == 0
    assert getattr(capsys.readouterr(), stream) == f"{SHOWN}\n{SHOWN}\n"


def test_errors_are_escaped(capsys):
    def main() -> None:
        raise ValueError(f"{NAME}: expected a name")

    assert cli.guarded(main) == 1
    assert capsys.readouterr().err == f"error: {SHOWN}: expected a name\n"


LOGGING = """
from absl import logging
from steph_jax import cli
cli.app_run(lambda: logging.info("read %s", {name!r}))
"""


def test_the_log_is_escaped():
    command = [sys.executable, "-c", LOGGING.format(name=NAME)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert f"] read {SHOWN}".encode() in done.stderr
    assert b"\x1b" not in done.stderr


def test_keys_of_a_checkpoint_are_escaped(tmp_path):
    path = torch_writer.save(tmp_path / "x.pth", {NAME[:-1]: np.zeros(3, np.float32)})
    command = [sys.executable, "-m", "steph_jax.convert", str(path), "--out", str(tmp_path / "p")]
    done = subprocess.run([*command, "--name", "x"], capture_output=True, check=False)
    assert done.returncode == 1
    assert SHOWN[:-6].encode() in done.stderr
    for control in (b"\x1b", b"\x07", b"\x9b", b"\r"):
        assert control not in done.stdout + done.stderr
