"""Gives mutated files to readers, and reports what came of it.

    python tests/helpers/fuzzing.py SEED INPUTS FAILURES READER ...

A line of JSON for each reader. Two outcomes are allowed: a value, or our documented error, which
names the file; with memory at most 10 times the file and 100 MB. Inputs are read in a forked
process; where one ends it, the next process goes on with the next input. Only libhdf5 and LMDB may
end it, or keep it for more than a minute. Buffers of PyTorch files lie between pages that no code
may read (`guarded_memory`), so that a tensor which reaches beyond its storage ends the process too.
Inputs that came to something else are kept in the folder FAILURES.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator

from readers import READERS, STORAGES, Reader

MEMORY_PER_BYTE, BASE_MEMORY = 10, 100e6
#: Seconds that a file may take, and address space that its process may get.
SECONDS, ADDRESS_SPACE = 60, 8 * 2**30
#: Inputs for one process, so that what leaks is measured too.
PER_PROCESS = 5000
VALUE, ERROR, ENDED, OTHER = "value", "error", "process ended", "other"


@dataclasses.dataclass
class Result:
    """What came of the inputs of one reader.

    Attributes:
        reader: its name.
        counts: inputs by outcome.
        peak: bytes of memory beyond those at the start, at most.
        size: bytes of the largest input.
        others: what is not allowed, in words.
    """

    reader: str
    counts: dict[str, int]
    peak: int
    size: int
    others: list[str]


def fuzz_input(reader: Reader, seeds: list[bytes], chance: random.Random) -> bytes:
    """An input of a reader: made by it, or one of its sound files with changes."""
    return reader.make(chance) if reader.make else mutated(seeds, chance)


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds with one or a few changes: bits, bytes, numbers, blocks, text, length."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1) if chance.random() < 0.8 else chance.randrange(100)
        at = min(at, max(0, len(data) - 1))
        kind = chance.randrange(9)
        if kind == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, chance.randrange(256)))
        elif kind == 2:
            width = chance.choice((1, 2, 4, 8))
            number = chance.choice((0, -1, 2 ** (8 * width - 1) - 1, 10**12, 10**6, 255, 65537))
            number %= 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
        elif kind == 3:
            del data[at : at + chance.choice((1, 2, 8, 64, 512))]
        elif kind == 4:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 8, 64)))
        elif kind == 5:
            block = data[at : at + chance.choice((4, 16, 128))]
            to = chance.randrange(len(data) + 1)
            data[to : to + chance.choice((0, len(block)))] = block
        elif kind == 6:
            del data[at:]
        elif kind == 7:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other)) :]
        else:
            _change_text(data, chance)
    return bytes(data)


def _change_text(data: bytearray, chance: random.Random) -> None:
    """Replaces a number that stands as text, or a word."""
    matches = list(re.finditer(rb"\d+|[A-Za-z_]{2,}", bytes(data[:100_000])))
    if matches:
        numbers = (b"0", b"-1", b"1e999", b"nan", b"1000000000000", b"9" * 400, b"1_0", b"0x10")
        words = (b"", b"os.system", b"../../x", b"O8", b"null", b"\xff\xfe", b"\0", b'"', b",\n,")
        match = chance.choice(matches)
        data[match.start() : match.end()] = chance.choice(numbers + words)


def resident() -> int:
    """Bytes of memory that this process has now; the most that it has had where that is all."""
    with contextlib.suppress(OSError):
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()
    return most_resident()


def most_resident() -> int:
    """Bytes of memory that this process has had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fuzz(name: str, inputs: int, seed: int, failures: pathlib.Path) -> Result:
    """Reads mutated files with a reader; see the module."""
    reader = READERS[name]
    seeds = reader.seeds()
    result = Result(name, dict.fromkeys((VALUE, ERROR, ENDED, OTHER), 0), 0, 0, [])
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for number, data in enumerate(seeds):
            with STORAGES.installed():
                reader.read(reader.place(_new(folder / f"seed_{number}"), data))
        first = 0
        while first < inputs:
            last = min(inputs, first + PER_PROCESS)
            for outcome in _in_a_process(name, seeds, seed, first, last, folder):
                result.counts[outcome["outcome"]] += 1
                result.peak = max(result.peak, outcome["peak"])
                result.size = max(result.size, outcome["size"])
                if outcome["text"]:
                    result.others.append(f"input {first}: {outcome['text']}")
                    data = fuzz_input(reader, seeds, _chance(name, seed, first))
                    reader.place(_new(failures / f"{name.replace(' ', '_')}-{first}"), data)
                first += 1
    return result


def _new(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _chance(name: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{name}/{seed}/{number}")


def _in_a_process(
    name: str, seeds: list[bytes], seed: int, first: int, last: int, folder: pathlib.Path
) -> Iterator[dict]:
    """Outcomes of inputs first .. last - 1, up to the one that ends the process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as out:
                resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
                warnings.simplefilter("error")
                for number in range(first, last):
                    data = fuzz_input(READERS[name], seeds, _chance(name, seed, number))
                    signal.alarm(SECONDS)
                    out.write(json.dumps(_outcome(name, data, folder / "input")) + "\n")
                    out.flush()
        finally:
            os._exit(0)
    os.close(writing)
    number = first
    with os.fdopen(reading) as lines:
        for line in lines:
            number += 1
            yield json.loads(line)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number < last:
        ended = signal.Signals(-status).name if status < 0 else f"status {status}"
        native = READERS[name].native and status
        text = "" if native else f"the process ended: {ended}"
        yield {"outcome": ENDED if native else OTHER, "peak": 0, "size": 0, "text": text}


def _outcome(name: str, data: bytes, folder: pathlib.Path) -> dict:
    """Reads one input and returns what came of it."""
    path = READERS[name].place(_new(folder), data)
    before, text = resident(), ""
    try:
        with STORAGES.installed():
            READERS[name].read(path)
        outcome = VALUE
    except (ValueError, FileNotFoundError) as error:
        outcome, message = ERROR, str(error)
        if str(path) not in message:
            text = f"an error that does not name the file: {type(error).__name__}: {message}"
    except BaseException as error:  # whatever else it is: this is what the fuzz looks for
        text = f"{type(error).__name__}: {error}"
    peak = max(0, most_resident() - before)
    if not text and peak > MEMORY_PER_BYTE * len(data) + BASE_MEMORY:
        text = f"{peak:,} bytes of memory for {len(data):,} of the file"
    return {
        "outcome": OTHER if text else outcome,
        "peak": peak,
        "size": len(data),
        "text": text[:500],
    }


def main() -> None:
    """The readers named on the command line."""
    seed, inputs, failures, *names = sys.argv[1:]
    for name in names:
        result = fuzz(name, int(inputs), int(seed), pathlib.Path(failures))
        print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
