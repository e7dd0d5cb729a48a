"""Memory and cost of long slides: training on one of 100,000 patches, prediction of 1,000,000.

    python benchmarks/memory.py [--json FILE] [--patches 1000000] [--folder DIR]

Training: the high water of a process that trains on one slide of 100,000 patches in memory, and
its limit, 3 times the slide's float32 features plus 1 GB; and seconds per patch over those of
slides of 4,000 patches, in turn with them.

Prediction: `steph_jax.predict` on one slide in a .npy file, and in a packed store, both mapped and
written to DIR first (twice 6 GB, removed afterwards). Memory is given three times over: what the
process allocated (anonymous pages), pages of mapped files (the page cache holds them, and gives
them up when memory is needed), and the high water of both together, which has to stay under 4 GB.
Anonymous and file pages are sampled every hundredth of a second.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
import workload
from engine import Engine, architecture, stored_models
from workers import Worker, memory
from workload import Sizes

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import open_features
from steph_jax.models import steph
from steph_jax.predict import predict

SLIDE = "slide"
#: Patches of the long slide of training, and of the slides it is compared with.
LONG, SHORT = "100000", "4000"
#: Limits: of training, on top of 3 x its features; of its cost per patch; of prediction.
TRAINING_BYTES, COST_RATIO, PREDICTION_BYTES = 1e9, 1.15, 4e9


def training(sizes: Sizes, repeats: int, long: str = LONG, short: str = SHORT) -> dict[str, Any]:
    """Peak of training on one long slide, and its cost per patch over that of short ones."""
    one_step = dataclasses.replace(sizes, least_steps=1)
    with (
        Worker(Engine, long, "float32", one_step) as at_long,
        Worker(Engine, short, "float32", sizes) as at_short,
    ):
        at_long.call("warm_train")
        at_short.call("warm_train")
        ratios = []
        for _ in range(repeats):
            cost = [p.seconds / p.patches for p in (at_long.call("train"), at_short.call("train"))]
            ratios.append(cost[0] / cost[1])
        peak = at_long.call("peak_bytes")
    features = 4 * sizes.feature_dim * int(long)
    return {
        "patches": int(long),
        "features_bytes": features,
        "peak_bytes": peak,
        "limit_bytes": int(3 * features + TRAINING_BYTES),
        "cost_per_patch_ratio": statistics.median(ratios),
        "limit_cost_ratio": COST_RATIO,
    }


class Prediction:
    """Prediction of one slide from a file, watched.

    Args:
        place: what `features.open_features` opens.
        sizes: of the models.
    """

    def __init__(self, place: pathlib.Path, sizes: Sizes) -> None:
        self._source = open_features(place)
        names = [f"source_{i}" for i in range(sizes.num_sources)]
        options = steph.as_dict(steph.Options(top_k=sizes.top_k))
        self._model = SavedModel(
            "steph",
            architecture(sizes),
            {"sources": names, "options": options},
            {"trainable": workload.trainable(sizes), "frozen": stored_models(sizes)},
        )

    def run(self) -> dict[str, Any]:
        """Seconds, and the highest memory by kind."""
        before, highest, done = memory(), memory(), threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                for kind, value in memory().items():
                    highest[kind] = max(highest[kind], value)

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        predicted = predict(self._model, self._source, {SLIDE: (SLIDE,)})
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
        assert np.isfinite(predicted.risk).all()
        return {
            "patches": self._source.num_patches(SLIDE),
            "seconds": seconds,
            "peak_bytes": memory()["peak"],
            "limit_bytes": int(PREDICTION_BYTES),
            "before_bytes": before["peak"],
            "peak_anonymous_bytes": highest.get("anonymous"),
            "peak_file_bytes": highest.get("file"),
        }


def prediction(sizes: Sizes, patches: int, folder: pathlib.Path) -> dict[str, Any]:
    """Prediction of a slide of so many patches from a .npy file and from a packed store."""
    (folder / "npy").mkdir()
    rows = np.lib.format.open_memmap(
        folder / "npy" / f"{SLIDE}.npy", "w+", np.float32, (patches, sizes.feature_dim)
    )
    (block,) = workload.features(np.array([min(patches, 8192)]), sizes)
    for start in range(0, patches, len(block)):
        rows[start : start + len(block)] = block[: patches - start]
    rows.flush()
    del rows
    store_writer.pack(open_features(folder / "npy"), [SLIDE], folder / "packed.store")
    results = {}
    for name, place in (("npy", folder / "npy"), ("packed store", folder / "packed.store")):
        with Worker(Prediction, place, sizes) as watched:
            results[name] = watched.call("run")
    return results


def main() -> None:
    """Measures and prints; exits with 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    parser.add_argument("--patches", type=int, default=1_000_000, help="of the predicted slide")
    parser.add_argument("--folder", type=pathlib.Path, help="on a disk that holds the slide twice")
    parser.add_argument("--repeats", type=int, default=4, help="of the cost per patch")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"training": training(Sizes(), arguments.repeats)}
    _print("training", results["training"])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results["prediction"] = prediction(Sizes(), arguments.patches, pathlib.Path(folder))
    for name, row in results["prediction"].items():
        _print(f"prediction from {name}", row)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    rows = [results["training"], *results["prediction"].values()]
    within_limits = all(row["peak_bytes"] <= row["limit_bytes"] for row in rows)
    sys.exit(
        0 if within_limits and results["training"]["cost_per_patch_ratio"] <= COST_RATIO else 1
    )


def _print(title: str, row: dict[str, Any]) -> None:
    print(f"{title}, {row['patches']:,} patches")
    for name, value in row.items():
        if name.endswith("_bytes") and value is not None:
            print(f"  {name.removesuffix('_bytes'):<24}{value / 1e9:8.2f} GB")
        elif name != "patches":
            print(f"  {name:<24}{value:8.2f}")


if __name__ == "__main__":
    main()
