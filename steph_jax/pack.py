"""Rewrites a cohort's features once into a packed store, the fastest to train from.

    python -m steph_jax.pack --config configs/brca.py --out features/tcga_brca.store
    python -m steph_jax.pack --features features/tcga_brca --out features/tcga_brca.store
    python -m steph_jax.pack --out features/tcga_brca.store --verify

`--config` packs the slides of the config's survival table from its `data.features`, those of
patients without time or event too; `--features` packs all slides of a folder, an LMDB or another
store. Then `data.features` (and `predict --features`) name the store in place of what it was made
from.

The store keeps coordinates of patches where files have them, and the float type of its files unless
`--dtype` is given; bfloat16 and float16 halve its size, and the time to read it. Packing that
was interrupted, even killed, goes on where it stopped when the same command is given again. Until
it is done there is only OUT.partial.

Slides that cannot be packed are listed at the end, one line each, and end it with status 1: the
others are packed by then, but the store gets its name only when all slides are good, or when
`--skip_bad` leaves the bad ones out. Files are read in child processes: one that crashes its
library, or never ends, is listed like any other. `--verify` reads the store again, and what it was
packed from where that is still there, and compares checksums.
"""

import contextlib
import pathlib
import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from steph_jax import cli, files, messages
from steph_jax.data import tables
from steph_jax.data.features import store_writer
from steph_jax.data.features.open import exists, open_features
from steph_jax.data.features.sandbox import IsolatedSource
from steph_jax.data.features.slide_ids import resolve_slide_id
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import DTYPES, StoreSource
from steph_jax.training.config import Config, as_dict

#: Flags of this program for settings that messages name.
_FLAGS = {"data.hdf5_dataset": "--hdf5_dataset"}
#: Seconds that one slide may take before its file is taken to hang; drives may be slow.
SLIDE_SECONDS = 300.0


def define_flags() -> None:
    """The flags of the command line."""
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    cli.define_path(
        "features",
        None,
        "Features to pack, if not those of --config; several places are joined.",
        multi=True,
    )
    flags.DEFINE_string("hdf5_dataset", "features", "Array in HDF5 and .npz files of --features.")
    cli.define_path("out", None, "Directory of the store.")
    flags.DEFINE_enum(
        "dtype", store_writer.SAME, [store_writer.SAME, *DTYPES], "Float type of the store."
    )
    flags.DEFINE_integer("workers", 4, "Slides at a time.", lower_bound=1)
    flags.DEFINE_bool("verify", False, "Compare checksums of the store and of its source.")
    flags.DEFINE_bool("skip_bad", False, "Leave out slides that cannot be packed.")


def main() -> int:
    """The entry point; returns the exit status."""
    flag_names = {} if flags.FLAGS.config is not None else _FLAGS
    with messages.naming_flags(flag_names):
        return run(flag_names)


def run(own_flags: Mapping[str, str]) -> int:
    """Packs or verifies, by the flags; returns the exit status.

    Args:
        own_flags: of this program, for the settings that messages name in place of them.
    """
    arguments = flags.FLAGS
    out = arguments.out
    files.check_output_folder(out)
    if arguments.config is not None and arguments.features is not None:
        raise ValueError("--config and --features both name what to pack; give one of them")
    if arguments.config is not None:
        config = Config.from_dict(as_dict(arguments.config))
        location, slides = of_config(config)
        origin = _isolated(location, config.data.hdf5_dataset)
    elif arguments.features is not None:
        origin, slides = (
            _isolated(",".join(map(str, arguments.features)), arguments.hdf5_dataset),
            None,
        )
    elif arguments.verify:
        return verify(out, None, arguments.workers)
    else:
        raise ValueError("expected --config or --features to pack, or --verify for a store")
    with origin as source:
        existing = source.slide_ids
        selection = (
            existing
            if slides is None
            else [resolve_slide_id(slide, existing) or slide for slide in slides]
        )
        status = pack(
            source,
            selection,
            out,
            arguments.dtype,
            arguments.workers,
            arguments.skip_bad,
            own_flags,
        )
        return status or (verify(out, source, arguments.workers) if arguments.verify else 0)


def of_config(config: Config) -> tuple[pathlib.Path, Collection[str]]:
    """Where the features of a config's dataset are, and the slides of its survival table."""
    table = tables.table_path(config.data.folder, config.dataset)
    slides_of = tables.read_slides(table, config.data.table_columns)
    location = config.data.features_of(config.dataset)
    return location, [slide for slides in slides_of.values() for slide in slides]


def _isolated(location: str | pathlib.Path, dataset_name: str) -> IsolatedSource:
    return IsolatedSource(pathlib.Path(location), dataset_name, seconds=SLIDE_SECONDS)


def pack(
    source: FeatureSource,
    slides: Collection[str],
    out: pathlib.Path,
    dtype: str = store_writer.SAME,
    workers: int = 4,
    skip_bad: bool = False,
    own_flags: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Packs slides, prints what became of them, and returns the exit status.

    Args:
        source, slides, out, dtype, workers, skip_bad: see `store_writer.pack`.
        own_flags: names of flags in place of settings, for messages.
    """
    with _bar("packing", len(slides)) as progress:
        result = store_writer.pack(
            source,
            sorted(slides),
            out,
            dtype=dtype,
            workers=workers,
            skip_bad=skip_bad,
            progress=progress.update,
        )
    for message in result.bad.values():
        print(f"bad slide: {messages.with_flags(message, own_flags)}", file=sys.stderr)
    if result.index is None:
        print(
            f"error: {len(result.bad)} of {len(slides)} slides cannot be packed (above); the "
            f"others are kept in {store_writer.partial_path(out)}. Repair these and give the same "
            "command again, or add --skip_bad to leave them out",
            file=sys.stderr,
        )
        return 1
    index = result.index
    empty = sum(not record.num_patches for record in index.slides)
    print(
        f"{out}: {len(index.slides)} slides ({empty} without patches), "
        f"[{index.rows}, {index.feature_dim}] {index.dtype}, {index.nbytes / 1e9:.2f} GB; "
        f"{result.written} written now, {len(result.bad)} left out; "
        f"{len(index.coordinates)} with coordinates"
    )
    return 0


def verify(out: pathlib.Path, source: FeatureSource | None, workers: int = 4) -> int:
    """Compares checksums, prints what differs, and returns the exit status.

    Args:
        out: the store.
        source: what it was packed from; None for the place that the store has on record.
        workers: threads.
    """
    store = open_features(out)
    if not isinstance(store, StoreSource):
        raise ValueError(f"{out}: expected a packed store, found other features")
    came_from = store.index.provenance
    slides = [record.slide_id for record in store.index.slides]
    with contextlib.ExitStack() as stack:
        if source is None and exists(came_from["location"]):
            origin = _isolated(came_from["location"], came_from["dataset_name"])
            source = stack.enter_context(origin)
        progress = stack.enter_context(_bar("verifying", len(slides)))
        problems = store_writer.verify(store, source, workers=workers, progress=progress.update)
    for message in problems.values():
        print(f"bad slide: {message}", file=sys.stderr)
    if problems:
        print(f"error: {len(problems)} of {len(slides)} slides differ (above)", file=sys.stderr)
        return 1
    absent = len(slides) if source is None else len(source.missing(slides))
    print(f"{out}: {len(slides)} slides verified; the source of {absent} is not there any more")
    return 0


def _bar(label: str, total: int) -> Any:
    return tqdm(total=total, desc=label, unit="slide", disable=not sys.stderr.isatty())


if __name__ == "__main__":
    define_flags()
    cli.app_run(
        main, required=("out",), resuming="the same command goes on after the last packed slide"
    )
