"""Fixed structures: every field checked, every bit covered, nothing believed that does not add up."""

from __future__ import annotations

import struct

import pytest
import xxhash

from streamlite import format as fmt
from streamlite.errors import FormatError
from streamlite.format import (
    BATCH_COUNT_MAX,
    FLAG_COMPACTED,
    FLAG_TRANSACTION,
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    OFFSET_MAX,
    PAYLOAD_BYTES_MAX,
    BadBatch,
    IndexEntry,
    ShortBatch,
    pack_entry,
    pack_header,
    parse_segment_name,
    segment_name,
    unpack_entries,
    unpack_header,
    verify,
)
from tests.unit.batches import BASE_MS, batch_of, header_of

PAYLOAD = b"some payload"
HEADER = header_of(
    PAYLOAD,
    3,
    flags=FLAG_TRANSACTION,
    base_offset=1 << 40,
    max_timestamp=BASE_MS + 9,
    synced_upto=17,
    epoch=3,
    producer_epoch=4,
    producer_id=1 << 63,
    base_sequence=-1,
    transaction_id=(1 << 64) - 1,
)
BATCH = pack_header(HEADER, PAYLOAD) + PAYLOAD
ENTRIES = [IndexEntry(10, 70_000, -5), IndexEntry(20, 140_000, 7), IndexEntry(21, 210_000, 7)]
INDEX = b"".join(map(pack_entry, ENTRIES))


def test_a_header_comes_back_as_it_was() -> None:
    assert len(BATCH) == HEADER_BYTES + len(PAYLOAD) == HEADER.total_bytes
    assert unpack_header(BATCH) == HEADER
    assert verify(HEADER, BATCH) == PAYLOAD
    assert HEADER.next_offset == (1 << 40) + 3


def test_a_header_is_found_in_the_middle_of_bytes() -> None:
    data = memoryview(b"before" + BATCH + b"after")
    assert unpack_header(data, 6) == HEADER
    assert verify(HEADER, data, 6) == PAYLOAD


@pytest.mark.parametrize("size", range(len(BATCH)))
def test_a_batch_cut_anywhere_is_short(size: int) -> None:
    cut = BATCH[:size]
    with pytest.raises(ShortBatch) as caught:
        verify(unpack_header(cut), cut)
    assert caught.value.needed == (HEADER_BYTES if size < HEADER_BYTES else len(BATCH))


@pytest.mark.parametrize("at", range(len(BATCH)))
def test_no_flipped_bit_goes_unseen(at: int) -> None:
    for bit in range(8):
        damaged = bytearray(BATCH)
        damaged[at] ^= 1 << bit
        with pytest.raises(BadBatch):
            verify(unpack_header(damaged), damaged)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"length": PAYLOAD_BYTES_MAX + 1, "content_bytes": PAYLOAD_BYTES_MAX + 1}, "length"),
        ({"content_bytes": PAYLOAD_BYTES_MAX + 1, "compression": 2}, "length"),
        ({"length": PAYLOAD_BYTES_MAX + 1, "compression": 2}, "length"),
        ({"content_bytes": len(PAYLOAD) + 1}, "two lengths"),
        ({"count": 0}, "count"),
        ({"count": 0, "last_delta": 0}, "count"),
        ({"count": BATCH_COUNT_MAX + 1, "last_delta": BATCH_COUNT_MAX}, "count"),
        ({"last_delta": 1}, "count"),
        ({"last_delta": 3}, "gaps"),
        ({"last_delta": (1 << 32) - 1}, "gaps"),
        ({"flags": FLAG_COMPACTED, "last_delta": 1}, "count"),
        ({"base_offset": OFFSET_MAX}, "offset"),
        ({"base_offset": (1 << 64) - 1}, "offset"),
        ({"base_offset": OFFSET_MAX - 2}, "offset"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(changes: dict[str, int], why: str) -> None:
    with pytest.raises(BadBatch, match=why):
        unpack_header(pack_header(HEADER._replace(**changes), PAYLOAD))


@pytest.mark.parametrize(
    "changes",
    [
        {"length": PAYLOAD_BYTES_MAX, "content_bytes": PAYLOAD_BYTES_MAX},
        {"compression": 1, "content_bytes": PAYLOAD_BYTES_MAX},
        {"count": BATCH_COUNT_MAX, "last_delta": BATCH_COUNT_MAX - 1},
        {"flags": FLAG_COMPACTED, "last_delta": (1 << 32) - 1},
        {"base_offset": OFFSET_MAX - 3},
        {"base_timestamp": -(1 << 63), "max_timestamp": (1 << 63) - 1},
        {"encoding": fmt.ENCODING_KAFKA},
    ],
)
def test_a_header_at_a_limit_is_taken(changes: dict[str, int]) -> None:
    header = HEADER._replace(**changes)
    assert unpack_header(pack_header(header, PAYLOAD)) == header


def test_what_is_no_batch_is_said_to_be_none() -> None:
    with pytest.raises(BadBatch, match="no batch begins here"):
        unpack_header(bytes(HEADER_BYTES))
    newer = bytearray(BATCH)
    newer[4] = 2
    with pytest.raises(BadBatch, match="version 2, this release knows 1"):
        unpack_header(newer)


def test_index_entries_come_back_as_they_were() -> None:
    assert len(INDEX) == len(ENTRIES) * INDEX_ENTRY_BYTES
    assert unpack_entries(INDEX) == ENTRIES


@pytest.mark.parametrize("size", range(len(INDEX)))
def test_a_torn_index_has_its_whole_entries(size: int) -> None:
    assert unpack_entries(INDEX[:size]) == ENTRIES[: size // INDEX_ENTRY_BYTES]


@pytest.mark.parametrize("at", range(len(INDEX)))
def test_entries_are_trusted_up_to_the_first_damaged_one(at: int) -> None:
    damaged = bytearray(INDEX)
    damaged[at] ^= 0x10
    assert unpack_entries(bytes(damaged)) == ENTRIES[: at // INDEX_ENTRY_BYTES]


@pytest.mark.parametrize(
    "entry",
    [
        IndexEntry(20, 150_000, 7),
        IndexEntry(19, 150_000, 7),
        IndexEntry(30, 140_000, 7),
        IndexEntry(30, 130_000, 7),
        IndexEntry(30, 150_000, 6),
        IndexEntry(OFFSET_MAX + 1, 150_000, 7),
        IndexEntry(30, OFFSET_MAX + 1, 7),
        IndexEntry((1 << 64) - 1, (1 << 64) - 1, 7),
    ],
)
def test_an_entry_that_does_not_rise_or_cannot_be_ends_the_index(entry: IndexEntry) -> None:
    data = INDEX[: 2 * INDEX_ENTRY_BYTES] + pack_entry(entry) + pack_entry(IndexEntry(40, 900_000, 100))
    assert unpack_entries(data) == ENTRIES[:2]


def test_a_hole_in_a_file_is_no_entry() -> None:
    assert unpack_entries(bytes(10 * INDEX_ENTRY_BYTES)) == []


@pytest.mark.parametrize(
    ("parts", "stem"),
    [
        ((0, 0, 0), "00000000000000000000"),
        ((42, 0, 0), "00000000000000000042"),
        ((42, 100, 3), "00000000000000000042-00000000000000000100.3"),
        ((0, 1, 12), "00000000000000000000-00000000000000000001.12"),
        ((OFFSET_MAX, 0, 0), "04611686018427387904"),
    ],
)
def test_segment_names_come_back_as_they_were(parts: tuple[int, int, int], stem: str) -> None:
    assert segment_name(*parts) == stem
    assert parse_segment_name(stem) == parts


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "lock",
        "0",
        "0000000000000000042",
        "000000000000000000042",
        "0000000000000000004x",
        "-0000000000000000042",
        "+0000000000000000042",
        "00000000000000000042.0",
        "00000000000000000042.3",
        "00000000000000000042-00000000000000000100",
        "00000000000000000042-00000000000000000100.0",
        "00000000000000000042-00000000000000000100.03",
        "00000000000000000042-00000000000000000100.-1",
        "00000000000000000042-100.3",
        "00000000000000000042-00000000000000000042.3",
        "00000000000000000042-00000000000000000041.3",
        "٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٤٢",
        "99999999999999999999",
        "18446744073709551615",
        "00000000000000000042-99999999999999999999.1",
    ],
)
def test_other_names_are_no_segments(stem: str) -> None:
    assert parse_segment_name(stem) is None


@pytest.mark.parametrize("version", [2, 0, None, "1", [1]])
def test_another_format_is_refused(version: object) -> None:
    with pytest.raises(FormatError, match="this release reads and writes 1"):
        fmt.check_format(version)


def test_the_present_format_is_taken() -> None:
    fmt.check_format(fmt.FORMAT_VERSION)


def test_the_checksum_is_xxh3() -> None:
    assert fmt.checksum(b"abc") == xxhash.xxh3_64_intdigest(b"abc") == fmt.checksum(memoryview(b"abc"))


def test_a_batch_is_followed_by_the_next() -> None:
    data = batch_of([b"a"]) + batch_of([b"b", b"c"], base_offset=1)
    first = unpack_header(data)
    second = unpack_header(data, first.total_bytes)
    assert (first.next_offset, second.base_offset, second.next_offset) == (1, 1, 3)
    assert first.total_bytes + second.total_bytes == len(data)


def test_a_forged_length_is_refused_before_anything_is_allocated() -> None:
    forged = bytearray(BATCH)
    struct.pack_into("<II", forged, 8, 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(BadBatch, match="impossible length"):
        unpack_header(forged)
