"""Time to read a slide from every layout of features, and how long training waits for them.

    python benchmarks/read.py [--quick] [--json FILE]

1. One slide, 15,000 x 1536 float32, into a reused buffer, warm. Every layout takes turns with a
   copy of the same bytes from a mapped file (the floor), and the pairs that have a target with
   each other; what is printed are medians of the ratios within a turn, so that a machine that is
   busy for a while slows both sides. `bound by` is what takes the time of a layout.
2. STEPH is trained on a cohort of twice the cache (`steph_jax.train`, models of the paper's size),
   and again with all of it in memory: the share of an epoch that waits for data, and whether both
   end with the same parameters.
3. The same bags handed out in the order of training, with nothing computed: our prefetching, and
   grain's threads and processes where grain is installed (extra `bench`).

--quick is for small sizes: its ratios mean little, and its targets are not judged.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import numpy as np
import streaming

from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features
from steph_jax.data.features.store import DTYPES

#: The slide of part one, as each layout names it.
SLIDE = "slide"
FLOOR, STORE, HALF = "copy of a mapped file", "packed store float32", "packed store float16"
TRIDENT, PLAIN = "HDF5 chunks (1, D), TRIDENT", "  as h5py's [:] reads it"


class Reader(NamedTuple):
    """A layout: how the slide is read into its buffer, and where the time goes."""

    read: Callable[[], object]
    bound: str


class Target(NamedTuple):
    """What the median ratio of the times of two layouts has to be at most."""

    layout: str
    other: str
    at_most: float


TARGETS = (
    Target(STORE, FLOOR, 1.3),
    # Against what loaders of the field do with such a file, and against our tuned reader of it.
    Target(STORE, PLAIN, 1 / 8),
    Target(STORE, TRIDENT, 1 / 8),
    # "Halves it": half the bytes, and the fixed cost of every call.
    Target(HALF, STORE, 0.55),
)


def hdf5_readers(folder: pathlib.Path, rows: np.ndarray) -> dict[str, Reader]:
    """HDF5 as TRIDENT, CLAM and the UNI2-h release write it, and contiguous and compressed."""
    patches, dim = rows.shape
    some = (min(32, patches), dim)
    layouts: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
        "HDF5 contiguous": (rows, {}, "the kernel's copy"),
        "HDF5 [1, N, D], UNI2-h": (rows[None], {}, "the kernel's copy"),
        "HDF5 chunks (32, D), CLAM": (rows, {"chunks": some}, "a call of the kernel per chunk"),
        TRIDENT: (rows, {"chunks": (1, dim)}, "libhdf5, per chunk of one patch"),
        "HDF5 gzip": (rows, {"chunks": some, "compression": "gzip"}, "inflating"),
    }
    readers = {}
    for number, (name, (array, options, bound)) in enumerate(layouts.items()):
        place = folder / f"hdf5_{number}"
        place.mkdir()
        with h5py.File(place / f"{SLIDE}.h5", "w") as file:
            file.create_dataset("features", data=array, **options)
        readers[name] = Reader(reading(place, rows.shape), bound)
        if name == TRIDENT:
            readers[PLAIN] = Reader(by_h5py(place / f"{SLIDE}.h5"), "the same, and fresh memory")
    return readers


def by_h5py(path: pathlib.Path) -> Callable[[], object]:
    """Reads the slide as most programs do: h5py with its defaults, into a new array."""

    def read() -> np.ndarray:
        with h5py.File(path, "r") as file:
            return file["features"][:]

    return read


def reading(
    place: pathlib.Path,
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    check_finite: bool = False,
) -> Callable[[], object]:
    """Reads the slide through `open_features` into a buffer of its own."""
    source, out = open_features(place), np.zeros(shape, dtype)
    return lambda: source.read(SLIDE, out, check_finite=check_finite)


def torch_reader(folder: pathlib.Path, rows: np.ndarray) -> Reader | None:
    """A .pt file as torch.save writes it; None where PyTorch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    (folder / "pt").mkdir()
    torch.save(torch.from_numpy(rows), folder / "pt" / f"{SLIDE}.pt")
    return Reader(reading(folder / "pt", rows.shape), "fresh memory and a copy")


def zarr_reader(folder: pathlib.Path, rows: np.ndarray) -> Reader | None:
    """Zarr through TensorStore, uncompressed, in chunks of 1000 patches; None if not installed."""
    try:
        import tensorstore
    except ModuleNotFoundError:
        return None
    metadata = {"chunks": [min(1000, len(rows)), rows.shape[1]], "compressor": None}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / "zarr")}}
    spec |= {"metadata": metadata}
    written = tensorstore.open(spec, create=True, dtype=tensorstore.float32, shape=rows.shape)
    stored = written.result()
    stored.write(rows).result()
    buffer = tensorstore.array(np.zeros_like(rows))
    return Reader(
        lambda: buffer.write(stored).result(), "a file, fresh memory and a copy per chunk"
    )


def readers_of(folder: pathlib.Path, patches: int, dim: int) -> dict[str, Reader]:
    """Writes one slide in every layout; the floor comes first."""
    rows = np.random.default_rng(0).standard_normal((patches, dim), dtype=np.float32)
    (folder / "npy").mkdir()
    np.save(folder / "npy" / f"{SLIDE}.npy", rows)
    source = open_features(folder / "npy")
    stores = {dtype: folder / f"{dtype}.store" for dtype in DTYPES}
    for dtype, place in stores.items():
        store_writer.pack(source, [SLIDE], place, dtype=dtype)
    flat = stores["float32"] / "features.bin"
    mapped = np.memmap(flat, "<f4", "r", shape=rows.shape)
    out = np.zeros_like(rows)

    def copy_by_kernel() -> None:
        with flat.open("rb", buffering=0) as file:
            position, view = 0, memoryview(out).cast("B")
            while position < len(view):
                position += file.readinto(view[position:]) or 0

    readers = {FLOOR: Reader(lambda: np.copyto(out, mapped), "memory")}
    readers["flat file, read()"] = Reader(copy_by_kernel, "the kernel's copy")
    for dtype, place in stores.items():
        into = DTYPES[dtype]
        bound = "memory" if dtype == "float32" else "memory, half of it"
        readers[f"packed store {dtype}"] = Reader(reading(place, rows.shape, into), bound)
    checked = reading(stores["float32"], rows.shape, check_finite=True)
    readers["  float32, checked for NaN"] = Reader(checked, "memory, passed twice")
    for dtype in ("bfloat16", "float16"):
        widened = reading(stores[dtype], rows.shape)
        readers[f"  {dtype} into float32"] = Reader(widened, "numpy's conversion")
    readers["npy"] = Reader(reading(folder / "npy", rows.shape), "memory")
    readers |= hdf5_readers(folder, rows)
    others = {"pt": torch_reader(folder, rows), "Zarr, TensorStore": zarr_reader(folder, rows)}
    return readers | {name: reader for name, reader in others.items() if reader is not None}


def seconds_of(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


def paired(
    read: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """(median seconds of `read`, median ratio to `other`), after a turn that warms both."""
    seconds, ratios = [], []
    for turn in range(repeats + 1):
        if turn % 2:
            other_seconds, own_seconds = seconds_of(other), seconds_of(read)
        else:
            own_seconds, other_seconds = seconds_of(read), seconds_of(other)
        if turn:
            seconds.append(own_seconds)
            ratios.append(own_seconds / other_seconds)
    return statistics.median(seconds), statistics.median(ratios)


def time_layouts(
    folder: pathlib.Path, patches: int, dim: int, repeats: int, judged: bool
) -> dict[str, Any]:
    """Part one; prints its tables."""
    readers = readers_of(folder, patches, dim)
    floor, megabytes = readers[FLOOR].read, patches * dim * 4 / 1e6
    print(f"1. one slide of {patches} x {dim}, {megabytes:.0f} MB as float32\n")
    print(f"{'layout':<30}{'ms':>9}{'x floor':>9}  bound by")
    layouts: dict[str, Any] = {}
    for name, reader in readers.items():
        seconds, ratio = paired(reader.read, floor, repeats)
        layouts[name] = {"seconds": seconds, "ratio": ratio, "bound": reader.bound}
        print(f"{name:<30}{seconds * 1e3:9.1f}{ratio:9.2f}  {reader.bound}", flush=True)
    targets = []
    print(f"\n{'target':<60}{'ratio':>8}{'at most':>9}")
    for layout, other, at_most in TARGETS:
        _, ratio = paired(readers[layout].read, readers[other].read, repeats)
        targets.append({"layout": layout, "other": other, "ratio": ratio, "at_most": at_most})
        judgment = verdict(ratio, at_most, judged)
        print(f"{f'{layout} / {other.strip()}':<60}{ratio:8.3f}{at_most:9.3f}{judgment}")
    return {"patches": patches, "dim": dim, "layouts": layouts, "targets": targets}


def verdict(ratio: float, at_most: float, judged: bool) -> str:
    if not judged:
        return ""
    return "  met" if ratio <= at_most else "  MISSED"


def time_training(
    folder: pathlib.Path, sizes: streaming.Sizes, repeats: int, judged: bool
) -> dict[str, Any]:
    """Parts two and three; prints their tables."""
    cohort = streaming.make_cohort(folder, sizes)
    print(
        f"\n2. training STEPH on {cohort.patients} patients, {cohort.nbytes / 1e9:.2f} GB, "
        f"with a cache of half as much; the same in memory\n"
    )
    results = streaming.train_both(cohort, sizes)
    print(f"{'':<12}{'s an epoch':>12}{'waiting':>10}{'first epoch':>13}{'GB/s used':>11}")
    for name in ("streamed", "in memory"):
        run = results[name]
        print(
            f"{name:<12}{run['seconds']:12.2f}{run['waiting']:10.1%}"
            f"{run['waiting_first']:13.1%}{run['used'] / 1e9:11.2f}"
        )
    waiting = results["streamed"]["waiting"]
    judgment = verdict(waiting, 0.05, judged)
    print(f"waiting of a streamed epoch {waiting:.3f}, at most 0.050{judgment}")
    print(f"the same parameters: {results['same_parameters']}")
    print(f"\n3. bags handed out, by {streaming.THREADS} threads or processes that prefetch\n")
    print(f"{'':<48}{'GB/s':>7}")
    rates = streaming.hand_out(cohort, repeats)
    for name, rate in rates.items():
        print(f"{name:<48}{rate / 1e9:7.2f}", flush=True)
    print("A step that uses more bytes a second than are handed out waits for the difference.")
    return {"cohort_bytes": cohort.nbytes, "training": results, "handed_out": rates}


def main() -> None:
    """Runs all parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--patches", type=int, default=15_000, help="of the slide of part 1")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--patients", type=int, default=80, help="of the cohort of part 2")
    parser.add_argument("--slide-patches", type=int, default=2000, help="of it, on average")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--skip", choices=("layouts", "training"), help="leave a part out")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.patches, arguments.dim, arguments.repeats = 1000, 256, 3
        arguments.patients, arguments.slide_patches, arguments.epochs = 20, 100, 2
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        if arguments.skip != "layouts":
            results |= time_layouts(
                root, arguments.patches, arguments.dim, arguments.repeats, not arguments.quick
            )
        if arguments.skip != "training":
            sizes = streaming.Sizes(
                arguments.patients, arguments.slide_patches, arguments.dim, arguments.epochs
            )
            results |= time_training(root, sizes, min(3, arguments.repeats), not arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
