"""Files that were made to harm, given to the programs that users type."""

import numpy as np
from torch_writer import Raw, Writer, zip_bytes_of

from steph_jax import convert

D, E, A, T = 12, 8, 5, 4
SHAPES = {
    "feat_proj.0": (E, D),
    "attention_net.attention_a.0": (A, E),
    "attention_net.attention_b.0": (A, E),
    "attention_net.attention_c": (1, A),
    "pred_head": (T, E),
}


def nested(writer: Writer, storage: Raw, shape: tuple[int, ...]) -> Raw:
    """A tensor of a storage of one entry, through a tensor that repeats it."""
    count = int(np.prod(shape))
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Raw(writer.tensor(Raw(writer.tensor(storage, 0, (count,), (0,))), 0, shape, strides))


def test_memory_of_the_process_is_not_stored_as_weights(tmp_path, capsys):
    """A checkpoint of 2 KB, whose entries of the other byte order are copied one by one."""
    writer = Writer()
    storage = writer.storage_of(np.ones(1, np.float32))
    state = {}
    for name, shape in SHAPES.items():
        state[f"{name}.weight"] = nested(writer, storage, shape)
        state[f"{name}.bias"] = nested(writer, storage, shape[:1])
    file = tmp_path / "x.pth"
    file.write_bytes(zip_bytes_of(writer, {"model": state}, {"archive/byteorder": b"big"}))
    assert convert.main([str(file), "--name", "x", "--out", str(tmp_path / "pool")]) == 1
    captured = capsys.readouterr()
    assert f"{file}: expected a PyTorch file" in captured.err
    assert "whose storage is another tensor" in captured.err
    assert not list((tmp_path / "pool").glob("*/model.json"))
