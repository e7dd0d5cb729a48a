"""Parts two and three of read.py: training on a cohort of twice the cache, and grain."""

import contextlib
import dataclasses
import functools
import io
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import h5py
import jax
import numpy as np
import pandas as pd
from absl import flags

from steph_jax import train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.bags import BagReader, OnDiskBags
from steph_jax.data.batches import epoch_order
from steph_jax.data.cache import CachedBags
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import FeatureSource
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.training import resume
from steph_jax.training.config import as_dict

#: The target, and the number of sources.
TARGET, SOURCES = "target", 12
#: Patients a step.
BATCH = 16
#: Threads, or processes, that prefetch: as many as `cache` has.
THREADS = 2
FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the cohort and the run: patients, patches of one on average, D, epochs."""

    patients: int
    patches: int
    dim: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A cohort on disk, and a pool of models for it.

    Attributes:
        root: of tables and pool.
        store, hdf5: the features, packed and in chunks (1, D); one slide a patient.
        slides: their ids.
        nbytes: of all features as float32.
    """

    root: pathlib.Path
    store: pathlib.Path
    hdf5: pathlib.Path
    slides: tuple[str, ...]
    nbytes: int

    @property
    def patients(self) -> int:
        return len(self.slides)


def make_cohort(folder: pathlib.Path, sizes: Sizes) -> Cohort:
    """Writes features, table, split and pool; all numbers are random."""
    rng, root = np.random.default_rng(1), folder / "cohort"
    hdf5, store = root / "hdf5", root / "features.store"
    hdf5.mkdir(parents=True)
    slides = tuple(f"patient_{number:04}" for number in range(sizes.patients))
    total = 0
    for slide in slides:
        shape = (max(1, int(sizes.patches * rng.uniform(0.5, 1.5))), sizes.dim)
        with h5py.File(hdf5 / f"{slide}.h5", "w") as file:
            rows = rng.standard_normal(shape, dtype=np.float32)
            file.create_dataset("features", data=rows, chunks=(1, sizes.dim))
        total += rows.nbytes
    store_writer.pack(open_features(hdf5), slides, store)
    (root / TARGET).mkdir()
    pd.DataFrame(
        {
            "patient_id": slides,
            "pathology_id": slides,
            "project": TARGET,
            "t": rng.integers(100, 4000, sizes.patients),
            "e": np.arange(sizes.patients) % 2,
        }
    ).to_csv(root / TARGET / f"{TARGET}_survival.csv", index=False)
    tested = max(4, sizes.patients // 5)
    split = {"train": pd.Series(slides[tested:]), "test": pd.Series(slides[:tested])}
    pd.DataFrame(split).to_csv(root / TARGET / "splits_0.csv", index=False)
    make_pool(root / "pool", sizes.dim)
    return Cohort(root, store, hdf5, slides, total)


def make_pool(root: pathlib.Path, dim: int) -> None:
    """A null model, and the target's and the sources' a random step from it."""
    pool, architecture = Pool(root), Architecture(dim)
    null = as_numpy(abmil.init(jax.random.key(0), architecture))
    pool.add("null", SavedModel("abmil", architecture, {}, null))
    rng = np.random.default_rng(2)

    def moved(values: np.ndarray) -> np.ndarray:
        return values + np.float32(0.02) * rng.standard_normal(values.shape, dtype=np.float32)

    for name in (TARGET, *(f"source_{number:02}" for number in range(SOURCES))):
        model = SavedModel("abmil", architecture, {}, jax.tree.map(moved, null))
        pool.add(member_name(name, 0), model)


def train_once(cohort: Cohort, sizes: Sizes, cache_gb: float, name: str) -> dict[str, Any]:
    """Trains fold 0 by the published recipe; seconds and waiting are of all epochs but the first,
    which compiles and fills the cache."""
    root = str(pathlib.Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    from configs import default

    config = default.get_config()
    config.dataset, config.method, config.folds = TARGET, "steph", (0,)
    config.epochs = config.eval_every = sizes.epochs
    config.batch_size = min(BATCH, cohort.patients // 2)
    config.model.feature_dim = sizes.dim
    config.data.root, config.pool.root = str(cohort.root), str(cohort.root / "pool")
    config.data.features = str(cohort.store)
    config.data.cache_gb, config.data.device_gb = cache_gb, 0.0
    workdir = cohort.root / name
    with contextlib.redirect_stdout(io.StringIO()):
        train.train(as_dict(config), workdir)
    history = pd.read_csv(workdir / "fold_0" / "history.csv")
    rest = history.iloc[1:]
    waited = (rest["waiting_share"] * rest["seconds"]).sum()
    return {
        "seconds": float(rest["seconds"].mean()),
        "waiting": float(waited / rest["seconds"].sum()),
        "waiting_first": float(history["waiting_share"].iloc[0]),
        "used": float(rest["patches_per_second"].mean()) * sizes.dim * FLOAT32.itemsize,
        "digest": resume.fingerprint(saved_model.load_model(workdir / "fold_0" / "model")),
    }


def train_both(cohort: Cohort, sizes: Sizes) -> dict[str, Any]:
    """The same training with a cache of half the cohort, and with all of it in memory."""
    gigabytes = cohort.nbytes / 1e9
    streamed = train_once(cohort, sizes, gigabytes / 2, "streamed")
    in_memory = train_once(cohort, sizes, 2 * gigabytes, "in_memory")
    same = streamed["digest"] == in_memory["digest"]
    return {"streamed": streamed, "in memory": in_memory, "same_parameters": same}


@functools.cache
def opened(location: pathlib.Path) -> FeatureSource:
    """The features at a place, opened once in every process."""
    return open_features(location)


@dataclasses.dataclass(frozen=True)
class Read:
    """Reads a bag by its number, as a step of grain's pipelines; it is sent to its processes."""

    location: pathlib.Path
    slides: tuple[str, ...]

    def __call__(self, index: int) -> np.ndarray:
        return opened(self.location).read(self.slides[index], check_finite=True)


def orders_of(cohort: Cohort, repeats: int) -> list[list[int]]:
    """Bags in the order of training, an epoch that warms everything and those that are timed."""
    bags = range(cohort.patients)
    return [list(chain(*epoch_order(bags, 1, seed=0, epoch=e))) for e in range(repeats + 1)]


def steph_jax_bags(
    bags: BagReader, orders: Sequence[Sequence[int]], out: np.ndarray
) -> Iterator[None]:
    """Copies bags to `out`, one after the other; prefetched by a `CachedBags`."""
    following = [*orders[1:], []]
    for order, after in zip(orders, following, strict=True):
        if isinstance(bags, CachedBags):
            bags.announce([*order, *after])
        for index in order:
            bags.read(index, 0, out[: int(bags.num_patches[index])])
            yield


def grains(
    read: Read, orders: Sequence[Sequence[int]], out: np.ndarray, processes: int
) -> Iterator[None]:
    """The same by grain: its threads, or its processes where any are asked for."""
    import grain

    flags.FLAGS.mark_as_parsed()  # grain passes the flags of absl on to its processes
    dataset = grain.MapDataset.source(list(chain(*orders))).map(read)
    options = grain.ReadOptions(num_threads=1 if processes else THREADS, prefetch_buffer_size=BATCH)
    prefetched = dataset.to_iter_dataset(options)
    if processes:
        prefetched = prefetched.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    for bag in prefetched:
        np.copyto(out[: len(bag)], bag)
        yield


def rate(handed: Iterable[None], cohort: Cohort) -> float:
    """Bytes a second of the median epoch, but for the first."""
    seconds, began = [], time.perf_counter()
    for number, _ in enumerate(handed, 1):
        if number % cohort.patients == 0:
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return cohort.nbytes / statistics.median(seconds[1:])


def hand_out(cohort: Cohort, repeats: int) -> dict[str, float]:
    """Bytes a second that reach a consumer who does nothing, by way of reading."""
    orders, slides = orders_of(cohort, repeats), [[slide] for slide in cohort.slides]
    rates: dict[str, float] = {}
    for name, place in (("packed store", cohort.store), ("HDF5 (1, D)", cohort.hdf5)):
        source = open_features(place)
        lazy = OnDiskBags(source, slides, FLOAT32)
        cached = CachedBags(source, slides, FLOAT32, cohort.nbytes // 2, BATCH)
        out = np.zeros((int(lazy.num_patches.max()), lazy.feature_dim), FLOAT32)
        read = Read(place, cohort.slides)
        ways: dict[str, Callable[[], Iterator[None]]] = {
            "read as asked for": functools.partial(steph_jax_bags, lazy, orders, out),
            "steph_jax, half in memory, half prefetched": functools.partial(
                steph_jax_bags, cached, orders, out
            ),
        }
        if has_grain():
            ways["grain, threads"] = functools.partial(grains, read, orders, out, 0)
            ways["grain, processes"] = functools.partial(grains, read, orders, out, THREADS)
        for way, begin in ways.items():
            rates[f"{name}, {way}"] = rate(begin(), cohort)
    return rates


def has_grain() -> bool:
    """Whether grain is installed."""
    try:
        import grain  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
