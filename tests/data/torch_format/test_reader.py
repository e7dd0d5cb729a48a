"""The restricted reader of PyTorch files: what it reads, and what it refuses without running it."""

import io
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch_writer
from torch_writer import Raw, View, pickled_tensor, stream_bytes, zip_bytes

from steph_jax.data.torch_format import containers, placeholders, reader
from steph_jax.data.torch_format.reader import TorchFileError, UnknownGlobal, loads

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LAYOUTS = {"zip": zip_bytes, "stream": stream_bytes}


@pytest.fixture(params=LAYOUTS)
def write(request):
    return LAYOUTS[request.param]


# What is read.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool"])
def test_tensors_of_every_type(write, dtype):
    array = (np.arange(6).reshape(2, 3) % 4).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    read = loads(write({"x": array}), "f.pt")
    assert read["x"].dtype == array.dtype
    np.testing.assert_array_equal(read["x"], array)


def test_views_share_their_storage(write):
    base = np.arange(24, dtype="f4").reshape(4, 6)
    read = loads(
        write(
            {
                "whole": View(base),
                "transposed": View(base, (6, 4), (1, 6)),
                "corner": View(base, (2, 3), (6, 1), offset=9),
                "columns": View(base, (4, 3), (6, 2), offset=1),
                "number": View(base, (), (), offset=5),
                "nothing": View(base, (0, 6), (6, 1)),
            }
        ),
        "f.pt",
    )
    np.testing.assert_array_equal(read["whole"], base)
    np.testing.assert_array_equal(read["transposed"], base.T)
    np.testing.assert_array_equal(read["corner"], base[1:3, 3:6])
    np.testing.assert_array_equal(read["columns"], base[:, 1::2])
    assert read["number"] == 5.0
    assert read["nothing"].shape == (0, 6)
    assert np.shares_memory(read["whole"], read["corner"])
    with pytest.raises(ValueError, match="read-only"):
        read["corner"][0, 0] = 1.0


def test_plain_values(write):
    value = {
        "epoch": 19,
        "large": -(2**60),
        "rate": 1e-4,
        "name": "Überleben",
        "none": None,
        "flags": [True, False, (1, (2, 3))],
        "state": OrderedDict(a=1, b=[]),
    }
    read = loads(write(value), "f.pt")
    assert read == value
    assert type(read["state"]) is OrderedDict


def test_big_endian_archive():
    array = np.array([1.5, -2.25, 3e-3], "f4")
    foreign = {"archive/byteorder": b"big", "archive/data/0": array.byteswap().tobytes()}
    read = loads(zip_bytes({"x": array}, foreign), "f.pt")["x"]
    np.testing.assert_array_equal(read, array)


def test_file_of_the_published_program(parity):
    folder = parity / "result" / "abmil_gat_attn-MLE_YEAR-data_tcga_lihc-fold_0"
    path = folder / "train_model-last.pth"
    read = reader.load(path)
    assert list(read) == ["epoch", "model", "optimizer", "scheduler"]
    assert read["model"]["feat_proj.0.weight"].shape == (512, 1536)
    assert reader.foreign_names(read) == []
    with zipfile.ZipFile(path) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    raw = np.frombuffer(members["data/9"], "f4")
    np.testing.assert_array_equal(read["model"]["pred_head.bias"], raw)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3)),
        np.array([1, 2, 3], ">i4"),
        np.zeros((0, 7), "f4"),
        np.array([True, False]),
        np.arange(3).astype(BFLOAT16),
    ],
    ids=["float64", "fortran", "big-endian", "empty", "bool", "bfloat16"],
)
def test_pickled_arrays(protocol, array):
    read = loads(pickle.dumps({"features": array}, protocol), "key")["features"]
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.dtype.isnative


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_numbers_and_names(protocol):
    value = {"best": np.float64(0.71), "steps": np.int64(7), "names": ["a.pt", "b.pt"]}
    assert loads(pickle.dumps(value, protocol), "key") == value


def test_tensor_of_an_lmdb_carries_its_storage_as_a_stream():
    array = np.arange(6, dtype="f4").reshape(1, 2, 3)
    value = pickled_tensor(array)
    np.testing.assert_array_equal(loads(value, "slide"), array)
    lie = value.replace(struct.pack("<q", 6), struct.pack("<q", 10**12))
    with pytest.raises(TorchFileError, match=r"slide: expected .* the file is cut off"):
        loads(lie, "slide")


# What is refused.


def call(module: str, name: str, *arguments) -> Raw:
    """Opcodes that call a global: pickle's way to run code."""
    head = f"c{module}\n{name}\n".encode()
    return Raw(head + torch_writer.Writer().dump(arguments) + b"R")


HOSTILE = {
    "os.system": call("os", "system", "touch HACKED"),
    "builtins.eval": call("builtins", "eval", "open('HACKED', 'w')"),
    "builtins.exec": call("builtins", "exec", "open('HACKED', 'w')"),
    "builtins.getattr": Raw(
        b"cbuiltins\ngetattr\n("
        + call("builtins", "__import__", "os")
        + torch_writer.Writer().text("system")
        + b"tR"
        + torch_writer.Writer().dump(("touch HACKED",))
        + b"R"
    ),
    "numpy.fromfile": call("numpy", "fromfile", "/etc/passwd", "u1"),
    "numpy.load": call("numpy", "load", "x.npy", None, True),
    "numpy.zeros": call("numpy", "zeros", 10**12),
    "numpy.lib._npyio_impl.DataSource": call("numpy.lib._npyio_impl", "DataSource"),
    "torch._utils._rebuild_from_type": call("torch._utils", "_rebuild_from_type", 1),
    "torch.load": call("torch", "load", "other.pt"),
    "torch.hub.load": call("torch.hub", "load", "stranger/repo", "model"),
    "steph_jax.data.torch_format.reader.load": call(
        "steph_jax.data.torch_format.reader", "load", "other.pt"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_calls_are_absorbed_and_named(write, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = loads(write({"epoch": 1, "model": {"x": HOSTILE[name]}}), "f.pt")
    assert read["epoch"] == 1
    assert isinstance(read["model"]["x"], UnknownGlobal)
    assert reader.foreign_names(read) == [name]
    with pytest.raises(TorchFileError, match=f"f.pt, model: .* found {name}, which was not called"):
        reader.refuse_foreign(read["model"], "f.pt, model")
    assert list(tmp_path.iterdir()) == []


def test_foreign_objects_absorb_state_and_items():
    foreign = b"capex\nAmp\n)\x81"
    state = foreign + b"}X\x01\x00\x00\x00aK\x01sb"
    items = b"capex\nBag\n)R(K\x01K\x02e"
    read = loads(zip_bytes({"amp": Raw(state), "bag": Raw(items), "epoch": 3}), "f.pt")
    assert read["epoch"] == 3
    assert reader.foreign_names(read) == ["apex.Amp", "apex.Bag"]
    assert repr(read["amp"]) == "<apex.Amp, not loaded>"


def test_protocol_0_is_not_run():
    with pytest.raises(TorchFileError, match=r"opcode b'S'.*in a pickle that names os.system"):
        loads(zip_bytes(Raw(b"cos\nsystem\n(S'touch HACKED'\ntR")), "f.pt")
    with pytest.raises(TorchFileError, match="26 bytes that begin with 'cos"):
        loads(b"cos\nsystem\n(S'echo hi'\ntR.", "f.pt")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(np.zeros(6, "f4"), (10**6, 10**6), (10**6, 1)), "reaches entry 999999999999 of"),
        (View(np.zeros(6, "f4"), (10**12,), (0,)), "would take more than"),
        (View(np.zeros(6, "f4"), (10**15, 0), (0, 0)), "a shape with the entry 10000000"),
        (View(np.zeros(6, "f4"), (10**14, 10**14, 0), (0, 0, 0)), "a tensor of shape"),
        (View(np.zeros(6, "f4"), (2, 3), (3, 2)), "reaches entry 7 of a storage of 6"),
        (View(np.zeros(6, "f4"), (6,), (1,), offset=1), "reaches entry 6 of a storage of 6"),
        (View(np.zeros(6, "f4"), (2,), (1,), offset=-1), "negative offset"),
        (View(np.zeros(6, "f4"), (2,), (-1,)), "strides with the entry -1"),
        (View(np.zeros(6, "f4"), (-2,), (1,)), "a shape with the entry -2"),
        (View(np.zeros(6, "f4"), (2, 3), (1,)), "2 dimensions with 1 strides"),
    ],
)
def test_tensors_beyond_their_storage(write, view, message):
    with pytest.raises(TorchFileError, match=f"f.pt: expected a PyTorch file .*{message}"):
        loads(write({"x": view}), "f.pt")


def test_storages_beyond_the_file():
    lie = View(np.zeros(6, "f4"), (10**12,), (1,), count=10**12)
    with pytest.raises(TorchFileError, match="24 bytes that claims 1000000000000 entries"):
        loads(zip_bytes({"x": lie}), "f.pt")
    with pytest.raises(TorchFileError, match="no member data/7, which a tensor needs"):
        loads(zip_bytes({"x": View(np.zeros(6, "f4"), key="7")}), "f.pt")


def test_array_beyond_the_file():
    value = pickle.dumps(np.zeros(3), 4)
    with pytest.raises(TorchFileError, match=r"shape \[255\] and type float64 with 24 bytes"):
        loads(value.replace(b"K\x03\x85", b"K\xff\x85"), "key")


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], object), np.array(["text"]), np.zeros(2, [("a", "f4")])]
)
def test_arrays_of_other_types_are_unknown_globals(array):
    read = loads(pickle.dumps([array], 4), "key")
    assert "numpy.dtype of" in reader.foreign_names(read)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found no bytes; copy or download the file again"),
        (b"<!DOCTYPE html>\n<html><body>404", "found an HTML page; download the file itself"),
        (b"\n <html lang=en>", "found an HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4795733\n",
            "found a git-lfs pointer; fetch the file itself with `git lfs pull`",
        ),
        (b"\x89HDF\r\n\x1a\n", "found an HDF5 file; name it .h5"),
        (b"\x93NUMPY\x01\x00", "found a NumPy array; name it .npy"),
        (b'{"error": "not found"}', "found JSON or other text"),
        (b"\x00\x1b[31m" * 9, "found 54 bytes that begin with"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    path = tmp_path / "train_model-last.pth"
    path.write_bytes(content)
    with pytest.raises(TorchFileError, match=f"{path}: expected a PyTorch file, {message}") as e:
        reader.load(path)
    assert str(e.value).isprintable()


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.pth: no such file"):
        reader.load(tmp_path / "none.pth")
    with pytest.raises(TorchFileError, match="expected a PyTorch file, found a directory"):
        reader.load(tmp_path)


def test_compressed_members_are_refused():
    bomb = zip_bytes({"x": np.zeros(10**6, "f4")}, compress=True)
    assert len(bomb) < 10_000
    with pytest.raises(TorchFileError, match=r"compressed or encrypted member archive/data.pkl"):
        loads(bomb, "f.pt")


@pytest.mark.parametrize("member", ["../../etc/cron.d/x", "/etc/passwd", "a\\..\\b", "C:/x"])
def test_members_that_lead_out_of_the_archive(member):
    with pytest.raises(TorchFileError, match="which leads out of the archive"):
        loads(zip_bytes({"x": np.zeros(3, "f4")}, {member: b"root"}), "f.pt")
    hidden = View(np.zeros(3, "f4"), key="../" + member)
    with pytest.raises(TorchFileError, match="no member data/"):
        loads(zip_bytes({"x": hidden}), "f.pt")


def test_other_archives():
    buffer = io.BytesIO()
    np.savez(buffer, features=np.zeros((2, 3)))
    with pytest.raises(TorchFileError, match=r"a NumPy .npz archive with 0 members"):
        loads(buffer.getvalue(), "f.pt")


@pytest.mark.parametrize("compress", [False, True])
def test_torchscript_is_named(compress):
    script = zip_bytes({}, {"archive/constants.pkl": b"\x80\x02)."}, compress)
    with pytest.raises(
        TorchFileError, match=r"a TorchScript program, not a state dict; in PyTorch, load it with"
    ):
        loads(script, "f.pt")


@pytest.mark.parametrize("kind", ["zip", "stream", "pickle"])
def test_every_truncation_is_an_error(kind):
    array = np.arange(8, dtype="f4").reshape(2, 4)
    whole = pickled_tensor(array) if kind == "pickle" else LAYOUTS[kind]({"x": array})
    loads(whole, "f.pt")
    for length in range(1, len(whole)):
        with pytest.raises(TorchFileError, match=r"^f.pt: expected a PyTorch file"):
            loads(whole[:length], "f.pt")


PICKLE_BOMBS = {
    "lists": b"]" * 50_000,
    "dicts": b"}" * 50_000,
    "tuples": b")" + b"\x85" * 50_000,
    "memo": b"N" + b"\x94" * 100_000,
    "marks": b"(" * 100_000,
    "deep": b"]" * 200 + b"a" * 199 + b".",
    "itself": b"]q\x00h\x00a.",
    "laughs": b"]q\x00"
    + b"".join(
        b"](" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1])
        for i in range(30)
    )
    + b".",
    "one long text": b"X" + struct.pack("<I", 2_000_000) + b"x" * 2_000_000,
    "frame": b"\x95" + b"\xff" * 8 + b".",
    "bytes": b"\x8e" + b"\xff" * 7 + b"\x00.",
    "text": b"X\xff\xff\xff\x7f.",
    "integer": b"\x8a\xff" + b"\x01" * 255 + b".",
    "long integer": b"\x8b\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("bomb", PICKLE_BOMBS)
def test_pickle_bombs_stay_within_bounds(bomb, monkeypatch):
    # A twentieth of the real allowance, and bombs to match, to be quick.
    monkeypatch.setattr(placeholders, "BASE_MEMORY", placeholders.BASE_MEMORY // 20)
    data = b"\x80\x04" + PICKLE_BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises(TorchFileError, match=r"^f.pt: expected a PyTorch file of tensors"):
            loads(data, "f.pt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data) + 100e6 / 20


PRIME = 2**61 - 1  # Python's hash of an integer is its remainder


COLLIDING = {
    "integers": [i * PRIME for i in range(2, 2 + containers.MAX_OTHER_KEYS)],
    "negative": [-i * PRIME for i in range(2, 2 + containers.MAX_OTHER_KEYS)],
    "tuples": [
        tuple(-1 - (i >> bit & 1) for bit in range(14)) for i in range(containers.MAX_OTHER_KEYS)
    ],
    "floats": [float(2**i) for i in range(10)] * (containers.MAX_OTHER_KEYS // 10 + 1),
}


def as_keys(keys: list) -> Raw:
    """A dict with these keys, repetitions too."""
    return Raw(b"}(" + b"".join(torch_writer.Writer().dump(key) + b"N" for key in keys) + b"u")


@pytest.mark.parametrize("kind", COLLIDING)
def test_keys_that_fall_on_one_place_are_few(kind, write):
    """One more than is allowed is refused, however they are spread over dicts."""
    keys = COLLIDING[kind]
    parts = [as_keys(keys[:1000]), as_keys(keys[1000:])]
    with pytest.raises(TorchFileError, match=r"more than 4096 dict keys that are neither text nor"):
        loads(write({"a": parts, "b": {0.5: 1}}), "f.pt")


def test_many_keys_that_are_text_or_small_integers(write):
    value = {"state": dict.fromkeys(range(20_000)), "names": {f"p{i}": i for i in range(20_000)}}
    value["by address"] = {140_234_000_000_000 + 64 * i: i for i in range(1000)}
    assert loads(write(value), "f.pt") == value


def test_long_keys_are_refused(write):
    """Comparing equal keys takes time in proportion to their length."""
    longest = "k" * containers.MAX_KEY_LENGTH
    assert loads(write({longest: 1}), "f.pt") == {longest: 1}
    for key in (longest + "k", (longest + "k", 1)):
        with pytest.raises(TorchFileError, match="a dict with a key of"):
            loads(write({key: 1}), "f.pt")


def test_numbers_of_stored_values_are_those_of_picklers():
    with pytest.raises(TorchFileError, match="numbers a value 1000000 at byte 8"):
        loads(b"\x80\x02]r" + struct.pack("<I", 1_000_000) + b".", "f.pt")


def test_views_of_one_storage_cannot_multiply_it():
    base = np.zeros(250_000, "f4")
    many = {f"layer{i}": View(base) for i in range(80)}
    with pytest.raises(TorchFileError, match="would take more than 71 MiB of memory"):
        loads(zip_bytes(many), "f.pt")


def test_mutations_give_a_value_or_the_documented_error():
    rng = random.Random(0)
    value = {"x": np.arange(6, dtype="f4"), "y": [np.ones((2, 3)), 1.5, "text"], "z": OrderedDict()}
    whole = [zip_bytes(value), stream_bytes(value), pickled_tensor(value["x"])]
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice([1, 1, 2, 6])):
            at = rng.randrange(len(data))
            if rng.random() < 0.7:
                data[at] = rng.randrange(256)
            else:
                data[at : at + 4] = rng.randbytes(rng.choice([0, 4, 9]))
        try:
            reader.foreign_names(loads(bytes(data), "f.pt"))
            outcomes[True] += 1
        except TorchFileError:
            outcomes[False] += 1
    assert outcomes[True] > 100
    assert outcomes[False] > 100


# Live PyTorch.


def assert_as_torch_reads(read, expected):
    """Asserts that a loaded value is what torch.load gives."""
    torch = pytest.importorskip("torch")
    if isinstance(expected, torch.Tensor):
        expected = expected.detach()
        if expected.dtype == torch.bfloat16:
            assert read.dtype == BFLOAT16
            expected, read = expected.float(), read.astype("f4")
        assert read.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(read, expected.numpy())
    elif isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_as_torch_reads(read[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_as_torch_reads(one, other)
    else:
        np.testing.assert_array_equal(read, expected)


@pytest.fixture
def everything():
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 8)
    return {
        "types": [x.to(getattr(torch, t)) for t in ("float16", "bfloat16", "float64", "int16")],
        "views": [x, x.t(), x[1:4, 2:6], x[::2, ::3], x[0], x.view(-1), x[2, 3]],
        "bfloat16 view": x.bfloat16()[::2, 1:],
        "empty": torch.zeros(0, 3),
        "bool": x > 0,
        "integers": [torch.arange(5), torch.arange(5, dtype=torch.uint8)],
        "parameter": torch.nn.Parameter(x),
        "module": torch.nn.Linear(3, 4).state_dict(),
        "expanded": x[:1].expand(5, 8),
        "shape": x.shape,
        "numpy": [np.arange(6.0).reshape(2, 3), np.float32(1.5), np.zeros((0, 2))],
        "numbers": [1, -(2**70), 1.5, None, True],
    }


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_torch_files_are_read(everything, tmp_path, protocol, as_zip):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(everything, path, pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
    assert_as_torch_reads(reader.load(path), torch.load(path, weights_only=False))


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_tensors(everything, protocol):
    assert_as_torch_reads(loads(pickle.dumps(everything, protocol), "key"), everything)


@pytest.mark.torch
def test_an_optimizer_and_a_whole_module(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "all": model}
    torch.save(saved, tmp_path / "x.pt")
    read = reader.load(tmp_path / "x.pt")
    assert_as_torch_reads(read["optimizer"], optimizer.state_dict())
    assert reader.foreign_names(read) == ["torch.nn.modules.linear.Linear"]


@pytest.mark.torch
def test_unsigned_16_bit_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.tensor([1, 40_000], dtype=torch.uint16)
    torch.save({"x": x}, tmp_path / "x.pt")
    np.testing.assert_array_equal(reader.load(tmp_path / "x.pt")["x"], x.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_tensor_of_a_special_kind_is_refused(tmp_path, as_zip):
    torch = pytest.importorskip("torch")
    negative = torch._neg_view(torch.ones(3))
    torch.save(negative, tmp_path / "a.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(TorchFileError, match=r"a tensor of special kind, \{'neg': True\}"):
        reader.load(tmp_path / "a.pt")
