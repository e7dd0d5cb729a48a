"""Small simulated cohorts and runs on them, for tests of whole programs."""

import pathlib
import sys
from typing import Any

from steph_jax.simulate import Settings, simulate
from steph_jax.training.config import as_dict

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIMULATED = Settings(cohorts=3, patients=24, patches=20, feature_dim=24, seed=7)


def make(out: pathlib.Path) -> pathlib.Path:
    """Simulates the cohorts under `out`; returns it."""
    simulate(out / "data", SIMULATED, report=lambda line: None)
    return out


def config(home: pathlib.Path, **overrides: Any) -> dict[str, Any]:
    """configs/testing.py on the cohorts under `home`; names with __ for dots override fields."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from configs import testing

    config_dict = testing.get_config()
    config_dict.data.root = str(home / "data")
    config_dict.data.features = str(home / "data" / "features" / "{dataset}")
    config_dict.pool.root = str(home / "pool")
    config_dict.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return as_dict(config_dict)


def flags(home: pathlib.Path, *more: str) -> list[str]:
    """The same as arguments of `python -m steph_jax.train`."""
    return [
        "--config",
        str(ROOT / "configs" / "testing.py"),
        f"--config.data.root={home / 'data'}",
        f"--config.data.features={home / 'data' / 'features'}/{{dataset}}",
        f"--config.pool.root={home / 'pool'}",
        *more,
    ]
