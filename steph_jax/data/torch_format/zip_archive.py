"""Members of a zip archive whose members are stored, not compressed, as views of the archive.

PyTorch never compresses, and aligns the content of its members: a tensor can be used where it
lies. Nothing is inflated, so nothing can be inflated beyond measure. Checksums are not compared:
PyTorch lets its users leave them out (`set_crc32_options`), and does not compare them itself.
"""

import struct

from steph_jax.data.torch_format.placeholders import Budget, Malformed, printable

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def members(data: memoryview, budget: Budget) -> dict[str, memoryview]:
    """Content of every member by its name.

    Args:
        data: the whole archive.
        budget: charged for the directory.

    Raises:
        Malformed: no complete archive, a member that is compressed or encrypted, a name twice, or
            one that leads out of the archive; a TorchScript program.
    """
    count, size, position = _directory(data)
    end = position + size
    if end > len(data):
        raise Malformed("a zip directory that lies beyond the end of the file")
    contents: dict[str, memoryview] = {}
    compressed = ""  # the first member that is not simply stored
    while position < end:
        budget.charge(768)
        fields = _unpack(_ENTRY, data, position, b"PK\x01\x02", "a zip directory entry")
        flags, method = fields[3], fields[4]
        stored_size, real_size = fields[8], fields[9]
        name_length, extra_length, comment_length = fields[10:13]
        start = position + _ENTRY.size
        position = start + name_length + extra_length + comment_length
        if position > end:
            raise Malformed("a zip directory that ends within an entry")
        name = _member_name(data[start : start + name_length])
        extra = data[start + name_length : start + name_length + extra_length]
        stored_size, real_size, offset = _long_sizes(extra, real_size, stored_size, fields[16])
        if flags & 1 or method or stored_size != real_size:
            compressed = compressed or name
        if name in contents:
            raise Malformed(f"two members named {printable(name)}")
        contents[name] = _content(data, name, offset, stored_size)
    if any(name.endswith("/constants.pkl") for name in contents):
        raise Malformed(
            "a TorchScript program, not a state dict",
            "in PyTorch, load it with torch.jit.load and save its tensors: "
            "torch.save(program.state_dict(), FILE)",
        )
    if compressed:
        raise Malformed(
            f"a compressed or encrypted member {printable(compressed)}, which PyTorch never writes"
        )
    if len(contents) != count:
        raise Malformed(f"{len(contents)} members in a zip directory of {count}")
    return contents


def _unpack(
    layout: struct.Struct, data: memoryview, position: int, signature: bytes, what: str
) -> tuple:
    if position + layout.size > len(data):
        raise Malformed(f"{what} cut off at byte {position}")
    fields = layout.unpack_from(data, position)
    if fields[0] != signature:
        raise Malformed(f"no {what.removeprefix('a ')} at byte {position}, where one should be")
    return fields


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Number of entries, size and offset of the directory, from the record at the end."""
    tail_start = max(0, len(data) - _END.size - 65535)
    at = bytes(data[tail_start:]).rfind(b"PK\x05\x06")
    if at < 0:
        raise Malformed("a zip archive without a directory at its end: it is cut off")
    end = _unpack(_END, data, tail_start + at, b"PK\x05\x06", "an end of the zip directory")
    count, size, offset = end[4], end[5], end[6]
    if count != 0xFFFF and size != 0xFFFFFFFF and offset != 0xFFFFFFFF:
        return count, size, offset
    position = tail_start + at - _LOCATOR64.size
    if position < 0:
        raise Malformed("a long zip archive without a locator of its directory")
    locator = _unpack(_LOCATOR64, data, position, b"PK\x06\x07", "a locator of the zip directory")
    end64 = _unpack(_END64, data, locator[2], b"PK\x06\x06", "an end of the long zip directory")
    return end64[7], end64[8], end64[9]


def _member_name(raw: memoryview) -> str:
    try:
        name = str(raw, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a zip member whose name is not UTF-8") from None
    parts = name.replace("\\", "/").split("/")
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise Malformed(f"a zip member named {printable(name)!r}, which leads out of the archive")
    return name


def _long_sizes(
    extra: memoryview, real_size: int, stored_size: int, offset: int
) -> tuple[int, int, int]:
    """Sizes (packed, unpacked) and offset of a member, long ones from the extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind != 1:
            continue
        long_values = [
            int.from_bytes(field[i : i + 8], "little") for i in range(0, len(field) - 7, 8)
        ]
        if real_size == 0xFFFFFFFF and long_values:
            real_size = long_values.pop(0)
        if stored_size == 0xFFFFFFFF and long_values:
            stored_size = long_values.pop(0)
        if offset == 0xFFFFFFFF and long_values:
            offset = long_values.pop(0)
    return stored_size, real_size, offset


def _content(data: memoryview, name: str, offset: int, size: int) -> memoryview:
    local = _unpack(_LOCAL, data, offset, b"PK\x03\x04", "a zip member's header")
    start = offset + _LOCAL.size + local[9] + local[10]
    if start + size > len(data):
        raise Malformed(
            f"a member {printable(name)} of {size} bytes at byte {start} of {len(data)}: the "
            "file is cut off"
        )
    return data[start : start + size]
