"""HDF5 chunks that unpack to more than they claim."""

import zlib

import h5py
import numpy as np
import pytest

from steph_jax.data.features import hdf5_chunks
from steph_jax.data.features.open import open_features
from steph_jax.data.features.slide import BadFeatures

ROWS, D = 2000, 32
VALUES = np.random.default_rng(0).standard_normal((ROWS, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_allowance(monkeypatch):
    """Files a thousandth of the size are enough then."""
    monkeypatch.setattr(hdf5_chunks, "EXPANSION_SLACK", 2**16)


def deflated(nbytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return packer.compress(bytes(nbytes)) + packer.flush()


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("chunk_rows", [ROWS, 7])
def test_sound_chunks_are_read(tmp_path, checksum, shuffle, chunk_rows):
    options = {"chunks": (chunk_rows, D), "compression": "gzip", "fletcher32": checksum}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=VALUES, shuffle=shuffle, **options)
    np.testing.assert_array_equal(open_features(tmp_path).read("a"), VALUES)


def test_chunks_that_are_not_compressed_are_read(tmp_path):
    """A filter may be skipped for single chunks."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"chunks": VALUES.shape, "compression": "gzip"}
        dataset = file.create_dataset("features", VALUES.shape, "f4", **options)
        dataset.id.write_direct_chunk((0, 0), VALUES.tobytes(), filter_mask=1)
    np.testing.assert_array_equal(open_features(tmp_path).read("a"), VALUES)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("nbytes", [2**24, 2**27])
def test_chunks_that_unpack_to_more_are_refused(tmp_path, checksum, nbytes):
    content = deflated(nbytes) + bytes(4 * checksum)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"chunks": VALUES.shape, "compression": "gzip", "fletcher32": checksum}
        dataset = file.create_dataset("features", VALUES.shape, "f4", **options)
        dataset.id.write_direct_chunk((0, 0), content)
        file["padding"] = np.zeros(20_000, np.uint8)
    with pytest.raises(BadFeatures, match=r"a\.h5: expected chunks of 256,000 bytes, found one"):
        open_features(tmp_path).read("a")
