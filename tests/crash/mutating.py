"""Changes to files whose checksums hold afterwards: what an accident does not do, and a careless tool or a bug might.

A flipped bit is found by a checksum, so whatever stands behind the checksum is never tried by flipping bits. Here each
kind of file is taken apart, one thing in it is changed (a field, an element of a column, a word of a mapped page, the
order of batches, a name), and it is put together again with all the checksums it needs. `mutate` does one such change,
chosen by the chance it is given, and says which. `junk` has the values that parsers are known to trip over: numbers at
the borders of their types, wrong types, nesting without end, lengths that are not there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from streamlite import registry
from streamlite.compression import codec_by_id
from streamlite.files.memory import MemoryFile, MemoryFiles
from streamlite.format import (
    BATCH_COUNT_MAX,
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    MAGIC,
    OFFSET_MAX,
    PAYLOAD_BYTES_MAX,
    BadBatch,
    BatchHeader,
    IndexEntry,
    checksum,
    pack_entry,
    pack_header,
    segment_name,
    unpack_entries,
    unpack_header,
)
from tests.crash.faulty import file_at, walk_files

__all__ = ["CHANGES", "NUMBERS", "Batch", "batches", "blindly", "change_segment", "mutate", "packed"]

NUMBERS: Final = (
    0, 1, 2, 3, 7, 127, 128, 255, 256, 4096, 65_535, 65_536, BATCH_COUNT_MAX, BATCH_COUNT_MAX + 1, (1 << 31) - 1,
    1 << 31, PAYLOAD_BYTES_MAX, (1 << 32) - 1, 1 << 32, OFFSET_MAX - 1, OFFSET_MAX, OFFSET_MAX + 1, (1 << 63) - 1,
    1 << 63, (1 << 64) - 1, -1, -2, -128, -(1 << 31), -(1 << 62), -(1 << 63),
)  # fmt: skip
DEEP: Final = 3_000
"""Above CPython's usual limit of recursion, three times over."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Batch(NamedTuple):
    """A batch as it stands in a segment: its header, and its payload as it is stored."""

    header: BatchHeader
    payload: bytes


def batches(data: bytes) -> list[Batch]:
    """The leading batches of a segment."""
    found, at = [], 0
    while at + HEADER_BYTES <= len(data):
        try:
            header = unpack_header(data, at)
        except BadBatch:
            break
        found.append(Batch(header, bytes(data[at + HEADER_BYTES : at + header.total_bytes])))
        at += header.total_bytes
    return found


# What each field of the header can hold, in the order of `BatchHeader`.
_RANGES: Final = (
    (0, 1 << 8), (0, 1 << 8), (0, 1 << 8), (0, 1 << 32), (0, 1 << 32), (0, 1 << 32), (0, 1 << 32), (0, 1 << 64),
    (-(1 << 63), 1 << 63), (-(1 << 63), 1 << 63), (0, 1 << 64), (0, 1 << 32), (0, 1 << 32), (0, 1 << 64),
    (-(1 << 63), 1 << 63), (0, 1 << 64),
)  # fmt: skip


def packed(batch: Batch) -> bytes:
    """Its bytes, the checksum made to hold whatever the fields say."""
    return pack_header(batch.header, batch.payload) + batch.payload


# -- values ------------------------------------------------------------------------------------------------------------


def junk(chance: random.Random) -> Any:
    """A value that nobody wrote."""
    kind = chance.randrange(12)
    if kind < 5:
        return chance.choice(NUMBERS)
    return chance.choice(
        [
            None, True, 0.5, float("inf"), float("nan"), b"", b"\xff\xfe", chance.randbytes(9), "", "t", "../../x",
            "a/b", "\0", "x" * 300, [], {}, [None], [[]], [0, 1], {0: 0}, {"a": 1}, {0: 5, 1: 3}, *_RAW,
        ]
    )  # fmt: skip


_RAW: Final = tuple(
    msgspec.Raw(data)
    for data in (
        b"\x91" * DEEP + b"\xc0",  # arrays in arrays
        b"\x81\x00" * DEEP + b"\xc0",  # maps in maps
        b"\xdd\xff\xff\xff\xff",  # four billion elements, none of which are there
        b"\xdd\x00\x01\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",  # four billion bytes
        b"\xdb\x7f\xff\xff\xff",
        b"\xd4\x05\x00",  # an extension of somebody's
        b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a time that is none
        b"\xc1",  # never used
        b"\xa2\xff\xfe",  # a string that is no UTF-8
    )
)


def change_tree(chance: random.Random, tree: Any) -> Any:
    """The same tree of lists and dicts with one thing in it changed."""
    if isinstance(tree, dict) and tree and chance.random() < 0.8:
        key = chance.choice(list(tree))
        what = chance.randrange(6)
        if what == 0:
            return {name: value for name, value in tree.items() if name != key}
        if what == 1:
            return {(_hashable(chance) if name == key else name): value for name, value in tree.items()}
        return {name: change_tree(chance, value) if name == key else value for name, value in tree.items()}
    if isinstance(tree, (list, tuple)) and tree and chance.random() < 0.8:
        at = chance.randrange(len(tree))
        what = chance.randrange(8)
        if what == 0:
            return [*tree[:at], *tree[at + 1 :]]
        if what == 1:
            return [*tree[: at + 1], *tree[at:]]
        if what == 2:
            return [*tree, junk(chance)]
        if what == 3:
            return chance.sample(list(tree), len(tree))
        return [*tree[:at], change_tree(chance, tree[at]), *tree[at + 1 :]]
    if isinstance(tree, int) and not isinstance(tree, bool) and chance.random() < 0.5:
        return tree + chance.choice([-1, 1, 2, -2, 1000])
    if isinstance(tree, bytes) and tree and chance.random() < 0.6:
        return _inner(chance, tree)
    return junk(chance)


def _hashable(chance: random.Random) -> Any:
    return chance.choice([*NUMBERS, "x", "../../x", "\0", b"k", None])


def _inner(chance: random.Random, data: bytes) -> bytes:
    """Bytes that may be msgpack themselves, as keys and values of the internal topics are."""
    if chance.random() < 0.6:
        try:
            return encoded(change_tree(chance, _decode(data)))
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass
    return blindly(chance, data)


def encoded(tree: Any) -> bytes:
    """A tree in msgpack; what that has no room for becomes nil."""
    try:
        return _encode(tree)
    except (OverflowError, TypeError):
        return _encode(_fitting(tree))


def _fitting(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {_fitting(key): _fitting(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_fitting(one) for one in tree]
    return None if isinstance(tree, int) and not -(1 << 63) <= tree < 1 << 64 else tree


def blindly(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        what = chance.randrange(6)
        if what == 0:
            del changed[at : at + chance.randrange(1, 40)]
        elif what == 1:
            changed[at:at] = chance.choice([MAGIC, bytes(8), b"\xff" * 8, chance.randbytes(5), changed[:at][-50:]])
        elif what == 2 and chance.random() < 0.3:
            del changed[at:]
        elif changed:
            changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
    return bytes(changed)


# -- segments ----------------------------------------------------------------------------------------------------------


def change_segment(chance: random.Random, data: bytes) -> bytes:
    """One batch changed, or the run of batches."""
    found = batches(data)
    if not found:
        return blindly(chance, data)
    at = chance.randrange(len(found))
    what = chance.randrange(10)
    if what < 3:
        found[at] = change_header(chance, found[at])
    elif what < 7:
        found[at] = change_payload(chance, found[at])
    elif what == 7:
        found = chance.choice(
            [found[:at] + found[at + 1 :], found[: at + 1] + found[at:], found[::-1], [*found, found[at]]]
        )
    elif what == 8:
        found[at] = change_payload(chance, change_header(chance, found[at]))
    else:
        later = change_header(chance, found[-1])._replace(payload=found[at].payload)
        header = found[-1].header
        fixed = {"base_offset": header.next_offset, "length": len(later.payload)}
        found.append(later._replace(header=later.header._replace(**fixed)))
    whole = b"".join(map(packed, found))
    return whole if chance.random() < 0.9 else whole[: chance.randrange(len(whole) + 1)]


def change_header(chance: random.Random, batch: Batch) -> Batch:
    """Some fields changed, the others as they were."""
    header = list(batch.header)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        field = chance.randrange(len(header))
        low, high = _RANGES[field]
        near = [header[field] + step for step in (-1, 1, 2, 64)]
        header[field] = chance.choice([one for one in (*NUMBERS, *near, *near) if low <= one < high])
    return batch._replace(header=BatchHeader(*header))


def change_payload(chance: random.Random, batch: Batch) -> Batch:
    """Its columns changed, the lengths in its header made to agree, or, now and then, not."""
    header, payload = batch
    content = payload
    if header.compression:
        try:
            content = codec_by_id(header.compression).decompress(payload, 1 << 24)
        except ValueError:
            header = header._replace(compression=0)
    try:
        tree = _decode(content)
    except (msgspec.DecodeError, ValueError, RecursionError):
        tree = None
    content = (
        encoded(change_tree(chance, tree)) if tree is not None and chance.random() < 0.8 else blindly(chance, content)
    )
    payload = content
    if header.compression:
        if chance.random() < 0.1:
            content = chance.choice([bytes(1 << 20), content * 500])  # expands to much
        payload = codec_by_id(header.compression).compress(content)
        if chance.random() < 0.3:
            payload = blindly(chance, payload)
    size = len(content) if chance.random() < 0.9 else chance.choice([0, 1, len(content) + 1, PAYLOAD_BYTES_MAX])
    length = len(payload) if chance.random() < 0.95 else chance.choice([0, len(payload) + 1, len(payload) + 200])
    if not header.compression and chance.random() < 0.95:
        size = length
    return Batch(header._replace(length=length, content_bytes=size), payload)


# -- the other files ---------------------------------------------------------------------------------------------------


def change_index(chance: random.Random, data: bytes) -> bytes:
    entries = unpack_entries(data) or [IndexEntry(0, 0, 0)]
    at = chance.randrange(len(entries))
    fields = list(entries[at])
    field = chance.randrange(3)
    near = [fields[field] + step for step in (-1, 1, 128)]
    low, high = [(0, 1 << 64), (0, 1 << 64), (-(1 << 63), 1 << 63)][field]
    fields[field] = chance.choice([one for one in (*NUMBERS, *near, *near) if low <= one < high])
    entries[at] = IndexEntry(*fields)
    if chance.random() < 0.3:
        entries.insert(chance.randrange(len(entries) + 1), chance.choice(entries))
    return b"".join(map(pack_entry, entries)) + chance.choice([b"", b"", chance.randbytes(INDEX_ENTRY_BYTES - 1)])


def change_number(chance: random.Random, data: bytes) -> bytes:
    """`epoch` and `start`."""
    known = int.from_bytes(data[:8], "little")
    number = chance.choice([*(one for one in NUMBERS if one >= 0), known + 1, max(0, known - 1), known + 2])
    body = number.to_bytes(8, "little")
    return body + checksum(body).to_bytes(8, "little")


def change_clean(chance: random.Random, data: bytes) -> bytes:
    body = encoded(change_tree(chance, _decode(data[8:]))) if chance.random() < 0.9 else blindly(chance, data[8:])
    return checksum(body).to_bytes(8, "little") + body


def change_state(chance: random.Random, data: bytes) -> bytes:
    """The state of a group, which holds another msgpack message as bytes."""
    size = int.from_bytes(data[8:16], "little")
    body = data[16 : 16 + size]
    if chance.random() < 0.1:
        body = blindly(chance, body)
    else:
        body = encoded(
            change_tree(chance, change_tree(chance, _decode(body)) if chance.random() < 0.2 else _decode(body))
        )
    length = len(body) if chance.random() < 0.9 else chance.choice([one for one in NUMBERS if one >= 0])
    content = length.to_bytes(8, "little") + body
    return checksum(content[: 8 + length]).to_bytes(8, "little") + content


def change_topic(chance: random.Random, data: bytes) -> bytes:
    tree = change_tree(chance, msgspec.json.decode(data))
    try:
        changed = msgspec.json.encode(tree)
    except (OverflowError, ValueError, TypeError, msgspec.MsgspecError):
        changed = blindly(chance, data)
    if chance.random() < 0.1:
        changed = changed[:-1] + b',"more":' + b"[" * 100_000 + b"}"
    try:
        return msgspec.json.decode(changed, type=registry.TopicFile).encode()
    except (msgspec.DecodeError, ValueError, RecursionError):
        return changed


def change_identity(chance: random.Random, data: bytes) -> bytes:
    what = chance.randrange(4)
    if what == 0:
        return blindly(chance, data)
    if what == 1:
        return data[:-1] + b',"more":' + b"[" * 100_000 + b"}"
    try:
        return msgspec.json.encode(change_tree(chance, msgspec.json.decode(data)))
    except (OverflowError, ValueError, TypeError, msgspec.MsgspecError):
        return b"{}"


def change_words(chance: random.Random, file: MemoryFile) -> str:
    """Some words of a mapped page, more likely among those that say something."""
    view = file.maps[chance.choice(sorted(file.maps))].cast("Q")
    used = [at for at in range(len(view)) if view[at]] or [0]
    said = []
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.choice([chance.choice(used), min(chance.choice(used) + chance.randrange(-2, 3), len(view) - 1), 0])
        near = [(view[at] + step) % (1 << 64) for step in (-1, 1, 2, 4, 100)]
        view[at] = chance.choice([*(one for one in NUMBERS if one >= 0), *near])
        said.append(f"{at}={view[at]}")
    return " ".join(said)


CHANGES: Final[tuple[tuple[str, Callable[[random.Random, bytes], bytes]], ...]] = (
    (".log", change_segment),
    (".index", change_index),
    ("clean", change_clean),
    ("topic.json", change_topic),
    ("bus.json", change_identity),
    ("epoch", change_number),
    ("/start", change_number),
    ("state.0", change_state),
    ("state.1", change_state),
)
"""What is done to a file whose name ends so."""


def mutate(chance: random.Random, files: MemoryFiles) -> str:
    """Change one file of a directory; which, and how."""
    there = [(path, file) for path, file in walk_files(files._tree) if file is not None]
    mapped = [(path, file) for path, file in there if file.maps]
    known = [
        (path, change, file) for path, file in there for end, change in CHANGES if path.endswith(end) and file.data
    ]
    # As often of each kind, however many there are of it.
    kinds = sorted({path.rpartition("/")[2].rpartition(".")[2] for path, _, _ in known})
    what = chance.randrange(20)
    if what < 3 and mapped:
        path, file = chance.choice(mapped)
        return f"{path}: {change_words(chance, file)}"
    if what == 3:
        return rename_segment(chance, files)
    if what == 4:
        path, file = chance.choice([one for one in there if not one[1].maps])
        file.data[:] = blindly(chance, bytes(file.data))
        return f"{path}: blindly"
    kind = chance.choice(["log", "log", "log", *kinds])
    path, change, file = chance.choice([one for one in known if one[0].endswith(kind)])
    try:
        file.data[:] = change(chance, bytes(file.data))
    except (msgspec.MsgspecError, ValueError, RecursionError):  # it was changed before, and makes no sense any more
        file.data[:] = blindly(chance, bytes(file.data))
    return f"{path}: {change.__name__}"


def rename_segment(chance: random.Random, files: MemoryFiles) -> str:
    """A segment under another name, or under two."""
    logs = [path for path, file in walk_files(files._tree) if file is not None and path.endswith(".log")]
    path = chance.choice(logs)
    base = chance.choice([0, 1, 2, 3, 5, OFFSET_MAX - 1, OFFSET_MAX])
    name = segment_name(base, chance.choice([0, 1, base + 1, 20, OFFSET_MAX]), chance.choice([0, 1, 2, OFFSET_MAX]))
    to = f"{path.rpartition('/')[0]}/{name}.log"
    if to == path:
        return "nothing"
    if chance.random() < 0.5:
        files.rename(path, to)
        return f"{path} renamed to {to}"
    data = bytes(file_at(files, path).data)
    files.replace_file(to, data, sync=False)
    return f"{path} copied to {to}"
