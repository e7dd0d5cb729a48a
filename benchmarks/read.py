"""Time to read one slide from every layout of features, and the waiting share of streaming.

    python benchmarks/read.py [--patches 15000] [--dim 1536] [--repeats 7] [--json FILE]
    python benchmarks/read.py --step-seconds 0.5      compute time of a step of 16 slides

Part one reads a slide into a reused buffer, warm, from each layout in turn, round after round, so
that all of them see the same machine; it prints medians and their ratios to a copy of the same
bytes from a mapped file (the floor) and to HDF5 in (1, D) chunks. Part two streams epochs of a
cohort twice the size of the cache through `cache.CachedBags` and `fitting.ReadAhead`, as training
does, while every step takes the time given, and prints which share of an epoch waits for data.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import h5py
import numpy as np

from steph_jax.data import batches, packing
from steph_jax.data.cache import CachedBags
from steph_jax.data.features import open_features
from steph_jax.data.store import DTYPES
from steph_jax.fitting import ReadAhead

#: The slide of part one, as each layout names it.
SLIDE = "slide"


def write_layouts(folder: pathlib.Path, patches: int, dim: int) -> dict[str, pathlib.Path]:
    """Writes one slide in every layout; returns where, by name of the layout."""
    rows = np.random.default_rng(0).standard_normal((patches, dim), dtype=np.float32)
    chunked: dict[str, dict[str, Any]] = {
        "HDF5 contiguous": {},
        "HDF5 chunks (32, D), CLAM": {"chunks": (min(32, patches), dim)},
        "HDF5 chunks (1, D), TRIDENT": {"chunks": (1, dim)},
        "HDF5 gzip": {"chunks": (min(32, patches), dim), "compression": "gzip"},
    }
    places = {}
    for number, (name, options) in enumerate(chunked.items()):
        places[name] = folder / f"hdf5_{number}"
        places[name].mkdir()
        with h5py.File(places[name] / f"{SLIDE}.h5", "w") as file:
            file.create_dataset("features", data=rows, **options)
    places["HDF5 [1, N, D], UNI2-h"] = folder / "uni2h"
    places["HDF5 [1, N, D], UNI2-h"].mkdir()
    with h5py.File(folder / "uni2h" / f"{SLIDE}.h5", "w") as file:
        file["features"] = rows[None]
    places["npy"] = folder / "npy"
    places["npy"].mkdir()
    np.save(places["npy"] / f"{SLIDE}.npy", rows)
    source = open_features(places["npy"])
    for dtype in DTYPES:
        name = f"packed store {dtype}"
        places[name] = folder / f"{dtype}.store"
        packing.pack(source, [SLIDE], places[name], dtype=dtype)
    write_pt(folder / "pt", rows, places)
    return places


def write_pt(folder: pathlib.Path, rows: np.ndarray, places: dict[str, pathlib.Path]) -> None:
    """Adds a .pt file where PyTorch is installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    folder.mkdir()
    torch.save(torch.from_numpy(rows), folder / f"{SLIDE}.pt")
    places["pt"] = folder


def time_reading(folder: pathlib.Path, patches: int, dim: int, repeats: int) -> dict[str, float]:
    """Median seconds to read the slide, by layout; "floor" is the mapped copy."""
    places = write_layouts(folder, patches, dim)
    float32 = np.empty((patches, dim), np.float32)
    float32[:] = 0
    mapped = np.memmap(places["packed store float32"] / "features.bin", "<f4", "r")
    mapped = mapped.reshape(patches, dim)
    readers: dict[str, Callable[[], object]] = {"floor": lambda: np.copyto(float32, mapped)}
    for name, place in places.items():
        source = open_features(place)
        out = np.zeros((patches, dim), source.layout(SLIDE).dtype)
        readers[name] = lambda source=source, out=out: source.read(SLIDE, out)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(repeats + 1):
        for name, read in readers.items():
            began = time.perf_counter()
            read()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def stream(
    folder: pathlib.Path, slides: int, patches: int, dim: int, step_seconds: float, epochs: int
) -> dict[str, float]:
    """Streams a cohort twice the size of its cache; returns the shares of an epoch that wait.

    Args:
        folder: for the cohort's files.
        slides: of the cohort, `patches` x `dim` each on average.
        patches, dim: see `slides`.
        step_seconds: how long a step of 16 slides computes.
        epochs: after a first one, which fills the cache.
    """
    rng, size = np.random.default_rng(1), 16
    (folder / "cohort").mkdir()
    names = [f"slide_{number:04}" for number in range(slides)]
    for name in names:
        number = int(patches * rng.uniform(0.5, 1.5))
        rows = rng.standard_normal((number, dim), dtype=np.float32)
        np.save(folder / "cohort" / f"{name}.npy", rows)
    packing.pack(open_features(folder / "cohort"), names, folder / "cohort.store")
    source = open_features(folder / "cohort.store")
    float32 = np.dtype(np.float32)
    total = sum(source.num_patches(name) for name in names) * dim * 4
    bags = CachedBags(source, [[name] for name in names], float32, total // 2, size)
    layout = batches.choose_layout(bags.num_patches, size, 4096)
    orders = [
        list(batches.epoch_order(range(slides), size, seed=0, epoch=e)) for e in range(epochs + 1)
    ]
    waited = spent = 0.0
    for epoch, order in enumerate(orders):
        following = orders[epoch + 1] if epoch < epochs else []
        bags.expect([*chain(*order), *chain(*following)])
        made = (batches.make_batch(bags, layout, chosen, {}, size) for chosen in order)
        began = time.perf_counter()
        ahead = ReadAhead(made, depth=1)
        for _ in ahead:
            time.sleep(step_seconds)
        if epoch:
            spent += time.perf_counter() - began
            waited += ahead.waited
    computed = epochs * len(orders[0]) * step_seconds
    return {
        "cohort_gb": total / 1e9,
        "step_seconds": step_seconds,
        "waiting_share": waited / spent,
        "waiting_share_with_first_batches": 1 - computed / spent,
    }


def main() -> None:
    """Runs both parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=15_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--slides", type=int, default=64, help="of the streamed cohort")
    parser.add_argument("--slide-patches", type=int, default=2000, help="of it, on average")
    parser.add_argument("--step-seconds", type=float, default=0.5, help="0 leaves streaming out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        seconds = time_reading(root, given.patches, given.dim, given.repeats)
        floor, trident = seconds["floor"], seconds["HDF5 chunks (1, D), TRIDENT"]
        print(f"{'layout':<30}{'ms':>9}{'x floor':>9}{'of (1, D)':>11}")
        for name, value in sorted(seconds.items(), key=lambda item: item[1]):
            print(f"{name:<30}{value * 1e3:9.1f}{value / floor:9.2f}{value / trident:11.3f}")
        found: dict[str, Any] = {"patches": given.patches, "dim": given.dim, "seconds": seconds}
        if given.step_seconds:
            found["streaming"] = stream(
                root,
                given.slides,
                given.slide_patches,
                given.dim,
                given.step_seconds,
                given.epochs,
            )
            for name, value in found["streaming"].items():
                print(f"{name}: {value:.3f}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
