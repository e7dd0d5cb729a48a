"""The commands of both images, in a bare Debian with Python."""

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
#: What the images begin with: the base image brings Python and pip.
PACKAGES = "python3,python3-pip,ca-certificates"

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def bare_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The root of a Debian that has Python, pip and a copy of the checkout."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("a bare root needs root and debootstrap (apt-get install debootstrap)")
    root = tmp_path_factory.mktemp("debian")
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
    made = subprocess.run([*command, MIRROR], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no Debian can be had here: {made.stdout.splitlines()[-1:]}")
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
    ).stdout
    for name in filter(None, files.decode().split("\0")):
        copy = root / "opt/steph_jax" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    # How pip reaches its index is the machine's own affair.
    for settings in ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if pathlib.Path("/", settings).is_file():
            shutil.copy2(pathlib.Path("/", settings), root / settings)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def commands_of_the_containerfile() -> list[str]:
    text = (ROOT / "Containerfile").read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    runs = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    return [command.replace("${EXTRAS}", extras) for command in runs]


def commands_of_the_definition() -> list[str]:
    """Without the gigabytes of CUDA."""
    text = (ROOT / "apptainer.def").read_text()
    (section,) = re.findall(r"^%post\n(.*?)^%", text, re.MULTILINE | re.DOTALL)
    return [line.strip().replace("[gpu,", "[") for line in section.splitlines() if line.strip()]


@pytest.mark.parametrize("of_image", [commands_of_the_containerfile, commands_of_the_definition])
def test_commands_of_an_image(bare_root, of_image) -> None:
    commands = of_image()
    assert len(commands) == 2
    # Debian's own Python wants to be asked twice; that of the base image does not.
    own = {
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/root",
    }
    network = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or "PIP_" in k}
    for command in commands:
        ended = subprocess.run(
            [shutil.which("chroot") or "chroot", str(bare_root), "sh", "-ec", command],
            capture_output=True,
            text=True,
            env=network | own,
        )
        assert ended.returncode == 0, ended.stderr
    assert "train" in ended.stdout
