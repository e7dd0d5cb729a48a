"""The devices that JAX sees, and whether it passes over a GPU."""

import pathlib
import shutil

import jax

from steph_jax.checks import findings
from steph_jax.checks.findings import Finding

CHECK = "devices"


def gpus_there(
    device_folder: pathlib.Path = pathlib.Path("/dev"), tool: str = "nvidia-smi"
) -> list[str]:
    """Signs of an NVIDIA GPU on this machine: device files, or the driver's tool."""
    signs = sorted(str(path) for path in device_folder.glob("nvidia[0-9]*"))
    tool_path = shutil.which(tool)
    return signs or ([tool_path] if tool_path else [])


def check_devices(signs: list[str]) -> Finding:
    """The devices of JAX, against the signs of a GPU."""
    try:
        devices = jax.devices()
    except RuntimeError as problem:
        reason = str(problem).split("\n")[0]
        return findings.error(
            CHECK,
            f"JAX finds no device: {reason}",
            "correct JAX_PLATFORMS, or install jax[cuda13]",
        )
    names = ", ".join(str(device) for device in devices)
    text = f"JAX {jax.__version__} sees {names}"
    if devices[0].platform == "cpu" and signs:
        return findings.warning(
            CHECK,
            f"there is a GPU here ({', '.join(signs)}), but {text}",
            "pip install 'steph_jax[gpu]' in an environment without PyTorch, whose cuDNN may be "
            "another one; unset JAX_PLATFORMS",
        )
    return findings.ok(CHECK, text, devices=[str(device) for device in devices])
