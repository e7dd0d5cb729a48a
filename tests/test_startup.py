"""What a start costs: imports, compilations; and the trace of --profile."""

import os
import pathlib
import subprocess
import sys

import pytest
import simulated

from steph_jax import train


def heavy_modules(module):
    """What a module imports of the libraries that take a quarter of a second or more."""
    heavy = {"jax", "flax", "orbax", "pandas", "matplotlib", "scipy", "lifelines", "jinja2"}
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(process.stdout.split())


def test_the_package_itself_imports_nothing_heavy():
    assert heavy_modules("steph_jax") == set()


def test_training_and_prediction_import_what_they_start_with():
    assert heavy_modules("steph_jax.train") == {"jax", "flax", "orbax"}
    assert heavy_modules("steph_jax.predict") == {"jax", "flax", "orbax", "pandas"}


def grown(tmp_path, name, *more):
    """Trains a model into a pool by the command line; returns the names of compiled programs."""
    cache = tmp_path / "cache"
    command = [
        *(sys.executable, "-m", "steph_jax.train"),
        *simulated.flags(tmp_path, "--config.method=abmil", "--config.folds=(0,)"),
        *("--workdir", str(tmp_path / name)),
        *more,
    ]
    subprocess.run(
        command,
        cwd=simulated.ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        check=True,
        capture_output=True,
    )
    return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}


def test_second_start_compiles_nothing(tmp_path):
    simulated.make(tmp_path)
    first = grown(tmp_path, "first", "--config.pool.save=true")
    # Operation by operation, starting a model and computing its loss would take a hundred more.
    assert 20 < len(first) < 70
    assert grown(tmp_path, "second", "--config.pool.save=true") == first


def test_profile_leaves_the_trace_of_one_epoch(tmp_path):
    home = simulated.make(tmp_path)
    config = simulated.config(home, method="abmil", folds=(0, 1), epochs=2)
    train.train(config, home / "run", profile=True)
    traces = list(pathlib.Path(home / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000


@pytest.mark.parametrize(
    "split",
    [
        {"JAX_NUM_CPU_DEVICES": "2"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    ],
    ids=lambda split: next(iter(split)),
)
def test_two_devices_of_one_cpu_do_not_wait_for_each_other_forever(split):
    """On a machine of two cores or one; without the threads the process is ended by JAX."""
    program = """
import jax, jax.numpy as jnp
from steph_jax import cli
cli.keep_threads_for_virtual_devices()
P = jax.sharding.PartitionSpec
mesh = jax.make_mesh((2,), ("devices",), (jax.sharding.AxisType.Auto,))
share = lambda x: jax.lax.pmean(x @ x / 700, "devices")
specs = {"in_specs": P("devices"), "out_specs": P(), "check_vma": False}
step = jax.jit(jax.shard_map(share, mesh=mesh, **specs))
x = jnp.ones((1400, 700))
for _ in range(300):
    x = step(x)
    x = jnp.concatenate([x, x])
print(float(x[0, 0]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"} | split
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert float(ended.stdout) == 1.0
