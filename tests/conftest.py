"""Strict JAX settings for every test, and the reference data where they are at hand."""

import importlib.metadata
import os
import pathlib

# Tests compile thousands of programs and run each a few times; children inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# These halve what is left, but XLA ends every process for a flag that a later version lacks.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import jax
import jaxtyping
import pytest

# Before any of their modules is imported: shapes in the types of these packages are checked.
jaxtyping.install_import_hook(
    ["steph_jax.models", "steph_jax.survival"], "shape_checks.arrays_checked"
)

import pictures  # noqa: E402

from steph_jax import cli  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Two devices, so that what is shared between devices is tested everywhere.
jax.config.update("jax_num_cpu_devices", 2)
cli.keep_threads_for_virtual_devices()
# Many tests compile the same programs, and so does the next run of the suite.
jax.config.update(
    "jax_compilation_cache_dir",
    str(pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference arrays and real patients beside the checkout."""
    if not (SHARED / "parity").is_dir():
        pytest.skip(f"the reference data are not distributed with the code: no {SHARED.name}/")
    return SHARED


@pytest.fixture(scope="session")
def parity(shared: pathlib.Path) -> pathlib.Path:
    """Arrays and checkpoints written by the published PyTorch program."""
    return shared / "parity"


@pytest.fixture(scope="module")
def no_pictures():
    """Folds and runs draw nothing: that takes most of the time of small runs."""
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        yield


@pytest.fixture
def unchecked_shapes():
    """No check of shapes in types, for tests of our own messages about wrong shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
