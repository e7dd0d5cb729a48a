"""Gives mutated files to every reader of the package and writes a table of what came of it.

    python scripts/fuzz_readers.py --inputs 100000 [--seed 0] [--out docs/fuzzing.md]
    python scripts/fuzz_readers.py --inputs 6000 --only coordinates

Sound files of every layout (tests/helpers/readers.py) are changed at random
(tests/helpers/fuzzing.py): bits, bytes, numbers, blocks, text, length. Tensors are rebuilt of
storages, of other tensors and of arrays, with any offsets, sizes and strides, between pages that
may not be read (tests/helpers/rebuilds.py). Allowed are a value and our documented error, with
memory at most 10 times the file and 100 MB; a crash only within libhdf5 or LMDB. Inputs follow from
the seed and their number. Ends with status 1 where something else happened; those inputs are kept.
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile

import h5py

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROCESS = ROOT / "tests" / "helpers" / "fuzzing.py"
sys.path.insert(0, str(PROCESS.parent))

HEAD = "| reader | inputs | values | documented errors | ended by library | other | memory, MB |"
#: From this heading on the file is written by hand, and stays.
FINDINGS = "\n## Findings\n"


def main() -> int:
    """The entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, the same for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=None, help="file for the table")
    parser.add_argument("--only", default="", help="readers with this text in their names")
    parser.add_argument("--failures", type=pathlib.Path, default=None, help="folder for inputs")
    arguments = parser.parse_args()

    from readers import READERS

    failures = arguments.failures or pathlib.Path(tempfile.gettempdir()) / "fuzz_failures"
    readers = [name for name in READERS if arguments.only in name]
    if not readers:
        parser.error(f"--only {arguments.only}: expected a part of {', '.join(READERS)}")
    if arguments.only and arguments.out is not None:
        parser.error("--out is for the table of all readers; leave --only out")
    each = -(-arguments.inputs // len(readers))
    rows, unexpected = [HEAD, "| --- |" + " ---: |" * 6], []
    print("\n".join(rows), flush=True)
    for name in readers:
        result = run(name, each, arguments.seed, failures)
        counts = list(result["counts"].values())
        cells = [name, *(f"{n:,}" for n in (each, *counts)), f"{result['peak'] / 1e6:.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
        unexpected += [f"{name}, {text}" for text in result["others"]]
    if arguments.out is not None:
        findings = (
            arguments.out.read_text().partition(FINDINGS)[1:] if arguments.out.exists() else ()
        )
        text = document(rows, each * len(READERS), arguments.seed, unexpected)
        arguments.out.write_text("".join([text, *findings]))
    print("\n".join(unexpected))
    if unexpected:
        print(f"{len(unexpected)} inputs came to something else; they are in {failures}")
    return 1 if unexpected else 0


def run(name: str, inputs: int, seed: int, failures: pathlib.Path) -> dict:
    """What came of the inputs of one reader, in a process of its own."""
    command = [sys.executable, str(PROCESS), str(seed), str(inputs), str(failures), name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def document(rows: list[str], inputs: int, seed: int, others: list[str]) -> str:
    """The record of a run, in Markdown."""
    packages = ("steph_jax", "numpy", "h5py", "lmdb", "ml_dtypes")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    versions += [f"libhdf5 {h5py.version.hdf5_version}", f"Python {platform.python_version()}"]
    text = [
        "# Mutated files",
        "",
        "Sound files of every layout, 200 bytes to 80 kilobytes each, are changed at random and",
        "given to the readers. Two outcomes are allowed: a value, or our documented error that",
        "names the file; with memory at most 10 times the file and 100 MB. Where libhdf5 or LMDB",
        "themselves end the process with a mutated file, or take more than a minute, it is",
        "counted; `check` and `pack` read in child processes, with a limit of time, and report",
        "such a file as bad.",
        "",
        "Of tensors, **bounds are the property**: no tensor has an entry outside the storage it",
        "began from. The files of 'tensors, bounds' are made and not mutated: tensors by every",
        "function that rebuilds them, of storages, parts of storages, other tensors, arrays and",
        "parameters; in the zip layout of both byte orders, the old stream and the pickle of an",
        "LMDB; with offsets, sizes and strides about the ends of storages and far beyond, and",
        "with repetitions and overlaps. Every buffer that the reader makes arrays of ends, or",
        "begins, at a page that may not be read (tests/helpers/guarded_memory.py), for all readers",
        "of PyTorch's files; all entries of all tensors are read. A read out of bounds ends the",
        "process and counts as 'other', and so does a tensor whose addresses lie outside its",
        "buffer.",
        "",
        f"    python scripts/fuzz_readers.py --inputs {inputs} --seed {seed} --out docs/fuzzing.md",
        "",
        f"{', '.join(versions)}; {inputs:,} inputs.",
        "",
        *rows,
        "",
        "Memory is the most resident memory that the process ever had beyond what it had before an",
        "input; with files as small as these the bound of 100 MB is what is tested. Inputs follow",
        "from the seed and their number; a shorter run with other seeds is one of the tests",
        "(tests/data/test_fuzz.py); another takes the reader's check of bounds out, and expects",
        "that this is noticed. The readers and their sound files are listed in",
        "tests/helpers/readers.py.",
    ]
    if others:
        text += ["", "Other outcomes:", "", *(f"- {line}" for line in others)]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
