"""Every config that we ship can be used as it is."""

import importlib
import pathlib

import pytest

from configs import default
from steph_jax.training.config import Config, as_dict

HERE = pathlib.Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__init__")
#: Settings in which a config may differ from the default; those of cohorts in `dataset` alone.
OWN = {"steph_target": {"method", "learning_rate"}}


def changed(actual: dict, expected: dict, within: str = "") -> set[str]:
    """Names of the settings that differ, nested ones with dots."""
    names = set()
    for name in actual.keys() | expected.keys():
        a, b = actual.get(name), expected.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names |= changed(a, b, f"{within}{name}.")
        elif a != b:
            names.add(within + name)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_config_differs_by_its_name_only(name):
    config = as_dict(importlib.import_module(f"configs.{name}").get_config())
    assert Config.from_dict(config).record == config
    if name not in ("demo", "testing"):
        expected = as_dict(default.get_config())
        assert changed(config, expected) <= OWN.get(name, {"dataset"})
