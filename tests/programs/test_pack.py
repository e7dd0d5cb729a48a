"""Packing: whole or not at all, however it is interrupted, and every bad slide reported."""

import json
import pathlib
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from steph_jax import pack
from steph_jax.data.features import sandbox, store_writer
from steph_jax.data.features.open import open_features
from steph_jax.data.features.store import StoreSource

D = 16


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "features"
    path.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([40, 7, 0, 64, 33, 21, 50, 12]):
        rows = rng.standard_normal((size, D), dtype=np.float32)
        with h5py.File(path / f"slide_{number}.h5", "w") as file:
            file.create_dataset("features", data=rows, chunks=(1, D) if size else None)
    return path


def content(store: pathlib.Path) -> dict[str, object]:
    """All that a store holds, but for the time when it was begun."""
    files = {path.name: path.read_bytes() for path in store.iterdir()}
    index = json.loads(files["store.json"])
    del index["provenance"]["began"]
    return files | {"store.json": index}


def run(folder: pathlib.Path, out: pathlib.Path, **options: object) -> store_writer.Packed:
    source = open_features(folder)
    return store_writer.pack(source, sorted(source.slide_ids), out, **options)


KILLED = textwrap.dedent(
    """
    import os, pathlib, random, signal, sys
    from steph_jax.data.features import store_writer
    from steph_jax.data.features.open import open_features

    folder, out, rounds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])

    def pack(calls):
        # In a process of its own, which is killed at the given call that changes a file: before
        # it, after it, or with half of it done.
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
        left = [calls]
        chance = random.Random(calls)

        def wrap(name):
            inner = getattr(os, name)

            def call(first, *rest):
                left[0] -= 1
                if left[0] == 0:
                    moment = chance.choice(["before", "half", "after"])
                    if moment == "half" and name in ("write", "pwrite"):
                        inner(first, bytes(rest[0])[: len(rest[0]) // 2], *rest[1:])
                    elif moment == "after":
                        inner(first, *rest)
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(first, *rest)

            setattr(os, name, call)

        for name in ("write", "pwrite", "fsync", "ftruncate", "rename", "unlink", "mkdir"):
            wrap(name)
        source = open_features(folder)
        store_writer.pack(source, sorted(source.slide_ids), out, workers=2)
        os._exit(0)

    kills = 0
    for round in range(rounds):
        # Each round kills later and later, until a process gets to its end.
        calls = 1 + round
        while os.waitstatus_to_exitcode(pack(calls)):
            kills += 1
            if out.exists():
                open_features(out)
            calls += 1
        if round < rounds - 1:
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
    print(kills)
    """
)


def test_killed_at_any_moment(folder: pathlib.Path) -> None:
    whole, killed = folder.parent / "whole.store", folder.parent / "killed.store"
    run(folder, whole)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(killed), "6"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20
    assert content(killed) == content(whole)
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        "features",
        "killed.store",
        "whole.store",
    ]


def test_finished_slides_are_packed_once(
    folder: pathlib.Path,
) -> None:
    out = folder.parent / "cohort.store"
    (folder / "bad.npy").write_bytes(b"nothing")
    assert run(folder, out).written == 8
    assert run(folder, out).written == 0
    partial = store_writer.partial_path(out)
    with (partial / "features.bin").open("r+b") as file:
        file.write(b"\0" * 8)
    assert run(folder, out).written == 1
    np.save(folder / "slide_9.npy", np.ones((5, D), np.float32))
    assert run(folder, out).written == 1
    (folder / "bad.npy").unlink()
    packed = run(folder, out)
    assert packed.written == 0
    assert packed.index is not None
    assert not store_writer.partial_path(out).exists()
    again = folder.parent / "again.store"
    run(folder, again)
    assert content(out) == content(again)


def test_packing_another_type_starts_over(folder: pathlib.Path) -> None:
    out = folder.parent / "cohort.store"
    (folder / "bad.npy").write_bytes(b"nothing")
    run(folder, out)
    assert run(folder, out, dtype="float16", skip_bad=True).written == 8
    assert open_features(out).read("slide_0").dtype == np.float16


def test_the_number_of_threads_changes_nothing(folder: pathlib.Path) -> None:
    one, many = folder.parent / "one.store", folder.parent / "many.store"
    run(folder, one, workers=1)
    run(folder, many, workers=8)
    assert content(one) == content(many)


def spoil(folder: pathlib.Path) -> list[str]:
    """Adds slides that cannot be packed; returns their ids."""
    nan = np.ones((9, D), np.float32)
    nan[3, 2] = np.nan
    np.save(folder / "nan.npy", nan)
    np.save(folder / "wide.npy", np.ones((4, D + 1), np.float32))
    np.save(folder / "words.npy", np.array(["a"]))
    (folder / "cut.h5").write_bytes((folder / "slide_0.h5").read_bytes()[:900])
    (folder / "html.pt").write_bytes(b"<html>not found</html>")
    return ["cut", "html", "nan", "wide", "words"]


def test_bad_slides_are_all_reported_and_the_others_packed(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = folder.parent / "cohort.store", spoil(folder)
    source = open_features(folder)
    assert pack.pack(source, [*source.slide_ids, "absent"], out) == 1
    assert not out.exists()
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("bad slide: ") for line in lines] == [True] * 6 + [False]
    assert lines[0] == f"bad slide: absent: no features of this slide in {folder}"
    for name, line in zip(names, lines[1:], strict=False):
        assert str(next(folder.glob(f"{name}.*"))) in line
    assert "NaN or infinity in the features, first in patch 3" in lines[3]
    assert f"expected D = {D}, as most slides have, found {D + 1}" in lines[4]
    assert lines[6].startswith("error: 6 of 14 slides cannot be packed")

    assert pack.pack(source, [*source.slide_ids, "absent"], out, skip_bad=True) == 0
    store = open_features(out)
    assert isinstance(store, StoreSource)
    assert sorted(store.index.skipped) == sorted([*names, "absent"])
    assert "8 slides (1 without patches)" in capsys.readouterr().out
    for slide in store.slide_ids:
        np.testing.assert_array_equal(store.read(slide), source.read(slide))
    assert pack.pack(source, [*source.slide_ids, "absent"], out, skip_bad=True) == 0
    with pytest.raises(ValueError, match=r"this store leaves out 6 slides .* --skip_bad again"):
        run(folder, out)


def test_values_beyond_float16(folder: pathlib.Path) -> None:
    np.save(folder / "large.npy", np.full((2, D), 1e6, np.float32))
    packed = run(folder, folder.parent / "cohort.store", dtype="float16")
    assert list(packed.bad) == ["large"]
    assert "values beyond the range of float16" in packed.bad["large"]


def test_existing_output_is_refused(folder: pathlib.Path) -> None:
    out = folder.parent / "cohort.store"
    run(folder, out)
    assert run(folder, out).written == 0
    with pytest.raises(ValueError, match="a store of other slides, of another --dtype"):
        run(folder, out, dtype="bfloat16")
    np.save(folder / "more.npy", np.ones((2, D), np.float32))
    with pytest.raises(ValueError, match="remove it to pack it again"):
        run(folder, out)
    with pytest.raises(ValueError, match="expected a new name or a packed store"):
        run(folder, folder)


def test_two_processes_at_once(folder: pathlib.Path) -> None:
    out = folder.parent / "cohort.store"
    source = open_features(folder)
    refused = []

    def begin_another(slides: int) -> None:
        with pytest.raises(ValueError, match="another process is packing this store") as error:
            run(folder, out)
        refused.append(error)

    store_writer.pack(source, sorted(source.slide_ids), out, progress=begin_another)
    assert len(refused) == 8


def test_no_room_on_the_disk(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = store_writer.shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(store_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="the store takes 14,528 bytes, 100 are free"):
        run(folder, folder.parent / "cohort.store")


def test_verify(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "cohort.store"
    run(folder, out)
    assert pack.verify(out, None) == 0
    assert "8 slides verified; the source of 0 is not there" in capsys.readouterr().out
    with h5py.File(folder / "slide_3.h5", "r+") as file:
        file["features"][0, 0] += 1
    (folder / "slide_1.h5").unlink()
    with (out / "features.bin").open("r+b") as file:
        file.write(b"\0\0\0\0")
    assert pack.verify(out, None) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "[slide_0]: its bytes do not have the checksum of store.json" in lines[0]
    assert "slide_3.h5: not what" in lines[1]


def command(words: list[str]) -> subprocess.CompletedProcess[str]:
    """`python -m steph_jax.pack` with these words."""
    return subprocess.run(
        [sys.executable, "-m", "steph_jax.pack", *words],
        cwd=pathlib.Path(pack.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line(folder: pathlib.Path) -> None:
    out = folder.parent / "cohort.store"
    done = command(["--features", str(folder), "--out", str(out), "--dtype=float16", "--verify"])
    assert done.returncode == 0, done.stderr
    assert "8 slides (1 without patches), [227, 16] float16" in done.stdout
    assert "8 slides verified" in done.stdout


def test_slides_of_a_config_are_packed(folder: pathlib.Path) -> None:
    """The slides of its table, labeled or not; `hdf5_dataset` and `columns` are the config's."""
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.move("features", "uni")
    table = folder.parent / "data" / "mine" / "mine_survival.csv"
    table.parent.mkdir(parents=True)
    rows = ["a,slide_0,9,1", "a,slide_2,9,1", "b,slide_3,8,0", "c,slide_7,,NA"]
    table.write_text("case,pathology_id,t,e\n" + "\n".join(rows) + "\n")
    out = folder.parent / "mine.store"
    words = ["--config", "configs/default.py", "--out", str(out), "--config.dataset=mine"]
    words += [f"--config.data.root={folder.parent / 'data'}", f"--config.data.features={folder}"]
    words += ["--config.data.columns.patient=case", "--config.data.hdf5_dataset=uni", "--verify"]
    done = command(words)
    assert done.returncode == 0, done.stderr
    assert "4 slides (1 without patches), [116, 16] float32" in done.stdout
    source, store = open_features(folder, dataset_name="uni"), open_features(out)
    assert list(store.slide_ids) == ["slide_0", "slide_2", "slide_3", "slide_7"]
    for slide in store.slide_ids:
        np.testing.assert_array_equal(store.read(slide), source.read(slide))
    with table.open("a") as file:
        file.write("d,elsewhere,6,1\n")
    done = command([*words[:3], f"{out}.2", *words[4:]])
    assert done.returncode == 1
    assert "bad slide: elsewhere: no features of this slide in" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected --config or --features to pack, or --verify for a store"),
        (("--config=configs/default.py", "--features=x"), "both name what to pack"),
        (("--features=no/such/place",), "no/such/place: no such file or folder"),
        (("--config=configs/default.py", "--config.dataset=no"), "no_survival.csv: no such file"),
        (("--verify",), "out.store: no such file or folder"),
    ],
)
def test_mistakes_end_in_one_message(
    tmp_path: pathlib.Path, words: tuple[str, ...], message: str
) -> None:
    done = command([*words, "--out", str(tmp_path / "out.store")])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


CRASHING = """
import os, signal
from steph_jax.data.features import sandbox_worker
from steph_jax.data.features.source import FeatureSource
read_rows = FeatureSource.read_rows

def dangerous(self, slide, *rest, **more):
    if slide == "slide_3":
        os.kill(os.getpid(), signal.SIGSEGV)
    if slide == "slide_5":
        signal.pause()
    return read_rows(self, slide, *rest, **more)

FeatureSource.read_rows = dangerous
sandbox_worker.main()
"""


def test_files_that_crash_or_hang_their_library_are_bad_slides(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = folder.parent / "reader.py", folder.parent / "cohort.store"
    script.write_text(CRASHING)
    reader = (sys.executable, str(script))
    with sandbox.IsolatedSource(folder, command=reader, seconds=10) as source:
        assert pack.pack(source, source.slide_ids, out) == 1
        crash, hang, summary = capsys.readouterr().err.splitlines()
        assert crash.startswith(f"bad slide: {folder / 'slide_3.h5'}: expected a file of features")
        assert "crashed the process that read it (SIGSEGV)" in crash
        assert hang.startswith(f"bad slide: {folder / 'slide_5.h5'}: ")
        assert "more than 10 seconds" in hang
        assert "2 of 8 slides cannot be packed" in summary
        assert pack.pack(source, source.slide_ids, out, skip_bad=True) == 0
    assert "slide_4" in open_features(out).slide_ids
    assert open_features(out).missing(["slide_3", "slide_5"]) == ["slide_3", "slide_5"]


def test_store_is_recognized_under_any_name(tmp_path):
    (tmp_path / "slides").mkdir()
    np.save(tmp_path / "slides" / "a.npy", np.ones((3, 8), np.float32))
    source = open_features(tmp_path / "slides")
    store_writer.pack(source, ["a"], tmp_path / "x.lmdb")
    np.testing.assert_array_equal(open_features(tmp_path / "x.lmdb").read("a"), 1)
    with pytest.raises(ValueError, match=r"x.partial: .partial ends names of unfinished stores"):
        store_writer.pack(source, ["a"], tmp_path / "x.partial")
